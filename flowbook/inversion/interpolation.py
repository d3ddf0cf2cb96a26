"""Interpolation between data points, through their latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.condition import Condition, check_condition, repeated
from flowbook.inversion.latents import invert
from flowbook.solvers import SolverOptions, as_solver, sample
from flowbook.solvers.solution import refuse
from flowbook.velocity import Velocity


def slerp(a: Tensor, b: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    r"""Spherical interpolation from a to b, along the arc between them (Shoemake 1985), one arc for each sample.

    .. math:: \frac{\sin((1 - w)\,\Omega)}{\sin\Omega}\, \frac{a}{\|a\|}
              + \frac{\sin(w\,\Omega)}{\sin\Omega}\, \frac{b}{\|b\|}

    times the length :math:`(1 - w)\|a\| + w\|b\|`. Noise of D dimensions lies close to a sphere of radius
    :math:`\sqrt D`; the straight line between two such points leaves it, by a factor of 0.71 in the middle.

    Args:
        a, b: shape (B, ...), not zero and not opposite to each other.
        weights: n numbers in [0, 1]; 0 is a and 1 is b, exactly.

    Returns:
        Shape (n, B, ...).

    Raises:
        ValueError: for a zero vector, which has no direction, and for opposite ones, whose arc is not unique.

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), [0.0, 0.5])
        tensor([[[1.0000, 0.0000]],
                [[0.7071, 0.7071]]])
    """
    _check_pair(a, b)
    w = _weights(weights, a)
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    length_a, length_b = flat_a.norm(dim=1), flat_b.norm(dim=1)
    if bool((length_a == 0).any()) or bool((length_b == 0).any()):
        raise ValueError("a, b: expected nonzero vectors; got one that is zero")
    unit_a, unit_b = flat_a / length_a[:, None], flat_b / length_b[:, None]
    # Accurate also for small angles, unlike the arc cosine of the inner product (Kahan).
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    if bool((angle > math.pi - 1e-3).any()):
        raise ValueError("a, b: expected vectors that are not opposite; got opposite ones, whose arc is not unique")
    length = (1 - w) * length_a + w * length_b  # (n, B)

    def share(w: Tensor) -> Tensor:  # sin(w angle) / sin(angle), with its limit w where the two are parallel
        return w * torch.sinc(w * angle / math.pi) / torch.sinc(angle / math.pi)

    column = (*w.shape[:1], len(a), *[1] * (a.dim() - 1))
    return (share(1 - w) * length / length_a).reshape(column) * a + (share(w) * length / length_b).reshape(column) * b


def lerp(a: Tensor, b: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Linear interpolation from a to b; arguments and shape as in :func:`slerp`, without its restrictions.

    Example:
        >>> lerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), [0.5])
        tensor([[[0.5000, 0.5000]]])
    """
    _check_pair(a, b)
    w = _weights(weights, a).reshape(-1, *[1] * a.dim())
    return (1 - w) * a + w * b


@dataclass(frozen=True)
class Interpolation:
    """What :func:`interpolate` returns."""

    x: Tensor
    """The points from a to b, shape (n, B, ...). The first and last are the reconstructions of a and b."""
    latents: Tensor
    """The latents that they were generated from, shape (n, B, ...)."""
    nfe: int
    """The number of model calls. Both ends are inverted in one batch, and all points are generated in another."""


def interpolate(
    velocity: Velocity,
    a: Tensor,
    b: Tensor,
    n: int,
    *,
    y: Condition = None,
    spherical: bool = True,
    **solver: Unpack[SolverOptions],
) -> Interpolation:
    """Interpolate between data points, through their latents.

    Args:
        velocity: ``v(x, t, y=None)``.
        a, b: data, shape (B, ...); the k-th sample of a is paired with the k-th of b.
        n: number of points for each pair, including both ends.
        y: the condition of each pair: both ends are inverted, and all points generated, under it. If the
            ends have different ones, pass None, which a conditional model of this package reads as its null.
        spherical: along the arc (:func:`slerp`); False takes the straight line.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields.

    Example:
        >>> points = interpolate(lambda x, t: torch.zeros_like(x), torch.ones(1, 2), 3 * torch.ones(1, 2), 3)
        >>> points.x[:, 0, 0].round(decimals=4)
        tensor([1., 2., 3.])
    """
    refuse(solver, ("save_at",), "interpolate returns the ends of its solves only")
    chosen = as_solver(solver)
    _check_pair(a, b)
    validate.positive_int("n", n, at_least=2)
    validate.boolean("spherical", spherical)
    check_condition("y", y, len(a), velocity)
    there = invert(velocity, torch.cat([a, b]), y=repeated(y, 2), solver=chosen)
    weights = torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")
    of_a, of_b = there.x[: len(a)], there.x[len(a) :]
    latents = slerp(of_a, of_b, weights) if spherical else lerp(of_a, of_b, weights)
    back = sample(velocity, latents.flatten(0, 1), y=repeated(y, n), solver=chosen)
    return Interpolation(back.x.unflatten(0, latents.shape[:2]), latents, there.nfe + back.nfe)


def _check_pair(a: Tensor, b: Tensor) -> None:
    validate.float_tensor("a", a, min_dim=2, finite=True)
    validate.float_tensor("b", b, min_dim=2, finite=True)
    validate.same_shape("b", b, "a", a)
    if b.dtype != a.dtype:
        raise TypeError(f"b: expected the dtype of a, {a.dtype}; got {b.dtype}")


def _weights(weights: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """(n, 1), in the dtype of ``like``."""
    w = torch.as_tensor(weights, dtype=like.dtype, device=like.device)
    if w.dim() != 1 or not bool(((w >= 0) & (w <= 1)).all()):
        raise ValueError(f"weights: expected a sequence of numbers in [0, 1]; got {weights}")
    return w[:, None]
