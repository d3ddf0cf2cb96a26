"""The command line: ``flowbook train RECIPE``; ``sample``, ``score``, ``pairs``, ``distill``, ``export CHECKPOINT``."""

from flowbook.cli.command import main

__all__ = ["main"]
