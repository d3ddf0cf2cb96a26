"""Classifier-free guidance: labels are dropped at random in training, and their effect is amplified in sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowbook._core import keyed, validate
from flowbook.data import labels_of
from flowbook.velocity import Velocity, model_calls, null_label_of


class Guided(nn.Module):
    """A velocity under classifier-free guidance; made by :func:`guided`."""

    def __init__(self, velocity: Velocity, scale: float, null_label: int):
        super().__init__()
        self.velocity, self.scale, self.null_label = velocity, scale, null_label

    @property
    def model_calls(self) -> int:
        """Twice the calls of the inner velocity."""
        return 2 * model_calls(self.velocity)

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        if y is None:
            raise ValueError("y: expected the labels to guide toward, shape (B,); got None")
        unconditional = self.velocity(x, t, torch.full_like(y, self.null_label))
        return unconditional + self.scale * (self.velocity(x, t, y) - unconditional)


def guided(velocity: Velocity, scale: float, null_label: int | None = None) -> Guided:
    r"""Classifier-free guidance: amplify the effect of the label (Ho and Salimans 2022, equation 6).

    .. math:: v_\text{guided}(x, t, y) = v(x, t, \varnothing) + s\, \big(v(x, t, y) - v(x, t, \varnothing)\big)

    Scale 0 ignores the label, 1 is the plain conditional velocity, and a scale above 1 trades diversity for fidelity
    (their w is our s - 1). The network runs twice per call, and ``nfe`` counts both.

    Args:
        velocity: a class-conditional velocity trained with label dropout.
        scale: s above.
        null_label: the label that stands for "no condition"; by default the model's own ``null_label``.

    Raises:
        ValueError: when neither the call nor the model defines a null label, and for a scale that is not finite.
        TypeError: for a velocity that cannot be called, and a null label that is not an integer.

    Example:
        >>> v = guided(lambda x, t, y=None: x * y[:, None], scale=3.0, null_label=0)
        >>> v(torch.ones(1, 2), 0.5, torch.tensor([1]))
        tensor([[3., 3.]])
    """
    validate.function("velocity", velocity, "a class-conditional network")
    validate.finite("scale", scale)
    if null_label is None:
        null_label = null_label_of(velocity)
    if null_label is None:
        raise ValueError("null_label: expected the null label for guidance, since the model defines none; got None")
    if not validate.is_integer(null_label):
        raise TypeError(f"null_label: expected an integer label; got {null_label!r}")
    return Guided(velocity, float(scale), int(null_label))


def drop_labels(
    velocity: Velocity, x1: Tensor, y: Tensor | None, dropout: float, null_label: int | None = None
) -> Tensor:
    """Replace each label by the null label with probability ``dropout``.

    One network then learns both the conditional and the unconditional velocity.

    Args:
        velocity: the model, whose own ``null_label`` is the default.
        x1: the batch; only its length, dtype and device are used.
        y: its labels, shape (B,).
        dropout: the probability (Ho and Salimans 2022, algorithm 1).
        null_label: the label that stands for "no condition".

    Raises:
        ValueError: without labels, or without a null label.

    Example:
        >>> drop_labels(lambda x, t, y: x, torch.zeros(2, 1), torch.tensor([3, 4]), dropout=1.0, null_label=10)
        tensor([10, 10])
    """
    if y is None:
        raise ValueError("y: expected labels for label_dropout; got None")
    if null_label is None:
        null_label = null_label_of(velocity)
    if null_label is None:
        raise ValueError("null_label: expected one for label_dropout, since the model defines none; got None")
    return torch.where(keyed.rand(len(x1), like=x1) < dropout, null_label, y)


def check_labels(network: Velocity, data: Any) -> None:
    """Raise ValueError if a label of tensor data is out of range for the network, or is its null label.

    Called once for the whole data set: in every step, reading the labels would cost more than the step's other checks.
    Without this check, labels 1 to K would train without an error, with K as the null label.

    Example:
        >>> from flowbook.models import MLP
        >>> check_labels(MLP(2, num_classes=2), (torch.zeros(2, 2), torch.tensor([1, 2])))
        Traceback (most recent call last):
        ValueError: y: expected labels counted from 0, without the model's null label 2; got 1 to 2
    """
    y = labels_of(data)
    null_label = null_label_of(network)
    if y is None or null_label is None:
        return
    validate.labels("y", y, len(y), classes=null_label + 1)
    if validate.values_are_readable(y) and bool((y == null_label).any()):
        low, high = (int(v) for v in y.aminmax())
        raise ValueError(
            f"y: expected labels counted from 0, without the model's null label {null_label}; got {low} to {high}"
        )
