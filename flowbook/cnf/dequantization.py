"""Discrete data and densities: uniform dequantization, bits per dimension, the log-probability of a gray level.

On the gray levels themselves a density can grow without bound. With each level spread uniformly over its bin it cannot,
and its integral over a bin is the probability of the level (Theis et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowbook._core import keyed, validate
from flowbook._core.digest import digest
from flowbook._core.draws import indices
from flowbook._core.tree import map_condition
from flowbook.condition import check_condition
from flowbook.data import Batch, gray_levels, unpack


def dequantize(x1: Tensor, levels: int = 256, generator: torch.Generator | None = None) -> Tensor:
    """Uniform dequantization: each gray level becomes a random value in its own bin of [-1, 1] (Theis et al. 2016).

    Level k of ``levels`` fills the bin from ``2 k / levels - 1`` to ``2 (k + 1) / levels - 1``.

    Args:
        x1: discrete data, ``levels`` equidistant values from -1 to 1, shape (B, ...).
        levels: number of gray levels: 256 for most images, 17 for the digits.
        generator: for the noise; without one, the noise inside ``fit`` belongs to the sample, whichever process
            computes it.

    Example:
        >>> dequantize(torch.tensor([[-1.0, 1.0]]), levels=2).abs().max() <= 1
        tensor(True)
    """
    k = gray_levels(x1, levels)
    validate.generator(generator)
    if generator is None:
        noise = torch.special.ndtr(keyed.randn_like(x1))  # the distribution function of a normal number is uniform
    else:
        noise = torch.rand(x1.shape, generator=generator, dtype=x1.dtype, device=generator.device).to(x1.device)
    return 2 * (k + noise) / levels - 1


class Dequantized:
    """Discrete data to train on, dequantized anew in every batch; data for :func:`flowbook.training.fit`.

    Samples are drawn with replacement. Any loss can be trained on it; MaximumLikelihood has its own ``levels``.

    Args:
        data: x1, shape (N, ...), or (x1, y): discrete values as :func:`dequantize` takes them.
        levels: number of gray levels.

    Raises:
        ValueError, TypeError: for data that do not have such discrete values, or parts of different lengths.

    Example:
        >>> from flowbook import data
        >>> x1, y = Dequantized(data.digits("test"), levels=17).sample(4)
        >>> x1.shape, y.shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """

    def __init__(self, data: Batch, levels: int = 256):
        x0, self.x1, self.y = unpack(data)
        if x0 is not None:
            raise ValueError("data: expected x1 or (x1, y); got (x0, x1, y)")
        gray_levels(self.x1, levels)
        check_condition("y", self.y, len(self.x1))
        self.levels = levels
        self.name = f"{tuple(self.x1.shape)} at {levels} levels"

    def identity(self) -> str:
        """The levels and the digest of the data."""
        return f"Dequantized {self.name} {digest((self.x1, self.y))[:16]}"

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor | tuple[Tensor, Any]:
        """n dequantized samples, (n, ...), or with labels the pair of both."""
        validate.positive_int("n", n)
        index = indices(len(self.x1), n, generator).to(self.x1.device)
        x1 = dequantize(self.x1[index], self.levels, generator)
        return x1 if self.y is None else (x1, map_condition(lambda part: part[index], self.y))


def bits_per_dim(log_prob: Tensor, dims: int, levels: int = 256) -> Tensor:
    """Bits per dimension of discrete data from the log-density of dequantized data in [-1, 1].

    A bin is 2 / levels wide, so ``-log2 P = -log2 p - D log2(2 / levels)``: the offset is 7 bits for 256 levels (8 if
    the density were of data in [0, 1]).

    Args:
        log_prob: nats, any shape.
        dims: D.
        levels: as in :func:`dequantize`.

    Example:
        >>> uniform = torch.tensor([-3.0 * math.log(2.0)])  # three dimensions, each uniform on [-1, 1]
        >>> bits_per_dim(uniform, dims=3)
        tensor([8.])
    """
    validate.positive_int("dims", dims)
    validate.positive_int("levels", levels, at_least=2)
    return -log_prob / (dims * math.log(2.0)) + math.log2(levels / 2)


def discrete_log_prob(
    density: Callable[[Tensor], Tensor],
    x1: Tensor,
    levels: int = 256,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The log-probability of discrete data from a density of dequantized data, in nats, shape (B,).

    With one draw it is a lower bound in expectation; more draws are averaged as probabilities and close the gap (the
    importance-weighted bound; Burda et al. 2016, equation 8).

    Args:
        density: ``x -> log p(x)``, shape (B,): for example ``lambda x: log_prob(velocity, x).log_prob``.
        x1: discrete data, as in :func:`dequantize`.
        levels: number of gray levels.
        draws: number of dequantizations of each sample.
        generator: for the noise.

    Example:
        >>> uniform = lambda x: torch.full((len(x),), -2 * math.log(2.0))  # two dimensions
        >>> discrete_log_prob(uniform, torch.ones(1, 2), levels=16) / math.log(2.0)
        tensor([-8.])
    """
    validate.positive_int("draws", draws)
    logs = torch.stack([density(dequantize(x1, levels, generator)) for _ in range(draws)])
    if logs.shape != (draws, len(x1)):
        raise ValueError(
            f"density: expected shape ({len(x1)},), one number for each sample; got {tuple(logs[0].shape)}"
        )
    return torch.logsumexp(logs, 0) - math.log(draws) + x1.shape[1:].numel() * math.log(2 / levels)
