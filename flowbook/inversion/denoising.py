r"""Denoising with a velocity (chapter 5): enter the path at the time when its noise is as strong as the image's.

A noisy observation :math:`x = x_1 + s\,\epsilon`, times alpha(t), is a state of the path at the time t at which

.. math:: \sigma(t) / \alpha(t) = s.

One evaluation of the model at this state gives the posterior mean of the data, and no estimate has a smaller expected
squared error; the ODE from there ends in one plausible data point, with a larger error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.times import per_sample
from flowbook.condition import Condition, check_condition, warn_untrained
from flowbook.divergence import divergence, rademacher
from flowbook.paths import Path, path_of, time_of_noise
from flowbook.solvers import Solver, SolverOptions, as_solver, solve
from flowbook.solvers.solution import refuse
from flowbook.velocity import Velocity, call, evaluating, model_calls, said_by

Estimate = Literal["mean", "ode"]
ESTIMATES: tuple[Estimate, ...] = get_args(Estimate)
HALVINGS = 16
"""The evaluations of :func:`estimate_noise`; t is then known to 2^-17."""


@dataclass(frozen=True)
class Denoised:
    """What :func:`denoise` returns."""

    x: Tensor
    """The estimate of the data, shape (B, ...)."""
    t: Tensor
    """The time at which the path was entered, shape () or (B,)."""
    noise_std: Tensor
    """The noise level that was given or estimated, shape () or (B,)."""
    nfe: int
    """The number of model calls, including the estimate of the noise level."""


def denoise(
    velocity: Velocity,
    x: Tensor,
    *,
    noise_std: Tensor | float | None = None,
    path: Path | None = None,
    estimate: Estimate = "mean",
    y: Condition = None,
    generator: torch.Generator | None = None,
    **solver: Unpack[SolverOptions],
) -> Denoised:
    r"""The data behind a noisy observation :math:`x = x_1 + s\,\epsilon`, with noise from N(0, I).

    Args:
        velocity: ``v(x, t, y=None)``, trained on data without noise.
        x: the observation, shape (B, ...), in the units of the data: with noise added, not scaled by the path's alpha.
        noise_std: s, one number or one for each sample, shape (B,); None estimates it, by :func:`estimate_noise`.
        path: the one that the velocity was trained on; None takes the path of a velocity made by conversion, such as
            :func:`~flowbook.diffusion.probability_flow`, and LinearPath() for others.
        estimate: "mean", the posterior mean :math:`E[x_1 \mid x]`, in one evaluation; or "ode", the end of the flow
            through the observation, whose squared error is larger: it is one point that looks like data, while the mean
            averages over all points that fit, and is blurred.
        y: the condition, or None.
        generator: for the estimate of the noise level.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields; for "ode" only.

    Raises:
        ValueError, TypeError: for invalid arguments, and for a noise level that the path does not reach (for a
            diffusion schedule, one below the noise of step 0).

    Example:
        >>> from flowbook.analytic import GaussianMixture
        >>> from flowbook.paths import LinearPath
        >>> velocity = GaussianMixture([[0.0]], [1.0]).as_velocity(LinearPath())
        >>> result = denoise(velocity, torch.full((1, 1), 2.0), noise_std=1.0)  # half of x is noise
        >>> result.x, result.t, result.nfe
        (tensor([[1.]]), tensor(0.5000), 1)
    """
    _check(velocity, x, y)
    path = path_of(velocity) if path is None else path
    validate.instance("path", path, Path, "LinearPath()")
    validate.one_of("estimate", estimate, ESTIMATES)
    _refuse_scaled(velocity)
    if solver and estimate == "mean":
        raise TypeError(f"{next(iter(solver))}: expected no solver options, since estimate='mean' solves no ODE")
    reason = "denoise enters the path at the time of its noise level and returns the end only"
    refuse(solver, ("t0", "t1", "save_at"), reason)
    chosen = as_solver(solver)
    spent = 0
    if noise_std is None:
        noise_std = estimate_noise(velocity, x, path=path, y=y, generator=generator)
        spent = HALVINGS * model_calls(velocity)
    else:
        _check_level(noise_std, x)
    t = time_of_noise(path, noise_std).to(x)
    if estimate == "mean":
        with torch.no_grad(), evaluating(velocity):
            result, nfe = _posterior_mean(velocity, x, t, y, path), model_calls(velocity)
    else:
        result, nfe = _follow(velocity, path.alpha(per_sample(t, x)) * x, t, y, chosen)
    return Denoised(result, t, torch.as_tensor(noise_std, dtype=x.dtype, device=x.device), nfe + spent)


def estimate_noise(
    velocity: Velocity,
    x: Tensor,
    *,
    path: Path | None = None,
    y: Condition = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The noise level s of each observation :math:`x = x_1 + s\,\epsilon`, by maximum likelihood under the model.

    With d(x), the posterior mean of the data, the density of x is largest over s where

    .. math:: s^2 D = \|x - d(x)\|^2 + s^2\, \nabla\!\cdot d(x):

    the noise that the model removes, and the noise that it leaves because it cannot be told from data. (By the heat
    equation, the derivative of :math:`\log p_s(x)` with respect to s is s times
    :math:`\|\nabla \log p\|^2 + \Delta \log p`.) Without the second term the estimate is too small, on the 8 x 8 digits
    by a third for s = 0.2. Its standard deviation is about :math:`s / \sqrt{2 D}` plus the contributions of the data
    and the probe: in the plane one observation carries almost no information.

    Args:
        velocity, x, path, y: as in :func:`denoise`.
        generator: for the probe of the divergence.

    Returns:
        Shape (B,), by 16 evaluations, each with one vector-Jacobian product. It stays within the noise levels of the
        path: for data without noise it is the smallest of them.

    Example:
        >>> from flowbook.analytic import GaussianMixture
        >>> from flowbook.paths import LinearPath
        >>> velocity = GaussianMixture(torch.zeros(1, 10_000), 1.0).as_velocity(LinearPath())
        >>> x = torch.randn(1, 10_000) + 0.75 * torch.randn(1, 10_000)
        >>> (estimate_noise(velocity, x) - 0.75).abs() < 0.1
        tensor([True])
    """
    _check(velocity, x, y)
    path = path_of(velocity) if path is None else path
    _refuse_scaled(velocity)
    validate.instance("path", path, Path, "LinearPath()")
    probe = rademacher(1, like=x, generator=generator)
    dims = x[0].numel() if len(x) else 1
    low, high = x.new_zeros(len(x)), x.new_ones(len(x))

    def mean(x: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        return _posterior_mean(velocity, x, t, y, path)

    with evaluating(velocity):
        for _ in range(HALVINGS):
            t = 0.5 * (low + high)
            data, left = divergence(mean, x, t, y=y, method="hutchinson", noise=probe)
            variance = (path.sigma(t) / path.alpha(t)).square()
            seen = ((x - data).flatten(1).square().sum(1) + variance * left) / dims
            noisier = seen > variance  # than the path is at t
            low, high = torch.where(noisier, low, t), torch.where(noisier, t, high)
    if not bool(torch.isfinite(seen).all()):
        raise RuntimeError("velocity: expected finite values to estimate the noise from; got NaN or infinity")
    t = 0.5 * (low + high)
    return path.sigma(t) / path.alpha(t)


def _refuse_scaled(velocity: Velocity) -> None:
    """Noise has a size in the units of the data, and another in those of a network trained on standardized data."""
    if said_by(velocity, "standardizer") is not None:
        raise ValueError(
            "velocity: expected one in the units of its data; this network was trained on standardized data: give it "
            "velocity.standardizer(x), with its attribute standardizer set to None"
        )


def _posterior_mean(velocity: Velocity, x: Tensor, t: Tensor, y: Condition, path: Path) -> Tensor:
    """The posterior mean of the data, converted from the velocity at the path's state alpha x."""
    state = path.alpha(per_sample(t, x)) * x
    v = call(velocity, state, t, y)
    validate.velocity_like(v, x)
    return path.convert(v, state, t, source="velocity", target="data")


def _follow(velocity: Velocity, state: Tensor, t: Tensor, y: Condition, solver: Solver) -> tuple[Tensor, int]:
    """The end of the flow through the state at t, () or (B,), and the model calls."""
    if t.dim() == 0:
        start = min(float(t), 1.0)
        solution = solve(velocity, state, start, 1.0, y=y, solver=solver.between(start, 1.0))
        return solution.x, solution.nfe

    def together(state: Tensor, share: Tensor, y: Condition = None) -> Tensor:  # a common time for all samples
        return per_sample(1 - t, state) * call(velocity, state, (t + share * (1 - t)).clamp_max(1), y)

    with evaluating(velocity):
        solution = solve(together, state, 0.0, 1.0, y=y, solver=solver)
    return solution.x, solution.nfe * model_calls(velocity)


def _check(velocity: Velocity, x: Tensor, y: Condition) -> None:
    validate.float_tensor("x", x, min_dim=2, finite=True)
    check_condition("y", y, len(x), velocity)
    warn_untrained(velocity, y, stacklevel=3)


def _check_level(noise_std: Any, x: Tensor) -> None:
    if not isinstance(noise_std, Tensor):
        validate.number("noise_std", noise_std, 0, math.inf, high_open=True)
        return
    validate.float_tensor("noise_std", noise_std, finite=True)
    if noise_std.shape not in ((), (len(x),)):
        raise ValueError(
            f"noise_std: expected one number, or one for each of {len(x)} samples; got {tuple(noise_std.shape)}"
        )
    if bool((noise_std < 0).any()):
        raise ValueError(f"noise_std: expected numbers of at least 0; got {float(noise_std.min()):g}")
