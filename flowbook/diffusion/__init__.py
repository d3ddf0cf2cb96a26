r"""Diffusion (chapter 1): add noise in many small steps, learn to predict it, and remove it again.

.. math:: x_i = \sqrt{\bar\alpha_i}\, x_1 + \sqrt{1 - \bar\alpha_i}\, \epsilon

with :math:`\bar\alpha_i` the product of :math:`1 - \beta_j` over the steps j up to i, and i from 0 to T - 1, the
noisiest. A *model* here is any callable ``model(x, i, y=None)`` that predicts the noise in x.
"""

from flowbook.diffusion.bound import variational_bound
from flowbook.diffusion.loss import Diffusion, ddpm_loss
from flowbook.diffusion.model import Model, ProbabilityFlow, StepModel, probability_flow
from flowbook.diffusion.samplers import Variance, ddim_sample, ddim_steps, ddpm_sample
from flowbook.diffusion.schedule import NoiseSchedule, Prediction
from flowbook.diffusion.schedule_path import SchedulePath

__all__ = [
    "Diffusion",
    "Model",
    "NoiseSchedule",
    "Prediction",
    "ProbabilityFlow",
    "SchedulePath",
    "StepModel",
    "Variance",
    "ddim_sample",
    "ddim_steps",
    "ddpm_loss",
    "ddpm_sample",
    "probability_flow",
    "variational_bound",
]
