"""``flowbook train``: a run from a recipe or from data of your own, or a run that goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowbook.cli.common import path, say, train_recipe


def add(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="train a recipe, or data of your own; resumes an interrupted run",
        description="A recipe: flowbook train mnist. Your own images: flowbook train --data FOLDER --size 64. A run "
        "that goes on, with other settings if you like: flowbook train runs/mnist train.steps=40000",
    )
    command.add_argument(
        "recipe", nargs="?", help="the name of a recipe (see `flowbook recipes`), a YAML file, or the folder of a run"
    )
    command.add_argument("overrides", nargs="*", help="section.key=value, for example train.steps=100")
    command.add_argument(
        "--data", type=path, help="a folder of images, flat or with a subfolder per class; or arrays x1 and y in a file"
    )
    command.add_argument("--size", help="of images from a folder: 64, or height and width, 48x64")
    command.add_argument("--channels", type=int, help="1 or 3 (default: 1 where all images are gray)")
    command.add_argument("--out", type=path, help="folder of the run (default: runs/ and the name of recipe or data)")
    command.add_argument(
        "--extend", nargs="+", default=[], metavar="SETTING", help="what may differ from the run so far, such as data"
    )
    command.add_argument("--fresh", action="store_true", help="refuse to resume an existing run")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import recipes

    if options.recipe is not None and "=" in options.recipe:  # the first override, where no recipe is named
        options.overrides, options.recipe = [options.recipe, *options.overrides], None
    if options.data is not None:
        return _own(options)
    for name in ("size", "channels"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: is for --data; a recipe has it in its model and data")
    if options.recipe is None:
        raise ValueError("recipe: expected a recipe, the folder of a run, or --data FOLDER; see `flowbook recipes`")
    folder = Path(options.recipe).expanduser()
    if options.recipe not in recipes.names() and folder.is_dir():
        return _go_on(folder, options)
    recipe = recipes.read(options.recipe, options.overrides)
    say(recipes.announce(recipe))
    return train_recipe(recipe, options, options.out or Path("runs") / Path(options.recipe).stem, options.extend)


def _own(options: argparse.Namespace) -> int:
    """Train on the user's data: again with the same command, the run goes on."""
    from flowbook import recipes

    if options.recipe is not None:
        raise ValueError(f"--data: expected data without a recipe; got both, and the recipe {options.recipe!r}")
    recipe = recipes.override(recipes.own_data(options.data, options.size, options.channels), options.overrides)
    kinds = [f"{count} classes" for count in [recipe["model"].get("num_classes")] if count]
    say(f"{options.data}: {recipe['model']['name']} for {_what(recipe)}{', ' if kinds else ''}{', '.join(kinds)}")
    say(recipes.announce(recipe))
    return train_recipe(recipe, options, options.out or Path("runs") / _name(options.data), options.extend)


def _name(data: Path) -> str:
    data = data.expanduser().resolve()
    return data.name if data.is_dir() else data.stem


def _what(recipe: Any) -> str:
    model = recipe["model"]
    if model["name"] == "MLP":
        return f"rows of {model['dim']} numbers, standardized"
    size = model["size"]
    sides = f"{size} x {size}" if isinstance(size, int) else " x ".join(map(str, size))
    return f"{'gray' if model['channels'] == 1 else 'color'} images of {sides}"


def _go_on(folder: Path, options: argparse.Namespace) -> int:
    """Continue a run from what it stored; what an override names may change."""
    from flowbook import recipes
    from flowbook.training import checkpoint as checkpoints

    if options.out is not None:
        raise ValueError(f"--out: the run in {folder} goes on where it is; for another folder give it a recipe")
    found = checkpoints.locate(folder)
    stored = checkpoints.read(found)
    if stored.recipe is None:
        raise ValueError(f"recipe: the run in {folder} was not started from a recipe; continue it by fit(..., out=...)")
    recipe = recipes.override(stored.recipe, options.overrides)
    changed = [word.partition("=")[0] for word in options.overrides]
    extended = [name.removeprefix("train.") for name in changed]
    extended += ["data"] if any(name.startswith("data.") for name in changed) else []
    say(f"{folder}: goes on after step {stored.step}{', with ' if changed else ''}{', '.join(options.overrides)}")
    root = found.parent.parent if found.parent.name == "checkpoints" else folder
    return train_recipe(recipe, options, root, extend=[*options.extend, *extended])
