"""``flowbook laws``: hold your own code against the laws, and hear what is wrong with it."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

KINDS = ("velocity", "loss", "sampler", "path", "log_prob")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "laws", help="check an implementation of your own: a velocity, loss, sampler, path or log-density"
    )
    command.add_argument("name", help="MODULE:NAME of a function or object; modules of this folder are found")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="arguments of the check, such as order=t,x time_scale=1000 reverse=true sign=-1 output=noise "
        "shape=[1,28,28] path='{name: cosine}' schedule='{name: linear, steps: 1000}' data=FILE",
    )  # fmt: skip
    command.add_argument("--as", dest="kind", choices=KINDS, help="what it is (default: the kind that its name says)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import laws

    thing = find(options.name)
    kind = options.kind or guess(options.name)
    given = arguments(options.overrides)
    try:
        print(getattr(laws, f"check_{kind}")(thing, **given))
    except laws.Violation as violation:
        print(f"wrong: {violation}")
        return 1
    except Exception as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == Path.cwd()
        ]
        if not frames:
            raise
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        raise ValueError(f"{options.name} raises {type(error).__name__}: {error} ({place})") from error
    return 0


def find(name: str) -> Any:
    """The object that ``module:name`` names, with this folder's modules before others."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"name: expected MODULE:NAME, such as mine:velocity; got {name!r}")
    sys.path.insert(0, str(Path.cwd()))
    if module.endswith(".py") or "/" in module:
        raise ValueError(
            f"name: expected a module as Python imports it, such as mine:velocity; got the path {module!r}"
        )
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"name: {error} (in {Path.cwd()})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"name: {module} has no {attribute}")
        found = getattr(found, part)
    if isinstance(found, type):
        raise TypeError(f"name: expected a function or an object; {name} is a class, so make one: v = {attribute}(...)")
    return found


def guess(name: str) -> str:
    """The kind whose name the object's name contains."""
    attribute = name.rpartition(":")[2].lower()
    found = [kind for kind in KINDS if kind in attribute]
    if len(found) != 1:
        raise ValueError(f"--as: expected one of {', '.join(KINDS)}, since the name {attribute!r} does not say it")
    return found[0]


def arguments(words: list[str]) -> dict[str, Any]:
    """The arguments of a check."""
    from flowbook import data
    from flowbook.recipes.reading import value_of
    from flowbook.recipes.tables import NOISE_SCHEDULES, PATHS, named

    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"argument: expected key=value; got {word!r}")
        given[key] = text if key in ("order", "output", "data") else value_of(text)
    if "data" in given:
        try:
            given["data"] = data.unpack(data.tensors(given["data"]))[1]
        except ValueError as error:
            raise ValueError(f"data: {error}") from error
    if "path" in given:
        given["path"] = named("path", given["path"], PATHS)
    if "schedule" in given:
        given["path"] = named("schedule", given.pop("schedule"), NOISE_SCHEDULES)
    return given
