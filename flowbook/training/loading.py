"""A trained velocity, whatever holds it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from flowbook import models
from flowbook._core import validate
from flowbook.training import checkpoint as checkpoints
from flowbook.training.loss import CompleteLoss, Loss


def load(source: str | Path, model: nn.Module | None = None, loss: Loss | None = None) -> nn.Module:
    """A trained velocity in eval mode: from a run, one of its checkpoints, an exported file, or by a shipped name.

    Of a checkpoint it is the moving average of the parameters; of a run that learned diffusion, its probability flow.

    Args:
        source: the folder of a run or of a checkpoint; a file of ``flowbook export``; or a name such as "mnist" (a
            folder or file of that name comes first).
        model: a module to fill, where the checkpoint is of a model that is not this package's own.
        loss: the one that it was trained with, where that is not this package's own and has a ``velocity``.

    Raises:
        FileNotFoundError: when there is none, or a file of it is missing.
        ValueError: for a damaged file, a model that the checkpoint does not name, or parameters that do not fit.
        TypeError: for a model that is no module: the class of one, say.

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
            raise ValueError(f"model: {path} holds a model that flowbook does not build; pass load(..., model=yours)")
        model = models.build(stored.model["name"], **stored.model["arguments"])
    try:
        model.load_state_dict(stored.ema)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the parameters of {path} do not fit the model: {error}") from error
    if loss is None and stored.loss is not None:
        loss = _stored_loss(path, stored.loss["class"], stored.loss["arguments"])
    return (model if loss is None else CompleteLoss(loss).velocity(model)).eval()


def _stored_loss(path: Path, address: str, arguments: dict[str, Any]) -> Any:
    """The loss that a checkpoint describes. Only this package's own are imported: a file must not name code to run."""
    module, _, name = address.rpartition(".")
    if not module.startswith("flowbook."):
        raise ValueError(
            f"loss: {path} was trained with {address}, which alone knows the velocity of the network; pass "
            f"load(..., loss={name}(...))"
        )
    try:
        return getattr(importlib.import_module(module), name).from_description(arguments)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} describes a loss that is not there: {error!r}") from error
