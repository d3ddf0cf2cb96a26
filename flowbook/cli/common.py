"""What several commands share: their arguments, the model of a checkpoint, its device."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from flowbook._core.shards import Shards

CHECKPOINT = "folder of a run or checkpoint, an exported file, or the name of shipped weights (mnist)"


FOLDER: dict[str, Any] = {"precision": "fp32", "compile": False, "batch_size": 250, "shard_size": 1000}
"""The options for folders, with their defaults."""


def path(text: str) -> Path:
    """A path of a command line, with ``~`` for home, also where the shell leaves it.

    Example:
        >>> path("~/x").is_absolute()
        True
    """
    return Path(text).expanduser()


def add_solver(command: argparse.ArgumentParser, default: str, also: str = "") -> None:
    """Add the option for the solver, given as a string."""
    command.add_argument(
        "--solver",
        default=default,
        help=f"method:name=value,...: rk4:steps=10, midpoint:grid=0/0.5/1, dopri5:rtol=1e-6,atol=1e-6{also} "
        f"(default: {default})",
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """Add the option for the model's device."""
    command.add_argument(
        "--device", default="cpu", help="cpu; auto, the accelerator if there is one; or one of them, such as cuda:1"
    )


def add_draws(command: argparse.ArgumentParser) -> None:
    """Add the options for guidance and noise."""
    command.add_argument("--guidance", type=float, default=1.0, help="scale of classifier-free guidance; 1 is none")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise")


def add_conditions(command: argparse.ArgumentParser, what: str) -> None:
    """Add the option for a file of conditions."""
    command.add_argument(
        "--conditions", type=path, help=f"a file .npz, .safetensors or .pt with arrays y or y.NAME: {what}"
    )


def add_folder(command: argparse.ArgumentParser) -> None:
    """Add the options for folders of shards."""
    command.add_argument("--precision", choices=("fp32", "bf16"), help="network precision (folders only)")
    command.add_argument("--compile", action="store_true", help="torch.compile the network (folders only)")
    command.add_argument("--batch-size", type=int, help="samples solved at once (folders only)")
    command.add_argument("--shard-size", type=int, help="rows per shard (folders only)")
    command.set_defaults(**FOLDER)


def say(text: str) -> None:
    """Print on the first of a run's processes only."""
    if os.environ.get("RANK", "0") == "0":
        try:
            print(text, flush=True)
        except BrokenPipeError:  # the reader of a pipe has seen enough; the training goes on
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


def train_recipe(recipe: Any, options: argparse.Namespace, out: Any, extend: Sequence[str] = ()) -> int:
    """Train a recipe into a folder, with a bar in a terminal and plain lines elsewhere."""
    from flowbook import recipes

    progress: Any = None if sys.stderr.isatty() else "lines"
    result = recipes.run(recipe, out, resume=not options.fresh, progress=progress, extend=extend)
    say(f"{result.step} steps, last checkpoint {result.checkpoint}")
    return 0


class ImageModel(NamedTuple):
    """A velocity on images, and its network: the same object, except for a diffusion model."""

    velocity: Any
    network: Any


def load_images(checkpoint: str) -> ImageModel:
    """A checkpoint's generative model of images; raises for any other model."""
    from flowbook.models import Classifier
    from flowbook.training import load

    velocity = load(checkpoint)
    network = getattr(velocity, "network", velocity)
    if not hasattr(network, "size") or isinstance(network, Classifier):
        raise ValueError(f"checkpoint: expected a generative model of images; got {type(network).__name__}")
    return ImageModel(velocity, network)


def place(velocity: Any, device: str) -> Any:
    """The velocity on the requested device."""
    import torch

    from flowbook.training import TrainConfig
    from flowbook.training.precision import choose_device

    if device == "auto" and "LOCAL_RANK" in os.environ and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))  # one for each of torchrun's processes
    chosen = choose_device(TrainConfig(device=device))
    return velocity if chosen.type == "cpu" else velocity.to(chosen, memory_format=torch.channels_last)


def guide(velocity: Any, guidance: float, y: Any) -> Any:
    """The velocity, under guidance if the scale is not 1."""
    from flowbook.guidance import guided
    from flowbook.velocity import said_by

    if guidance == 1.0:
        return velocity
    if said_by(velocity, "null") is None:
        raise ValueError("--guidance: this model was trained without labels or other conditions")
    if y is None:
        raise ValueError("--guidance: expected conditions to guide toward; give them by --conditions")
    return guided(velocity, guidance)


def conditions_of(options: argparse.Namespace, network: Any) -> Any:
    """The conditions of the file that the options name, for a model that takes some; None without a file."""
    from flowbook import data
    from flowbook.condition import check_condition, rows_of

    if options.conditions is None:
        return None
    if getattr(network, "null", None) is None:
        raise ValueError("--conditions: this model was trained without labels or other conditions")
    y = data.condition(options.conditions)
    check_condition("--conditions", y, rows_of(y), network)
    return y


class ManyRows(NamedTuple):
    """What a folder of rows is generated from."""

    velocity: Any
    shape: tuple[int, ...]
    y: Any


def source_of_rows(options: argparse.Namespace) -> ManyRows:
    """The velocity on its device, in its precision and guided; the shape of its noise; labels as in its data."""
    import torch

    from flowbook import metrics, models, recipes
    from flowbook._core import validate
    from flowbook._core.tree import map_condition
    from flowbook.condition import rows_of
    from flowbook.training import load

    validate.positive_int("--n", options.n)
    velocity = place(load(options.checkpoint), options.device)
    network = getattr(velocity, "network", velocity)
    if not hasattr(network, "dim"):
        network = load_images(options.checkpoint).network  # raises for another model, with the reason
    y = conditions_of(options, network)
    if y is not None:  # again and again
        order = torch.arange(options.n, device="cpu") % rows_of(y)
        y = map_condition(lambda part: part[order], y)
    elif getattr(network, "kinds", ()) == ("label",):
        y = metrics.labels_like(class_counts(options.checkpoint, network.num_classes), options.n)
    if options.precision == "bf16":
        velocity = models.Autocast(velocity)
    velocity = guide(velocity, options.guidance, y)
    if options.compile:
        velocity = models.Compiled(velocity, options.batch_size)
    return ManyRows(velocity, recipes.sample_shape(network), y)


def fill_folder(options: argparse.Namespace, generate: Callable[..., Shards]) -> Shards:
    """The folder that ``generate``, :func:`generate_pairs` or :func:`generate_images`, fills as the options say."""
    from flowbook.solvers import Solver

    velocity, shape, y = source_of_rows(options)
    return generate(
        velocity,
        shape,
        options.n,
        options.out,
        y=y,
        seed=options.seed,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        solver=Solver.parse(options.solver),
    )


def own_counts(recipe: Any, classes: int) -> list[int]:
    """How often each class occurs in the data of a run; equally often, with a note, where they are gone."""
    import warnings

    import torch

    from flowbook import data, recipes

    try:
        source = recipes.build_data({**recipe, "data": {**recipe["data"], "standardize": False}})
    except (OSError, ValueError) as error:
        warnings.warn(f"the classes are drawn equally often, since their data cannot be read: {error}", stacklevel=2)
        return [1] * classes
    labels: Any = (
        getattr(source, "targets", None) if recipe["data"]["name"] == "image_folder" else data.labels_of(source)
    )
    if labels is None:
        return [1] * classes
    counts: list[int] = torch.as_tensor(labels).clamp_min(0).bincount(minlength=classes).tolist()
    return counts


def class_counts(checkpoint: str, classes: int) -> list[int]:
    """How often each class occurs in the training data, where that is known to differ between classes: MNIST."""
    import json
    from pathlib import Path

    from flowbook import models
    from flowbook.training import checkpoint as checkpoints

    name: Any = checkpoint
    if Path(checkpoint).expanduser().is_dir():
        recipe = checkpoints.read(checkpoints.locate(Path(checkpoint).expanduser())).recipe or {}
        name = recipe.get("data", {}).get("name")
        if name in ("image_folder", "tensors"):
            return own_counts(recipe, classes)
    if name == "mnist":
        counts: list[int] = json.loads(models.asset("mnist_floor.json").read_text())["class_counts_train"]
        return counts
    return [1] * classes
