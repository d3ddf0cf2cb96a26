"""Solve ``dx/dt = v(x, t)``: one function for sampling (0 to 1), inverting (1 to 0) and everything between."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.times import working_dtype
from flowbook.condition import Condition, check_condition, warn_untrained
from flowbook.paths import path_of
from flowbook.solvers.adaptive import solve_adaptive
from flowbook.solvers.fixed import FIXED, solve_fixed
from flowbook.solvers.solver import Solver, SolverOptions, as_solver, ending_at, ordered_times
from flowbook.velocity import Velocity, call, check_order, evaluating, model_calls, said_by


class SolveOptions(SolverOptions, total=False):
    """The options of :func:`solve`, in addition to the state and the times."""

    save_at: Sequence[float] | Tensor | None
    differentiable: bool


@dataclass(frozen=True)
class Solution:
    """What a solve returns."""

    x: Tensor
    """The final state, shape (B, ...)."""
    trajectory: Tensor | None
    """The states at ``save_at``, shape (len(save_at), B, ...); None without ``save_at``."""
    times: Tensor
    """The times of the trajectory, or just (t0, t1)."""
    nfe: int
    """The exact number of function evaluations (model calls)."""


def solve(
    velocity: Velocity,
    x: Tensor,
    t0: float = 0.0,
    t1: float = 1.0,
    *,
    y: Condition = None,
    save_at: Sequence[float] | Tensor | None = None,
    differentiable: bool = False,
    **solver: Unpack[SolverOptions],
) -> Solution:
    """Move ``x`` along the velocity from time t0 to t1; t0 > t1 runs backward.

    State and time are accumulated in float32 at least: half precision would round small steps away.

    Args:
        velocity: ``v(x, t, y=None)``, a tensor like x. It is called with states of the dtype of x and with t as a 0-d
            tensor in float32 (float64 if x is), never outside [t0, t1]. A module runs in eval mode; its mode is
            restored afterwards.
        x: the state at t0, shape (B, ...), floating point and finite.
        t0, t1: times in [0, 1]; 0 is noise and 1 is data.
        y: the condition, passed on to the velocity; None calls it without one.
        save_at: times from t0 to t1, in order, at which the state is kept. They change neither the steps nor x: between
            two steps the state is interpolated, by a method's continuous extension (euler to first order, heun and
            midpoint to second, rk4 and ab3 to third) or by torchdiffeq's quartic, which for dopri5 is accurate to about
            30 times the tolerance. For dopri8 and bosh3 its error may be ten to ten thousand times that of x: where
            this matters, solve from each time to the next.
        differentiable: keep the graph, for gradients through the solver.
        solver: a :class:`Solver` as ``solver``, or its fields: ``method``, ``steps``, ``grid``, ``rtol``, ``atol``,
            ``max_calls``. The default is dopri5; with ``steps`` or ``grid`` alone, midpoint.

    Returns:
        A :class:`Solution`; its states have the dtype of x.

    Raises:
        ValueError, TypeError: for invalid arguments, before the velocity is called.
        RuntimeError: when an adaptive method fails (the velocity is not finite, or changes too fast for the
            tolerances) or needs more than ``max_calls``, or when a fixed-step method ends with numbers that are not
            finite (checked on the CPU only).

    Example:
        >>> solution = solve(lambda x, t: -x, torch.ones(1, 1), method="rk4", steps=10)
        >>> round(float(solution.x), 4), solution.nfe
        (0.3679, 40)
    """
    chosen = as_solver(solver)
    _check(velocity, x, t0, t1, y)
    t0, t1 = float(t0), float(t1)
    if not chosen.fixed and not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise ValueError(
            f"method: {chosen.method} decides by the values of its states, which torch.func hides; expected a "
            "fixed-step method under vmap and the like, such as rk4"
        )
    times = [t0, t1] if save_at is None else ending_at("save_at", list(ordered_times("save_at", save_at)), t0, t1)
    grid = chosen.times(t0, t1) if chosen.fixed and t0 != t1 else []
    if not differentiable:
        x = x.detach()  # otherwise the first state of a trajectory would carry its graph along
    field = _Field(velocity, y, x.dtype)
    start = x.to(working_dtype(x.dtype))
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), evaluating(velocity):
        if t0 == t1 or x.numel() == 0:
            states = [x] * len(times)
        elif chosen.fixed:
            states = solve_fixed(field, start, FIXED[str(chosen.method)], grid, times)
            _check_finite(states[-1], chosen, len(grid) - 1)
        else:
            states = solve_adaptive(field, start, chosen, times)
    return Solution(
        x=states[-1].to(x.dtype),
        trajectory=None if save_at is None else torch.stack(states).to(x.dtype),
        times=torch.tensor(times, dtype=start.dtype, device=x.device),
        nfe=field.calls * model_calls(velocity),
    )


def sample(velocity: Velocity, x0: Tensor, *, y: Condition = None, **options: Unpack[SolveOptions]) -> Solution:
    """Noise to data: :func:`solve` from 0 to 1, with the same options.

    Samples of a network that was trained on :func:`flowbook.data.standardized` data are in the units of the data.

    Warns:
        UserWarning: for noise much smaller than that from which the velocity's path starts, as EDM's with 80.

    Example:
        >>> sample(lambda x, t: torch.ones_like(x), torch.zeros(1, 2), method="euler", steps=1).x
        tensor([[1., 1.]])
    """
    refuse(options, ("t0", "t1"), "sample runs from 0 to 1; use solve for other times")
    _warn_source(velocity, x0)
    found = solve(velocity, x0, 0.0, 1.0, y=y, **options)
    scale = said_by(velocity, "standardizer")
    if scale is None:
        return found
    trajectory = None if found.trajectory is None else scale.undo(found.trajectory)
    return dataclasses.replace(found, x=scale.undo(found.x), trajectory=trajectory)


def _warn_source(velocity: Velocity, x0: Tensor) -> None:
    std = path_of(velocity).source_std
    if std == 1 or torch.compiler.is_compiling() or not isinstance(x0, Tensor) or x0.numel() < 32:
        return
    if validate.values_are_readable(x0) and (got := float(x0.detach().float().std())) < 0.2 * std:
        warnings.warn(
            f"x0: the velocity's path starts from noise of standard deviation {std:g}; got {got:.3g}: "
            "velocity.path.source(shape).sample(n) draws it",
            stacklevel=3,
        )


def refuse(options: Any, names: Sequence[str], reason: str) -> None:
    """Raise for options that a function does not accept, with the reason."""
    for name in names:
        if name in options:
            raise TypeError(f"{name}: {reason}")


class _Field:
    """The velocity as a function of state and time that counts its calls; the network sees the caller's dtype."""

    def __init__(self, velocity: Velocity, y: Condition, dtype: torch.dtype):
        self.velocity, self.y, self.dtype = velocity, y, dtype
        self.calls = 0

    def __call__(self, state: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        x = state.to(self.dtype)
        v = call(self.velocity, x, t, self.y)
        validate.velocity_like(v, x)
        return v.to(state.dtype)


def _check(velocity: Velocity, x: Tensor, t0: float, t1: float, y: Condition) -> None:
    if not callable(velocity):
        raise TypeError(f"velocity: expected a callable v(x, t, y=None); got {type(velocity).__name__}")
    check_order(velocity)
    validate.float_tensor("x", x, min_dim=1, finite=True)
    for name, t in (("t0", t0), ("t1", t1)):
        validate.number(name, t, -validate.TIME_SLACK, 1 + validate.TIME_SLACK)
    check_condition("y", y, len(x), velocity)
    warn_untrained(velocity, y, stacklevel=3)


def _check_finite(x: Tensor, solver: Solver, steps: int) -> None:
    if validate.values_are_readable(x) and not bool(torch.isfinite(x.detach()).all()):
        bad = int((~torch.isfinite(x.detach())).sum())
        raise RuntimeError(
            f"{solver.method} with {steps} steps ended with {bad} of {x.numel()} numbers NaN or infinite. The velocity "
            "is not finite or the steps are too long for it; inspect its values or take more steps"
        )
