"""Checks of the exercises: they run a reader's function and say *what* is wrong with it, not only that it is wrong.

Each returns a line of praise, or raises AssertionError with a diagnosis. One module for each chapter; all are called as
``checks.name``.
"""

from flowbook.book.checks.cnf import (
    bits,
    density_at_the_origin,
    exact_divergence,
    hutchinson_estimate,
    hutchinson_variance,
    midpoint_log_prob,
)
from flowbook.book.checks.diffusion import (
    amplitude_left,
    ddim,
    noise_floor,
    noise_from_velocity,
    posterior_step,
    renoised_std,
)
from flowbook.book.checks.flow_matching import (
    adams_weights,
    guidance,
    heun_solver,
    loss_floor,
    one_euler_step,
    pairing,
    target_with_sigma_min,
)
from flowbook.book.checks.inversion import (
    error_of_the_ode,
    latent_of_a_gaussian,
    likelier_than_samples,
    midpoint_inversion,
    posterior_mean,
    slerp,
)
from flowbook.book.checks.reflow import (
    break_even,
    distillation_times,
    half_the_sum,
    layer_distance,
    one_step_encoder,
    rectified_cost,
    straightness_by_euler,
)

__all__ = [
    "adams_weights", "amplitude_left", "bits", "break_even", "ddim", "density_at_the_origin", "distillation_times",
    "error_of_the_ode", "exact_divergence", "guidance", "half_the_sum", "heun_solver", "hutchinson_estimate",
    "hutchinson_variance", "latent_of_a_gaussian", "layer_distance", "likelier_than_samples", "loss_floor",
    "midpoint_inversion", "midpoint_log_prob", "noise_floor", "noise_from_velocity", "one_euler_step",
    "one_step_encoder", "pairing", "posterior_mean", "posterior_step", "rectified_cost", "renoised_std", "slerp",
    "straightness_by_euler", "target_with_sigma_min",
]  # fmt: skip
