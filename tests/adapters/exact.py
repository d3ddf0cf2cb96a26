"""Models that know their data: a Gaussian mixture seen through noise, as other packages would hold it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from flowbook.analytic import GaussianMixture
from flowbook.diffusion import NoiseSchedule, SchedulePath

MIXTURE = GaussianMixture([[-0.5, 0.3], [0.6, -0.2]], [0.1, 0.3], [0.4, 0.6])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *(shape or (2,)), generator=seeded(seed), dtype=torch.float64)


def expected_data(x: Tensor, alpha: Tensor, sigma: Tensor, mixture: GaussianMixture = MIXTURE) -> Tensor:
    """E[data | alpha data + sigma noise = x], for coefficients of shape () or (B,)."""
    alpha, sigma = (torch.as_tensor(part).to(x).reshape(-1, 1) for part in (alpha, sigma))
    means, stds = mixture.means.to(x), mixture.stds.to(x)
    variances = alpha**2 * stds**2 + sigma**2
    away = x[:, None] - alpha[..., None] * means
    logits = -0.5 * (away.square().sum(-1) / variances + means.shape[1] * variances.log()) + mixture.weights.to(x).log()
    posterior = torch.softmax(logits, 1)
    return (posterior[..., None] * (means + (alpha * stds**2 / variances)[..., None] * away)).sum(1)


def as_predicted(x: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """The exact prediction, by diffusers' names."""
    data = expected_data(x, alpha, sigma)
    alpha, sigma = (torch.as_tensor(part).to(x).reshape(-1, 1) for part in (alpha, sigma))
    eps = (x - alpha * data) / sigma
    kinds = {"sample": data, "epsilon": eps, "v_prediction": alpha * eps - sigma * data, "flow": eps - data}
    return kinds[prediction]


class Exact(nn.Module):
    """The mixture as a model of diffusers with a schedule; called with steps, whole or not."""

    def __init__(self, scheduler: Any, learned_variance: bool = False):
        super().__init__()
        self.config = SimpleNamespace()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.path = SchedulePath(NoiseSchedule(scheduler.betas.double()))
        self.prediction, self.steps = scheduler.config.prediction_type, len(scheduler.betas)
        self.learned_variance = learned_variance

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> Any:
        t = 1 - torch.as_tensor(timestep).double() / (self.steps - 1)
        out = self.shift + as_predicted(sample, self.path.alpha(t), self.path.sigma(t), self.prediction)
        out = torch.cat([out, torch.full_like(out, 7.0)], dim=1) if self.learned_variance else out
        return SimpleNamespace(sample=out) if return_dict else (out,)


class ExactFlow(nn.Module):
    """The mixture as a flow-matching model of diffusers: noise minus data, at times of 1000 at noise."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, hidden_states: Tensor, timestep: Any, return_dict: bool = True) -> Any:
        sigma = (torch.as_tensor(timestep).double() / 1000).clamp_min(1e-9)
        out = self.shift + as_predicted(hidden_states, 1 - sigma, sigma, "flow")
        return SimpleNamespace(sample=out) if return_dict else (out,)


def run(scheduler: Any, model: Any, x: Tensor, steps: int, **conditions: Any) -> Tensor:
    """The package's own sampling loop, as in its pipelines."""
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(model(scaled, timestep=t.expand(len(x)), **conditions).sample, t, x).prev_sample
    return x


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())
