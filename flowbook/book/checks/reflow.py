"""Checks of the exercises of chapter 4."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowbook.laws.diagnosis import diagnose, diagnose_number


def _velocity(x: Tensor, t: Tensor | float) -> Tensor:
    """A field that differs from point to point and from time to time."""
    t = torch.as_tensor(t, dtype=x.dtype)
    return torch.sin(2 * x.flip(1)) + t * x


def _points() -> Tensor:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def rectified_cost(value: float) -> str:
    """Exercise 4.1: the transport cost of the rectified coupling of N(0, 1) and N(1.5, 0.5^2).

    Example:
        >>> rectified_cost(2.5)
        'right: the flow is 1.5 + 0.5 x0, and in one dimension no coupling costs less'
    """
    diagnose_number(
        value, 2.5,
        {
            "this is the cost of independent pairs; the ends of a flow are not independent of its starts": 3.5,
            "this is the squared distance of the means; the spread has to change as well": 2.25,
            "this is the cost of the spread; the mean has to move as well": 0.25,
            "this is the square root of the cost": 2.5**0.5,
            "this is what is saved: V + S": 1.0,
        },
        "find where the flow takes x0, and take the mean of the squared displacement", tolerance=0.01,
    )  # fmt: skip
    return "right: the flow is 1.5 + 0.5 x0, and in one dimension no coupling costs less"


def straightness_by_euler(function: Callable[..., float]) -> str:
    """Exercise 4.2: ``function(velocity, x0, steps) -> S`` of equation (4.2), along the Euler trajectory.

    Example:
        >>> from flowbook.metrics import straightness
        >>> straightness_by_euler(lambda velocity, x0, steps: straightness(velocity, x0, steps=steps))
        'right: the displacement of each point against its velocity at each step'
    """
    x0, steps = _points(), 5
    states, x = [], x0
    for n in range(steps):
        v = _velocity(x, n / steps)
        states.append((x, v))
        x = x + v / steps
    whole, velocities = x - x0, torch.stack([v for _, v in states])

    def gaps(displacement: Tensor, vs: Tensor = velocities) -> Tensor:
        return (displacement - vs).square().sum(2).mean(1)

    still = torch.stack([_velocity(x0, n / steps) for n in range(steps)])
    diagnose(
        torch.as_tensor(float(function(_velocity, x0.clone(), steps))), gaps(whole).mean(),
        {
            "summed over the steps; the integral over t is their mean": gaps(whole).sum(),
            "averaged over the dimensions; the squared norm is their sum": gaps(whole).mean() / 2,
            "the velocity is taken at x0 throughout, not along the trajectory": gaps(
                still.mean(0), still
            ).mean(),
            "the mean over the points is taken before the square": (whole - velocities)
            .mean(1)
            .square()
            .sum(1)
            .mean(),
            "the square is missing": (whole - velocities).norm(dim=2).mean(),
            "compared with the first velocity; compare with the displacement, Z1 - Z0": gaps(velocities[0]).mean(),
        },
        "S",
    )  # fmt: skip
    return "right: the displacement of each point against its velocity at each step"


def distillation_times(function: Callable[[int, int], Tensor]) -> str:
    """Exercise 4.3: ``function(k, batch)``, random times of a k-step student, which samples by k Euler steps.

    Example:
        >>> distillation_times(lambda k, batch: torch.randint(k, (batch,)) / k)
        'right: 0, 1/k, ..., (k - 1)/k, equally often'
    """
    k, batch = 4, 4000
    t = function(k, batch)
    if t.shape != (batch,):
        raise AssertionError(f"t: expected shape ({batch},); got {tuple(t.shape)}")
    seen = sorted({round(float(value), 6) for value in t})
    mistakes = {
        (0.25, 0.5, 0.75, 1.0): "time 1 is where the last step ends; no step starts there, and one starts at 0",
        (0.0, 0.25, 0.5, 0.75, 1.0): "time 1 is where the last step ends; no step starts there",
        (0.0, 0.333333, 0.666667, 1.0): "k steps have k + 1 ends but k starts: the times lie 1/k apart, from 0",
        (0.0, 1.0, 2.0, 3.0): "these are the indices of the steps; divide by k",
    }
    if diagnosis := mistakes.get(tuple(seen)):
        raise AssertionError(f"t: {diagnosis}")
    if len(seen) > 10:
        raise AssertionError("t: these are times from a whole interval; the student is evaluated at k times only")
    if seen != [0.0, 0.25, 0.5, 0.75]:
        raise AssertionError(f"t: for k = 4 expected 0, 1/4, 1/2 and 3/4; got {seen}")
    shares = torch.stack([(t == value).float().mean() for value in seen])
    if bool(((shares - 0.25).abs() > 0.05).any()):
        raise AssertionError(
            f"t: expected each time equally often; got the fractions {[round(float(s), 2) for s in shares]}"
        )
    return "right: 0, 1/k, ..., (k - 1)/k, equally often"


def one_step_encoder(function: Callable[..., Tensor]) -> str:
    """Exercise 4.4: ``function(velocity, x1) -> x0`` in one evaluation.

    Example:
        >>> from flowbook.reflow import encode
        >>> one_step_encoder(encode)
        'right: one step backward, from t = 1'
    """
    x1, times = _points(), []

    def velocity(x: Tensor, t: Tensor | float) -> Tensor:
        times.append(float(t))
        return _velocity(x, t)

    got = function(velocity, x1.clone())
    if len(times) != 1:
        raise AssertionError(f"evaluations: expected one; got {len(times)}")
    diagnose(
        got, x1 - _velocity(x1, 1.0),
        {
            "sign flipped: a backward step subtracts the velocity": x1 + _velocity(x1, 1.0),
            "evaluated at t = 0; data lie at t = 1": x1 - _velocity(x1, 0.0),
            "evaluated at t = 0, and the sign is that of a forward step": x1 + _velocity(x1, 0.0),
            "this is the velocity; subtract it from x1": _velocity(x1, 1.0),
        },
        "x0",
    )  # fmt: skip
    return "right: one step backward, from t = 1"


def half_the_sum(value: float) -> str:
    """Exercise 4.5: the ratio of the losses with ``reduce_mean=False`` and True, for images of 28 x 28 pixels.

    Example:
        >>> half_the_sum(392)
        'right: half the number of dimensions'
    """
    diagnose_number(
        value, 392.0,
        {
            "the half is missing": 784.0,
            "upside down: False is the larger one": 1 / 392,
            "this is the side of an image; all pixels count": 14.0,
            "the batch is averaged in both": 1.0,
        },
        "one is the mean over the dimensions, the other half their sum", tolerance=1e-3,
    )  # fmt: skip
    return "right: half the number of dimensions"


def break_even(value: float) -> str:
    """Exercise 4.6: the number of samples from which on the shipped student costs fewer evaluations than its teacher.

    Example:
        >>> break_even((40_000 * 32 + 8_000 * 64 * 3) / (48 - 1))
        'right: about sixty thousand samples'
    """
    pairs, training = 40_000 * 32, 8_000 * 64 * 3
    diagnose_number(
        value / 1000, (pairs + training) / 47_000,
        {
            "guidance calls the network twice, for the pairs too": (pairs / 2 + training) / 47_000,
            "the pairs have a cost as well, not only the training": training / 47_000,
            "the training has a cost as well, not only the pairs": pairs / 47_000,
            "a training step counts three times, for the forward and backward pass": (pairs + training / 3) / 47_000,
            "a training step has a batch of 64": (pairs + training / 64) / 47_000,
            "the teacher's 12 steps of the midpoint method under guidance are 48 evaluations": (
                pairs + training
            ) / 11_000,
            "this is what was spent; divide by what each sample saves": (pairs + training) / 1000,
        },
        "what was spent, divided by what each sample saves", tolerance=0.6, what="value / 1000",
    )  # fmt: skip
    return "right: about sixty thousand samples"


def layer_distance(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Exercise 4.7: ``function(a, b) -> (B,)``, the perceptual distance in one layer of activations (B, C, H, W).

    Example:
        >>> unit = lambda a: torch.nn.functional.normalize(a, dim=1)
        >>> layer_distance(lambda a, b: (unit(a) - unit(b)).square().sum(1).mean((1, 2)))
        'right: unit length over the channels, the sum over them, the mean over positions'
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 5, 4, 2, generator=generator) * 2 for _ in range(2))

    def unit(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
        return x / x.square().sum(dim, keepdim=True).sqrt()

    squares = (unit(a) - unit(b)).square()
    diagnose(
        function(a.clone(), b.clone()), squares.sum(1).mean((1, 2)),
        {
            "not normalized to unit length": (a - b).square().sum(1).mean((1, 2)),
            "normalized to unit length over the positions; it is over the channels": (
                (unit(a, (2, 3)) - unit(b, (2, 3))).square().sum(1).mean((1, 2))
            ),
            "normalized to unit length over channels and positions at once": (
                (unit(a, (1, 2, 3)) - unit(b, (1, 2, 3))).square().sum(1).mean((1, 2))
            ),
            "the mean over the channels; it is their sum": squares.mean((1, 2, 3)),
            "the sum over the positions; it is their mean": squares.sum((1, 2, 3)),
            "the square is missing": squares.sum(1).sqrt().mean((1, 2)),
        },
        "distance",
    )  # fmt: skip
    return "right: unit length over the channels, the sum over them, the mean over positions"
