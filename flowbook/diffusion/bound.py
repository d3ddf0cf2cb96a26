"""The variational bound of a diffusion model on the likelihood of discrete data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.draws import normal_like
from flowbook.condition import Condition
from flowbook.data import gray_levels
from flowbook.diffusion.model import Model, check_model
from flowbook.diffusion.samplers import VARIANCES, Predictor, Variance, check_sampling
from flowbook.diffusion.schedule import NoiseSchedule, Prediction
from flowbook.velocity import evaluating


@torch.no_grad()
def variational_bound(
    model: Model,
    x1: Tensor,
    schedule: NoiseSchedule,
    y: Condition = None,
    *,
    levels: int = 256,
    variance: Variance = "posterior",
    clip: float | None = 1.0,
    prediction: Prediction | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One Monte Carlo estimate of the variational upper bound on -log2 p(x1) per dimension, shape (B,).

    The bound adds the KL divergence of x_{T-1} from the prior, the KL divergence of every step, and the likelihood of
    the discrete data under the last step's Gaussian, integrated over the bin of each value (Ho et al. 2020, equations
    5 and 13). It takes T model calls, and each step uses one draw of noise.

    Args:
        model, schedule, y, clip, prediction: as in :func:`ddpm_sample`.
        x1: discrete data, ``levels`` equidistant values from -1 to 1, shape (B, ...).
        levels: the number of gray levels.
        variance: the variance of the model's steps, "posterior" or "beta".
        generator: for the noise.

    Example:
        >>> schedule = NoiseSchedule.linear(1000)
        >>> x1 = torch.ones(1, 1)
        >>> round(float(variational_bound(lambda x, i: torch.ones_like(x), x1, schedule, prediction="data")), 2)
        0.62
    """
    validate.one_of("variance", variance, VARIANCES)
    validate.positive_int("levels", levels, at_least=2)
    prediction = check_model(model, schedule, prediction)
    check_sampling(model, x1, y, clip, name="x1")
    gray_levels(x1, levels)  # raises for data without levels
    predictor = Predictor(model, schedule.on(x1.device), prediction, clip)
    nats = _prior_term(x1, predictor.schedule)
    with evaluating(model):
        for i in reversed(range(schedule.steps)):
            x = predictor.schedule.add_noise(x1, i, normal_like(x1, generator))
            data = predictor.data(x, i, y)
            if i > 0:
                nats += _step_term(x1, x, data, predictor.schedule, i=i, variance=variance)
            else:
                nats += _last_term(x1, x, data, predictor.schedule, levels=levels)
    return nats / (x1[0].numel() * math.log(2))


def _prior_term(x1: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The KL divergence of q(x_{T-1} | x1) from N(0, I), shape (B,)."""
    abar = schedule.alphas_cumprod[-1].to(x1)
    return (0.5 * (abar * x1.square() - abar - torch.log1p(-abar))).flatten(1).sum(1)


def _step_term(x1: Tensor, x: Tensor, data: Tensor, schedule: NoiseSchedule, *, i: int, variance: Variance) -> Tensor:
    """The KL divergence of the posterior of step i from the model's Gaussian, shape (B,)."""
    posterior_mean, posterior_variance = schedule.posterior(x, x1, i)
    mean, _ = schedule.posterior(x, data, i)
    of_model = schedule.betas[i].to(x) if variance == "beta" else posterior_variance
    ratio = posterior_variance / of_model
    gap = (posterior_mean - mean).square() / of_model
    return (0.5 * (ratio - 1 - ratio.log() + gap)).flatten(1).sum(1)


def _last_term(x1: Tensor, x: Tensor, data: Tensor, schedule: NoiseSchedule, *, levels: int) -> Tensor:
    """Minus the log-likelihood of the gray levels under the Gaussian of step 0, shape (B,)."""
    mean, _ = schedule.posterior(x, data, 0)
    return -log_bin(x1, mean, schedule.betas[0].to(x).sqrt(), levels).flatten(1).sum(1)


def log_bin(x: Tensor, mean: Tensor, std: Tensor, levels: int) -> Tensor:
    """log of the Gaussian's mass in the bin around x; the outermost bins reach to infinity."""
    half = 1.0 / (levels - 1)
    upper = torch.where(x > 1 - half, torch.inf, (x + half - mean) / std)
    lower = torch.where(x < -1 + half, -torch.inf, (x - half - mean) / std)
    # Both ends in the lower tail: in the upper one both values would round to 1, and their difference to 0.
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    above, below = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return above + torch.log1p(-torch.exp(below - above))  # in logarithms, since in the tails the masses underflow
