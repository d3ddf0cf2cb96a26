"""Samplers for diffusion models: ancestral sampling through every step, and DDIM in fewer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.draws import normal_like
from flowbook.condition import Condition, check_condition, warn_untrained
from flowbook.diffusion.model import Model, check_model
from flowbook.diffusion.schedule import NoiseSchedule, Prediction
from flowbook.velocity import call, evaluating

Variance = Literal["posterior", "beta"]
"""The variance of a reverse step, exact for data at a single point ("posterior"), or for data from N(0, I) ("beta")."""
VARIANCES: tuple[Variance, ...] = get_args(Variance)


@torch.no_grad()
def ddpm_sample(
    model: Model,
    x: Tensor,
    schedule: NoiseSchedule,
    y: Condition = None,
    variance: Variance = "posterior",
    *,
    clip: float | None = None,
    prediction: Prediction | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Ancestral sampling: from pure noise through every step to data (Ho et al. 2020, algorithm 2).

    Each step predicts the data, and draws the previous state from its posterior. The last step adds no noise.

    Args:
        model: ``model(x, i, y=None)``; it runs in eval mode.
        x: noise, shape (B, ...).
        schedule: the one it was trained with.
        y: the condition, or None.
        variance: "posterior", exact for data that are a single point, or "beta", exact for data from N(0, I).
        clip: keep the predicted data within [-clip, clip]; 1 for images, None for data without bounds.
        prediction: what the model predicts, as in :func:`~flowbook.diffusion.probability_flow`.
        generator: for the noise of the steps.

    Returns:
        Samples, shape (B, ...).

    Example:
        >>> always_two = lambda x, i: torch.full_like(x, 2.0)
        >>> ddpm_sample(always_two, torch.randn(1, 1), NoiseSchedule.linear(1000), prediction="data")
        tensor([[2.]])
    """
    validate.one_of("variance", variance, VARIANCES)
    check_sampling(model, x, y, clip)
    prediction = check_model(model, schedule, prediction)
    predictor = Predictor(model, schedule.on(x.device), prediction, clip)
    with evaluating(model):
        for i in reversed(range(schedule.steps)):
            data = predictor.data(x, i, y)
            mean, var = predictor.schedule.posterior(x, data, i)
            if variance == "beta":
                var = predictor.schedule.betas[i].to(x)
            x = mean
            if i > 0:
                x = mean + var.sqrt() * normal_like(x, generator)
    return x


@torch.no_grad()
def ddim_sample(
    model: Model,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    eta: float = 0.0,
    *,
    y: Condition = None,
    clip: float | None = None,
    prediction: Prediction | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sampling in fewer steps (Song et al. 2021a, equation 12): predict the data, then jump to an earlier step.

    Args:
        model, x, schedule, y, clip, prediction, generator: as in :func:`ddpm_sample`.
        steps: model calls, 1 to T. The steps visited are spread evenly and start at T - 1 (:func:`ddim_steps`).
        eta: 0 adds no noise, and the result is a function of x; 1 is ancestral sampling on the visited steps.

    Returns:
        Samples, shape (B, ...).

    Example:
        >>> always_two = lambda x, i: torch.full_like(x, 2.0)
        >>> ddim_sample(always_two, torch.randn(1, 1), NoiseSchedule.linear(1000), steps=7, prediction="data")
        tensor([[2.]])
    """
    validate.number("eta", eta, 0, 1)
    check_sampling(model, x, y, clip)
    predictor = Predictor(model, schedule, check_model(model, schedule, prediction), clip)
    visited = ddim_steps(schedule.steps, steps)
    abar = schedule.alphas_cumprod.tolist()
    with evaluating(model):
        for n, i in enumerate(visited):
            data = predictor.data(x, i, y)
            if n == steps - 1:
                return data
            now, before = abar[i], abar[visited[n + 1]]
            noise = (x - math.sqrt(now) * data) / math.sqrt(1 - now)
            fresh = eta * math.sqrt((1 - before) / (1 - now) * (1 - now / before))
            x = math.sqrt(before) * data + math.sqrt(1 - before - fresh**2) * noise
            if fresh > 0:
                x = x + fresh * normal_like(x, generator)
    return x


def ddim_steps(total: int, steps: int) -> list[int]:
    """The steps that DDIM visits, from T - 1 down. Each jump ends where the next begins, and the last ends in the data.

    Example:
        >>> ddim_steps(10, 4)
        [9, 7, 4, 2]
    """
    validate.positive_int("steps", steps)
    if steps > total:
        raise ValueError(f"steps: expected at most the schedule's {total}; got {steps}")
    return [math.floor(total * (steps - n) / steps + 0.5) - 1 for n in range(steps)]


@dataclass(frozen=True)
class Predictor:
    """A model with everything needed to turn its prediction at a step into the data."""

    model: Model
    schedule: NoiseSchedule
    prediction: Prediction
    clip: float | None

    def data(self, x: Tensor, i: int, y: Condition) -> Tensor:
        """The predicted data at x_i, kept within [-clip, clip]."""
        predicted = call(self.model, x, torch.full((len(x),), i, device=x.device), y)
        validate.same_shape("model(x, i, y)", predicted, "x", x)
        data = self.schedule.convert(predicted, x, i, source=self.prediction, target="data")
        return data if self.clip is None else data.clamp(-self.clip, self.clip)


def check_sampling(model: Model, x: Tensor, y: Condition, clip: float | None, name: str = "x") -> None:
    """Raise for a state, labels or bounds that no sampler accepts."""
    validate.float_tensor(name, x, min_dim=1, finite=True)
    check_condition("y", y, len(x), model)
    warn_untrained(model, y, stacklevel=3)
    if clip is not None:
        validate.number("clip", clip, 0, math.inf, low_open=True)
