"""``flowbook bench``: how fast a recipe trains on this machine."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("bench", help="time a recipe's training on this machine, on random numbers")
    command.add_argument("recipe", help="the name of a recipe (see `flowbook recipes`) or a YAML file")
    command.add_argument("overrides", nargs="*", help="section.key=value, for example train.batch_size=64")
    command.add_argument("--steps", type=int, default=10, help="steps that are timed")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import recipes

    print(recipes.bench(recipes.read(options.recipe, options.overrides), steps=options.steps))
    return 0
