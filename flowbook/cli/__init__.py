"""Train, sample, score, pair, distill, export and benchmark flows."""

from flowbook.cli.command import main

__all__ = ["main"]
