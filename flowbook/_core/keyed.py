"""Random numbers that belong to a sample, not to a process.

Inside :func:`keyed`, :func:`randn_like` and :func:`rand` draw the numbers of global samples ``first, first + 1, ...``
of one training step: they depend only on the seed, the step and the sample's position in the global batch. With one
process or eight, one large batch or four micro-batches, each sample gets the same noise and the same time. Outside, the
two functions are ``torch.randn`` and ``torch.rand`` on torch's own generator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

BLOCK = 256
"""Samples that share one generator; a process draws whole blocks and keeps its own rows."""


class keyed:
    """Key the draws inside the block to ``seed``, ``step`` and the global index ``first`` of the batch's first sample.

    Example:
        >>> with keyed(seed=0, step=3, first=0):
        ...     whole = randn_like(torch.empty(8, 2))
        >>> with keyed(seed=0, step=3, first=4):
        ...     half = randn_like(torch.empty(4, 2))
        >>> torch.equal(whole[4:], half)
        True
    """

    def __init__(self, seed: int, step: int, first: int):
        self.seed, self.step, self.first, self.draws = seed, step, first, 0

    def __enter__(self) -> None:
        global _current
        self._outer, _current = _current, self

    def __exit__(self, *raised: object) -> None:
        global _current
        _current = self._outer


_current: keyed | None = None


def randn_like(x: Tensor) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of ``x``; rows are samples.

    Example:
        >>> randn_like(torch.empty(2, 3)).shape
        torch.Size([2, 3])
    """
    return torch.randn_like(x) if _current is None else _draw(torch.randn, x.shape, x)


def rand(n: int, like: Tensor, high: float = 1.0) -> Tensor:
    """Uniform numbers on [0, high), shape (n,), with the dtype and device of ``like``.

    Example:
        >>> rand(3, like=torch.empty(0)).shape
        torch.Size([3])
    """
    if _current is None:
        drawn = torch.rand(n, dtype=like.dtype, device=like.device)
    else:
        drawn = _draw(torch.rand, torch.Size([n]), like)
    return drawn if high == 1.0 else high * drawn


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (the finalizer of splitmix64; Steele et al. 2014).

    Torch's CPU generator uses only the lower 32 bits of a seed. Of n blocks of random numbers that are drawn there,
    about n^2 / 2^33 pairs are therefore equal: one pair in the first 90,000.

    Example:
        >>> mix(0, 1) != mix(1, 0)
        True
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


@cache
def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device=device)  # seeded before every draw; making one costs as much as drawing


def _draw(function: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
    key = _current
    assert key is not None
    key.draws += 1
    generator = _generator(like.device)
    rows, rest = shape[0], shape[1:]
    blocks = []
    for block in range(key.first // BLOCK, -(-(key.first + rows) // BLOCK)):
        generator.manual_seed(mix(key.seed, key.step, key.draws, block))
        blocks.append(function(BLOCK, *rest, generator=generator, dtype=like.dtype, device=like.device))
    if not blocks:
        return like.new_empty(shape)
    drawn = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    start = key.first % BLOCK
    return drawn if len(drawn) == rows else drawn[start : start + rows]
