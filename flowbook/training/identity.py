"""The identity of a run: whether a call continues it, or would be a different run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

from flowbook import models
from flowbook._core.digest import digest
from flowbook.analytic import GaussianMixture
from flowbook.data import Standardizer, identity_of, is_tensors, parts_of
from flowbook.training import checkpoint
from flowbook.training.arguments import Arguments
from flowbook.training.checkpoint import Checkpoint
from flowbook.training.config import NOT_PART_OF_THE_RESULT, TrainConfig
from flowbook.training.ema import EMA
from flowbook.training.loading import describe_data
from flowbook.training.loss import CompleteLoss

Ingredients = dict[str, str | None]
VALUES = "SHA-256 of the data"
FIXED = ("seed", "batch_size", "train.seed", "train.batch_size")
"""What cannot change within a run."""
PLACES = ("data.root", "data.path")
"""Entries of a recipe that say where the data lie."""


def ingredients(arguments: Arguments) -> Ingredients:
    """Short descriptions of loss, coupling and data, to be stored with a run."""
    loss, coupling, data = arguments.loss, arguments.coupling, arguments.data
    scale = None if arguments.standardizer is None else arguments.standardizer.as_dict()
    content = data.tensors if isinstance(data, TensorDataset) else data
    known = is_tensors(content) or isinstance(content, GaussianMixture)
    values = digest(content if scale is None else (content, scale))[:16] if known else None
    return {
        "loss": None if loss.describe() is not None and not dataclasses.is_dataclass(loss.loss) else _of(loss.loss),
        "coupling": "none" if coupling is None else _of(coupling),
        "data": _of_data(data),
        VALUES: values,
    }


def restore(arguments: Arguments, identity: Identity, model: nn.Module, ema: EMA) -> Checkpoint | None:
    """The newest checkpoint of the run, if there is one, with its parameters loaded."""
    folder, resume = arguments.folder, arguments.resume
    paths = [] if folder is None else checkpoint.available(folder / "checkpoints")
    if not paths:
        return None
    if not resume:
        raise ValueError(f"out: {folder} already holds a run; choose another folder, or resume=True to continue it")
    stored = checkpoint.read(paths[-1])
    _check_same(folder, differences(stored, identity), arguments.extend)
    if differing := differences_of_network(stored, model, identity.loss):
        raise ValueError(
            f"out: {folder} holds a run of another network ({'; '.join(differing)}); choose another folder"
        )
    try:
        model.load_state_dict(stored.weights)
        ema.model.load_state_dict(stored.ema)
    except RuntimeError as error:
        raise ValueError(f"out: the checkpoint {paths[-1]} is of another model: {error}") from error
    ema.images = stored.step * ema.batch_size
    if identity.loss.learns_from_pairs:
        scale = None if stored.standardizer is None else Standardizer.from_dict(stored.standardizer)
        for network in (model, ema.model):
            describe_data(network, stored.classes, scale)
    return stored


@dataclasses.dataclass(frozen=True)
class Identity:
    """What determines the parameters of a run, besides the network."""

    config: TrainConfig
    recipe: dict[str, Any] | None
    ingredients: Ingredients
    loss: CompleteLoss


def _check_same(folder: Path | None, differing: dict[str, str], extend: Sequence[str]) -> None:
    """Raise for a continuation that differs from its run in something that it does not name in ``extend``."""
    extend = [*extend, VALUES] if "data" in extend else extend  # the content is part of the data
    for name in extend:
        if name in FIXED:
            raise ValueError(
                f"extend: {name} cannot change within a run, since the order of its data depends on it; choose another "
                "folder, with init= for its parameters"
            )
    others = {
        name: said for name, said in differing.items() if name not in extend and name.split(".")[-1] not in extend
    }
    if not others:
        return
    free = [name for name in dict.fromkeys("data" if name == VALUES else name for name in others) if name not in FIXED]
    remedy = (
        f"extend={free!r} goes on with the new ones; or " if free and not any(name in FIXED for name in others) else ""
    )
    raise ValueError(
        f"out: {folder} holds a run with other settings ({'; '.join(others.values())}); {remedy}choose another folder"
    )


def differences(stored: Checkpoint, identity: Identity) -> dict[str, str]:
    """The differences between a run and its continuation in what determines the parameters, by name."""
    config, recipe, ingredients = identity.config, identity.recipe, identity.ingredients
    ignored = set(NOT_PART_OF_THE_RESULT)
    if config.schedule == "constant":
        ignored.add("steps")
    now = {name: value for name, value in config.as_dict().items() if name not in ignored}
    was = {name: stored.config.get(name) for name in now}
    told, compared = stored.ingredients or {}, ["loss", "coupling", "data", VALUES]
    if recipe is not None and stored.recipe is not None:
        now, was = now | _flat(recipe), was | _flat(stored.recipe)
        compared = ["data", VALUES]  # a recipe names only their location, where the content may have changed
    both = [name for name in compared if ingredients[name] is not None and told.get(name) is not None]
    now, was = now | {name: ingredients[name] for name in both}, was | {name: told[name] for name in both}
    known = VALUES in both or re.search(r"\b[0-9a-f]{16}\b", str(ingredients["data"]))
    if known and all(now.get(name) == was.get(name) for name in ("data", VALUES)):  # the content counts, not its place
        now, was = ({name: value for name, value in one.items() if name not in PLACES} for one in (now, was))
    return {
        name: f"{name} was {was.get(name)!r}, is {now.get(name)!r}"
        for name in (now | was)
        if was.get(name) != now.get(name)
    }


def differences_of_network(stored: Checkpoint, model: nn.Module, loss: CompleteLoss) -> list[str]:
    """The differences in what the parameters mean: they may fit a network that computes something else."""
    was, now = stored.model, models.describe(model)
    found = []
    if was is not None and now is not None:
        told = {"model": was["name"], **{f"model.{name}": value for name, value in was["arguments"].items()}}
        given = {"model": now["name"], **{f"model.{name}": value for name, value in now["arguments"].items()}}
        given = json.loads(json.dumps(given))  # as when stored
        found = [
            f"{name} was {told[name]!r}, is {given[name]!r}"
            for name in told
            if told[name] != given.get(name, told[name])
        ]
    described = json.loads(json.dumps(loss.describe()))  # as when stored
    if stored.loss is not None and stored.loss != described:
        found.append(f"loss was {_shortened(stored.loss)}, is {_shortened(described)}")
    return found


def _shortened(described: dict[str, Any] | None) -> str:
    """A described loss in one line: lists by their length, first and last entry."""
    if described is None:
        return "one without a description"
    parts = [
        f"{len(value)} {name} from {value[0]:.3g} to {value[-1]:.3g}"
        if isinstance(value, list)
        else f"{name}={value!r}"
        for name, value in described["arguments"].items()
    ]
    return f"{described['class'].rpartition('.')[2]}({', '.join(parts)})"


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """``{"section.key": value}`` of a recipe, without sections that are compared elsewhere or have no effect."""
    sections = {"coupling": {"name": "independent"}, **recipe}
    return {
        f"{section}.{key}" if key else section: value
        for section, content in sections.items()
        if section not in ("train", "preview")
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    }


def _of(part: Any) -> str:
    """What a loss or coupling is, the same in every process: its settings, or the name and source of a function."""
    if isinstance(part, functools.partial):
        return f"partial({_of(part.func)}, {part.args!r}, {part.keywords!r})"
    if dataclasses.is_dataclass(part):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(part))
    if not isinstance(part, (types.FunctionType, types.MethodType)):
        kind = type(part)
        plain = {name: value for name, value in vars(part).items() if isinstance(value, (bool, int, float, str))}
        return f"{kind.__module__}.{kind.__qualname__}({plain})" if plain else f"{kind.__module__}.{kind.__qualname__}"
    try:
        source = inspect.getsource(part)
    except (OSError, TypeError):  # written in an interpreter
        return part.__qualname__
    return f"{part.__qualname__} of source {hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _of_data(data: Any) -> str:
    if is_tensors(data):
        return " and ".join(f"{tuple(part.shape)}" for part in parts_of(data).values())
    return identity_of(data)
