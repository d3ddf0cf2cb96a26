"""The distribution of the noise at t = 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.draws import origin
from flowbook._core.times import working_dtype


@dataclass(frozen=True)
class Normal:
    """A normal distribution of tensors of one shape, with mean 0 and independent entries.

    Args:
        shape: of a sample, without the batch.
        std: the standard deviation of an entry.

    Example:
        >>> Normal((1, 28, 28)).sample(2).shape
        torch.Size([2, 1, 28, 28])
        >>> Normal((1,), std=80.0).log_prob(torch.zeros(1, 1))
        tensor([-5.3010])
    """

    shape: tuple[int, ...]
    std: float = 1.0

    def __post_init__(self) -> None:
        for size in self.shape:
            validate.positive_int("shape", size)
        validate.number("std", self.std, 0, math.inf, low_open=True, high_open=True)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n tensors, shape (n, ...), in torch's default dtype."""
        return self.std * torch.randn(n, *self.shape, generator=generator, device=origin(generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density in nats, shape (B,), in float32 at least."""
        return log_normal(x, self.std)


def log_normal(x: Tensor, std: float = 1.0) -> Tensor:
    """The log-density of independent entries from N(0, std^2), in nats, shape (B,).

    Example:
        >>> log_normal(torch.zeros(1, 2))
        tensor([-1.8379])
    """
    flat = x.flatten(1).to(working_dtype(x.dtype)) / std
    return -0.5 * flat.square().sum(1) - flat.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(std))
