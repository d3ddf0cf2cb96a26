"""Checks of the exercises of chapter 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowbook.couplings import OptimalTransport
from flowbook.laws.diagnosis import diagnose, diagnose_number
from flowbook.paths import LinearPath
from flowbook.solvers import solve


def target_with_sigma_min(function: Callable[..., tuple[Tensor, Tensor]], sigma_min: float = 0.1) -> str:
    """Exercise 3.1: ``function(x0, x1, t, sigma_min) -> (xt, target)`` on the linear path.

    Example:
        >>> path = LinearPath(0.1)
        >>> target_with_sigma_min(lambda x0, x1, t, s: (path.interpolate(x0, x1, t), path.velocity(x0, x1, t)))
        'right: the path ends with noise of size sigma_min, and the target is its derivative'
    """
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(4, 4, generator=generator), torch.randn(4, 4, generator=generator)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9])
    column = t[:, None]
    path, straight = LinearPath(sigma_min), LinearPath()
    xt, target = function(x0, x1, t, sigma_min)
    diagnose(
        xt, path.interpolate(x0, x1, t),
        {
            "sigma_min is missing: this is the path that ends exactly in the data": straight.interpolate(x0, x1, t),
            "noise and data are swapped: t = 0 is noise, t = 1 is data": path.interpolate(x1, x0, t),
            "t is broadcast over the last axis: give it the shape (B, 1)": t * x1 + (1 - (1 - sigma_min) * t) * x0,
            "sigma_min is added at every t: at t = 0 sigma must be 1": column * x1 + (1 - column + sigma_min) * x0,
        },
        "xt",
    )  # fmt: skip
    diagnose(
        target, path.velocity(x0, x1, t),
        {
            "sign flipped: d xt / dt points from noise to data": -path.velocity(x0, x1, t),
            "sigma_min is missing: differentiate sigma(t) = 1 - (1 - sigma_min) t": straight.velocity(x0, x1, t),
            "this is x1 - xt, which still has to be divided by the remaining time": x1 - xt,
        },
        "target",
    )  # fmt: skip
    return "right: the path ends with noise of size sigma_min, and the target is its derivative"


def one_euler_step(prediction: tuple[float, float]) -> str:
    """Exercise 3.2: mean and standard deviation after one Euler step from N(0, 1) noise, for data N(1.5, 0.5^2).

    Example:
        >>> one_euler_step((1.5, 0.0))
        'right: the first velocity of an independent coupling points at the mean of the data, and one step goes there'
    """
    mean, std = prediction
    diagnose_number(
        std, 0.0,
        {
            "0.5 is the standard deviation of the data; what is E[x1 - x0 | x0] for independent x1 and x0?": 0.5,
            "1 would be a shift of the noise; the velocity at t = 0 depends on x0": 1.0,
        },
        "write down v(x, 0) = E[x1 - x0 | x0 = x] and add it to x", tolerance=0.02, what="std",
    )  # fmt: skip
    diagnose_number(
        mean, 1.5, {"this is where the noise is": 0.0}, "all points land on E[x1]", tolerance=0.02, what="mean"
    )
    return (
        "right: the first velocity of an independent coupling points at the mean of the data, and one step goes there"
    )


def heun_solver(function: Callable[..., Tensor]) -> str:
    """Exercise 3.3: ``function(velocity, x, steps) -> x`` from 0 to 1 by Heun's method.

    Example:
        >>> heun_solver(lambda v, x, steps: solve(v, x, method="heun", steps=steps).x)
        'right: second order, two evaluations per step, from noise to data'
    """
    calls: list[float] = []

    def velocity(x: Tensor, t: Any, y: Tensor | None = None) -> Tensor:
        calls.append(float(t))
        return torch.cos(3 * torch.as_tensor(t)) * x + torch.as_tensor(t) ** 2

    x, steps = torch.tensor([[1.0, -0.5]]), 4

    def by(method: Any, **options: Any) -> Tensor:
        return solve(velocity, x, method=method, steps=steps, **options).x

    mistakes = {
        "this is Euler's method: the second slope is not used": by("euler"),
        "this is the midpoint method: Heun's second slope is at the end of the step, not its middle": by("midpoint"),
        "time runs from 1 to 0: you start at the data": by("heun", t0=1.0, t1=0.0),
        "sign flipped: you subtract the velocity": solve(lambda x, t: -velocity(x, t), x, method="heun", steps=steps).x,
        "the two slopes are added, not averaged": solve(
            lambda x, t: 2 * velocity(x, t), x, method="heun", steps=steps
        ).x,
    }
    expected = by("heun")
    calls.clear()
    got = function(velocity, x, steps)
    if calls and max(calls) > 1 + 1e-6:
        raise AssertionError(f"t: the velocity was evaluated at t = {max(calls):.3g}, outside [0, 1]")
    diagnose(got, expected, mistakes, "x")
    if len(calls) != 2 * steps:
        raise AssertionError(f"evaluations: Heun needs 2 per step, {2 * steps} in total; got {len(calls)}")
    return "right: second order, two evaluations per step, from noise to data"


def loss_floor(value: float) -> str:
    """Exercise 3.4: the smallest conditional loss (mean over dimensions) for noise N(0, 1) and data N(1.5, 0.5^2).

    Example:
        >>> loss_floor(0.7854)
        'right: what no velocity can explain, since many pairs pass through one point'
    """
    # Given xt, x1 - x0 is Gaussian with variance s^2 / (t^2 s^2 + (1 - t)^2); its integral over t is s pi / 2.
    expected = 0.5 * math.pi / 2
    diagnose_number(
        value, expected,
        {
            "this is the unconditional variance of x1 - x0; condition on xt": 1 + 0.5**2,
            "the loss is not 0 at the best velocity: pairs with different slopes share a point": 0.0,
        },
        "integrate the variance of x1 - x0 given xt over t from 0 to 1", tolerance=0.008,
    )  # fmt: skip
    return "right: what no velocity can explain, since many pairs pass through one point"


def pairing(function: Callable[..., Tensor]) -> str:
    """Exercise 3.5: ``function(x0, x1, y) -> x0`` permuted to match x1, by exact transport within each label.

    Example:
        >>> pairing(lambda x0, x1, y: OptimalTransport(label_aware=True)(x0, x1, y)[0])
        'right: every source once, least cost within each label'
    """
    generator = torch.Generator().manual_seed(1)
    x0, x1 = torch.randn(32, 2, generator=generator), torch.randn(32, 2, generator=generator) + 3
    y = torch.randint(2, (32,), generator=generator)
    got = function(x0, x1, y)
    if got.shape != x0.shape:
        raise AssertionError(f"x0: expected shape {tuple(x0.shape)}; got {tuple(got.shape)}")

    def positions(paired: Tensor) -> Tensor:  # [source, place] is True where a source was put
        return (x0[:, None] == paired[None]).all(-1)

    used = positions(got).sum(1)
    if not bool((used == 1).all()):
        lost = int((used == 0).sum())
        raise AssertionError(f"x0: {lost} of 32 sources are lost; draws from the plan are not a permutation")
    blind = OptimalTransport()(x0, x1, y)[0]
    expected = OptimalTransport(label_aware=True)(x0, x1, y)[0]

    def inverse(paired: Tensor) -> Tensor:
        return x0[positions(paired).int().argmax(1)]

    diagnose(
        got, expected,
        {
            "the labels are ignored: the noise of a label is no longer N(0, I)": blind,
            "the inverse permutation: index the sources, not the targets": inverse(expected),
            "the inverse permutation, and the labels are ignored": inverse(blind),
            "nothing was permuted": x0,
        },
        "x0",
    )  # fmt: skip
    return "right: every source once, least cost within each label"


def guidance(function: Callable[..., Tensor]) -> str:
    """Exercise 3.6: ``function(velocity, x, t, y, scale, null) -> v`` under classifier-free guidance.

    Example:
        >>> from flowbook.guidance import guided
        >>> guidance(lambda v, x, t, y, scale, null: guided(v, scale, null)(x, t, y))
        'right: scale 0 ignores the label, 1 is the conditional velocity, above 1 amplifies the label'
    """

    def velocity(x: Tensor, t: Any, y: Tensor | None = None) -> Tensor:
        label = torch.full((len(x),), 5) if y is None else y
        return x * (label[:, None] + 1.0) + label[:, None] ** 2

    x, y = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([1, 3])
    conditional, null = velocity(x, 0.5, y), velocity(x, 0.5, torch.tensor([5, 5]))
    scale = 2.5
    diagnose(
        function(velocity, x, 0.5, y, scale, 5), null + scale * (conditional - null),
        {
            "scale counts from the conditional velocity (the paper's w); here 1 means no guidance": conditional
            + scale * (conditional - null),
            "the two velocities are swapped: you push away from the label": conditional + scale * (null - conditional),
            "this is the conditional velocity: scale is not used": conditional,
        },
        "v",
    )  # fmt: skip
    return "right: scale 0 ignores the label, 1 is the conditional velocity, above 1 amplifies the label"


def adams_weights(function: Callable[[Tensor], Tensor]) -> str:
    """Exercise 3.7: ``function(places) -> weights`` of three known slopes, for the integral from 0 to 1 ahead of them.

    Example:
        >>> moments = 1 / torch.arange(1, 4, dtype=torch.float64)
        >>> adams_weights(lambda places: torch.linalg.solve(places ** torch.arange(3)[:, None], moments))
        'right: exact for every parabola, whatever the lengths of the steps'
    """
    places, order = torch.tensor([0.0, -2.0, -3.0], dtype=torch.float64), torch.arange(3)
    powers, ahead = places ** order[:, None], 1 / (order + 1.0).double()
    diagnose(
        function(places), torch.linalg.solve(powers, ahead),
        {
            "these are the weights of equal steps; use the places": torch.tensor([23.0, -16.0, 5.0]).double() / 12,
            "transposed: each row of the system is one power at all places": torch.linalg.solve(powers.T, ahead),
            "this integrates over the previous step; integrate from 0 to 1": torch.linalg.solve(
                powers, (-1) ** order * ahead
            ),
        },
        "weights",
    )  # fmt: skip
    return "right: exact for every parabola, whatever the lengths of the steps"
