r"""Diffusion models, ``model(x, i, y=None)``, and their use as velocities.

x has shape (B, ...), i is the step, long (B,), and y the labels or None. The model predicts the noise in x; or the
data, or the v of Salimans and Ho (2022), if ``prediction`` says so. :class:`StepModel` turns a network that takes a
time into such a model, and knows what it predicts.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from flowbook import models
from flowbook._core import validate
from flowbook.condition import Condition
from flowbook.diffusion.schedule import PREDICTIONS, NoiseSchedule, Prediction
from flowbook.diffusion.schedule_path import SchedulePath
from flowbook.paths import ConvertedVelocity
from flowbook.velocity import Wrapper, call, model_calls, unwrapped


class Model(Protocol):
    """Any callable ``model(x, i, y=None)`` that returns a tensor like ``x``, with the step i, long (B,)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


class StepModel(Wrapper):
    """A network that takes a time in [0, 1], as a model that takes a step: t = 1 - i / (T - 1).

    Args:
        network: ``network(x, t, y=None)``.
        schedule: the noise schedule that defines the steps.
        prediction: what the network was trained to predict, "noise", "data" or "v".

    Example:
        >>> model = StepModel(lambda x, t, y=None: t.reshape(-1, 1) * x, NoiseSchedule.linear(1000))
        >>> model(torch.ones(2, 1), torch.tensor([0, 999]))
        tensor([[1.],
                [0.]])
    """

    _inner = "network"

    def __init__(self, network: Model, schedule: NoiseSchedule, prediction: Prediction = "noise"):
        super().__init__()
        validate.one_of("prediction", prediction, PREDICTIONS)
        self.network, self.steps, self.prediction = network, schedule.steps, prediction

    def forward(self, x: Tensor, i: Tensor, y: Condition = None) -> Tensor:
        t = 1.0 - torch.as_tensor(i, device=x.device).to(x.dtype) / max(1, self.steps - 1)
        return call(self.network, x, t, y)


class ProbabilityFlow(ConvertedVelocity):
    """A diffusion model as a velocity; made by :func:`probability_flow`."""

    def __init__(self, model: Model, schedule: NoiseSchedule, prediction: Prediction, integer_steps: bool):
        super().__init__(model, SchedulePath(schedule), prediction)
        self.schedule, self.integer_steps = schedule, integer_steps

    @property
    def network(self) -> Any:
        """The trained network inside the model."""
        return self.model.network if isinstance(self.model, StepModel) else self.model

    @property
    def model_calls(self) -> int:
        return (2 if self.integer_steps else 1) * model_calls(self.model)

    def predict(self, x: Tensor, t: Tensor, y: Condition) -> Tensor:
        """The model's prediction at time t, interpolated between two steps if it takes integer steps only."""
        i = ((1.0 - t) * (self.schedule.steps - 1)).expand(len(x))
        if not self.integer_steps:
            return call(self.model, x, i, y)
        below = i.floor().clamp_max(self.schedule.steps - 2).long()
        weight = (i - below).reshape(-1, *[1] * (x.dim() - 1))
        return torch.lerp(call(self.model, x, below, y), call(self.model, x, below + 1, y), weight)


def probability_flow(
    model: Model, schedule: NoiseSchedule, *, prediction: Prediction | None = None, integer_steps: bool = False
) -> ProbabilityFlow:
    r"""A diffusion model as a velocity ``v(x, t, y=None)``, for every function that takes one.

    The flow of this velocity has at each time the distribution of the noisy data (Song et al. 2021b, equation 13).
    t = 0 is step T - 1 and t = 1 is step 0, whose small noise remains in the samples. See
    :class:`~flowbook.diffusion.SchedulePath`.

    Args:
        model: ``model(x, i, y=None)``. It is called with a float step, shape (B,).
        schedule: the one it was trained with.
        prediction: what it predicts, "noise", "data" or "v"; None takes it from a StepModel, and is "noise" for other
            models.
        integer_steps: for a model that only takes integer steps: call it at the two nearest steps and interpolate;
            ``nfe`` counts both.

    Example:
        >>> v = probability_flow(lambda x, i: torch.zeros_like(x), NoiseSchedule.linear(1000), prediction="data")
        >>> from flowbook.solvers import sample
        >>> sample(v, torch.ones(1, 1)).x.round(decimals=3)  # what is left is the noise of step 0
        tensor([[0.0100]])
    """
    prediction = check_model(model, schedule, prediction)
    return ProbabilityFlow(model, schedule, prediction, integer_steps)


def check_model(model: Any, schedule: NoiseSchedule, prediction: Prediction | None) -> Prediction:
    """What the model predicts; raises for a model that takes no step, or is for another schedule or prediction.

    Networks take a time, and velocities are not predictions: called with a step, both would return something else.
    """
    validate.instance("schedule", schedule, NoiseSchedule, "NoiseSchedule.linear(1000)")
    if prediction is not None:
        validate.one_of("prediction", prediction, PREDICTIONS)
    model = unwrapped(model)
    predicted = prediction or getattr(model, "prediction", None) or "noise"
    if schedule.ends_in_pure_noise and predicted == "noise":
        raise ValueError(
            "prediction: expected 'v' or 'data' with a schedule whose last step is pure noise, in which the noise does "
            "not tell the data; got 'noise'"
        )
    if isinstance(model, tuple(models.CLASSES.values())):
        raise TypeError(
            "model: expected one that takes a step, such as StepModel(network, schedule); got "
            f"{type(model).__name__}, which takes a time"
        )
    if isinstance(model, ProbabilityFlow):
        raise TypeError(
            "model: expected a model that takes a step; got its probability flow, whose model is flow.model"
        )
    if not isinstance(model, StepModel):
        return prediction or "noise"
    if model.steps != schedule.steps:
        raise ValueError(
            f"schedule: expected the one that the model was made for, of {model.steps} steps; got {schedule.steps}"
        )
    if prediction not in (None, model.prediction):
        raise ValueError(f"prediction: expected {model.prediction!r}, which the model predicts; got {prediction!r}")
    return model.prediction
