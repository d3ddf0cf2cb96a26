"""Velocities of this book as models of other packages, for their samplers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook._core.times import widest_dtype
from flowbook.adapters.functions import THEIR_NAMES
from flowbook.condition import Condition
from flowbook.diffusion import NoiseSchedule, SchedulePath
from flowbook.paths import expected_parts
from flowbook.velocity import Velocity, device_of, evaluating, modules_of


class Outward(nn.Module):
    """The base class of velocities as models of other packages: it knows the network inside."""

    def __init__(self, velocity: Velocity):
        super().__init__()
        validate.function("velocity", velocity, "a network")
        self.velocity = velocity

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters."""
        return device_of(self.velocity)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's parameters."""
        found = (parameter.dtype for module in modules_of(self.velocity) for parameter in module.parameters())
        return next(found, torch.get_default_dtype())

    def parts(self, x: Tensor, alpha: Any, sigma: Any, y: Condition) -> tuple[Tensor, Tensor]:
        """The expected data and noise in ``x = alpha * data + sigma * noise``."""
        dtype = widest_dtype(x.device)
        alpha, sigma = (torch.as_tensor(part).to(device=x.device, dtype=dtype) for part in (alpha, sigma))
        with evaluating(self.velocity):
            return expected_parts(self.velocity, x, alpha, sigma, y)


class EDMLike(Outward):
    """A velocity as a denoiser ``D(x, sigma, y=None)``; made by :func:`to_edm`."""

    def __init__(self, velocity: Velocity, sigma_min: float, sigma_max: float):
        super().__init__(velocity)
        validate.number("sigma_max", sigma_max, 0, math.inf, low_open=True)
        validate.number("sigma_min", sigma_min, 0, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def forward(self, x: Tensor, sigma: Tensor | float, y: Condition = None, **conditions: Any) -> Tensor:
        """The expected data in ``x = data + sigma * noise``; y is also taken as keyword arguments, as a dict."""
        sigma = torch.as_tensor(sigma).reshape(-1).expand(len(x))
        return self.parts(x, torch.ones_like(sigma), sigma, conditions or None if y is None else y)[0]

    def round_sigma(self, sigma: Any) -> Tensor:
        """EDM's sampler rounds to the levels that a network knows: here to none, as it knows them all."""
        return torch.as_tensor(sigma)


def to_edm(velocity: Velocity, sigma_min: float = 0.002, sigma_max: float = 80.0) -> EDMLike:
    """A velocity as a denoiser, for the samplers of EDM and of k-diffusion: ``D(x, sigma, y=None)``.

    Args:
        velocity: any velocity, on any path.
        sigma_min, sigma_max: the noise levels that EDM's sampler goes through.

    Returns:
        A module that returns the expected data in ``x = data + sigma * noise``. k-diffusion's ``extra_args`` become the
        condition: a dict.

    Example:
        >>> from flowbook.analytic import GaussianMixture
        >>> from flowbook.paths import LinearPath
        >>> denoiser = to_edm(GaussianMixture([[0.0]], [1.0]).as_velocity(LinearPath()))
        >>> denoiser(torch.full((1, 1), 2.0), torch.tensor([1.0]))  # half of x is noise
        tensor([[1.]])
    """
    return EDMLike(velocity, sigma_min, sigma_max)


class Output(NamedTuple):
    """What a model of diffusers returns."""

    sample: Tensor


class DiffusersLike(Outward):
    """A velocity as a model of diffusers; made by :func:`to_diffusers`."""

    def __init__(self, velocity: Velocity, scheduler: Any):
        super().__init__(velocity)
        if not hasattr(scheduler, "config"):
            raise TypeError(
                "scheduler: expected a scheduler of diffusers, such as DDIMScheduler(); got "
                f"{validate.described(scheduler)}"
            )
        kind, self.prediction = (
            type(scheduler).__name__,
            str(scheduler.config.get("prediction_type", "flow_prediction")),
        )
        self.levels: SchedulePath | None = None
        if isinstance(getattr(scheduler, "betas", None), Tensor) and self.prediction in THEIR_NAMES:
            self.levels = SchedulePath(NoiseSchedule(scheduler.betas.double().cpu()))
        elif not kind.startswith("FlowMatch"):
            raise ValueError(
                f"scheduler: expected one with betas, or one for flow matching; got {kind} with prediction_type "
                f"{self.prediction!r}"
            )
        self.steps = int(scheduler.config.num_train_timesteps)
        shapes = [_shape(part) for module in modules_of(velocity) for part in module.modules()]
        shape = next((shape for shape in shapes if shape), (None,))
        self.config = SimpleNamespace(in_channels=shape[0], sample_size=shape[-1], out_channels=shape[0])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Condition = None,
        class_labels: Condition = None,
        return_dict: bool = True,
    ) -> Any:
        """What the scheduler expects of its model: noise, data, v, or the flow from data to noise."""
        y = encoder_hidden_states if class_labels is None else class_labels
        time = torch.as_tensor(timestep, dtype=torch.float64).cpu()
        if self.levels is None:
            sigma = time / self.steps
            data, noise = self.parts(sample, 1 - sigma, sigma, y)
            return _output(noise - data, return_dict)
        t = 1 - time / (self.steps - 1)
        alpha, sigma = self.levels.alpha(t), self.levels.sigma(t)
        data, noise = self.parts(sample, alpha, sigma, y)
        column = (-1, *[1] * (sample.dim() - 1))
        alpha, sigma = (part.to(sample).reshape(column) for part in (alpha, sigma))
        kinds = {"noise": noise, "data": data, "v": alpha * noise - sigma * data}
        return _output(kinds[THEIR_NAMES[self.prediction]], return_dict)


def to_diffusers(velocity: Velocity, scheduler: Any) -> DiffusersLike:
    """A velocity as a model of diffusers, for its schedulers and its unconditional pipelines.

    Args:
        velocity: any velocity, on any path.
        scheduler: with betas (DDPM, DDIM, DPM-Solver, Euler, ...), or for flow matching. The model returns what its
            ``prediction_type`` says.

    Returns:
        A module ``model(sample, timestep, encoder_hidden_states=None, class_labels=None)``, whose output has the
        attribute ``sample``. Either of the two conditions is handed on as y.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from flowbook.models import load_pretrained
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(10)
        >>> model, x = to_diffusers(load_pretrained("digits"), scheduler), torch.randn(2, 1, 8, 8)
        >>> with torch.no_grad():
        ...     for t in scheduler.timesteps:
        ...         x = scheduler.step(model(x, t, class_labels=torch.tensor([3, 7])).sample, t, x).prev_sample
        >>> x.shape
        torch.Size([2, 1, 8, 8])
    """
    return DiffusersLike(velocity, scheduler)


def _output(prediction: Tensor, return_dict: bool) -> Any:
    return Output(prediction) if return_dict else (prediction,)


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of a sample of a network of this package."""
    shape = getattr(module, "shape", None)
    return shape if isinstance(shape, tuple) else None
