"""Solve ``dx/dt = v(x, t)``: one function for sampling (0 to 1), inverting (1 to 0) and everything between.

Fixed-step methods are a static loop of our own, which ``torch.compile`` takes whole; the adaptive ones are
torchdiffeq's, held inside [t0, t1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowbook import _validate
from flowbook._model import Velocity, call, evaluating, model_calls

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")

Field = Callable[[Tensor, Tensor], Tensor]
Stages = tuple[Tensor, ...]


@dataclass(frozen=True)
class Solution:
    """What a solve returns."""

    x: Tensor
    """The final state, shape (B, ...)."""
    trajectory: Tensor | None
    """The states at ``save_at``, shape (len(save_at), B, ...); None unless asked for."""
    times: Tensor
    """The times of the trajectory, or just (t0, t1)."""
    nfe: int
    """The number of model calls, exactly."""


# Fixed steps ----------------------------------------------------------------------------------------------------------
# A method is two functions: the stages k of a step, and the weights with which they move the state by the fraction
# theta of the step. At theta = 1 the weights are the method's own; in between they interpolate without a further call.
# A method with a memory also uses the first stages of earlier steps, newest first; its weights are told where these
# steps began, in fractions of this one, and it begins with a step of midpoint.


def _euler(f: Field, x: Tensor, t: Tensor, half: Tensor, end: Tensor, h: float) -> Stages:
    return (f(x, t),)


def _midpoint(f: Field, x: Tensor, t: Tensor, half: Tensor, end: Tensor, h: float) -> Stages:
    k1 = f(x, t)
    return k1, f(x + h / 2 * k1, half)


def _heun(f: Field, x: Tensor, t: Tensor, half: Tensor, end: Tensor, h: float) -> Stages:
    k1 = f(x, t)
    return k1, f(x + h * k1, end)


def _rk4(f: Field, x: Tensor, t: Tensor, half: Tensor, end: Tensor, h: float) -> Stages:
    k1 = f(x, t)
    k2 = f(x + h / 2 * k1, half)
    k3 = f(x + h / 2 * k2, half)
    return k1, k2, k3, f(x + h * k3, end)


def _rk4_weights(theta: float) -> tuple[float, ...]:
    # The cubic continuous extension of the classical method (Hairer, Norsett, Wanner 1993, section II.6).
    square, cube = theta**2, theta**3
    middle = square - 2 * cube / 3
    return theta - 1.5 * square + 2 * cube / 3, middle, middle, -0.5 * square + 2 * cube / 3


def _adams_weights(theta: float, a: float, b: float | None = None) -> tuple[float, ...]:
    # Adams and Bashforth's method for steps of any lengths (Hairer, Norsett, Wanner 1993, section III.5): the integral
    # from 0 to theta of the polynomial through the slopes at 0, a and, from the third step on, b.
    square, cube = theta**2 / 2, theta**3 / 3
    if b is None:
        return theta - square / a, square / a
    first = theta + (cube - (a + b) * square) / (a * b)
    return first, (cube - b * square) / (a * (a - b)), (cube - a * square) / (b * (b - a))


@dataclass(frozen=True)
class FixedStep:
    stages: Callable[..., Stages]
    weights: Callable[..., tuple[float, ...]]
    calls: int
    memory: int = 0


FIXED = {
    "euler": FixedStep(_euler, lambda theta: (theta,), 1),
    "midpoint": FixedStep(_midpoint, lambda theta: (theta - theta**2, theta**2), 2),
    "heun": FixedStep(_heun, lambda theta: (theta - theta**2 / 2, theta**2 / 2), 2),
    "rk4": FixedStep(_rk4, _rk4_weights, 4),
    "ab3": FixedStep(_euler, _adams_weights, 1, memory=2),
}
METHODS = ADAPTIVE[:1] + tuple(FIXED) + ADAPTIVE[1:]


def solve(
    velocity: Velocity,
    x: Tensor,
    t0: float = 0.0,
    t1: float = 1.0,
    *,
    y: Tensor | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    grid: Sequence[float] | Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    save_at: Sequence[float] | Tensor | None = None,
    differentiable: bool = False,
) -> Solution:
    """Move ``x`` along the velocity from time t0 to t1; t0 > t1 runs backward.

    Args:
        velocity: ``v(x, t, y=None)``, a tensor like x; t comes as a 0-d tensor of x's dtype. It is never called
            outside [t0, t1]. A module runs in eval mode and gets its mode back.
        x: the state at t0, shape (B, ...), floating point and finite.
        t0, t1: times in [0, 1]; 0 is noise and 1 is data.
        y: labels, shape (B,), passed on to the velocity.
        method: "dopri5" or another adaptive method of torchdiffeq's ("dopri8", "bosh3", "fehlberg2",
            "adaptive_heun"), with ``rtol`` and ``atol``; or "euler", "midpoint", "heun", "rk4", "ab3", with ``steps``
            or ``grid``. "ab3" is Adams and Bashforth's of third order: it draws a parabola through the last three
            slopes, so that a step costs one call (and the whole one more, to start).
        steps: the number of equal steps of a fixed-step method.
        grid: in their place, the times at which steps begin and end, from t0 to t1 in order. Velocities of data with
            fine detail change fastest near t = 1: ``1 - (1 - torch.linspace(0, 1, n + 1)) ** 1.5`` makes the steps
            there shorter (Karras et al. 2022, equation 5, choose theirs by the same reasoning).
        rtol, atol: tolerances of an adaptive method, for the error of one step: its root mean square over the whole
            batch, relative to ``atol + rtol |x|``. 1e-5 shows no error in a picture; a likelihood may want 1e-7. In
            float32 nothing below about 1e-6 can be reached.
        save_at: times from t0 to t1, in order, at which the state is kept. They change neither the steps nor x: between
            two steps the state is interpolated, by a method's continuous extension (euler to first order, heun and
            midpoint to second, rk4 and ab3 to third) or by torchdiffeq's quartic, which follows dopri5 to some 30 times
            its tolerance. For dopri8 and bosh3 it may be ten to ten thousand times worse than x: solve to each time in
            turn where that matters.
        differentiable: keep the graph, for gradients through the solver.

    Returns:
        A :class:`Solution`.

    Raises:
        ValueError, TypeError: for arguments that do not fit, before the velocity is called.
        RuntimeError: when an adaptive method cannot go on (the velocity is not finite, or too wild for the tolerance),
            or a fixed-step method ends in numbers that are not finite (looked at on the CPU only).

    Example:
        >>> solution = solve(lambda x, t: -x, torch.ones(1, 1), method="rk4", steps=10)
        >>> round(float(solution.x), 4), solution.nfe
        (0.3679, 40)
    """
    _check(velocity, x, t0, t1, y, method, steps, grid, rtol, atol)
    t0, t1 = float(t0), float(t1)
    times = [t0, t1] if save_at is None else _times("save_at", save_at, t0, t1)
    if not differentiable:
        x = x.detach()  # or the first state of a trajectory would bring its graph along
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), evaluating(velocity):
        if t0 == t1 or x.numel() == 0:
            states, evaluations = [x] * len(times), 0
        elif method in FIXED:
            ends = _ends(steps, grid, t0, t1)
            states, evaluations = _solve_fixed(FIXED[method], velocity, x, y, ends, times)
            _check_finite(states[-1], method, len(ends) - 1)
        else:
            states, evaluations = _solve_adaptive(method, velocity, x, t0, t1, y, rtol, atol, times)
    return Solution(
        x=states[-1],
        trajectory=None if save_at is None else torch.stack(states),
        times=torch.tensor(times, dtype=x.dtype, device=x.device),
        nfe=evaluations * model_calls(velocity),
    )


def sample(velocity: Velocity, x0: Tensor, **options: Any) -> Solution:
    """Noise to data: :func:`solve` from 0 to 1, with the same options.

    Example:
        >>> sample(lambda x, t: torch.ones_like(x), torch.zeros(1, 2), method="euler", steps=1).x
        tensor([[1., 1.]])
    """
    for name in ("t0", "t1"):
        if name in options:
            raise TypeError(f"{name}: sample runs from 0 to 1; use solve for other times")
    return solve(velocity, x0, 0.0, 1.0, **options)


def _solve_fixed(
    method: FixedStep, velocity: Velocity, x: Tensor, y: Tensor | None, ends: list[float], times: list[float]
) -> tuple[list[Tensor], int]:
    def f(state: Tensor, t: Tensor) -> Tensor:
        return _evaluate(velocity, state, t, y)

    # All times in one tensor on the device: step n uses entries 2n, 2n + 1 and 2n + 2 of the half-step grid.
    halves = [time for a, b in itertools.pairwise(ends) for time in (a, 0.5 * (a + b))] + ends[-1:]
    grid = torch.tensor(halves, dtype=x.dtype, device=x.device)

    states, due, evaluations = [x], 1, 0  # times[0] is t0
    past: list[tuple[float, Tensor]] = []  # where earlier steps began and their slopes there, newest first
    for n, (start, end) in enumerate(itertools.pairwise(ends)):
        h = end - start
        step = FIXED["midpoint"] if method.memory and not past else method
        k = step.stages(f, x, grid[2 * n], grid[2 * n + 1], grid[2 * n + 2], h)
        slopes, begun = (*k, *(slope for _, slope in past)), [(time - start) / h for time, _ in past]
        while due < len(times) - 1 and (times[due] - end) * h <= 0:
            states.append(_advance(x, slopes, step.weights((times[due] - start) / h, *begun), h))
            due += 1
        x = _advance(x, slopes, step.weights(1.0, *begun), h)
        evaluations += step.calls
        past = [(start, k[0]), *past][: method.memory]
    return [*states, x], evaluations


def _ends(steps: int | None, grid: Sequence[float] | Tensor | None, t0: float, t1: float) -> list[float]:
    """The times between the steps, t0 and t1 included."""
    if grid is not None:
        return _times("grid", grid, t0, t1)
    assert steps is not None  # _check has seen to it
    return [t1 if n == steps else t0 + n * ((t1 - t0) / steps) for n in range(int(steps) + 1)]


def _advance(x: Tensor, k: Stages, weights: tuple[float, ...], h: float) -> Tensor:
    for weight, stage in zip(weights, k, strict=True):
        if weight != 0:
            x = x + h * weight * stage
    return x


def _solve_adaptive(
    method: str, velocity: Velocity, x: Tensor, t0: float, t1: float, y: Tensor | None, rtol: float, atol: float,
    times: list[float],
) -> tuple[list[Tensor], int]:  # fmt: skip
    from torchdiffeq import odeint

    evaluations = 0
    low, high = min(t0, t1), max(t0, t1)

    # torchdiffeq's search for a first step may look beyond t1, and its steps do unless `step_t` makes one end there.
    def f(t: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return _evaluate(velocity, state, t.clamp(low, high).to(x.dtype), y)

    grid = torch.tensor(times, dtype=torch.float64, device=x.device)
    try:
        states = odeint(f, x, grid, rtol=rtol, atol=atol, method=method, options={"step_t": grid[-1:]})
    except AssertionError as error:  # its word for "the step went to 0" and "the state is not finite"
        raise RuntimeError(
            f"{method} cannot go on: {error}. The velocity is not finite or changes too fast for rtol={rtol:g}, "
            f"atol={atol:g} in {x.dtype}; look at its values, loosen the tolerance or take a fixed-step method"
        ) from error
    return list(states.unbind(0)), evaluations


def _evaluate(velocity: Velocity, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    v = call(velocity, x, t, y)
    _validate.velocity_like(v, x)
    return v


def _times(name: str, given: Sequence[float] | Tensor, t0: float, t1: float) -> list[float]:
    if not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a sequence of times; got {type(given).__name__}")
    times = [float(t) for t in given]
    if len(times) < 2 or abs(times[0] - t0) > _validate.TIME_SLACK or abs(times[-1] - t1) > _validate.TIME_SLACK:
        raise ValueError(f"{name}: expected times that start at t0 = {t0:g} and end at t1 = {t1:g}; got {times}")
    times[0], times[-1] = t0, t1
    direction = 1.0 if t1 >= t0 else -1.0
    if not all((later - earlier) * direction > 0 for earlier, later in itertools.pairwise(times)):
        raise ValueError(f"{name}: expected times strictly in order from {t0:g} to {t1:g}; got {times}")
    return times


def _check(
    velocity: Velocity, x: Tensor, t0: float, t1: float, y: Tensor | None, method: str, steps: int | None,
    grid: Any, rtol: float, atol: float,
) -> None:  # fmt: skip
    if not callable(velocity):
        raise TypeError(f"velocity: expected a callable v(x, t, y=None); got {type(velocity).__name__}")
    _validate.float_tensor("x", x, min_dim=1, finite=True)
    for name, t in (("t0", t0), ("t1", t1)):
        _validate.number(name, t, -_validate.TIME_SLACK, 1 + _validate.TIME_SLACK)
    if y is not None:
        _validate.labels("y", y, len(x))
    _validate.one_of("method", method, METHODS)
    if grid is not None and (method not in FIXED or steps is not None):
        chosen = f"steps={steps}" if method in FIXED else f"method={method!r}, which chooses its own steps"
        raise ValueError(f"grid: the times of a fixed-step method, in place of steps; got {chosen} as well")
    if method in FIXED:
        if steps is None and grid is None:
            raise ValueError(f"steps: {method} takes fixed steps; say how many, for example steps=50")
        if steps is not None:
            _validate.positive_int("steps", steps)
    elif steps is not None:
        raise ValueError(f"steps: {method} chooses its own steps by rtol and atol; got steps={steps}")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        _validate.number(name, tolerance, 0, 1, low_open=True)


def _check_finite(x: Tensor, method: str, steps: int) -> None:
    if _validate.values_are_readable(x) and not bool(torch.isfinite(x.detach()).all()):
        bad = int((~torch.isfinite(x.detach())).sum())
        raise RuntimeError(
            f"{method} with {steps} steps ended in {bad} NaN or infinite numbers of {x.numel()}. The velocity is not "
            "finite or the steps are too long for it; look at its values or take more steps"
        )
