"""What :func:`flowbook.training.fit` looks at before it starts: its arguments, and the run that it continues."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flowbook import _validate, models
from flowbook._digest import digest
from flowbook._model import null_label_of
from flowbook.analytic import GaussianMixture
from flowbook.batch import unpack
from flowbook.cnf import MaximumLikelihood
from flowbook.couplings import Coupling
from flowbook.diffusion import Diffusion
from flowbook.flow_matching import FlowMatching
from flowbook.models.classifier import CrossEntropy
from flowbook.pairs import PairDataset
from flowbook.training import batches, checkpoint
from flowbook.training.average import AveragedWeights
from flowbook.training.checkpoint import Checkpoint
from flowbook.training.config import NOT_PART_OF_THE_RESULT, TrainConfig

Ingredients = dict[str, str | None]


VALUES = "SHA-256 of the data"


def ingredients(loss: Any, coupling: Coupling | None, data: Any) -> Ingredients:
    """Loss, coupling and data in a few words each, to be stored with a run."""
    content = data.tensors if isinstance(data, TensorDataset) else data
    known = batches.is_tensors(content) or isinstance(content, GaussianMixture)
    values = digest(content)[:16] if known else None
    return {"loss": _of(loss), "coupling": _of(coupling), "data": _of_data(data), VALUES: values}


def restore(
    folder: Path | None,
    resume: bool,
    config: TrainConfig,
    recipe: dict[str, Any] | None,
    ingredients: dict[str, str | None],
    model: nn.Module,
    average: AveragedWeights,
    loss: Any,
) -> Checkpoint | None:
    """The newest checkpoint of the run, if there is one, with its weights loaded."""
    paths = [] if folder is None else checkpoint.available(folder / "checkpoints")
    if not paths:
        return None
    if not resume:
        raise ValueError(f"out: {folder} already holds a run; choose another folder, or resume=True to continue it")
    stored = checkpoint.read(paths[-1])
    if differing := differences(stored, config, recipe, ingredients):
        raise ValueError(f"out: {folder} holds a run with other settings ({'; '.join(differing)}); choose another")
    if differing := differences_of_network(stored, model, loss):
        raise ValueError(f"out: {folder} holds a run of another network ({'; '.join(differing)}); choose another")
    try:
        model.load_state_dict(stored.weights)
        average.model.load_state_dict(stored.average)
    except RuntimeError as error:
        raise ValueError(f"out: the checkpoint {paths[-1]} is of another model: {error}") from error
    return stored


def differences(
    stored: Checkpoint,
    config: TrainConfig,
    recipe: dict[str, Any] | None,
    ingredients: Ingredients,
) -> list[str]:
    """What a run and its continuation do not agree on, of all that decides the weights."""
    ignored = set(NOT_PART_OF_THE_RESULT)
    if config.schedule == "constant":
        ignored.add("steps")
    now = {name: value for name, value in config.as_dict().items() if name not in ignored}
    was = {name: stored.config.get(name) for name in now}
    told, compared = stored.ingredients or {}, ["loss", "coupling", "data", VALUES]
    if recipe is not None and stored.recipe is not None:
        now, was = now | _flat(recipe), was | _flat(stored.recipe)
        compared = ["data", VALUES]  # a recipe says where they are, and there may be others by now
    both = [name for name in compared if ingredients[name] is not None and told.get(name) is not None]
    now, was = now | {name: ingredients[name] for name in both}, was | {name: told[name] for name in both}
    return [
        f"{name} was {was.get(name)!r}, is {now.get(name)!r}" for name in (now | was) if was.get(name) != now.get(name)
    ]


def differences_of_network(stored: Checkpoint, model: nn.Module, loss: Any) -> list[str]:
    """The same of what the weights mean: they may fit a network that computes something else."""
    was, now = stored.model, models.describe(model)
    found = []
    if was is not None and now is not None:
        told = {"model": was["name"], **{f"model.{name}": value for name, value in was["arguments"].items()}}
        given = {"model": now["name"], **{f"model.{name}": value for name, value in now["arguments"].items()}}
        given = json.loads(json.dumps(given))  # as it is stored
        found = [
            f"{name} was {told[name]!r}, is {given[name]!r}"
            for name in told
            if told[name] != given.get(name, told[name])
        ]
    if stored.diffusion is not None and stored.diffusion != (learned := diffusion(loss)):
        named = [
            "none" if one is None else f"the {one['prediction']} on {len(one['betas'])} betas to {one['betas'][-1]:.3g}"
            for one in (stored.diffusion, learned)
        ]
        found.append(f"diffusion was {named[0]}, is {named[1]}")
    return found


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """``{"section.key": value}`` of a recipe, without the sections that are compared elsewhere or decide nothing."""
    sections = {"coupling": {"name": "independent"}, **recipe}
    return {
        f"{section}.{key}" if key else section: value
        for section, content in sections.items()
        if section not in ("train", "preview")
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    }


def diffusion(loss: Any) -> dict[str, Any] | None:
    """What turns a trained network back into a velocity, where the loss is one of diffusion."""
    if not isinstance(loss, Diffusion):
        return None
    return {"betas": loss.schedule.betas.tolist(), "prediction": loss.prediction}


def _of(part: Any) -> str | None:
    """A loss or coupling in a word, the same one in every process; None where there is none."""
    if part is None or dataclasses.is_dataclass(part):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(part))
    return None


def _of_data(data: Any) -> str:
    if batches.is_tensors(data):
        return " and ".join(f"{tuple(part.shape)}" for part in unpack(data) if part is not None)
    name = getattr(data, "name", None)
    return type(data).__name__ + (f" {name}" if isinstance(name, str) else "")


def check(
    velocity: nn.Module,
    loss: Any,
    data: Any,
    config: TrainConfig,
    coupling: Coupling | None,
    folder: Path | None,
    stop_after: int | None,
    preview: Callable[[nn.Module], Tensor] | None,
) -> None:
    if not isinstance(velocity, nn.Module):
        raise TypeError(f"velocity: expected a torch.nn.Module to train; got {type(velocity).__name__}")
    if not torch.is_grad_enabled():
        raise RuntimeError("fit: gradients are off here; call it outside torch.no_grad() and torch.inference_mode()")
    if not any(parameter.requires_grad for parameter in velocity.parameters()):
        raise ValueError(
            "velocity: expected weights that can be trained; none of this one's require gradients, as in the averaged "
            "copy that a run returns (velocity.requires_grad_(True) makes a copy trainable)"
        )
    _validate.function("loss", loss, "FlowMatching()")
    _validate.instance("config", config, TrainConfig, "TrainConfig(steps=1000)")
    if coupling is not None:
        _validate.function("coupling", coupling, "OptimalTransport()")
    if preview is not None:
        _validate.function("preview", preview, "lambda velocity: images")
    if stop_after is not None:
        _validate.positive_int("stop_after", stop_after)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"out: expected a folder; {folder} is a file")
    batches.check(data)
    if batches.is_tensors(data):
        _check_finite(data)
        _check_labels(velocity, loss, *unpack(data)[1:])
    elif isinstance(data, PairDataset) and data.labels is not None:
        null_label = null_label_of(velocity)  # which pairs may have: the teacher's samples without a label
        _validate.labels("y", data.labels, len(data), classes=None if null_label is None else null_label + 1)


def _check_finite(data: Any) -> None:
    """Once: a row that is not finite would end the run at the step that meets it."""
    x0, x1, _ = unpack(data)
    for name, part in (("x0", x0), ("x1", x1)):
        if part is None or not part.is_floating_point() or bool(torch.isfinite(part).all()):
            continue
        rows = (~torch.isfinite(part)).reshape(len(part), -1).any(1).nonzero().flatten()
        raise ValueError(f"data: {len(rows)} of {len(part)} rows of {name} are not finite, the first is row {rows[0]}")


def _check_labels(velocity: nn.Module, loss: Any, x1: Tensor, y: Tensor | None) -> None:
    """Once for the whole data set: in every step, looking at the labels would cost more than the step's other checks.

    Labels 1 to K would train without a word, K as the null label.
    """
    if y is None:
        return
    if isinstance(loss, CrossEntropy):
        _validate.labels("y", y, len(x1), classes=getattr(velocity, "num_classes", None))
    null_label = null_label_of(velocity)
    if isinstance(loss, (FlowMatching, Diffusion, MaximumLikelihood)) and null_label is not None:
        _validate.labels("y", y, len(x1))
        if _validate.values_are_readable(y) and bool((y == null_label).any()):
            low, high = (int(v) for v in y.aminmax())
            raise ValueError(
                f"y: {null_label} is the model's null label, which means 'none'; expected labels without it, counted "
                f"from 0; got {low} to {high}"
            )
