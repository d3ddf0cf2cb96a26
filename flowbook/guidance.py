"""Classifier-free guidance: the condition is dropped at random in training, and its effect is amplified in sampling."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowbook._core import keyed, validate
from flowbook._core.tree import map_condition
from flowbook.condition import Condition, Null, as_null, check_condition, trained_on
from flowbook.data import labels_of
from flowbook.velocity import Velocity, Wrapper, check_order, model_calls, said_by

Dropout = float | Mapping[str, float]
"""The probability with which the condition is dropped, or one for each key of a dict."""


class Guided(Wrapper):
    """A velocity under classifier-free guidance; made by :func:`guided`."""

    def __init__(self, velocity: Velocity, scale: float, null: Null):
        super().__init__()
        self.velocity, self.scale, self.null = velocity, scale, null

    @property
    def model_calls(self) -> int:
        """Twice the calls of the inner velocity."""
        return 2 * model_calls(self.velocity)

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        if y is None:
            raise ValueError("y: expected the condition to guide toward; got None")
        unconditional = self.velocity(x, t, as_null(self.null, y))
        return unconditional + self.scale * (self.velocity(x, t, y) - unconditional)


def guided(velocity: Velocity, scale: float, null: Null = None) -> Guided:
    r"""Classifier-free guidance: amplify the effect of the condition (Ho and Salimans 2022, equation 6).

    .. math:: v_\text{guided}(x, t, y) = v(x, t, \varnothing) + s\, \big(v(x, t, y) - v(x, t, \varnothing)\big)

    Scale 0 ignores the condition, 1 is the plain conditional velocity, and a scale above 1 trades diversity for
    fidelity (their w is our s - 1). The network runs twice per call, and ``nfe`` counts both.

    Args:
        velocity: a conditional velocity trained with ``condition_dropout``.
        scale: s above.
        null: what stands for "no condition"; by default the model's own ``null``. A label; a number, or an embedding of
            one sample or of the batch, such as that of the empty or of a negative prompt; for a dict y a dict of such,
            and what it does not name stays in both terms.

    Raises:
        ValueError: when neither the call nor the model has a null, and for a scale that is not finite.
        TypeError: for a velocity that cannot be called, and, when called, for a null that does not fit the condition.

    Warns:
        UserWarning: for a network of which ``fit`` knows that it never saw a null.

    Example:
        >>> v = guided(lambda x, t, y=None: x * y[:, None], scale=3.0, null=0)
        >>> v(torch.ones(1, 2), 0.5, torch.tensor([1]))
        tensor([[3., 3.]])
    """
    validate.function("velocity", velocity, "a conditional network")
    check_order(velocity)
    validate.finite("scale", scale)
    null = known_null(velocity, null, "guidance")
    known = trained_on(velocity)
    if known is not None and not known.nothing:
        warnings.warn(
            "guided: the network was trained with a condition on every sample, and has not learned what to do without "
            "one, which guidance needs: train it with condition_dropout, such as 0.1",
            stacklevel=2,
        )
    return Guided(velocity, float(scale), null)


def known_null(velocity: Velocity, null: Null, purpose: str) -> Any:
    """The null that was given, or else the model's own.

    Raises:
        ValueError: where there is neither.

    Example:
        >>> known_null(lambda x, t, y: x, 10, "guidance")
        10
    """
    null = said_by(velocity, "null") if null is None else null
    if null is None:
        raise ValueError(
            f"null: expected what stands for no condition, for {purpose}, since the model has no attribute null; got "
            "None"
        )
    return null


def check_dropout(dropout: Any) -> None:
    """Raise for a ``condition_dropout`` that is no probability, and no dict of such.

    Example:
        >>> check_dropout({"text": 1.5})
        Traceback (most recent call last):
        ValueError: condition_dropout.text: expected a number in [0, 1]; got 1.5
    """
    if not isinstance(dropout, Mapping):
        validate.number("condition_dropout", dropout, 0, 1)
        return
    for key, probability in dropout.items():
        validate.number(f"condition_dropout.{key}", probability, 0, 1)


def drop_condition(velocity: Velocity, x1: Tensor, y: Condition, dropout: Dropout, null: Null = None) -> Any:
    """Replace the condition of each sample by the null with probability ``dropout``.

    One network then learns both the conditional and the unconditional velocity.

    Args:
        velocity: the model, whose own ``null`` is the default.
        x1: the batch; only its length, dtype and device are used.
        y: its condition.
        dropout: the probability (Ho and Salimans 2022, algorithm 1); or, for a dict y, one for each key, dropped
            independently of each other.
        null: what stands for "no condition".

    Raises:
        ValueError: without a condition, or without a null.

    Example:
        >>> drop_condition(lambda x, t, y: x, torch.zeros(2, 1), torch.tensor([3, 4]), dropout=1.0, null=10)
        tensor([10, 10])
    """
    if not isinstance(dropout, Mapping) and dropout == 0:
        return y
    if y is None:
        raise ValueError("y: expected a condition for condition_dropout; got None")
    null = known_null(velocity, null, "condition_dropout")
    nothing = as_null(null, y)
    if not isinstance(dropout, Mapping):
        return _chosen(x1, dropout, nothing, y)
    if not isinstance(y, Mapping) or (unknown := sorted(set(dropout) - set(y))):
        expected = ", ".join(map(str, y)) if isinstance(y, Mapping) else "one number, since y is no dict"
        got = ", ".join(unknown) if isinstance(y, Mapping) else f"keys {', '.join(dropout)}"
        raise ValueError(f"condition_dropout: expected {expected}; got {got}")
    if isinstance(null, Mapping) and (lacking := sorted(set(dropout) - set(null))):
        raise ValueError(f"null: expected one for each key of condition_dropout; it lacks {', '.join(lacking)}")
    return {**y, **{key: _chosen(x1, part, nothing[key], y[key]) for key, part in dropout.items()}}


def _chosen(x1: Tensor, probability: float, nothing: Condition, y: Condition) -> Any:
    dropped = keyed.rand(len(x1), like=x1) < probability

    def choose(part: Tensor, empty: Tensor) -> Tensor:
        return torch.where(dropped.to(part.device).reshape(-1, *[1] * (part.dim() - 1)), empty, part)

    return map_condition(choose, y, nothing)


def check_labels(network: Velocity, data: Any) -> None:
    """Raise ValueError if a label of tensor data is out of range for the network, or is its null.

    Called once for the whole data set: in every step, reading the labels would cost more than the step's other checks.
    Without this check, labels 1 to K would train without an error, with K as the null. A sample without a label has -1.

    Example:
        >>> from flowbook.models import MLP
        >>> check_labels(MLP(2, num_classes=2), (torch.zeros(2, 2), torch.tensor([1, 2])))
        Traceback (most recent call last):
        ValueError: y: expected labels from 0 to 1, and -1 where there is none; got 1 to 2
    """
    y = labels_of(data)
    if y is None:
        return
    check_condition("y", y, len(data[-2]), network)
    null = said_by(network, "null")
    if not isinstance(y, Tensor) or y.is_floating_point() or not validate.is_integer(null):
        return
    if validate.values_are_readable(y) and bool((y == null).any()):
        low, high = (int(v) for v in y.aminmax())
        missing = ", and -1 where there is none" if said_by(network, "missing") == -1 else ""
        raise ValueError(f"y: expected labels from 0 to {null - 1}{missing}; got {low} to {high}")
