"""Loading a trained velocity, wherever it is stored."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from flowbook import models
from flowbook._core import validate
from flowbook.condition import remember
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
    path = Path(source)
    if path.is_file():
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
    try:
        model.load_state_dict(stored.ema)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the parameters of {path} do not fit the model: {error}") from error
    if loss is None and stored.loss is not None:
        loss = _stored_loss(path, stored.loss["class"], stored.loss["arguments"])
    remember(model, stored.trained_on)
    return (model if loss is None else CompleteLoss(loss).velocity(model)).eval()


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
