"""Classifier-free guidance: labels that are dropped in training, and exaggerated in sampling."""

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
        """Twice those of the velocity inside."""
        return 2 * model_calls(self.velocity)

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        if y is None:
            raise ValueError("y: a guided velocity needs the labels to guide to, shape (B,); got None")
        unconditional = self.velocity(x, t, torch.full_like(y, self.null_label))
        return unconditional + self.scale * (self.velocity(x, t, y) - unconditional)


def guided(velocity: Velocity, scale: float, null_label: int | None = None) -> Guided:
    r"""Classifier-free guidance: exaggerate what the label changes (Ho and Salimans 2022, equation 6).

    .. math:: v_\text{guided}(x, t, y) = v(x, t, \varnothing) + s\, \big(v(x, t, y) - v(x, t, \varnothing)\big)

    Scale 0 ignores the label, 1 is the plain conditional velocity, above 1 trades variety for typicality (their w is
    our s - 1). The network runs twice, and ``nfe`` counts two.

    Args:
        velocity: a class-conditional velocity trained with label dropout.
        scale: s above.
        null_label: the label that means "none"; by default the model's own ``null_label``.

    Raises:
        ValueError: when neither the call nor the model says which label means "none".

    Example:
        >>> v = guided(lambda x, t, y=None: x * y[:, None], scale=3.0, null_label=0)
        >>> v(torch.ones(1, 2), 0.5, torch.tensor([1]))
        tensor([[3., 3.]])
    """
    validate.number("scale", scale, -float("inf"), float("inf"))
    if null_label is None:
        null_label = null_label_of(velocity)
    if null_label is None:
        raise ValueError("null_label: guidance needs the label that means 'none', and the model does not name it")
    if not validate.is_integer(null_label):
        raise TypeError(f"null_label: expected an integer label; got {null_label!r}")
    return Guided(velocity, float(scale), int(null_label))


def drop_labels(
    velocity: Velocity, x1: Tensor, y: Tensor | None, dropout: float, null_label: int | None = None
) -> Tensor:
    """Replace each label by the null label with probability ``dropout``, so that one network learns both.

    Args:
        velocity: the model, asked for its ``null_label`` where that is not given.
        x1: the batch, of which length, dtype and device count.
        y: its labels, shape (B,).
        dropout: the probability (Ho and Salimans 2022, algorithm 1).
        null_label: the label that means "none".

    Raises:
        ValueError: without labels, or without a null label.

    Example:
        >>> drop_labels(lambda x, t, y: x, torch.zeros(2, 1), torch.tensor([3, 4]), dropout=1.0, null_label=10)
        tensor([10, 10])
    """
    if y is None:
        raise ValueError("y: label_dropout needs labels; got None")
    if null_label is None:
        null_label = null_label_of(velocity)
    if null_label is None:
        raise ValueError("null_label: label_dropout needs the label that means 'none', and the model does not name it")
    return torch.where(keyed.rand(len(x1), like=x1) < dropout, null_label, y)


def check_labels(network: Velocity, data: Any) -> None:
    """Raise for labels of tensor data that a class-conditional network does not know, or that mean "none" to it.

    Once for the whole data set: in every step, looking at the labels would cost more than the step's other checks.
    Labels 1 to K would train without an error, K as the null label.

    Example:
        >>> from flowbook.models import MLP
        >>> check_labels(MLP(2, num_classes=2), (torch.zeros(2, 2), torch.tensor([1, 2])))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: y: 2 is the model's null label, which means 'none'; expected labels without it, ... got 1 to 2
    """
    y = labels_of(data)
    null_label = null_label_of(network)
    if y is None or null_label is None:
        return
    validate.labels("y", y, len(y), classes=null_label + 1)
    if validate.values_are_readable(y) and bool((y == null_label).any()):
        low, high = (int(v) for v in y.aminmax())
        raise ValueError(
            f"y: {null_label} is the model's null label, which means 'none'; expected labels without it, counted from "
            f"0; got {low} to {high}"
        )
