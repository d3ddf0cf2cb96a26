"""``flowbook recipes``: the names of the shipped recipes."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("recipes", help="list the shipped recipes")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import recipes

    print("\n".join(recipes.names()))
    return 0
