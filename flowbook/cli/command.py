"""The ``flowbook`` command: its parser, and its handling of errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from safetensors import SafetensorError

from flowbook.cli import bench, distill, export, laws, pairs, recipes, sample, score, train

COMMANDS = (train, sample, score, pairs, distill, export, bench, laws, recipes)
"""One module each, with ``add(commands)`` for its arguments and ``run(options)``, which returns the exit status."""
INTERRUPTED = 130
"""The exit status after Ctrl-C, by the convention of shells."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Invalid input and a failed run end with one line and exit status 2, an error of the operating
    system, such as a folder that cannot be written, with one line and status 1.

    Status 75 means that SIGTERM has stopped a training run, 130 that Ctrl-C has: the same command resumes it.
    """
    parser = argparse.ArgumentParser(prog="flowbook", description=sys.modules["flowbook.cli"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
        options.overrides += rest  # overrides after an option, which argparse does not collect
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status: int = options.run(options)
    except SystemExit as stopped:  # SIGTERM: the run is safe, and the scheduler may start it again
        print(f"flowbook {options.command}: {stopped}", file=sys.stderr)
        raise
    except KeyboardInterrupt as stopped:
        print(f"\nflowbook {options.command}: {str(stopped) or 'stopped by Ctrl-C'}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, FileNotFoundError, RuntimeError, FloatingPointError, MemoryError) as error:
        print(f"flowbook {options.command}: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:
        print(f"flowbook {options.command}: {error}", file=sys.stderr)
        return 1
    return status
