"""``flowbook recipes``: the shipped recipes, a line each, or one as a whole."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("recipes", help="list the shipped recipes, or show one")
    command.add_argument("--show", metavar="NAME", help="print a recipe with its comments, to copy and change")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import recipes

    if options.show is not None:
        print(recipes.text_of(options.show), end="")
        return 0
    names = recipes.names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {recipes.about(name)}")
    return 0
