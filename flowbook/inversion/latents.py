"""Inversion, from data to noise, and the round trip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.condition import Condition
from flowbook.solvers import FIXED, Method, Solution, SolveOptions, SolverOptions, as_solver, sample, solve
from flowbook.solvers.solution import refuse
from flowbook.velocity import Velocity, said_by


def invert(velocity: Velocity, x1: Tensor, *, y: Condition = None, **options: Unpack[SolveOptions]) -> Solution:
    """Data to noise: :func:`~flowbook.solvers.solve` from 1 to 0.

    A latent needs finer steps than a sample. Near t = 1 the flow contracts its states onto the data, so the backward
    solve expands them, and the errors of coarse steps there grow. Where data fill no volume, such as images with a
    black margin, the latent even keeps changing with every doubling of the steps.

    Args:
        velocity: ``v(x, t, y=None)``, the one used for sampling, without a change of sign or a reversal of time.
        x1: data, shape (B, ...).
        y: the condition, or None.
        options: as in ``solve``, without times. ``save_at`` runs from 1 to 0. A tolerance bounds the root mean square
            over the whole batch: with B samples in D dimensions a single number may be off by sqrt(B D) times as much.

    Returns:
        A :class:`~flowbook.solvers.Solution`; its ``x`` is the latent, shape (B, ...).

    Raises:
        ValueError, TypeError: for invalid arguments, before the velocity is called.

    Example:
        >>> invert(lambda x, t: torch.ones_like(x), torch.ones(1, 2), method="euler", steps=1).x
        tensor([[0., 0.]])
    """
    refuse(options, ("t0", "t1"), "invert runs from 1 to 0; use solve for other times")
    validate.float_tensor("x1", x1, min_dim=1, finite=True)
    scale = said_by(velocity, "standardizer")
    return solve(velocity, x1 if scale is None else scale(x1), 1.0, 0.0, y=y, **options)


@dataclass(frozen=True)
class RoundTrip:
    """What :func:`round_trip` returns."""

    latent: Tensor
    """The state at t = 0, shape (B, ...)."""
    reconstruction: Tensor
    """The data generated from the latent, shape (B, ...)."""
    error: Tensor
    """The mean absolute error of each sample over its dimensions, in units of the data, shape (B,)."""
    nfe: int
    """The number of model calls, both directions together."""


def round_trip(velocity: Velocity, x1: Tensor, *, y: Condition = None, **solver: Unpack[SolverOptions]) -> RoundTrip:
    """Data to noise and back again, by the same method with the same steps.

    A small error shows that the two solves agree, not that the latent is right. With equal steps the leading errors of
    midpoint, heun and rk4 cancel: the round trip is of third, third and fifth order, while the latent is of second,
    second and fourth. To estimate the latent's own error, compare it with the latent of twice as many steps.

    Args:
        velocity, x1, y: as in :func:`invert`.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields; a grid is used in both directions.

    Example:
        >>> trip = round_trip(lambda x, t: x, torch.ones(1, 2), method="rk4", steps=10)
        >>> bool(trip.error < 1e-6), trip.nfe
        (True, 80)
    """
    refuse(solver, ("save_at",), "a round trip keeps its ends only; use invert for the states between")
    chosen = as_solver(solver)
    there = invert(velocity, x1, y=y, solver=chosen)
    back = sample(velocity, there.x, y=y, solver=chosen)
    error = (back.x - x1).abs().reshape(len(x1), math.prod(x1.shape[1:])).mean(1)
    return RoundTrip(there.x, back.x, error, there.nfe + back.nfe)


@dataclass(frozen=True)
class StepChoice:
    """What :func:`choose_steps` returns."""

    steps: int
    """The number of steps, in each direction, that reaches the wanted error."""
    trip: RoundTrip
    """The round trip with these steps."""
    tried: dict[int, float]
    """The largest error of a sample for each number of steps that was tried."""
    nfe: int
    """The model calls of all trials together."""


def choose_steps(
    velocity: Velocity,
    x1: Tensor,
    wanted: float,
    *,
    y: Condition = None,
    method: Method = "heun",
    first: int = 4,
    limit: int = 1024,
) -> StepChoice:
    """Double the steps until the round trip of every sample is as accurate as wanted.

    Choose on a few samples and keep the number for the rest.

    Args:
        velocity: ``v(x, t, y=None)``.
        x1: data, shape (B, ...), B at least 1.
        wanted: the largest mean absolute error of a sample, in units of the data.
        y: the condition, or None.
        method: a fixed-step method, "euler", "midpoint", "heun", "rk4" or "ab3".
        first: the number of steps to begin with.
        limit: the largest number of steps to try.

    Raises:
        ValueError: for invalid arguments, and for an error below the resolution of x1's dtype.
        RuntimeError: when the limit is reached, or two doublings in a row have not lowered the error: it then comes
            from rounding, not from the steps.

    Example:
        >>> choice = choose_steps(lambda x, t: x, torch.ones(1, 1, dtype=torch.float64), 1e-4)
        >>> choice.steps, {steps: round(error, 5) for steps, error in choice.tried.items()}
        (16, {4: 0.00391, 8: 0.00049, 16: 6e-05})
    """
    validate.float_tensor("x1", x1, min_dim=1, finite=True)
    if x1.numel() == 0:
        raise ValueError(f"x1: expected at least one sample; got shape {tuple(x1.shape)}")
    validate.number("wanted", wanted, 0, math.inf, low_open=True, high_open=True)
    resolved = torch.finfo(x1.dtype).eps * float(x1.abs().mean())
    if wanted < resolved:
        raise ValueError(f"wanted: {x1.dtype} resolves {resolved:.1e} at the size of x1; got {wanted:g}")
    validate.one_of("method", method, tuple(FIXED))
    validate.positive_int("first", first)
    validate.positive_int("limit", limit, at_least=first)
    steps, nfe, tried = first, 0, {}
    while steps <= limit:
        trip = round_trip(velocity, x1, y=y, method=method, steps=steps)
        nfe += trip.nfe
        tried[steps] = float(trip.error.max())
        if tried[steps] <= wanted:
            return StepChoice(steps, trip, tried, nfe)
        last = list(tried.values())[-3:]
        if len(last) == 3 and last[0] <= last[1] <= last[2]:
            raise RuntimeError(
                f"wanted: doubling the steps no longer lowers the error, {_listed(tried)}; {x1.dtype} resolves no less "
                f"for this velocity, or the velocity is not smooth. Ask for more than {wanted:g}, or take a wider dtype"
            )
        steps *= 2
    raise RuntimeError(
        f"wanted: {method} does not reach {wanted:g} within limit={limit} steps, {_listed(tried)}. Raise the limit or "
        "use a method of higher order"
    )


def _listed(tried: dict[int, float]) -> str:
    return ", ".join(f"{error:.1e} with {steps}" for steps, error in tried.items())
