"""Models of the diffusers package, with what their scheduler says about them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.adapters.edm import from_edm
from flowbook.adapters.functions import THEIR_NAMES, from_callable, tensor_in
from flowbook.adapters.pipelines import times_of
from flowbook.condition import Condition, Null, as_null
from flowbook.diffusion import NoiseSchedule, probability_flow
from flowbook.paths import ConvertedVelocity
from flowbook.velocity import dtype_of, unwrapped

DISTILLED = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler")
"""Their models jump to the data instead of following a velocity."""


def from_diffusers(
    model: Any,
    scheduler: Any = None,
    *,
    null: Null = None,
    integer_steps: bool | None = None,
    time_scale: float | None = None,
    reverse: bool | None = None,
    sign: float | None = None,
    **fixed: Any,
) -> ConvertedVelocity:
    """A model of diffusers as a velocity, by what its scheduler says about it.

    Read are what the model predicts, the betas that it was trained with (also those with a signal-to-noise ratio of 0
    at the end), a learned variance (the second half of the channels, which is left out), and, for flow matching, the
    sign, the direction and the unit of time. The scheduler's own sampler, its number of steps and its clipping are not
    taken over: the velocity is that of the model. At t = 1 the noise of the first training step is left.

    Args:
        model: a network, such as UNet2DModel, UNet2DConditionModel, a DiT or SD3 transformer; or a pipeline with a
            ``unet`` or a ``transformer`` and its scheduler; compiled and wrapped ones too. Of a latent model the states
            are latents: what its VAE's ``encode`` gives, less its ``shift_factor`` if it has one, times its
            ``scaling_factor``.
        scheduler: DDPM, DDIM, DPM-Solver, Euler, Heun, PNDM, UniPC and their relatives, EDM's, or one for flow
            matching; None takes the pipeline's.
        null: what stands for "no condition", for guidance: a label, or the embedding of the empty prompt. None is the
            null label of a DiT.
        integer_steps: call the model at whole training steps only, and interpolate; None does so for models with a
            table of steps.
        time_scale, reverse, sign: for flow matching, as in :func:`from_callable`; None does as the pipeline of the
            model's class does. A transformer that is not known needs all three.
        fixed: further arguments of the model, the same in every call.

    Returns:
        A velocity ``v(x, t, y=None)``. An integer tensor y is the model's ``class_labels``, a floating-point one its
        ``encoder_hidden_states``, and a dict holds arguments by their names; its null is a dict too. A label -1, and
        y=None for a model of labels, stand for the null. The model keeps its own dtype.

    Raises:
        TypeError: for what is neither a model nor a pipeline.
        ValueError: for a scheduler without a velocity (a discrete or a distilled one), and for a transformer whose
            times are not known.

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
    kind, adapted, config = kind_of(scheduler), DiffusersModel(network, null, fixed), scheduler.config
    given = {"time_scale": time_scale, "reverse": reverse, "sign": sign}
    if kind == "flow":
        return from_callable(adapted, **times_of(adapted.plain, float(config.num_train_timesteps), given)._asdict())
    if named := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{named[0]}: expected None, since {type(scheduler).__name__} says how its model is called")
    prediction = config.prediction_type
    if kind == "edm":
        return from_edm(_Signed(adapted, prediction), config.sigma_min, config.sigma_max, sigma_data=config.sigma_data)
    if integer_steps is None:
        integer_steps = getattr(adapted.plain.config, "time_embedding_type", None) == "learned"
    predicted: Any = THEIR_NAMES[prediction]
    return probability_flow(adapted, schedule_of(scheduler), prediction=predicted, integer_steps=integer_steps)


def kind_of(scheduler: Any) -> Literal["steps", "flow", "edm"]:
    """What a scheduler's model is trained on: the steps of a noise schedule, flow matching, or EDM's noise levels.

    Raises:
        TypeError: for what is no scheduler of diffusers.
        ValueError: for one without a velocity, or one whose times mean something else.

    Example:
        >>> from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
        >>> kind_of(DDIMScheduler()), kind_of(FlowMatchEulerDiscreteScheduler())
        ('steps', 'flow')
    """
    config = getattr(scheduler, "config", None)
    if isinstance(scheduler, type) or not isinstance(config, Mapping):
        raise TypeError(
            "scheduler: expected the scheduler of the model, such as DDIMScheduler(); got "
            f"{validate.described(scheduler)}"
        )
    name, prediction = type(scheduler).__name__, config.get("prediction_type", "")
    if name in DISTILLED:
        raise ValueError(f"scheduler: expected one with a velocity; got {name}, whose models jump to the data")
    if name.startswith("FlowMatch") or prediction == "flow_prediction":
        if config.get("invert_sigmas", False):
            raise ValueError("scheduler: expected one with noise at sigma = 1; got one with invert_sigmas=True")
        return "flow"
    if name.startswith("EDM"):
        return "edm"
    if not isinstance(getattr(scheduler, "betas", None), Tensor) or prediction not in THEIR_NAMES:
        raise ValueError(
            "scheduler: expected one with betas and a prediction_type of 'epsilon', 'sample' or 'v_prediction', or one "
            f"for flow matching; got {name} with prediction_type {prediction!r}"
        )
    if config.get("timestep_type", "discrete") == "continuous":
        raise ValueError("scheduler: expected timestep_type='discrete'; got 'continuous': see from_edm")
    return "steps"


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The noise schedule of a scheduler of steps.

    Most say it by their betas. CogVideoX's shift the products of 1 - beta, and leave their betas as they were; some
    replace a product of 0 by a tiny one. So the products count, but for that last one.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> schedule_of(DDIMScheduler()).steps
        1000
    """
    betas, products = scheduler.betas.cpu().double(), scheduler.alphas_cumprod.cpu().double()
    of_betas = (1 - betas).cumprod(0)
    if torch.allclose(of_betas[:-1], products[:-1], rtol=1e-3, atol=1e-6):
        return NoiseSchedule(betas)
    before = torch.cat([torch.ones_like(products[:1]), products[:-1]])
    return NoiseSchedule(1 - products / before)


def scheduler_grid(scheduler: Any, steps: int, **options: Any) -> tuple[float, ...]:
    """The times at which a scheduler calls its model, as a ``grid``: with its spacing and its shift.

    On it ``method="euler"`` is FlowMatchEulerDiscreteScheduler's own sampler to rounding, where that draws no noise,
    and ``method="heun"`` FlowMatchHeunDiscreteScheduler's.

    Args:
        scheduler: one of steps, or for flow matching, that :func:`from_diffusers` takes; for EDM's there is
            :func:`flowbook.paths.karras_grid`.
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
    kind = kind_of(scheduler)
    if kind == "edm":
        raise ValueError("scheduler: expected one of steps or for flow matching; for EDM's see paths.karras_grid")
    scheduler = type(scheduler).from_config(scheduler.config)  # the caller's keeps its own timesteps
    scheduler.set_timesteps(steps, **options)
    if kind == "flow":
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
        plain = self.plain
        parameters = list(inspect.signature(plain.forward).parameters.values())
        self._accepts = {one.name: one.default is one.empty for one in parameters}
        self._first, self._any = next(iter(self._accepts)), any(one.kind is one.VAR_KEYWORD for one in parameters)
        config = plain.config
        classes = getattr(config, "num_embeds_ada_norm", None) or getattr(config, "num_class_embeds", None)
        # Only where a tensor means labels are there classes: elsewhere it is an embedding.
        labels = "class_labels" in self._accepts and "encoder_hidden_states" not in self._accepts
        self.num_classes = classes if labels else None
        tabled = type(plain).__name__ == "DiTTransformer2DModel"  # whose table has a last row for no label
        self.null = self.num_classes if null is None and tabled else null
        self.missing = -1 if self.num_classes is not None and self.null is not None else None

    @property
    def plain(self) -> nn.Module:
        """The network without the wrappers of torch."""
        return plain_network(self.network)

    def forward(self, x: Tensor, time: Tensor, y: Condition = None) -> Tensor:
        dtype = dtype_of(self.network) or x.dtype
        given = as_dtype({**self.fixed, **self._condition(y, len(x), x.device)}, dtype)
        arguments = {self._first: x.to(dtype), "timestep": time.expand(len(x)), **given}
        out = tensor_in(self.network(**arguments, return_dict=False))
        return out[:, : x.shape[1]].to(x.dtype)  # without the channels of a learned variance

    def _condition(self, y: Condition, rows: int, device: torch.device) -> dict[str, Any]:
        name = type(self.plain).__name__
        if y is None and self.missing is not None and "class_labels" not in self.fixed:
            y = torch.full((rows,), self.missing, device=device)
        given = dict(y) if isinstance(y, Mapping) else {} if y is None else self._named(y)
        if self.missing is not None and isinstance(labels := given.get("class_labels"), Tensor):
            null = self.null["class_labels"] if isinstance(self.null, Mapping) else self.null
            given["class_labels"] = torch.where(labels == self.missing, as_null(null, labels), labels)
        text = "encoder_hidden_states"
        if self._accepts.get(text) and text not in given and text not in self.fixed:
            raise ValueError(f"y: expected the embeddings that a {name} needs; got {validate.described(y)}")
        if not self._any and (unknown := [key for key in given if key not in self._accepts]):
            raise ValueError(f"y: {name} takes no {', '.join(unknown)}; expected some of {', '.join(self._accepts)}")
        return given

    def _named(self, y: Condition) -> dict[str, Any]:
        """The argument that a condition is, if it is no dict."""
        if not isinstance(y, Tensor):
            raise TypeError(f"y: expected a tensor, or a dict of arguments by name; got {validate.described(y)}")
        labels = not y.is_floating_point() or "encoder_hidden_states" not in self._accepts
        return {"class_labels" if labels else "encoder_hidden_states": y}


def plain_network(network: nn.Module) -> nn.Module:
    """A network without the wrappers of torch around it: compiled, parallel, averaged."""
    found = unwrapped(network)
    return plain_network(found.module) if isinstance(found, torch.optim.swa_utils.AveragedModel) else found


def as_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Arguments with their floating-point tensors in a dtype.

    Example:
        >>> as_dtype({"mask": torch.ones(1).bool(), "text": torch.ones(1)}, torch.float16)
        {'mask': tensor([True]), 'text': tensor([1.], dtype=torch.float16)}
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: as_dtype(part, dtype) for key, part in value.items()}
    return tuple(as_dtype(part, dtype) for part in value) if isinstance(value, (tuple, list)) else value


class _Signed(nn.Module):
    """The network inside EDM's preconditioning; for a v-prediction diffusers has it with the other sign."""

    def __init__(self, model: DiffusersModel, prediction: str):
        super().__init__()
        self.model, self.sign = model, -1.0 if prediction == "v_prediction" else 1.0
        self.null, self.num_classes, self.missing = model.null, model.num_classes, model.missing

    def forward(self, x: Tensor, noise: Tensor, y: Condition = None) -> Tensor:
        return self.sign * self.model(x, noise, y)


def _parts(model: Any, scheduler: Any) -> tuple[nn.Module, Any]:
    """The network and the scheduler of a model or a pipeline."""
    network = model
    if not isinstance(model, nn.Module):
        found = [getattr(model, name, None) for name in ("unet", "transformer")]
        network = next((part for part in found if isinstance(part, nn.Module)), None)
        scheduler = getattr(model, "scheduler", None) if scheduler is None else scheduler
    if not isinstance(network, nn.Module) or not hasattr(plain_network(network), "config"):
        raise TypeError(
            "model: expected a network of diffusers, or a pipeline with a unet or a transformer; got "
            f"{validate.described(model)}"
        )
    return network, scheduler
