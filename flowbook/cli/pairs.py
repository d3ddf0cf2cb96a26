"""``flowbook pairs``: noise and the data that a checkpoint generates from it, for Reflow."""

from __future__ import annotations

import argparse
from typing import Any

from flowbook.cli.common import (
    CHECKPOINT,
    add_conditions,
    add_device,
    add_draws,
    add_folder,
    add_solver,
    fill_folder,
    path,
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "pairs", help="pair noise with the data that a checkpoint generates from it, for Reflow; resumes if stopped"
    )
    command.add_argument("checkpoint", help=CHECKPOINT)
    command.add_argument("--out", type=path, required=True, help="folder of the pairs")
    command.add_argument(
        "--n",
        type=int,
        default=50_000,
        help="number of pairs; labels as in the data, if not given",
    )
    add_solver(command, "dopri5")
    add_draws(command)
    add_conditions(command, "one for each pair, in order, and again from the first")
    add_device(command)
    add_folder(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook.reflow import generate_pairs

    made = fill_folder(options, generate_pairs)
    print(f"{len(made)} pairs, {made.nfe:g} evaluations each, in {options.out}")
    return 0
