"""``flowbook sample``: a grid of samples, or a folder of many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from flowbook.cli.common import (
    CHECKPOINT,
    FOLDER,
    add_conditions,
    add_device,
    add_draws,
    add_folder,
    add_solver,
    conditions_of,
    fill_folder,
    guide,
    load_images,
    path,
    place,
    source_of_rows,
)


def add(commands: Any) -> None:
    command = commands.add_parser("sample", help="draw samples from a checkpoint, into a grid or a folder of shards")
    command.add_argument("checkpoint", help=CHECKPOINT)
    command.add_argument(
        "--out",
        type=path,
        default=Path("samples.png"),
        help="an image file, for a grid; a name without an extension is a folder of images as bytes, which resumes if "
        "stopped and may be shared by several processes",
    )
    command.add_argument(
        "--n",
        type=int,
        default=10,
        help="in a grid, samples per label, or in all without labels; in a folder, in all, with labels as frequent as "
        "in the data",
    )
    command.add_argument("--labels", nargs="*", help="labels of a grid, or names of classes (default: every label)")
    add_solver(command, "midpoint:steps=25", also="; for a diffusion model also ddpm, ddim:steps=50")
    add_draws(command)
    add_conditions(command, "in a grid --n samples for each, a row each; in a folder one for each, in order, and again")
    add_device(command)
    add_folder(command)
    command.add_argument(
        "--format", choices=("shards", "png"), help="of a folder: shards (default), for Python, or png, a file each"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook._core import validate

    validate.positive_int("--n", options.n)
    return _grid(options) if options.out.suffix else _folder(options)


def _grid(options: argparse.Namespace) -> int:
    import torch
    from PIL import Image
    from torchvision.utils import make_grid, save_image

    from flowbook._core.tree import map_condition
    from flowbook.condition import rows_of

    if Image.registered_extensions().get(options.out.suffix.lower()) not in Image.SAVE:
        raise ValueError(
            f"--out: expected an image file, such as samples.png, or a folder without an extension; got {options.out}"
        )
    if options.format is not None:
        raise ValueError(f"--format: is for folders; got it with a grid, --out {options.out}")
    for name, default in FOLDER.items():
        if getattr(options, name) != default:
            raise ValueError(f"--{name.replace('_', '-')}: is for folders; got it with a grid, --out {options.out}")
    if options.labels == []:
        raise ValueError("--labels: expected at least one label after it, for example --labels 7 1; got none")
    velocity, network = load_images(options.checkpoint)
    velocity = place(velocity, options.device)
    y = _conditions(options, network)
    generator = torch.Generator().manual_seed(options.seed)
    count = options.n if y is None else rows_of(y)
    x0 = torch.randn(count, *network.shape, generator=generator, device="cpu")
    device = next(velocity.parameters()).device
    drawn = _draw(
        guide(velocity, options.guidance, y),
        x0.to(device),
        map_condition(lambda part: part.to(device), y),
        options.solver,
        generator,
    )
    grid = make_grid(drawn.images.cpu().clamp(-1, 1), nrow=options.n, normalize=True, value_range=(-1, 1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid, options.out)
    print(f"{count} samples, {drawn.nfe} evaluations each, in {options.out}")
    return 0


def _files(options: argparse.Namespace) -> int:
    from flowbook.data import generate_files
    from flowbook.solvers import Solver

    if options.shard_size != FOLDER["shard_size"]:
        raise ValueError("--shard-size: is for --format shards; got it with png")
    velocity, shape, y = source_of_rows(options)
    written = generate_files(
        velocity, shape, options.n, options.out, y=y, seed=options.seed, batch_size=options.batch_size,
        solver=Solver.parse(options.solver),
    )  # fmt: skip
    print(f"{options.n} images in {options.out}, {written} of them new")
    return 0


def _conditions(options: argparse.Namespace, network: Any) -> Any:
    """The condition of each sample of a grid."""
    from flowbook._core.tree import map_condition

    given = conditions_of(options, network)
    if given is None:
        classes = network.num_classes if getattr(network, "kinds", ()) == ("label",) else None
        return _labels(options, classes, getattr(network, "classes", None) or [])
    if options.labels is not None:
        raise ValueError("--labels: expected either labels or --conditions; got both")
    return map_condition(lambda part: part.repeat_interleave(options.n, dim=0), given)


def _labels(options: argparse.Namespace, classes: int | None, names: list[str]) -> Any:
    import torch

    from flowbook._core import validate

    if classes is None:
        if options.labels is not None:
            raise ValueError("--labels: this model was trained without labels")
        return None
    labels = list(range(classes)) if options.labels is None else [_label(word, names) for word in options.labels]
    validate.labels("--labels", torch.tensor(labels), len(labels), classes=classes)
    return torch.tensor(labels).repeat_interleave(options.n)


def _label(word: str, names: list[str]) -> int:
    if word in names:
        return names.index(word)
    if word.lstrip("-").isdigit() and not any(name.isdigit() for name in names):  # which would mean either
        return int(word)
    known = f" or one of {', '.join(names)}" if names else ""
    raise ValueError(f"--labels: expected numbers{known}; got {word!r}")


class _Drawn(NamedTuple):
    images: Any
    nfe: int


def _draw(velocity: Any, x0: Any, y: Any, solver: str, generator: Any) -> _Drawn:
    """Samples, by a solver or, for a diffusion model, by a diffusion sampler."""
    from flowbook.diffusion import ProbabilityFlow, ddim_sample, ddpm_sample
    from flowbook.solvers import Solver, sample

    name, _, steps = solver.partition(":")
    if name not in ("ddpm", "ddim"):
        solution = sample(velocity, x0, y=y, solver=Solver.parse(solver))
        return _Drawn(solution.x, solution.nfe)
    if not isinstance(velocity, ProbabilityFlow):
        raise ValueError(
            f"--solver {name}: expected the checkpoint of a diffusion model, and no --guidance; got "
            f"{type(velocity).__name__}"
        )
    model, schedule = velocity.model, velocity.schedule
    if name == "ddpm":
        if steps:
            raise ValueError(f"--solver: ddpm takes every step of the schedule, {schedule.steps}; got {solver}")
        return _Drawn(ddpm_sample(model, x0, schedule, y, clip=1.0, generator=generator), schedule.steps)
    count = steps.removeprefix("steps=")
    if not count.isdigit():
        raise ValueError(f"--solver: expected ddim:steps=N; got {solver}")
    images = ddim_sample(model, x0, schedule, int(count), y=y, clip=1.0, generator=generator)
    return _Drawn(images, int(count))


def _folder(options: argparse.Namespace) -> int:
    from flowbook.data import generate_images

    if options.solver.partition(":")[0] in ("ddpm", "ddim"):
        raise ValueError(
            f"--solver {options.solver}: a folder is generated by an ODE solver; expected one such as midpoint:steps=25"
        )
    if options.labels is not None:
        raise ValueError("--labels: a folder has labels as frequent as in the data; got labels, which are for a grid")
    load_images(options.checkpoint)  # raises for another model, with the reason
    if options.format == "png":
        return _files(options)
    made = fill_folder(options, generate_images)
    print(f"{len(made)} images, {made.nfe:g} evaluations each, in {options.out}")
    return 0
