"""Models of the diffusers package, with what their scheduler says about them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.adapters.edm import from_edm
from flowbook.adapters.functions import THEIR_NAMES, from_callable, tensor_in
from flowbook.condition import Condition, Null
from flowbook.diffusion import NoiseSchedule, probability_flow
from flowbook.paths import ConvertedVelocity

TRAINED_STEPS = 1000.0
"""The time that a flow-matching model of diffusers is called with at pure noise, if its class is not listed below."""
OTHER_TIMES = {
    "AuraFlowTransformer2DModel": {"time_scale": 1.0},
    "FluxTransformer2DModel": {"time_scale": 1.0},
    "QwenImageTransformer2DModel": {"time_scale": 1.0},
    "Lumina2Transformer2DModel": {"time_scale": 1.0, "reverse": False, "sign": 1.0},
}
"""What pipelines do between scheduler and model where it differs, with a time in [0, 1]; for one, noise is at 0."""


def from_diffusers(
    model: Any, scheduler: Any = None, *, null: Null = None, integer_steps: bool | None = None, **fixed: Any
) -> ConvertedVelocity:
    """A model of diffusers as a velocity, by what its scheduler says about it.

    Read are what the model predicts, the betas that it was trained with (also those with a signal-to-noise ratio of 0
    at the end), a learned variance (the second half of the channels, which is left out), and, for flow matching, the
    sign, the direction and the unit of time. The scheduler's own sampler, its number of steps and its clipping are not
    taken over: the velocity is that of the model. At t = 1 the noise of the first training step is left.

    Args:
        model: a network, such as UNet2DModel, UNet2DConditionModel, a DiT or SD3 transformer; or a pipeline with a
            ``unet`` or a ``transformer`` and its scheduler. Of a latent model the states are latents, as its VAE's
            ``encode`` gives them, times the VAE's scaling factor.
        scheduler: DDPM, DDIM, DPM-Solver, Euler, Heun, PNDM, UniPC and their relatives, EDM's, or one for flow
            matching; None takes the pipeline's.
        null: what stands for "no condition", for guidance: a label, or the embedding of the empty prompt. None is the
            null label of a DiT.
        integer_steps: call the model at whole training steps only, and interpolate; None does so for models with a
            table of steps.
        fixed: further arguments of the model, the same in every call.

    Returns:
        A velocity ``v(x, t, y=None)``. An integer tensor y is the model's ``class_labels``, a floating-point one its
        ``encoder_hidden_states``, and a dict holds arguments by their names. The model keeps its own dtype.

    Raises:
        TypeError: for what is neither a model nor a pipeline.
        ValueError: for a scheduler without a velocity (a discrete or a distilled one).

    Example:
        >>> from diffusers import DDIMScheduler, UNet2DModel
        >>> unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
        ...                    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1)
        >>> velocity = from_diffusers(unet, DDIMScheduler())
        >>> from flowbook.solvers import sample
        >>> sample(velocity, torch.randn(2, 1, 8, 8), steps=4).x.shape
        torch.Size([2, 1, 8, 8])
    """
    network, scheduler = _parts(model, scheduler)
    adapted, config = DiffusersModel(network, null, fixed), scheduler.config
    kind, prediction = type(scheduler).__name__, config.get("prediction_type", "")
    if kind.startswith("FlowMatch") or prediction == "flow_prediction":
        if config.get("invert_sigmas", False):
            raise ValueError("scheduler: expected one with noise at sigma = 1; got one with invert_sigmas=True")
        times: dict[str, Any] = {"time_scale": TRAINED_STEPS, "reverse": True, "sign": -1.0}
        times |= OTHER_TIMES.get(type(network).__name__, {})
        times["time_scale"] *= getattr(network.config, "timestep_scale", None) or 1.0
        return from_callable(adapted, **times)
    if kind.startswith("EDM"):
        return from_edm(_Signed(adapted, prediction), config.sigma_min, config.sigma_max, sigma_data=config.sigma_data)
    if not isinstance(getattr(scheduler, "betas", None), Tensor) or prediction not in THEIR_NAMES:
        raise ValueError(
            "scheduler: expected one with betas and a prediction_type of 'epsilon', 'sample' or 'v_prediction', or one "
            f"for flow matching; got {kind} with prediction_type {prediction!r}"
        )
    if config.get("timestep_type", "discrete") == "continuous":
        raise ValueError("scheduler: expected timestep_type='discrete'; got 'continuous': see from_edm")
    if integer_steps is None:
        integer_steps = getattr(network.config, "time_embedding_type", None) == "learned"
    predicted: Any = THEIR_NAMES[prediction]
    schedule = NoiseSchedule(scheduler.betas.double().cpu())
    return probability_flow(adapted, schedule, prediction=predicted, integer_steps=integer_steps)


def scheduler_grid(scheduler: Any, steps: int, **options: Any) -> tuple[float, ...]:
    """The times at which a scheduler calls its model, as a ``grid``: with its spacing and its shift.

    With a flow-matching scheduler ``method="euler"`` on this grid is the scheduler's own sampler, to rounding.

    Args:
        scheduler: one that :func:`from_diffusers` takes.
        steps: its number of steps.
        options: further arguments of its ``set_timesteps``, such as ``mu`` for a dynamic shift.

    Returns:
        Times from 0 to 1.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> [round(t, 2) for t in scheduler_grid(FlowMatchEulerDiscreteScheduler(shift=3.0), 4)]
        [0.0, 0.14, 0.4, 0.99, 1.0]
    """
    validate.positive_int("steps", steps)
    scheduler = type(scheduler).from_config(scheduler.config)  # the caller's keeps its own timesteps
    scheduler.set_timesteps(steps, **options)
    if hasattr(scheduler.config, "shift") or "flow" in scheduler.config.get("prediction_type", ""):
        times = (1.0 - scheduler.sigmas.double()).tolist()
    else:
        last = len(scheduler.betas) - 1
        times = (1.0 - scheduler.timesteps.double() / last).tolist()
    return (0.0, *sorted({t for t in times if 1e-9 < t < 1 - 1e-9}), 1.0)


class DiffusersModel(nn.Module):
    """A network of diffusers as ``model(x, time, y=None)``; made by :func:`from_diffusers`."""

    def __init__(self, network: nn.Module, null: Null, fixed: Mapping[str, Any]):
        super().__init__()
        self.network, self.fixed = network, dict(fixed)
        config = network.config
        self.num_classes = getattr(config, "num_embeds_ada_norm", None) or getattr(config, "num_class_embeds", None)
        tabled = type(network).__name__ == "DiTTransformer2DModel"  # whose table has a last row for no label
        self.null = self.num_classes if null is None and tabled else null
        parameters = inspect.signature(network.forward).parameters.values()
        self._accepts = {one.name: one.default is one.empty for one in parameters}
        self._first = next(iter(self._accepts))

    def forward(self, x: Tensor, time: Tensor, y: Condition = None) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        arguments = {self._first: x.to(dtype), "timestep": time.expand(len(x)), **self._condition(y, dtype)}
        out = tensor_in(self.network(**arguments, **self.fixed, return_dict=False))
        return out[:, : x.shape[1]].to(x.dtype)  # without the channels of a learned variance

    def _condition(self, y: Condition, dtype: torch.dtype) -> dict[str, Any]:
        if isinstance(y, Mapping):
            return dict(y)
        if y is None:
            if self._accepts.get("encoder_hidden_states") and "encoder_hidden_states" not in self.fixed:
                raise ValueError(f"y: expected the embeddings that a {type(self.network).__name__} needs; got None")
            return {}
        if not isinstance(y, Tensor):
            raise TypeError(f"y: expected a tensor, or a dict of arguments by name; got {validate.described(y)}")
        labels = not y.is_floating_point() or "encoder_hidden_states" not in self._accepts
        name = "class_labels" if labels else "encoder_hidden_states"
        if name not in self._accepts:
            raise ValueError(f"y: {type(self.network).__name__} takes no {name}; expected None or a dict of arguments")
        return {name: y if not y.is_floating_point() else y.to(dtype)}


class _Signed(nn.Module):
    """The network inside EDM's preconditioning; for a v-prediction diffusers has it with the other sign."""

    def __init__(self, model: DiffusersModel, prediction: str):
        super().__init__()
        self.model, self.sign = model, -1.0 if prediction == "v_prediction" else 1.0
        self.null, self.num_classes = model.null, model.num_classes

    def forward(self, x: Tensor, noise: Tensor, y: Condition = None) -> Tensor:
        return self.sign * self.model(x, noise, y)


def _parts(model: Any, scheduler: Any) -> tuple[nn.Module, Any]:
    """The network and the scheduler of a model or a pipeline."""
    network = model
    if not isinstance(model, nn.Module):
        found = [getattr(model, name, None) for name in ("unet", "transformer")]
        network = next((part for part in found if isinstance(part, nn.Module)), None)
        scheduler = getattr(model, "scheduler", None) if scheduler is None else scheduler
    if not isinstance(network, nn.Module) or not hasattr(network, "config"):
        raise TypeError(
            "model: expected a network of diffusers, or a pipeline with a unet or a transformer; got "
            f"{validate.described(model)}"
        )
    if scheduler is None or not hasattr(scheduler, "config"):
        raise TypeError(
            "scheduler: expected the scheduler of the model, such as DDIMScheduler(); got "
            f"{validate.described(scheduler)}"
        )
    return network, scheduler
