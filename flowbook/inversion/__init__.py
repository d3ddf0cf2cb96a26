r"""Inversion (chapter 5): the same velocity, solved from data to noise, and its applications.

.. math:: x_0 = x_1 + \int_1^0 v(x_t, t)\, dt

The backward solve of an ODE is unique; a sampler that draws noise at every step has no unique inverse. The latent has
the dimension of the data. Labels and solver are as in :func:`flowbook.solvers.solve`. Images are in [-1, 1] on input
and output: nothing here normalizes them.
"""

from flowbook.inversion.anomaly import Score, anomaly_score
from flowbook.inversion.denoising import Denoised, Estimate, denoise, estimate_noise
from flowbook.inversion.editing import Edit, edit
from flowbook.inversion.interpolation import Interpolation, interpolate, lerp, slerp
from flowbook.inversion.latents import RoundTrip, StepChoice, choose_steps, invert, round_trip

__all__ = [
    "Denoised",
    "Edit",
    "Estimate",
    "Interpolation",
    "RoundTrip",
    "Score",
    "StepChoice",
    "anomaly_score",
    "choose_steps",
    "denoise",
    "edit",
    "estimate_noise",
    "interpolate",
    "invert",
    "lerp",
    "round_trip",
    "slerp",
]
