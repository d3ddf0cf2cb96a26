"""Velocities of this book as models of other packages, for their samplers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook._core.times import widest_dtype
from flowbook.adapters.functions import THEIR_NAMES
from flowbook.adapters.schedulers import kind_of, schedule_of
from flowbook.condition import Condition
from flowbook.diffusion import SchedulePath
from flowbook.paths import expected_parts
from flowbook.velocity import Velocity, device_of, dtype_of, evaluating, modules_of


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
        return dtype_of(self.velocity) or torch.get_default_dtype()

    def parts(self, x: Tensor, alpha: Any, sigma: Any, y: Condition) -> tuple[Tensor, Tensor]:
        """The expected data and noise in ``x = alpha * data + sigma * noise``."""
        dtype, own = widest_dtype(x.device), dtype_of(self.velocity) or x.dtype
        alpha, sigma = (torch.as_tensor(part).to(device=x.device, dtype=dtype) for part in (alpha, sigma))
        with evaluating(self.velocity):
            data, noise = expected_parts(self.velocity, x.to(own), alpha, sigma, y)
        return data.to(x.dtype), noise.to(x.dtype)


class EDMLike(Outward):
    """A velocity as a denoiser ``D(x, sigma, y=None)``; made by :func:`to_edm`."""

    def __init__(self, velocity: Velocity, sigma_min: float, sigma_max: float):
        super().__init__(velocity)
        validate.number("sigma_max", sigma_max, 0, math.inf, low_open=True)
        validate.number("sigma_min", sigma_min, 0, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def forward(self, x: Tensor, sigma: Tensor | float, y: Condition = None, **conditions: Any) -> Tensor:
        """The expected data in ``x = data + sigma * noise``; y is also taken as keyword arguments, as a dict."""
        sigma = torch.as_tensor(sigma).reshape(-1)
        if len(sigma) not in (1, len(x)):
            raise ValueError(f"sigma: expected one number, or one for each of {len(x)} samples; got {len(sigma)}")
        if validate.values_are_readable(sigma) and not bool((sigma >= 0).all()):
            raise ValueError(f"sigma: expected noise levels of 0 or more; got {float(sigma.min()):g}")
        sigma = sigma.expand(len(x))
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

    def __init__(self, velocity: Velocity, scheduler: Any, shape: Sequence[int] | None):
        super().__init__(velocity)
        kind = kind_of(scheduler)
        if kind == "edm":
            raise ValueError("scheduler: expected one of steps, or for flow matching; see to_edm for EDM's")
        if "learned" in str(scheduler.config.get("variance_type")):
            raise ValueError(
                "scheduler: expected one with a fixed variance, such as variance_type='fixed_small', since a velocity "
                f"has learned none; got {scheduler.config.variance_type!r}"
            )
        self.prediction = str(scheduler.config.get("prediction_type", "flow_prediction"))
        self.levels = SchedulePath(schedule_of(scheduler)) if kind == "steps" else None
        self.steps = int(scheduler.config.num_train_timesteps)
        shape = tuple(shape) if shape is not None else _known_shape(velocity)
        channels, sides = (None, (None,)) if shape is None else (shape[0], shape[1:])
        size = sides[0] if len(set(sides)) == 1 else tuple(sides)
        self.config = SimpleNamespace(in_channels=channels, sample_size=size, out_channels=channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Condition = None,
        class_labels: Condition = None,
        return_dict: bool = True,
        **unused: Any,
    ) -> Any:
        """What the scheduler expects of its model: noise, data, v, or the flow from data to noise."""
        if given := [name for name, value in unused.items() if value is not None]:
            raise TypeError(f"{given[0]}: expected None, since a velocity has no use for it; got something else")
        both = {"encoder_hidden_states": encoder_hidden_states, "class_labels": class_labels}
        named: Any = {name: value for name, value in both.items() if value is not None}
        y = named if len(named) == 2 else next(iter(named.values()), None)
        time = torch.as_tensor(timestep).cpu().double()
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


def to_diffusers(velocity: Velocity, scheduler: Any, *, shape: Sequence[int] | None = None) -> DiffusersLike:
    """A velocity as a model of diffusers, for its schedulers and its unconditional pipelines.

    Args:
        velocity: any velocity, on any path.
        scheduler: with betas (DDPM, DDIM, DPM-Solver, Euler, ...), or for flow matching. The model returns what its
            ``prediction_type`` says.
        shape: of a sample, such as (3, 32, 32), which pipelines ask the model for; None where a network of this package
            or of diffusers inside says it.

    Returns:
        A module ``model(sample, timestep, encoder_hidden_states=None, class_labels=None)``, whose output has the
        attribute ``sample``. Either of the two conditions is handed on as y, and both as a dict with these names.

    Raises:
        TypeError, ValueError: for a scheduler that :func:`from_diffusers` refuses, and for one with a learned variance.

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
    return DiffusersLike(velocity, scheduler, shape)


def _output(prediction: Tensor, return_dict: bool) -> Any:
    return Output(prediction) if return_dict else (prediction,)


def _known_shape(velocity: Velocity) -> tuple[int, ...] | None:
    """The shape of a sample, if a network inside says it: one of this package, or of diffusers."""
    for module in modules_of(velocity):
        for part in module.modules():
            if isinstance(shape := getattr(part, "shape", None), tuple):
                return shape
            config = getattr(part, "config", None)
            size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
            if isinstance(channels, int) and size is not None:
                return (channels, *(size if isinstance(size, (tuple, list)) else (size, size)))
    return None
