"""Bits per dimension of images, in batches."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from flowbook._core import keyed, validate
from flowbook._core.tree import map_condition
from flowbook.cnf.density import log_prob
from flowbook.cnf.dequantization import bits_per_dim, dequantize
from flowbook.condition import Condition, check_condition
from flowbook.solvers import Solver, SolverOptions, as_solver
from flowbook.velocity import Velocity


@torch.no_grad()
def bits_of_images(
    velocity: Velocity,
    images: Tensor,
    levels: int = 256,
    *,
    y: Condition = None,
    seed: int = 0,
    batch_size: int = 100,
    **solver: Unpack[SolverOptions],
) -> Tensor:
    """Bits per dimension of each image, with one uniform dequantization and one Hutchinson probe for each.

    In expectation over the probe they are exact, and over the dequantization an upper bound on the bits of the gray
    levels. Both draws depend only on the seed and the image's index, not on ``batch_size``.

    Args:
        velocity: a velocity on images, trained on dequantized ones.
        images: (n, C, H, W), discrete values as :func:`~flowbook.cnf.dequantize` takes them.
        levels: number of gray levels.
        y: the condition of each image; None scores a conditional model under its null.
        seed: the seed of noise and probes.
        batch_size: images solved at once.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields; by default 20 steps of rk4.

    Returns:
        Shape (n,). The standard error of their mean covers images, dequantization and probes alike.

    Example:
        >>> still = lambda x, t: torch.zeros_like(x)  # the density is that of N(0, I)
        >>> bits_of_images(still, torch.zeros(1, 1, 28, 28), levels=3, steps=1).round(decimals=1)
        tensor([1.9000])
    """
    validate.positive_int("batch_size", batch_size)
    chosen = as_solver(solver, default=Solver("rk4", steps=20))
    check_condition("y", y, len(images), velocity)
    bits = []
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        with keyed.keyed(seed, step=0, first=first):
            x = dequantize(images[part], levels)
            rows = map_condition(lambda whole: whole[part], y)  # noqa: B023 (called at once)
            result = log_prob(velocity, x, y=rows, trace="hutchinson", solver=chosen)
        bits.append(bits_per_dim(result.log_prob, x[0].numel(), levels))
    return torch.cat(bits) if bits else images.new_zeros(0)
