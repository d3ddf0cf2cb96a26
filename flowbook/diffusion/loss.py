r"""The loss of diffusion: predict the noise that was added.

.. math:: L = \mathbb{E}_{i,\, x_1,\, \epsilon} \big\| \epsilon_\theta(x_i, i) - \epsilon \big\|^2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowbook._core import keyed, validate
from flowbook.condition import Condition, Null
from flowbook.data import unpack
from flowbook.diffusion.model import Model, ProbabilityFlow, StepModel, check_model, probability_flow
from flowbook.diffusion.schedule import PREDICTIONS, NoiseSchedule, Prediction
from flowbook.guidance import Dropout, check_dropout, check_labels, drop_condition
from flowbook.velocity import call


def ddpm_loss(
    model: Model,
    x1: Tensor,
    schedule: NoiseSchedule,
    y: Condition = None,
    *,
    i: Tensor | None = None,
    noise: Tensor | None = None,
    prediction: Prediction | None = None,
    condition_dropout: Dropout = 0.0,
    null: Null = None,
) -> Tensor:
    """The mean squared error of the predicted noise, over batch and dimensions (Ho et al. 2020, equation 14).

    Args:
        model: ``model(x, i, y=None)``.
        x1: data, shape (B, ...).
        schedule: the noise schedule.
        y: the condition, or None.
        i: steps, long (B,); uniform over all steps when None.
        noise: from N(0, I), the shape of x1; drawn when None.
        prediction: what the model predicts and is compared with, as in
            :func:`~flowbook.diffusion.probability_flow`.
        condition_dropout, null: as in :func:`~flowbook.flow_matching.flow_matching_loss`.

    Example:
        >>> schedule, noise = NoiseSchedule.linear(1000), torch.ones(4, 2)
        >>> ddpm_loss(lambda x, i: torch.ones_like(x), torch.zeros(4, 2), schedule, noise=noise)
        tensor(0.)
    """
    prediction = check_model(model, schedule, prediction)
    validate.float_tensor("x1", x1, min_dim=1)
    check_dropout(condition_dropout)
    if i is None:
        i = (keyed.rand(len(x1), like=x1.float()) * schedule.steps).long().clamp_max(schedule.steps - 1)
    if noise is None:
        noise = keyed.randn_like(x1)
    y = drop_condition(model, x1, y, condition_dropout, null)
    x = schedule.add_noise(x1, i, noise)
    predicted = call(model, x, i, y)
    validate.same_shape("model(x, i, y)", predicted, "x1", x1)
    return (predicted - schedule.convert(noise, x, i, source="noise", target=prediction)).square().mean()


@dataclass(frozen=True)
class Diffusion:
    """:func:`ddpm_loss` for a network that takes a time, as the ``loss(network, batch)`` that ``fit`` expects.

    A batch is x1, (x1, y) or (x0, x1, y), whose x0 is then the noise. ``fit`` and ``load`` return the network's
    :func:`~flowbook.diffusion.probability_flow`, a velocity. Its ``model`` is the one that :func:`ddpm_sample` and
    :func:`ddim_sample` take.

    Example:
        >>> loss = Diffusion(NoiseSchedule.cosine(100))
        >>> loss(lambda x, t, y=None: torch.zeros_like(x), torch.zeros(1000, 2)).round()
        tensor(1.)
    """

    schedule: NoiseSchedule
    prediction: Prediction = "noise"
    condition_dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        validate.instance("schedule", self.schedule, NoiseSchedule, "NoiseSchedule.linear(1000)")
        validate.one_of("prediction", self.prediction, PREDICTIONS)
        check_dropout(self.condition_dropout)

    def __call__(self, network: Any, batch: Any) -> Tensor:
        x0, x1, y = unpack(batch)
        return ddpm_loss(
            StepModel(network, self.schedule, self.prediction), x1, self.schedule, y, noise=x0,
            condition_dropout=self.condition_dropout,
        )  # fmt: skip

    def check(self, network: nn.Module, data: Any) -> None:
        """Raise ValueError if a label of tensor data is not a class of the network; the null label is none."""
        check_labels(network, data)

    def describe(self) -> dict[str, Any]:
        """What is needed to turn a trained network into a velocity."""
        return {"betas": self.schedule.betas.tolist(), "prediction": self.prediction}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Diffusion:
        """The loss that has this description; its label dropout, which only training needs, is 0."""
        betas = torch.tensor(description["betas"], dtype=torch.float64, device="cpu")
        return cls(NoiseSchedule(betas), description["prediction"])

    def velocity(self, network: nn.Module) -> ProbabilityFlow:
        """The trained network as a velocity."""
        return probability_flow(StepModel(network, self.schedule, self.prediction), self.schedule)
