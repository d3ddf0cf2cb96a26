"""Checks of the exercises of chapter 5."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowbook import inversion
from flowbook.laws.diagnosis import diagnose, diagnose_number
from flowbook.solvers import solve


def latent_of_a_gaussian(value: float) -> str:
    """Exercise 5.1: the latent of 2.25, for data N(1.5, 0.5^2) and the exact velocity.

    Example:
        >>> latent_of_a_gaussian(1.5)
        'right: the same number of standard deviations from the mean in noise and data'
    """
    diagnose_number(
        value, 1.5,
        {
            "this is the forward solve, 1.5 + 0.5 x; the latent needs the backward solve": 2.625,
            "the spread is missing: divide by the standard deviation": 0.75,
            "multiplied by the standard deviation: the backward solve expands": 0.375,
            "divided by the variance: divide by the standard deviation": 3.0,
            "this is the data point itself": 2.25,
        },
        "which point of N(0, 1) has the same probability to its left?", tolerance=0.01,
    )  # fmt: skip
    return "right: the same number of standard deviations from the mean in noise and data"


def midpoint_inversion(function: Callable[..., Tensor]) -> str:
    """Exercise 5.2: ``function(velocity, x1, steps) -> x0`` by the midpoint method.

    Example:
        >>> midpoint_inversion(lambda v, x1, steps: solve(v, x1, 1.0, 0.0, method="midpoint", steps=steps).x)
        'right: from t = 1 to 0, with the velocity unchanged and at its own time'
    """
    calls: list[float] = []

    def velocity(x: Tensor, t: Any, y: Tensor | None = None) -> Tensor:
        calls.append(float(t))
        return torch.cos(3 * torch.as_tensor(t)) * x + torch.as_tensor(t) ** 2

    def opposite(x: Tensor, t: Any, y: Tensor | None = None) -> Tensor:
        return -velocity(x, t)

    x1, steps = torch.tensor([[1.0, -0.5]]), 4

    def by(method: Any, field: Callable[..., Tensor] = velocity, t0: float = 1.0, t1: float = 0.0) -> Tensor:
        return solve(field, x1, t0, t1, method=method, steps=steps).x

    mistakes = {
        "the loop ended before its first step: a guard for t >= 1 is for the forward solve": x1,
        "time runs from 0 to 1: this is sampling": by("midpoint", velocity, 0.0, 1.0),
        "a sign too many: time from 1 to 0 already reverses the direction": by("midpoint", opposite),
        "the velocity has its own time: subtract it, but start at t = 1": by("midpoint", opposite, 0.0, 1.0),
        "this is Euler's method: the slope in the middle is not used": by("euler"),
        "this is Heun's method: the midpoint method uses the slope in the middle of the step": by("heun"),
    }
    expected = by("midpoint")
    calls.clear()
    got = function(velocity, x1, steps)
    if calls and not -1e-6 <= min(calls) <= max(calls) <= 1 + 1e-6:
        raise AssertionError(f"t: the velocity was evaluated from {min(calls):.3g} to {max(calls):.3g}, outside [0, 1]")
    diagnose(got, expected, mistakes, "x0")
    if len(calls) != 2 * steps:
        raise AssertionError(f"evaluations: midpoint needs 2 per step, {2 * steps} in total; got {len(calls)}")
    return "right: from t = 1 to 0, with the velocity unchanged and at its own time"


def posterior_mean(function: Callable[..., Tensor]) -> str:
    """Exercise 5.3: ``function(velocity, x, s) -> (B, D)``, the mean of the data behind x = x1 + s noise.

    Example:
        >>> from flowbook.inversion import denoise
        >>> posterior_mean(lambda velocity, x, s: denoise(velocity, x, noise_std=s).x)
        'right: shrink, evaluate once at t = 1 / (1 + s), and follow that velocity for the remaining time'
    """

    def velocity(x: Tensor, t: Any, y: Tensor | None = None) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype)
        return torch.sin(2 * x) + (t[:, None] if t.dim() == 1 else t)

    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    s = torch.tensor([0.2, 0.6, 0.9])
    t = 1 / (1 + s)
    column = t[:, None]
    state, v = column * x, velocity(column * x, t)
    linear = (1 - s)[:, None]  # 1 - s for the time
    across = t[None] * x
    diagnose(
        function(velocity, x.clone(), s.clone()), state + (1 - column) * v,
        {
            "x is not shrunk: the state of the path is alpha(t) x": x + (1 - column) * velocity(x, t),
            "t = 1 - s is where sigma is s; the noise level is sigma / alpha, and x is not shrunk": (
                x + (1 - linear) * velocity(x, 1 - s)
            ),
            "t = 1 - s is where sigma is s; the noise level is sigma / alpha": (
                linear * x + (1 - linear) * velocity(linear * x, 1 - s)
            ),
            "t = s: there the path has the noise level (1 - s) / s": (
                s[:, None] * x + (1 - s[:, None]) * velocity(s[:, None] * x, s)
            ),
            "this is the velocity; the data are where it leads": v,
            "this is the noise, x_t - t v; the data are x_t + (1 - t) v": state - column * v,
            "sign flipped: from x_t the data lie ahead, x_t + (1 - t) v": state - (1 - column) * v,
            "the whole velocity is added: at t only the time 1 - t remains": state + v,
            "s is broadcast over the last axis: give it the shape (B, 1)": across + (1 - t[None]) * velocity(across, t),
        },
        "mean",
    )  # fmt: skip
    return "right: shrink, evaluate once at t = 1 / (1 + s), and follow that velocity for the remaining time"


def error_of_the_ode(value: float) -> str:
    """Exercise 5.4: the squared error of the end of the flow, for data N(0, 1) with noise N(0, 1).

    Example:
        >>> error_of_the_ode(0.586)
        'right: more than the posterior mean, less than a draw from the posterior'
    """
    diagnose_number(
        value, 2 - math.sqrt(2),
        {
            "this is the posterior mean's error, the least possible": 0.5,
            "this is the error of the observation itself, and of a draw from the posterior": 1.0,
            "this is the factor g; the error is (1 - g)^2 + g^2 s^2": math.sqrt(0.5),
            "the noise is shrunk too, and still counts: add g^2 s^2": (1 - math.sqrt(0.5)) ** 2,
        },
        "the flow keeps quantiles: it multiplies x by 1 / sqrt(1 + s^2)", tolerance=0.01,
    )  # fmt: skip
    return "right: more than the posterior mean, less than a draw from the posterior"


def slerp(function: Callable[..., Tensor]) -> str:
    """Exercise 5.5: ``function(a, b, w) -> (B, D)``, on the arc from a to b, w a number.

    Example:
        >>> slerp(lambda a, b, w: inversion.slerp(a, b, [w])[0])
        'right: equal angles, and the length interpolated'
    """
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 5, generator=generator), 1.5 * torch.randn(4, 5, generator=generator)
    w = 0.3
    lengths = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = a / lengths[0], b / lengths[1]
    length = (1 - w) * lengths[0] + w * lengths[1]

    def arc(cosine: Tensor) -> Tensor:
        angle = torch.acos(cosine.clamp(-1, 1))
        return (torch.sin((1 - w) * angle) * unit_a + torch.sin(w * angle) * unit_b) / torch.sin(angle)

    cosine = (unit_a * unit_b).sum(1, keepdim=True)
    expected = inversion.slerp(a, b, [w])[0]
    sines = (torch.sin(w * torch.acos(cosine)), torch.sin((1 - w) * torch.acos(cosine)))
    diagnose(
        function(a.clone(), b.clone(), w), expected,
        {
            "this is the straight line, which leaves the sphere": (1 - w) * a + w * b,
            "a and b are swapped: w = 0 is a": inversion.slerp(b, a, [w])[0],
            "these are unit vectors: multiply by the length": arc(cosine),
            "divide by the sine of the whole angle": length * (sines[1] * unit_a + sines[0] * unit_b),
            "one angle for the whole batch: sum over the dimensions only": (
                length * arc((unit_a * unit_b).sum() / len(a))
            ),
            "the angle is between unit vectors: divide by both lengths": (
                length * arc((a * b).sum(1, keepdim=True) / lengths[0] ** 2)
            ),
            "the straight line, rescaled to the right length: equal steps are not equal angles": (
                length * torch.nn.functional.normalize((1 - w) * unit_a + w * unit_b, dim=1)
            ),
        },
        "arc",
    )  # fmt: skip
    return "right: equal angles, and the length interpolated"


def likelier_than_samples(value: float) -> str:
    """Exercise 5.6: log-density of the origin minus its mean over samples, in nats, for N(0, I) in 784 dimensions.

    Example:
        >>> likelier_than_samples(392.0)
        'right: D / 2 nats, and no sample ever lies there'
    """
    diagnose_number(
        value, 392.0,
        {
            "the density has |x|^2 / 2 in its exponent": 784.0,
            "sign: the origin is the densest point": -392.0,
            "no: |x|^2 is 784 on average, not 0": 0.0,
            "the length of a sample is 28, but its square counts": 14.0,
        },
        "take log p(0) minus the mean of log p(x), and use E |x|^2 = D", tolerance=1.0,
    )  # fmt: skip
    return "right: D / 2 nats, and no sample ever lies there"
