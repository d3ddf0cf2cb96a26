"""What the package asks of a model, in one place: how it is called, what a call costs, and its evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Velocity = Callable[..., Tensor]
"""Any callable ``v(x, t, y=None)`` that returns a tensor like ``x``."""


def call(velocity: Velocity, x: Tensor, t: Tensor | float, y: Tensor | None) -> Tensor:
    """``velocity(x, t, y)``; without labels the third argument is left out, so ``lambda x, t: ...`` is a velocity."""
    return velocity(x, t) if y is None else velocity(x, t, y)


def model_calls(velocity: Velocity) -> int:
    """How often the underlying network runs in one call: 1, or what the velocity says in ``model_calls``."""
    return int(getattr(velocity, "model_calls", 1))


class evaluating:
    """Put every module of the velocity in eval mode and give each its own mode back afterwards."""

    def __init__(self, velocity: Velocity):
        self.velocity = velocity
        self.training: list[nn.Module] = []

    def __enter__(self) -> None:
        if isinstance(self.velocity, nn.Module):
            self.training = [module for module in self.velocity.modules() if module.training]
        for module in self.training:
            module.training = False

    def __exit__(self, *raised: object) -> None:
        for module in self.training:
            module.training = True


def device_of(velocity: Velocity) -> torch.device:
    """Where its weights are; the CPU for a velocity without any."""
    weight = next(velocity.parameters(), None) if isinstance(velocity, nn.Module) else None
    return torch.device("cpu") if weight is None else weight.device


class Wrapper(nn.Module):
    """A module around another model: what a call costs, and which label means "none", are that one's."""

    _inner = "velocity"  # the attribute that holds it
    _transparent = False  # whether it changes only how the model is computed

    @property
    def model_calls(self) -> int:
        return model_calls(getattr(self, self._inner))

    @property
    def null_label(self) -> int | None:
        """The label that means "none"; None if the model inside has none."""
        return null_label_of(getattr(self, self._inner))


def unwrapped(model: Any) -> Any:
    """The model inside wrappers that change only how it is computed: torch's, Autocast and Compiled."""
    while True:
        if isinstance(model, nn.Module) and "_orig_mod" in model._modules:  # torch.compile
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, Wrapper) and model._transparent:
            model = getattr(model, model._inner)
        else:
            return model


def null_label_of(velocity: Velocity) -> int | None:
    """The label that means "none" for a class-conditional model, also behind a wrapper of torch's; None if unknown."""
    inner = getattr(velocity, "module", velocity)  # DistributedDataParallel keeps the model there
    return getattr(inner, "null_label", None)
