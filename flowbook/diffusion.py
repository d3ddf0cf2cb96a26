r"""Diffusion (chapter 1): add noise in many small steps, learn to predict it, and take it away again.

.. math:: x_i = \sqrt{\bar\alpha_i}\, x_1 + \sqrt{1 - \bar\alpha_i}\, \epsilon

with :math:`\bar\alpha_i` the product of :math:`1 - \beta_j` over the steps j up to i, and i from 0 to T - 1.

The schedule is a :class:`~flowbook.noise_schedule.NoiseSchedule`; i = 0 is its least noisy step. What a *model* is
says :mod:`flowbook.step_model`: any callable ``model(x, i, y=None)`` that predicts the noise in x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowbook import _validate, keyed
from flowbook._model import call, evaluating
from flowbook.batch import unpack
from flowbook.data import grey_levels
from flowbook.flow_matching import _drop_labels
from flowbook.noise_schedule import PREDICTIONS
from flowbook.noise_schedule import NoiseSchedule as NoiseSchedule
from flowbook.noise_schedule import SchedulePath as SchedulePath
from flowbook.step_model import Model, check_model
from flowbook.step_model import ProbabilityFlow as ProbabilityFlow
from flowbook.step_model import StepModel as StepModel
from flowbook.step_model import probability_flow as probability_flow

VARIANCES = ("posterior", "beta")


# Training -------------------------------------------------------------------------------------------------------------


def ddpm_loss(
    model: Model, x1: Tensor, schedule: NoiseSchedule, y: Tensor | None = None, *, i: Tensor | None = None,
    noise: Tensor | None = None, prediction: str | None = None, label_dropout: float = 0.0,
    null_label: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean squared error of the predicted noise, over batch and dimensions (Ho et al. 2020, equation 14).

    Args:
        model: ``model(x, i, y=None)``.
        x1: data, shape (B, ...).
        schedule: the noise of each step.
        y: labels, shape (B,), or None.
        i: steps, long (B,); every step equally likely when None.
        noise: from N(0, I), the shape of x1; drawn when None.
        prediction: what the model predicts and is compared with, as in
            :func:`~flowbook.step_model.probability_flow`.
        label_dropout, null_label: as in :func:`~flowbook.flow_matching.flow_matching_loss`.

    Example:
        >>> schedule, noise = NoiseSchedule.linear(1000), torch.ones(4, 2)
        >>> ddpm_loss(lambda x, i: torch.ones_like(x), torch.zeros(4, 2), schedule, noise=noise)
        tensor(0.)
    """
    prediction = check_model(model, schedule, prediction)
    _validate.float_tensor("x1", x1, min_dim=1)
    _validate.number("label_dropout", label_dropout, 0, 1)
    if i is None:
        i = (keyed.rand(len(x1), like=x1.float()) * schedule.steps).long().clamp_max(schedule.steps - 1)
    if noise is None:
        noise = keyed.randn_like(x1)
    if label_dropout > 0:
        y = _drop_labels(model, x1, y, label_dropout, null_label)
    x = schedule.add_noise(x1, i, noise)
    predicted = call(model, x, i, y)
    _validate.same_shape("model(x, i, y)", predicted, "x1", x1)
    return (predicted - schedule.convert(noise, x, i, source="noise", target=prediction)).square().mean()


@dataclass(frozen=True)
class Diffusion:
    """:func:`ddpm_loss` of a network that takes a time, as the ``loss(network, batch)`` that ``fit`` asks for.

    A batch is x1 or (x1, y). What ``fit`` returns, and ``load`` reads, is the network's
    :func:`~flowbook.step_model.probability_flow`: a
    velocity. Its ``model`` is the one that :func:`ddpm_sample` and :func:`ddim_sample` take.

    Example:
        >>> loss = Diffusion(NoiseSchedule.cosine(100))
        >>> loss(lambda x, t, y=None: torch.zeros_like(x), torch.zeros(1000, 2)).round()
        tensor(1.)
    """

    schedule: NoiseSchedule
    prediction: str = "noise"
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        _validate.instance("schedule", self.schedule, NoiseSchedule, "NoiseSchedule.linear(1000)")
        _validate.one_of("prediction", self.prediction, PREDICTIONS)
        _validate.number("label_dropout", self.label_dropout, 0, 1)

    def __call__(self, network: Any, batch: Any) -> Tensor:
        x0, x1, y = unpack(batch)
        return ddpm_loss(
            StepModel(network, self.schedule, self.prediction), x1, self.schedule, y, noise=x0,
            label_dropout=self.label_dropout,
        )  # fmt: skip

    def velocity(self, network: nn.Module) -> ProbabilityFlow:
        """What the trained network says, as a velocity."""
        return probability_flow(StepModel(network, self.schedule, self.prediction), self.schedule)


# Sampling -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def ddpm_sample(
    model: Model, x: Tensor, schedule: NoiseSchedule, y: Tensor | None = None, variance: str = "posterior",
    clip: float | None = None, *, prediction: str | None = None, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Ancestral sampling: from pure noise through every step to data (Ho et al. 2020, algorithm 2).

    Each step predicts the data, and draws from the posterior of the step before. The last draws nothing.

    Args:
        model: ``model(x, i, y=None)``; it runs in eval mode.
        x: noise, shape (B, ...).
        schedule: the one it was trained with.
        y: labels, shape (B,), or None.
        variance: "posterior", right for data that are a single point, or "beta", right for data from N(0, I).
        clip: keep the predicted data within [-clip, clip]; 1 for images, None for data without bounds.
        prediction: what the model predicts, as in :func:`~flowbook.step_model.probability_flow`.
        generator: of the noise of the steps.

    Returns:
        Samples, shape (B, ...).

    Example:
        >>> always_two = lambda x, i: torch.full_like(x, 2.0)
        >>> ddpm_sample(always_two, torch.randn(1, 1), NoiseSchedule.linear(1000), prediction="data")
        tensor([[2.]])
    """
    _validate.one_of("variance", variance, VARIANCES)
    prediction = check_model(model, schedule, prediction)
    _check_sampling(x, y, clip)
    schedule = schedule.on(x.device)
    with evaluating(model):
        for i in reversed(range(schedule.steps)):
            data = _predicted_data(model, x, i, y, schedule, clip, prediction)
            mean, spread = schedule.posterior(x, data, i)
            if variance == "beta":
                spread = schedule.betas[i].to(x)
            x = mean if i == 0 else mean + spread.sqrt() * _normal(x, generator)
    return x


@torch.no_grad()
def ddim_sample(
    model: Model, x: Tensor, schedule: NoiseSchedule, steps: int, eta: float = 0.0, y: Tensor | None = None,
    clip: float | None = None, *, prediction: str | None = None, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
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
    _validate.number("eta", eta, 0, 1)
    prediction = check_model(model, schedule, prediction)
    _check_sampling(x, y, clip)
    visited = ddim_steps(schedule.steps, steps)
    abar = schedule.alphas_cumprod.tolist()
    with evaluating(model):
        for n, i in enumerate(visited):
            data = _predicted_data(model, x, i, y, schedule, clip, prediction)
            if n == steps - 1:
                return data
            now, before = abar[i], abar[visited[n + 1]]
            noise = (x - math.sqrt(now) * data) / math.sqrt(1 - now)
            fresh = eta * math.sqrt((1 - before) / (1 - now) * (1 - now / before))
            x = math.sqrt(before) * data + math.sqrt(1 - before - fresh**2) * noise
            if fresh > 0:
                x = x + fresh * _normal(x, generator)
    return x


def ddim_steps(total: int, steps: int) -> list[int]:
    """The steps that DDIM visits, from T - 1 down. Each jump ends where the next begins, and the last ends in the data.

    Example:
        >>> ddim_steps(10, 4)
        [9, 7, 4, 2]
    """
    _validate.positive_int("steps", steps)
    if steps > total:
        raise ValueError(f"steps: expected at most the schedule's {total}; got {steps}")
    return [math.floor(total * (steps - n) / steps + 0.5) - 1 for n in range(steps)]


def _predicted_data(
    model: Model, x: Tensor, i: int, y: Tensor | None, schedule: NoiseSchedule, clip: float | None, prediction: str
) -> Tensor:
    index = torch.full((len(x),), i, device=x.device)
    predicted = call(model, x, index, y)
    _validate.same_shape("model(x, i, y)", predicted, "x", x)
    data = schedule.convert(predicted, x, i, source=prediction, target="data")
    return data if clip is None else data.clamp(-clip, clip)


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def _check_sampling(x: Tensor, y: Tensor | None, clip: float | None) -> None:
    _validate.float_tensor("x", x, min_dim=1, finite=True)
    if y is not None:
        _validate.labels("y", y, len(x))
    if clip is not None:
        _validate.number("clip", clip, 0, math.inf, low_open=True)


# The variational bound ------------------------------------------------------------------------------------------------


@torch.no_grad()
def bits_per_dim(
    model: Model, x1: Tensor, schedule: NoiseSchedule, y: Tensor | None = None, *, levels: int = 256,
    variance: str = "posterior", clip: float | None = 1.0, prediction: str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """The variational upper bound on -log2 p(x1) per dimension, shape (B,) (Ho et al. 2020, equations 5 and 13).

    T model calls: the divergence of prior and x_{T-1}, those of every step, and the likelihood of the discrete data
    under the last step's Gaussian, integrated over the bin of each value. One draw of noise for each step.

    Args:
        model, schedule, y, clip, prediction: as in :func:`ddpm_sample`.
        x1: discrete data, ``levels`` equidistant values from -1 to 1, shape (B, ...).
        levels: the number of grey levels.
        variance: of the model's steps, "posterior" or "beta".
        generator: of the noise.

    Example:
        >>> schedule = NoiseSchedule.linear(1000)
        >>> x1 = torch.ones(1, 1)
        >>> round(float(bits_per_dim(lambda x, i: torch.ones_like(x), x1, schedule, prediction="data")), 2)
        0.62
    """
    _validate.one_of("variance", variance, VARIANCES)
    _validate.positive_int("levels", levels, at_least=2)
    prediction = check_model(model, schedule, prediction)
    _check_sampling(x1, y, clip)
    grey_levels(x1, levels)  # raises for data without levels
    schedule = schedule.on(x1.device)
    abar = schedule.alphas_cumprod[-1].to(x1)
    nats = (0.5 * (abar * x1.square() - abar - torch.log1p(-abar))).flatten(1).sum(1)  # the prior's share
    with evaluating(model):
        for i in reversed(range(schedule.steps)):
            x = schedule.add_noise(x1, i, _normal(x1, generator))
            data = _predicted_data(model, x, i, y, schedule, clip, prediction)
            theirs, spread = schedule.posterior(x, x1, i)
            mean, _ = schedule.posterior(x, data, i)
            beta = schedule.betas[i].to(x)
            if i == 0:
                nats += -_log_bin(x1, mean, beta.sqrt(), levels).flatten(1).sum(1)
                continue
            of_model = beta if variance == "beta" else spread
            ratio = spread / of_model
            gap = (theirs - mean).square() / of_model
            nats += (0.5 * (ratio - 1 - ratio.log() + gap)).flatten(1).sum(1)
    return nats / (x1[0].numel() * math.log(2))


def _log_bin(x: Tensor, mean: Tensor, std: Tensor, levels: int) -> Tensor:
    """log of the Gaussian's mass in the bin around x; the outermost bins reach to infinity."""
    half = 1.0 / (levels - 1)
    upper = torch.where(x > 1 - half, torch.inf, (x + half - mean) / std)
    lower = torch.where(x < -1 + half, -torch.inf, (x - half - mean) / std)
    # Both ends on the side where the normal's tail is small, or the difference of two ones would be 0.
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    above, below = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return above + torch.log1p(-torch.exp(below - above))  # in logarithms: far out the masses themselves are 0
