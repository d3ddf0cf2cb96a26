"""``flowbook score``: how close samples are to the images of a folder; of digits also the class accuracy."""

from __future__ import annotations

import argparse
from typing import Any

from flowbook.cli.common import (
    CHECKPOINT,
    add_device,
    add_draws,
    add_solver,
    class_counts,
    guide,
    load_images,
    path,
    place,
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "score",
        help="Frechet distance of samples to a folder of images, as JSON; of MNIST digits without one, with accuracy",
    )
    command.add_argument("checkpoint", help=CHECKPOINT)
    command.add_argument("--data", type=path, help="folder of real images, resized to those of the model")
    command.add_argument(
        "--features", help="pixels (default), inception (pip install 'flowbook[fid]'), or the file of a network"
    )
    command.add_argument("--n", type=int, default=10_000, help="number of samples; with --data at most its images")
    add_solver(command, "midpoint:steps=12")
    add_draws(command)
    add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import dataclasses
    import json

    if options.data is None and options.features is not None:
        raise ValueError("--features: expected --data, a folder of images to compare with; got none")
    scores = _of_digits(options) if options.data is None else _against(options)
    print(json.dumps(dataclasses.asdict(scores), indent=2))
    return 0


def _against(options: argparse.Namespace) -> Any:
    """Samples, as many as there are images, with labels as frequent as in the folder."""
    import torch

    from flowbook import data, metrics, recipes
    from flowbook._core import validate
    from flowbook.data.generation import generation
    from flowbook.solvers import Solver

    validate.positive_int("--n", options.n)
    metrics.features_named(options.features or "pixels")  # raises before anything is drawn
    velocity, network = load_images(options.checkpoint)
    shape = recipes.sample_shape(network)
    folder = data.image_folder(options.data, shape[1:], channels=shape[0])
    order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(0))[: options.n]
    real = torch.stack([folder.image(int(k)) for k in order])
    n, y = len(real), None
    if getattr(network, "kinds", ()) == ("label",):
        counts = [1] * network.num_classes
        if folder.targets is not None and len(folder.classes or ()) == network.num_classes:
            counts = torch.tensor(folder.targets).bincount(minlength=network.num_classes).tolist()
        y = metrics.labels_like(counts, n)
    field = guide(place(velocity, options.device), options.guidance, y)
    rows = generation(field, shape, n=n, y=y, seed=options.seed, solver=Solver.parse(options.solver), as_data=True)
    made = torch.cat([rows.rows(first, min(250, n - first))[1] for first in range(0, n, 250)])
    return metrics.score_against(made.float().clamp(-1, 1), real, options.features or "pixels")


def _of_digits(options: argparse.Namespace) -> Any:
    from flowbook import metrics, models
    from flowbook.solvers import Solver

    velocity, network = load_images(options.checkpoint)
    judge, reference = models.load_classifier("mnist"), models.load_moments("mnist")["test"]
    ours, wanted = ((*model.shape, model.num_classes) for model in (network, judge))
    if ours != wanted:
        raise ValueError(
            f"checkpoint: expected a model of MNIST digits, (channels, height, width, classes) = {wanted}; got {ours}: "
            "for other images give their folder by --data"
        )
    return metrics.score_velocity(
        place(velocity, options.device),
        judge,
        reference,
        n=options.n,
        guidance=options.guidance,
        seed=options.seed,
        class_counts=class_counts("mnist", judge.num_classes),
        solver=Solver.parse(options.solver),
    )
