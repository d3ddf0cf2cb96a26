"""What a network costs: weights, and floating-point operations of one evaluation."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowbook import _validate


@dataclass(frozen=True)
class Cost:
    """Made by :func:`cost`."""

    weights: int
    """Numbers that are trained."""
    flops: int
    """Of one evaluation of one sample, forward; a step of training takes three times as many."""

    def __str__(self) -> str:
        unit, size = ("GFLOP", 1e9) if self.flops >= 1e8 else ("MFLOP", 1e6)
        return f"{self.weights:,} weights, {self.flops / size:.3g} {unit} for each sample and evaluation"


def cost(model: nn.Module, x: Tensor) -> Cost:
    """Weights and operations of a model, counted by torch's own counter while it runs once, on no data.

    Matrix products and convolutions are counted, two operations for a product and its sum; the rest is a few percent.

    Args:
        model: ``v(x, t, y=None)``.
        x: one sample or more, shape (B, ...), of which shape and dtype count.

    Example:
        >>> from flowbook import models
        >>> network = models.UNet(3, 32, width=128, multipliers=(1, 2, 2, 2), attention=(16,))
        >>> print(cost(network, torch.zeros(1, 3, 32, 32)))
        36,599,683 weights, 12.4 GFLOP for each sample and evaluation
    """
    from torch.utils.flop_counter import FlopCounterMode

    _validate.instance("model", model, nn.Module, "MLP(2)")
    _validate.float_tensor("x", x, min_dim=1)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shadow = copy.deepcopy(model).requires_grad_(False).to("meta")  # shapes without numbers: nothing is computed
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        try:
            shadow(x[:1].to("meta"), torch.zeros(1, dtype=x.dtype, device="meta"))
        except TypeError as error:
            raise TypeError(
                f"model: expected v(x, t, y=None); got {type(model).__name__}, which does not take a time"
            ) from error
    return Cost(weights, counter.get_total_flops())
