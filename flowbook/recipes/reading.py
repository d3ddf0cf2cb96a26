"""Recipes as text: reading, overriding, checking."""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from flowbook._core import validate
from flowbook.recipes.tables import COUPLINGS, DATA, LOSSES, MODELS, PARTS
from flowbook.solvers import SolverOptions
from flowbook.training import TrainConfig

Recipe = dict[str, Any]
PATHS = ("data.root", "data.path", "init.checkpoint")
"""Entries whose values are paths, taken as they are written, with spaces, # and numbers."""
SECTIONS = ("model", "init", "data", "loss", "coupling", "train", "preview")


def names() -> list[str]:
    """The names of the shipped recipes.

    Example:
        >>> "mnist" in names()
        True
    """
    folder = resources.files("flowbook") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(recipe: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe by its name in the package or by the path of a YAML file.

    Args:
        recipe: ``"mnist"`` or ``"my/recipe.yaml"``.
        overrides: ``"section.key=value"``; values are read as YAML.

    Example:
        >>> read("mnist", ["train.steps=10"])["train"]["steps"]
        10
    """
    content = value_of(text_of(recipe))
    if not isinstance(content, dict):
        raise ValueError(f"recipe: {recipe} holds no sections; expected {', '.join(SECTIONS)}")
    return override(content, overrides or [])


def text_of(recipe: str | Path) -> str:
    """The text of a recipe, with its comments: one of the package, or a YAML file.

    Raises:
        FileNotFoundError, ValueError: for a name that is neither, and a file that is no text.

    Example:
        >>> text_of("digits").startswith("# Class-conditional digits")
        True
    """
    if str(recipe) in names():
        return (resources.files("flowbook") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(str(recipe), names(), n=1)
        hint = f" (is {near[0]} meant?)" if near else ""
        raise FileNotFoundError(f"recipe: {recipe} is neither a file nor one of {', '.join(names())}{hint}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe: {path} is no text in UTF-8: {error}") from error


def about(recipe: str) -> str:
    """What a recipe of the package is for: the first sentence of its comments.

    Example:
        >>> about("digits_classifier")
        "The judge of 8 x 8 digits (scikit-learn's); it never sees the 360 test images."
    """
    comments = []
    for line in text_of(recipe).splitlines():
        if not line.startswith("# "):
            break
        comments.append(line.removeprefix("# ").strip())
    found = re.match(r".*?[.:](?=\s|$)", " ".join(comments))
    return (found[0] if found else comments[0]).rstrip(":")


def override(recipe: Recipe, overrides: list[str]) -> Recipe:
    """A recipe with some fields changed, each given as ``"section.key=value"``, and checked.

    Example:
        >>> override(read("mnist"), ["train.steps=10"])["train"]["steps"]
        10
    """
    content = copy.deepcopy(recipe)
    for text in overrides:
        key, separator, value = text.partition("=")
        section, dot, field = key.partition(".")
        if not (separator and dot):
            raise ValueError(f"override: expected section.key=value; got {text!r}")
        if not isinstance(content.setdefault(section, {}), dict):
            raise ValueError(f"recipe: the section {section!r} holds no keys; got {content[section]!r}")
        content[section][field] = path_in(value) if key in PATHS else value_of(value)
    check(content)
    for section in ("model", "data", "loss", "coupling", "train"):
        if section in content:
            _whole_numbers(content[section], _target(section, content[section]))
    return content


def path_in(text: str) -> str:
    """A path in an override: as it is written, without quotes around it.

    Example:
        >>> path_in("my photos #1"), path_in("'2024'")
        ('my photos #1', '2024')
    """
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but ``1e-3`` is a number, as everywhere else, and a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"the key {twice[0]!r} is given twice")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def value_of(text: str) -> Any:
    """A value as recipes and overrides have it: YAML, with ``1e-3`` as a number.

    Example:
        >>> value_of("1e-3"), value_of("[1, 28, 28]"), value_of("true")
        (0.001, [1, 28, 28], True)
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe: expected YAML; {error}") from error


def check(recipe: Recipe) -> None:
    """Raise for sections, names and keys that are unknown or missing."""
    for section, content in recipe.items():
        validate.one_of("recipe section", section, SECTIONS)
        if not isinstance(content, dict):
            raise ValueError(f"recipe: the section {section!r} holds no keys; got {content!r}")
    for section in ("model", "data", "loss", "train"):
        if not isinstance(recipe.get(section), dict):
            raise ValueError(f"recipe: the section {section!r} is missing or holds no keys")
    validate.one_of("model.name", recipe["model"].get("name"), tuple(MODELS))
    validate.one_of("data.name", recipe["data"].get("name"), tuple(DATA))
    validate.one_of("loss.name", recipe["loss"].get("name"), tuple(LOSSES))
    for section in ("model", "data", "loss", "train"):
        _keys(section, recipe[section], _target(section, recipe[section]))
    for part in PARTS.keys() & recipe["loss"].keys():
        content, table = recipe["loss"][part], PARTS[part]
        if not isinstance(content, dict):
            raise ValueError(f"recipe: loss.{part} is a section, such as {{name: linear}}; got {content!r}")
        validate.one_of(f"loss.{part}.name", content.get("name"), tuple(table))
        _keys(f"loss.{part}", content, table[content["name"]])
    if "coupling" in recipe:
        validate.one_of("coupling.name", recipe["coupling"].get("name"), tuple(COUPLINGS))
        _keys("coupling", recipe["coupling"], _target("coupling", recipe["coupling"]))
    if "init" in recipe and ("checkpoint" not in recipe["init"] or set(recipe["init"]) - {"checkpoint", "strict"}):
        got = ", ".join(recipe["init"]) or "none"
        raise ValueError(f"recipe: init has the keys checkpoint and, if you like, strict; got {got}")
    for key in recipe.get("preview", {}):
        validate.one_of("preview key", key, ("solver", "guidance"))


def _keys(section: str, content: dict[str, Any], target: Callable[..., Any]) -> None:
    parameters = inspect.signature(target).parameters
    needed = [name for name, one in parameters.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if lacking := sorted(set(needed) - set(content)):
        raise ValueError(f"recipe: {section} lacks {', '.join(lacking)}")
    known = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):  # a loss with a solver
        known |= set(SolverOptions.__annotations__)
    known -= {"coupling"}  # an argument of a loss, for which a recipe has a section, with batches coupled ahead
    known |= set() if section == "train" else {"name"}
    known |= {"levels", "standardize"} if section == "data" else set()
    if unknown := sorted(set(content) - known):
        raise ValueError(f"recipe: {section} has no key {', '.join(unknown)}; it has {', '.join(sorted(known))}")


def _target(section: str, content: dict[str, Any]) -> Callable[..., Any]:
    """The class or function whose arguments a section holds."""
    tables = {"model": MODELS, "data": DATA, "loss": LOSSES, "coupling": COUPLINGS}
    return tables[section][content["name"]] if section in tables else TrainConfig


def _whole_numbers(content: dict[str, Any], target: Callable[..., Any]) -> None:
    """1e3 is a float in YAML, but a valid number of steps."""
    for name, parameter in inspect.signature(target).parameters.items():
        value = content.get(name)
        if parameter.annotation in ("int", "int | None") and isinstance(value, float) and value.is_integer():
            content[name] = int(value)
