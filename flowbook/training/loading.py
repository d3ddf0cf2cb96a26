"""Loading a trained velocity, wherever it is stored."""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowbook import models
from flowbook._core import validate
from flowbook.condition import remember
from flowbook.data import Standardizer
from flowbook.training import checkpoint as checkpoints
from flowbook.training.loss import CompleteLoss, Loss


def load(source: str | Path, model: nn.Module | None = None, loss: Loss | None = None) -> nn.Module:
    """A trained velocity in eval mode: from a run, a checkpoint, an exported file, or the name of shipped weights.

    A checkpoint is loaded with its averaged parameters (EMA), and a diffusion model as its probability flow.

    Args:
        source: the folder of a run or of a checkpoint; a file of ``flowbook export``; or a name such as "mnist" (a
            folder or file of that name comes first).
        model: a module to load the parameters into, for a checkpoint of a custom model.
        loss: the loss that it was trained with, for a custom loss that defines a ``velocity``.

    Raises:
        FileNotFoundError: when nothing is there, or a file of it is missing.
        ValueError: for a damaged file, a custom model that is not given, or parameters that do not fit the model.
        TypeError: for a ``model`` that is not a module, such as a class.

    Example:
        >>> load("mnist").num_classes
        10
        >>> load("no/such/run")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: checkpoint: no/such/run does not exist; expected a run's folder, ... one of digits, mnist...
    """
    if model is not None:
        validate.instance("model", model, nn.Module, "MLP(2)")
    path = Path(source).expanduser()
    if path.is_file():
        for name, value in (("model", model), ("loss", loss)):
            if value is not None:
                raise ValueError(f"{name}: expected None, since {path} is an exported file, which says it")
        return models.read_exported(path)
    if not path.exists():
        if str(source) in models.PRETRAINED:
            return models.load_pretrained(str(source))
        raise FileNotFoundError(
            f"checkpoint: {path} does not exist; expected a run's folder, an exported file, or one of "
            f"{', '.join(models.PRETRAINED)}"
        )
    return _from_checkpoint(checkpoints.locate(path), model, loss)


def _from_checkpoint(path: Path, model: nn.Module | None, loss: Loss | None) -> nn.Module:
    stored = checkpoints.read(path)
    if model is None:
        if stored.model is None:
            raise ValueError(f"model: {path} holds a model that flowbook cannot build; pass load(..., model=yours)")
        model = models.build(stored.model["name"], **stored.model["arguments"])
        model = model.to(next((p.dtype for p in stored.ema.values() if p.is_floating_point()), torch.float32))
    try:
        model.load_state_dict(stored.ema)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the parameters of {path} do not fit the model: {error}") from error
    if loss is None and stored.loss is not None:
        loss = _stored_loss(path, stored.loss["class"], stored.loss["arguments"])
    remember(model, stored.trained_on)
    scale = None if stored.standardizer is None else Standardizer.from_dict(stored.standardizer)
    describe_data(model, stored.classes, scale)
    return (model if loss is None else CompleteLoss(loss).velocity(model)).eval()


def describe_data(network: nn.Module, classes: list[str] | None, standardizer: Standardizer | None) -> None:
    """Note with a network what its labels are called, and how its data were scaled."""
    network.classes, network.standardizer = classes, standardizer  # type: ignore[assignment]


def start_from(network: nn.Module, init: str | Path | nn.Module, strict: bool = True) -> nn.Module:
    """Copy the parameters of a trained network into a new one.

    Args:
        network: the new one.
        init: anything that :func:`load` takes; or a module.
        strict: raise where names or shapes differ; False copies those that fit, and says how many.

    Returns:
        The trained network.

    Raises:
        ValueError: for parameters that do not fit.
    """
    source = init if isinstance(init, nn.Module) else load(init, model=_like(network, init))
    source = getattr(source, "network", source)
    have, want = source.state_dict(), network.state_dict()
    fitting = {name: value for name, value in have.items() if name in want and want[name].shape == value.shape}
    if strict and (len(fitting) < len(want) or len(fitting) < len(have)):
        wrong = [name for name in (*want, *have) if name not in fitting]
        raise ValueError(
            f"init: expected the parameters of {type(network).__name__}; {wrong[0]} and {len(set(wrong)) - 1} more do "
            "not fit in name or shape (strict=False copies those that do)"
        )
    if not fitting:
        raise ValueError(f"init: none of the parameters fits {type(network).__name__}")
    if len(fitting) < len(want):
        warnings.warn(f"init: {len(fitting)} of {len(want)} parameters are copied; the others are new", stacklevel=3)
    network.load_state_dict({**want, **fitting})
    return source


def _like(network: nn.Module, init: Any) -> nn.Module | None:
    """A module to load a checkpoint into, if it is of a network that this package cannot build."""
    path = Path(init)
    if not path.is_dir() or checkpoints.read(checkpoints.locate(path)).model is not None:
        return None
    return copy.deepcopy(network)


def _stored_loss(path: Path, address: str, arguments: dict[str, Any]) -> Any:
    """The loss that a checkpoint describes. Only flowbook's own are imported: a file must not name code to run."""
    module, _, name = address.rpartition(".")
    if not module.startswith("flowbook."):
        raise ValueError(
            f"loss: {path} was trained with {address}, which defines the velocity of the network; pass "
            f"load(..., loss={name}(...))"
        )
    try:
        return getattr(importlib.import_module(module), name).from_description(arguments)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} describes a loss that cannot be rebuilt: {error!r}") from error
