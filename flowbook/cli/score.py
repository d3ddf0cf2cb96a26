"""``flowbook score``: class accuracy and Frechet distance of digits."""

from __future__ import annotations

import argparse
from typing import Any

from flowbook.cli.common import CHECKPOINT, add_device, add_draws, add_solver, class_counts, load_images, place


def add(commands: Any) -> None:
    command = commands.add_parser("score", help="class accuracy and Frechet distance of digits, as JSON")
    command.add_argument("checkpoint", help=CHECKPOINT)
    command.add_argument("--n", type=int, default=10_000, help="number of samples; labels as frequent as in the data")
    add_solver(command, "midpoint:steps=12")
    add_draws(command)
    add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import dataclasses
    import json

    from flowbook import metrics, models
    from flowbook.solvers import Solver

    velocity, network = load_images(options.checkpoint)
    judge, reference = models.load_classifier("mnist"), models.load_moments("mnist")["test"]
    ours, wanted = ((*model.shape, model.num_classes) for model in (network, judge))
    if ours != wanted:
        raise ValueError(
            f"checkpoint: expected a model of MNIST digits, (channels, height, width, classes) = {wanted}; got {ours}"
        )
    result = metrics.score_velocity(
        place(velocity, options.device),
        judge,
        reference,
        n=options.n,
        guidance=options.guidance,
        seed=options.seed,
        class_counts=class_counts("mnist", judge.num_classes),
        solver=Solver.parse(options.solver),
    )
    print(json.dumps(dataclasses.asdict(result), indent=2))
    return 0
