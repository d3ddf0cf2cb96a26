"""``flowbook recipes``: those of the package."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("recipes", help="list the recipes of the package")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import recipes

    print("\n".join(recipes.names()))
    return 0
