"""The ``flowbook`` command: its parser, and its handling of errors."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from safetensors import SafetensorError

import flowbook
from flowbook.cli import bench, distill, export, laws, pairs, recipes, sample, score, train

COMMANDS = (train, sample, score, pairs, distill, export, bench, laws, recipes)
"""One module each, with ``add(commands)`` for its arguments and ``run(options)``, which returns the exit status."""
THE_WAY = """The way from a folder of images to samples:

  flowbook train --data FOLDER --size 64     train on your images; the same command resumes
  flowbook sample runs/FOLDER                a grid of samples
  flowbook train runs/FOLDER train.steps=N   go on for longer
  flowbook score runs/FOLDER --data FOLDER   how close the samples are to the images
  flowbook pairs, flowbook distill           a student that needs one step

flowbook recipes lists what is prepared, such as: flowbook train digits
flowbook COMMAND --help explains a command."""
INTERRUPTED = 130
"""The exit status after Ctrl-C, by the convention of shells."""


@contextlib.contextmanager
def notes(command: str) -> Iterator[None]:
    """Print this package's warnings as one line each, without the place in the source that Python adds."""
    usual = warnings.showwarning

    def show(message: Any, category: Any, *place: Any, **where: Any) -> None:
        if category is not UserWarning:
            return usual(message, category, *place, **where)
        print(f"flowbook {command}: note: {message}", file=sys.stderr)
        return None

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Invalid input and a failed run end with one line and exit status 2, an error of the operating
    system, such as a folder that cannot be written, with one line and status 1.

    Status 75 means that SIGTERM has stopped a training run, 130 that Ctrl-C has: the same command resumes it.
    """
    parser = argparse.ArgumentParser(
        prog="flowbook", description=sys.modules["flowbook.cli"].__doc__, epilog=THE_WAY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"flowbook {flowbook.__version__}")
    commands = parser.add_subparsers(dest="command")
    for command in COMMANDS:
        command.add(commands)
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        print(THE_WAY)
        return 0
    if hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
        options.overrides += rest  # overrides after an option, which argparse does not collect
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with notes(options.command):
            status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stopped:  # SIGTERM: the run is safe, and the scheduler may start it again
        print(f"flowbook {options.command}: {stopped}", file=sys.stderr)
        raise
    except KeyboardInterrupt as stopped:
        print(f"\nflowbook {options.command}: {str(stopped) or 'stopped by Ctrl-C'}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, FileNotFoundError, ImportError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"flowbook {options.command}: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:
        print(f"flowbook {options.command}: {error}", file=sys.stderr)
        return 1
    return status
