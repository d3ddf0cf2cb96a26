"""What a velocity is: how it is called, what a call costs, and what wraps it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Velocity(Protocol):
    """Any callable ``v(x, t, y=None)`` that returns a tensor like ``x``: a network, a function, a lambda.

    ``x`` is the state, shape (B, ...), ``t`` the time in [0, 1], a scalar or shape (B,), and ``y`` the condition or
    None. Without a condition the third argument is omitted, so ``lambda x, t: -x`` is a velocity too.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


def call(velocity: Velocity, x: Tensor, t: Tensor | float, y: Tensor | None) -> Tensor:
    """``velocity(x, t, y)``, or ``velocity(x, t)`` where there is no condition.

    Example:
        >>> call(lambda x, t: 2 * x, torch.ones(1, 1), 0.5, None)
        tensor([[2.]])
    """
    return velocity(x, t) if y is None else velocity(x, t, y)


def model_calls(velocity: Velocity) -> int:
    """How many times the underlying network runs in one call: 1, or the velocity's own ``model_calls``.

    Example:
        >>> model_calls(lambda x, t: x)
        1
    """
    return int(getattr(velocity, "model_calls", 1))


class evaluating:
    """Put every module of the velocity in eval mode, and restore the mode of each afterwards.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """

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
    """The device of the parameters; the CPU for a velocity without any.

    Example:
        >>> device_of(lambda x, t: x)
        device(type='cpu')
    """
    parameter = next(velocity.parameters(), None) if isinstance(velocity, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


class Wrapper(nn.Module):
    """A module around another model that forwards the model's cost per call and its null label.

    A subclass names the attribute that holds the model in ``_inner``, and sets ``_transparent`` if it changes only how
    the model is computed.
    """

    _inner = "velocity"
    _transparent = False

    @property
    def model_calls(self) -> int:
        """How many times the inner network runs in one call."""
        return model_calls(getattr(self, self._inner))

    @property
    def null_label(self) -> int | None:
        """The null label of the inner model, or None if it has none."""
        return null_label_of(getattr(self, self._inner))


def unwrapped(model: Any) -> Any:
    """The model inside wrappers that change only how it is computed: torch's own, Autocast and Compiled.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> unwrapped(nn.DataParallel(network)) is network
        True
    """
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
    """The null label of a class-conditional model, also behind torch's wrappers; None if unknown.

    Example:
        >>> from flowbook.models import MLP
        >>> null_label_of(MLP(2, num_classes=10))
        10
    """
    inner = getattr(velocity, "module", velocity)  # DistributedDataParallel keeps the model there
    return getattr(inner, "null_label", None)
