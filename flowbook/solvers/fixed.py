"""Fixed-step methods: a static loop, which ``torch.compile`` compiles as one graph.

A method consists of two functions: the slopes of a step, and the weights with which they advance the state by a
fraction theta of the step. At theta = 1 these are the method's own weights; in between they interpolate without a
further call. A multistep method (``memory`` > 0) also uses the first slopes of earlier steps, newest first; its weights
also depend on when these steps began, in units of the current step. Its first step is a midpoint step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowbook._core.progress import patiently
from flowbook._core.times import working_dtype

Field = Callable[[Tensor, Tensor], Tensor]
Slopes = tuple[Tensor, ...]


class Step(NamedTuple):
    """The first, middle and last time of a step, 0-d tensors on the device, and its two ends as numbers."""

    start: Tensor
    middle: Tensor
    end: Tensor
    t0: float
    t1: float

    @property
    def h(self) -> float:
        """The length of the step, negative backward."""
        return self.t1 - self.t0

    def fraction(self, t: float) -> float:
        """Where a time lies: 0 at the step's start, 1 at its end."""
        return (t - self.t0) / self.h

    def reaches(self, t: float) -> bool:
        """Whether a time lies within the step, or before it."""
        return (t - self.t1) * self.h <= 0


def _euler(f: Field, x: Tensor, step: Step) -> Slopes:
    return (f(x, step.start),)


def _midpoint(f: Field, x: Tensor, step: Step) -> Slopes:
    k1 = f(x, step.start)
    return k1, f(x + step.h / 2 * k1, step.middle)


def _heun(f: Field, x: Tensor, step: Step) -> Slopes:
    k1 = f(x, step.start)
    return k1, f(x + step.h * k1, step.end)


def _rk4(f: Field, x: Tensor, step: Step) -> Slopes:
    k1 = f(x, step.start)
    k2 = f(x + step.h / 2 * k1, step.middle)
    k3 = f(x + step.h / 2 * k2, step.middle)
    return k1, k2, k3, f(x + step.h * k3, step.end)


def _rk4_weights(theta: float) -> tuple[float, ...]:
    # The cubic continuous extension of the classical method (Hairer, Norsett, Wanner 1993, section II.6).
    square, cube = theta**2, theta**3
    middle = square - 2 * cube / 3
    return theta - 1.5 * square + 2 * cube / 3, middle, middle, -0.5 * square + 2 * cube / 3


def _adams_weights(theta: float, a: float, b: float | None = None) -> tuple[float, ...]:
    # The Adams-Bashforth method with variable step sizes (Hairer, Norsett, Wanner 1993, section III.5): the integral
    # from 0 to theta of the polynomial through the slopes at 0, a and, from the third step on, b.
    square, cube = theta**2 / 2, theta**3 / 3
    if b is None:
        return theta - square / a, square / a
    first = theta + (cube - (a + b) * square) / (a * b)
    return first, (cube - b * square) / (a * (a - b)), (cube - a * square) / (b * (b - a))


@dataclass(frozen=True)
class FixedStep:
    slopes: Callable[[Field, Tensor, Step], Slopes]
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


def solve_fixed(
    f: Field,
    x: Tensor,
    method: FixedStep,
    grid: list[float],
    save_at: list[float],
) -> list[Tensor]:
    """Step along the grid; the states at ``save_at``, whose first and last times are the ends of the grid."""
    states, due = [x], 1
    earlier: list[tuple[float, Tensor]] = []  # earlier steps, newest first
    for step in patiently(_steps(grid, x)):
        first = method.memory > 0 and not earlier
        scheme = FIXED["midpoint"] if first else method
        k = scheme.slopes(f, x, step)
        slopes = (*k, *(slope for _, slope in earlier))
        begun = [step.fraction(t) for t, _ in earlier]
        while due < len(save_at) - 1 and step.reaches(save_at[due]):
            weights = scheme.weights(step.fraction(save_at[due]), *begun)
            states.append(_advance(x, slopes, weights, step.h))
            due += 1
        x = _advance(x, slopes, scheme.weights(1.0, *begun), step.h)
        earlier = [(step.t0, k[0]), *earlier][: method.memory]
    return [*states, x]


def _steps(grid: list[float], x: Tensor) -> list[Step]:
    """The steps of a grid; their times are made as one tensor on the device, since one by one takes longer."""
    halves = [t for a, b in itertools.pairwise(grid) for t in (a, 0.5 * (a + b))] + grid[-1:]
    times = torch.tensor(halves, dtype=working_dtype(x.dtype), device=x.device).unbind()
    return [
        Step(times[2 * n], times[2 * n + 1], times[2 * n + 2], a, b)
        for n, (a, b) in enumerate(itertools.pairwise(grid))
    ]


def _advance(x: Tensor, slopes: Slopes, weights: tuple[float, ...], h: float) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0:
            x = x + h * weight * slope
    return x
