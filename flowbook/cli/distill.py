"""``flowbook distill``: a student that needs few steps, from a checkpoint's pairs."""

from __future__ import annotations

import argparse
from typing import Any

from flowbook.cli.common import path, train_recipe


def add(commands: Any) -> None:
    command = commands.add_parser("distill", help="train a student that needs few steps, from a checkpoint's pairs")
    command.add_argument("checkpoint", help="the teacher, whose parameters the student starts from")
    command.add_argument("overrides", nargs="*", help="section.key=value of the recipe `distill`")
    command.add_argument("--pairs", type=path, required=True, help="folder made by `flowbook pairs`")
    command.add_argument("--steps", type=int, default=1, help="Euler steps that the student takes")
    command.add_argument("--out", type=path, required=True, help="folder of the run")
    command.add_argument("--fresh", action="store_true", help="refuse to resume an existing run")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import models, recipes
    from flowbook._core import validate
    from flowbook.training import load

    validate.positive_int("--steps", options.steps)
    teacher = load(options.checkpoint)
    model = models.describe(teacher)
    if model is None:
        raise ValueError(
            f"checkpoint: expected one of flowbook.models, for a student to start from; got {type(teacher).__name__}"
        )
    recipe = recipes.read("distill")
    recipe["model"] = {"name": model["name"], **model["arguments"]}
    recipe["init"] = {"checkpoint": options.checkpoint}
    recipe["data"]["root"] = str(options.pairs)
    recipe["loss"]["times"] = "t0" if options.steps == 1 else options.steps
    return train_recipe(recipes.override(recipe, options.overrides), options, options.out)
