"""``flowbook train``: a run from a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowbook.cli.common import say, train_recipe


def add(commands: Any) -> None:
    command = commands.add_parser("train", help="train a recipe; resumes an interrupted run")
    command.add_argument("recipe", help="the name of a recipe (see `flowbook recipes`) or a YAML file")
    command.add_argument("overrides", nargs="*", help="section.key=value, for example train.steps=100")
    command.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    command.add_argument("--fresh", action="store_true", help="refuse to resume an existing run")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import recipes

    recipe = recipes.read(options.recipe, options.overrides)
    say(recipes.announce(recipe))
    return train_recipe(recipe, options, options.out or Path("runs") / Path(options.recipe).stem)
