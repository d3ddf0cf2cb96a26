"""Samplers that go through the steps of a noise schedule: what DDPM and DDIM give exactly, and their mistakes.

For data N(m, s^2) the exact noise prediction is linear in the state, so that a sampler that draws noise has a mean and
a variance that can be followed step by step, without drawing anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowbook.diffusion import NoiseSchedule

MEAN, STD = 1.5, 0.5
"""Of the Gaussian data on which a sampler that draws noise is judged."""


@dataclass(frozen=True)
class Step:
    """One step of a sampler, ``x <- from_state * x + from_data * data + noise * z``, with the data that it predicts."""

    from_state: float
    from_data: float
    noise: float
    told: int
    """The step that the model is told."""


def moments(schedule: NoiseSchedule, step: Callable[[int], Step]) -> tuple[float, float]:
    """Mean and standard deviation of the samples of N(MEAN, STD^2) that a sampler draws, from N(0, 1)."""
    mean, variance = 0.0, 1.0
    abar = schedule.alphas_cumprod.tolist()
    for i in reversed(range(schedule.steps)):
        one, told = step(i), min(max(step(i).told, 0), schedule.steps - 1)
        # The noise that the exact model predicts at the step that it is told, and the data that the sampler infers.
        a, b = abar[told], abar[i]
        slope = math.sqrt(1 - a) / (a * STD**2 + 1 - a)
        gain = (1 - math.sqrt(1 - b) * slope) / math.sqrt(b)
        shift = math.sqrt(1 - b) * slope * math.sqrt(a) * MEAN / math.sqrt(b)
        factor = one.from_state + one.from_data * gain
        mean = factor * mean + one.from_data * shift
        variance = factor**2 * variance + one.noise**2
    return mean, math.sqrt(variance)


def ddpm(schedule: NoiseSchedule, *, beta: bool = False, told: int = 0) -> Callable[[int], Step]:
    """The step of DDPM (Ho et al. 2020), or one where the model is told another than the state has."""
    of_data, of_state, variances = (table.tolist() for table in schedule.posterior_coefficients())
    betas = schedule.betas.tolist()

    def step(i: int) -> Step:
        noise = math.sqrt(betas[i] if beta else variances[i])
        return Step(of_state[i], of_data[i], noise if i > 0 else 0.0, i + told)

    return step


def renoised(schedule: NoiseSchedule) -> Callable[[int], Step]:
    """Fresh noise on the predicted data, in place of the predicted noise."""
    before = [1.0, *schedule.alphas_cumprod.tolist()[:-1]]
    return lambda i: Step(0.0, math.sqrt(before[i]), math.sqrt(1 - before[i]), i)


def unsquared(schedule: NoiseSchedule, power: float) -> Callable[[int], Step]:
    """DDPM with the variance, or no noise at all, in place of the standard deviation."""
    right = ddpm(schedule)

    def step(i: int) -> Step:
        one = right(i)
        return Step(one.from_state, one.from_data, 0.0 if power == 0 else one.noise**power, i)

    return step


def right_moments(schedule: NoiseSchedule) -> list[tuple[float, float]]:
    """What DDPM draws, with either of its variances."""
    return [moments(schedule, ddpm(schedule, beta=beta)) for beta in (False, True)]


def wrong_moments(schedule: NoiseSchedule) -> dict[tuple[str, str], tuple[float, float]]:
    """What the known mistakes draw, by fault and sentence."""
    told = "the model is told another step than the state has"
    return {
        ("re-noised", "fresh noise is drawn in place of the predicted one: the state forgets where it came from"):
            moments(schedule, renoised(schedule)),
        ("step off by one", f"{told}: i + 1"): moments(schedule, ddpm(schedule, told=1)),
        ("step off by one", f"{told}: i - 1"): moments(schedule, ddpm(schedule, told=-1)),
        ("variance for deviation", "the noise is multiplied by its variance in place of its standard deviation"):
            moments(schedule, unsquared(schedule, 2.0)),
        ("no noise", "no noise is added: the mean of DDPM's step alone narrows the samples"):
            moments(schedule, unsquared(schedule, 0.0)),
    }  # fmt: skip


def ddim_walk(
    predict: Callable[[Tensor, int], Tensor],
    x: Tensor,
    schedule: NoiseSchedule,
    visited: Sequence[int],
    *,
    last: float = 1.0,
    root: bool = True,
) -> Tensor:
    """DDIM over the visited steps (Song et al. 2021, equation 12), with the abar of the end, and its mistakes."""
    abar = schedule.alphas_cumprod.to(x)
    for n, i in enumerate(visited):
        noise = predict(x, i)
        data = (x - (1 - abar[i]).sqrt() * noise) / abar[i].sqrt()
        after = abar[visited[n + 1]] if n + 1 < len(visited) else torch.tensor(last).to(x)
        x = after.sqrt() * data + ((1 - after).sqrt() if root else 1 - after) * noise
    return x
