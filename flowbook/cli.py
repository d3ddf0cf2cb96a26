"""The command line: ``flowbook train RECIPE``; ``sample``, ``score``, ``pairs``, ``distill``, ``export CHECKPOINT``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of use end with one line and exit status 2, those of files with one and status 1.

    Status 75 is a training that SIGTERM has stopped: the same command goes on with it.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command in ("train", "distill", "bench") and not any(word.startswith("-") for word in rest):
        options.overrides += rest  # those that come after an option; argparse takes only those before it
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status: int = options.run(options)
    except SystemExit as stopped:  # SIGTERM: the run is safe, and the scheduler may start it again
        print(f"flowbook {options.command}: {stopped}", file=sys.stderr)
        raise
    except (ValueError, TypeError, FileNotFoundError, RuntimeError, FloatingPointError, MemoryError) as error:
        print(f"flowbook {options.command}: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:
        print(f"flowbook {options.command}: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flowbook", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train what a recipe says; continues a run that was interrupted")
    train.add_argument("recipe", help="the name of a recipe (see `flowbook recipes`) or a YAML file")
    train.add_argument("overrides", nargs="*", help="section.key=value, for example train.steps=100")
    train.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    train.add_argument("--fresh", action="store_true", help="refuse to continue a run that is there")
    train.set_defaults(run=_train)

    sample = commands.add_parser("sample", help="draw samples from a checkpoint, into a grid or a folder of shards")
    sample.add_argument("checkpoint", help="folder of a run or checkpoint, or the name of shipped weights (mnist)")
    sample.add_argument(
        "--out", type=Path, default=Path("samples.png"),
        help="an image file, for a grid; a name without an ending is a folder of images as bytes, which goes on if "
        "stopped and which processes share",
    )  # fmt: skip
    sample.add_argument(
        "--n", type=int, default=10,
        help="in a grid, samples per label, or in all without labels; in a folder, in all, with labels as frequent as "
        "in the data",
    )  # fmt: skip
    sample.add_argument("--labels", type=int, nargs="*", help="default: every label")
    sample.add_argument(
        "--method", default="midpoint", help="of solve; for models that learned diffusion also ddpm, ddim"
    )
    sample.add_argument("--steps", type=int, default=25, help="steps of a fixed-step method")
    sample.add_argument("--guidance", type=float, default=1.0)
    sample.add_argument("--seed", type=int, default=0)
    _add_device(sample)
    _add_many(sample)
    sample.set_defaults(run=_sample)

    score = commands.add_parser("score", help="class accuracy and Frechet distance of digits, as JSON")
    score.add_argument("checkpoint", help="folder of a run or checkpoint, or the name of shipped weights (mnist)")
    score.add_argument("--n", type=int, default=10_000, help="samples, with labels as frequent as in the data")
    score.add_argument("--method", default="midpoint")
    score.add_argument("--steps", type=int, default=12)
    score.add_argument("--guidance", type=float, default=1.0)
    score.add_argument("--seed", type=int, default=0)
    _add_device(score)
    score.set_defaults(run=_score)

    pairs = commands.add_parser("pairs", help="noise and what a checkpoint makes of it, for Reflow; goes on if stopped")
    pairs.add_argument("checkpoint", help="folder of a run or checkpoint, or the name of shipped weights (mnist)")
    pairs.add_argument("--out", type=Path, required=True, help="folder of the pairs")
    pairs.add_argument("--n", type=int, default=50_000, help="pairs, with labels as frequent as in the data")
    pairs.add_argument("--method", default="dopri5")
    pairs.add_argument("--steps", type=int, help="steps of a fixed-step method")
    pairs.add_argument("--tolerance", type=float, default=1e-5, help="rtol and atol of an adaptive method")
    pairs.add_argument("--guidance", type=float, default=1.0)
    pairs.add_argument("--seed", type=int, default=0)
    _add_device(pairs)
    _add_many(pairs)
    pairs.set_defaults(run=_pairs)

    distill = commands.add_parser("distill", help="train a student that needs few steps, from a checkpoint's pairs")
    distill.add_argument("checkpoint", help="the teacher, whose weights the student starts from")
    distill.add_argument("overrides", nargs="*", help="section.key=value of the recipe `distill`")
    distill.add_argument("--pairs", type=Path, required=True, help="folder made by `flowbook pairs`")
    distill.add_argument("--steps", type=int, default=1, help="Euler steps that the student shall need")
    distill.add_argument("--out", type=Path, required=True, help="folder of the run")
    distill.add_argument("--fresh", action="store_true", help="refuse to continue a run that is there")
    distill.set_defaults(run=_distill)

    export = commands.add_parser("export", help="write a checkpoint's averaged weights as one small file")
    export.add_argument("checkpoint", help="folder of a run or checkpoint")
    export.add_argument("out", type=Path, help="the file, ....safetensors")
    export.set_defaults(run=_export)

    bench = commands.add_parser("bench", help="time a recipe's training on this machine, on random numbers")
    bench.add_argument("recipe", help="the name of a recipe (see `flowbook recipes`) or a YAML file")
    bench.add_argument("overrides", nargs="*", help="section.key=value, for example train.batch_size=64")
    bench.add_argument("--steps", type=int, default=10, help="steps that are timed")
    bench.set_defaults(run=_bench)

    recipes = commands.add_parser("recipes", help="list the recipes of the package")
    recipes.set_defaults(run=_recipes)
    return parser


def _add_many(command: argparse.ArgumentParser) -> None:
    """What folders of shards are made with."""
    command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network, in folders")
    command.add_argument("--compile", action="store_true", help="torch.compile the network, in folders")
    command.add_argument("--batch-size", type=int, default=250, help="solved at once, in folders")
    command.add_argument("--shard-size", type=int, default=1000, help="rows of a shard of a folder")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", choices=("cpu", "auto"), default="cpu", help="auto: the accelerator if there is one"
    )


def _say(text: str) -> None:
    """One of a run's processes speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def _train(options: argparse.Namespace) -> int:
    from flowbook.training import recipes

    recipe = recipes.read(options.recipe, options.overrides)
    _say(recipes.announce(recipe))
    out = options.out or Path("runs") / Path(options.recipe).stem
    result = recipes.run(recipe, out, resume=not options.fresh)
    _say(f"{result.step} steps, last checkpoint {result.checkpoint}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from flowbook.training import recipes
    from flowbook.training.speed import bench

    print(bench(recipes.read(options.recipe, options.overrides), steps=options.steps))
    return 0


def _load(checkpoint: str) -> Any:
    from flowbook.training import recipes

    return recipes.load_velocity(checkpoint)


def _load_images(checkpoint: str) -> tuple[Any, Any]:
    """A velocity on images, and its network: the same, unless that learned diffusion."""
    from flowbook.models import Classifier

    velocity = _load(checkpoint)
    network = getattr(velocity, "network", velocity)
    if not hasattr(network, "size") or isinstance(network, Classifier):
        raise ValueError(f"checkpoint: expected a model of images that draws them; got {type(network).__name__}")
    return velocity, network


def _sample(options: argparse.Namespace) -> int:
    import torch
    from PIL import Image
    from torchvision.utils import make_grid, save_image

    from flowbook import _validate
    from flowbook.flow_matching import guided

    _validate.positive_int("--n", options.n)
    if not options.out.suffix:
        return _sample_folder(options)
    if Image.registered_extensions().get(options.out.suffix.lower()) not in Image.SAVE:
        raise ValueError(
            f"--out: expected an image file, such as samples.png, or a folder, which has no ending; got {options.out}"
        )
    if options.labels == []:
        raise ValueError("--labels: expected at least one label after it, for example --labels 7 1; got none")
    velocity, network = _load_images(options.checkpoint)
    velocity, device = _place(velocity, options.device)
    classes = getattr(network, "num_classes", None)
    generator = torch.Generator().manual_seed(options.seed)
    y = None
    count = options.n
    if classes is not None:
        labels = list(range(classes)) if options.labels is None else options.labels
        _validate.labels("--labels", torch.tensor(labels), len(labels), classes=classes)
        y = torch.tensor(labels).repeat_interleave(options.n)
        count = len(y)
    elif options.labels is not None:
        raise ValueError("--labels: this model was trained without labels")
    field = velocity
    if options.guidance != 1.0:
        if classes is None:
            raise ValueError("--guidance: this model was trained without labels")
        field = guided(velocity, options.guidance, classes)
    x0 = torch.randn(count, network.channels, network.size, network.size, generator=generator)
    images, nfe = _draw(field, x0.to(device), None if y is None else y.to(device), options, generator)
    grid = make_grid(images.cpu().clamp(-1, 1), nrow=options.n, normalize=True, value_range=(-1, 1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid, options.out)
    print(f"{count} samples, {nfe} evaluations each, in {options.out}")
    return 0


def _draw(velocity: Any, x0: Any, y: Any, options: argparse.Namespace, generator: Any) -> tuple[Any, int]:
    """Samples and evaluations, by a solver or, from a model that learned diffusion, by one of diffusion's own ways."""
    from flowbook import solvers
    from flowbook.diffusion import ProbabilityFlow, ddim_sample, ddpm_sample

    if options.method not in ("ddpm", "ddim"):
        steps = options.steps if options.method in solvers.FIXED else None
        solution = solvers.sample(velocity, x0, y=y, method=options.method, steps=steps)
        return solution.x, solution.nfe
    if not isinstance(velocity, ProbabilityFlow):
        raise ValueError(
            f"--method {options.method}: expected a checkpoint that learned diffusion, and no --guidance; got "
            f"{type(velocity).__name__}"
        )
    model, schedule, settings = velocity.model, velocity.schedule, {"y": y, "clip": 1.0, "generator": generator}
    if options.method == "ddpm":
        return ddpm_sample(model, x0, schedule, **settings), schedule.steps
    drawn = ddim_sample(model, x0, schedule, options.steps, **settings)
    return drawn, options.steps


def _score(options: argparse.Namespace) -> int:
    import dataclasses
    import json

    from flowbook import models, scores, solvers

    velocity, network = _load_images(options.checkpoint)
    judge, reference = models.load_classifier("mnist"), models.load_moments("mnist")["test"]
    ours, wanted = ((model.channels, model.size, model.size, model.num_classes) for model in (network, judge))
    if ours != wanted:
        raise ValueError(
            f"checkpoint: expected a model of MNIST's digits, (channels, height, width, classes) = {wanted}; got {ours}"
        )
    steps = options.steps if options.method in solvers.FIXED else None
    counts = json.loads(models.pretrained.asset("mnist_floor.json").read_text())["class_counts_train"]
    result = scores.score_velocity(
        _place(velocity, options.device)[0], judge, reference, n=options.n, guidance=options.guidance,
        method=options.method, steps=steps, seed=options.seed, class_counts=counts,
    )  # fmt: skip
    print(json.dumps(dataclasses.asdict(result), indent=2))
    return 0


def _sample_folder(options: argparse.Namespace) -> int:
    from flowbook import solvers
    from flowbook.samples import generate_images

    if options.method in ("ddpm", "ddim"):
        raise ValueError(f"--method {options.method}: a folder is drawn by a solver; expected midpoint, say")
    if options.labels is not None:
        raise ValueError("--labels: a folder has labels as frequent as in the data; got some for a grid")
    _load_images(options.checkpoint)  # says what is wrong with another model
    velocity, shape, y = _source_of_many(options)
    steps = options.steps if options.method in solvers.FIXED else None
    made = generate_images(
        velocity, shape, options.n, options.out, y=y, batch_size=options.batch_size, seed=options.seed,
        method=options.method, steps=steps, shard_size=options.shard_size,
    )  # fmt: skip
    print(f"{len(made)} images, {made.nfe:g} evaluations each, in {options.out}")
    return 0


def _pairs(options: argparse.Namespace) -> int:
    from flowbook.pairs import generate_pairs

    velocity, shape, y = _source_of_many(options)
    made = generate_pairs(
        velocity, shape, options.n, options.out, y=y, batch_size=options.batch_size, seed=options.seed,
        method=options.method, steps=options.steps, rtol=options.tolerance, atol=options.tolerance,
        shard_size=options.shard_size,
    )  # fmt: skip
    print(f"{len(made)} pairs, {made.nfe:g} evaluations each, in {options.out}")
    return 0


def _source_of_many(options: argparse.Namespace) -> tuple[Any, tuple[int, ...], Any]:
    """The velocity on its device, in its precision and guided; the shape of its noise; labels as in its data."""

    from flowbook import _validate, models, scores
    from flowbook.flow_matching import guided

    _validate.positive_int("--n", options.n)
    velocity, _ = _place(_load(options.checkpoint), options.device)
    network = getattr(velocity, "network", velocity)
    if hasattr(network, "dim"):
        shape: tuple[int, ...] = (network.dim,)
    else:
        _, network = _load_images(options.checkpoint)
        shape = (network.channels, network.size, network.size)
    classes, y = getattr(network, "num_classes", None), None
    if classes is not None:
        y = scores.labels_like(_class_counts(options.checkpoint, classes), options.n)
    if options.precision == "bf16":
        velocity = models.Autocast(velocity)
    if options.guidance != 1.0:
        if classes is None:
            raise ValueError("--guidance: this model was trained without labels")
        velocity = guided(velocity, options.guidance, classes)
    if options.compile:
        velocity = models.Compiled(velocity, options.batch_size)
    return velocity, shape, y


def _place(velocity: Any, device: str) -> tuple[Any, Any]:
    """The velocity on the device that was asked for, and the device."""
    import torch

    from flowbook._model import device_of

    if device == "auto" and torch.accelerator.is_available():
        if "LOCAL_RANK" in os.environ:  # one accelerator for each of torchrun's processes
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        velocity = velocity.to(torch.accelerator.current_accelerator(), memory_format=torch.channels_last)
    return velocity, device_of(velocity)


def _class_counts(checkpoint: str, classes: int) -> list[int]:
    """How often each class occurs in the training data, where that is known to differ: MNIST."""
    import json

    from flowbook import models
    from flowbook.training import checkpoint as checkpoints

    name = checkpoint
    if checkpoint not in models.PRETRAINED:
        recipe = checkpoints.read(checkpoints.locate(checkpoint)).recipe or {}
        name = recipe.get("data", {}).get("name")
    if name == "mnist":
        counts: list[int] = json.loads(models.pretrained.asset("mnist_floor.json").read_text())["class_counts_train"]
        return counts
    return [1] * classes


def _distill(options: argparse.Namespace) -> int:
    from flowbook import _validate, models
    from flowbook.training import recipes

    _validate.positive_int("--steps", options.steps)
    teacher = _load(options.checkpoint)
    model = models.describe(teacher)
    if model is None:
        raise ValueError(
            f"checkpoint: expected a velocity of flowbook's, for a student to start from; got {type(teacher).__name__}"
        )
    recipe = recipes.read("distill")
    recipe["model"] = {"name": model["name"], **model["arguments"]}
    recipe["init"] = {"checkpoint": options.checkpoint}
    recipe["data"]["root"] = str(options.pairs)
    recipe["loss"]["times"] = "t0" if options.steps == 1 else options.steps
    recipe = recipes.override(recipe, options.overrides)
    result = recipes.run(recipe, options.out, resume=not options.fresh)
    _say(f"{result.step} steps, last checkpoint {result.checkpoint}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from flowbook import models, training
    from flowbook.models import pretrained
    from flowbook.training import checkpoint as checkpoints

    if options.checkpoint in models.PRETRAINED and not Path(options.checkpoint).exists():
        raise ValueError(
            f"checkpoint: expected the folder of a run or checkpoint; {options.checkpoint!r} names weights that are "
            "exported already"
        )
    path = checkpoints.locate(options.checkpoint)
    stored = checkpoints.read(path)
    pretrained.export(training.load(path), options.out, step=stored.step, recipe=stored.recipe)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from flowbook.training import recipes

    print("\n".join(recipes.names()))
    return 0
