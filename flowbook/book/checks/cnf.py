"""Checks of the exercises of chapter 2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowbook.cnf import bits_per_dim, log_prob
from flowbook.divergence import rademacher
from flowbook.laws.diagnosis import diagnose, diagnose_number

MATRIX = torch.tensor([[0.5, 2.0, -0.3], [0.4, -0.9, 0.7], [-1.2, 0.1, 0.8]])


def _velocity(x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
    """A field whose Jacobian is not symmetric and differs from point to point and from time to time."""
    t = torch.as_tensor(t, dtype=x.dtype)
    return torch.tanh(x @ MATRIX.to(x).T) + t * torch.sin(2 * x)


def _points(n: int) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


def density_at_the_origin(value: float) -> str:
    """Exercise 2.1: log p1(0) in nats, for N(0, I) in three dimensions and the velocity v(x, t) = -2 x.

    Example:
        >>> density_at_the_origin(-1.5 * math.log(2 * math.pi) + 6.0)
        'right: the flow squeezes each axis by exp(-2), and the density at the origin grows by exp(6)'
    """
    prior = -1.5 * math.log(2 * math.pi)
    diagnose_number(
        value, prior + 6.0,
        {
            "sign: a flow that squeezes makes the density larger; the divergence is negative": prior - 6.0,
            "the divergence is a trace: three axes give three terms": prior + 2.0,
            "this is the density of the noise; the flow changes it": prior,
            "this is the change of the log-density; the density of the noise is missing": 6.0,
        },
        "add log p0 at the start and minus the integral of the divergence", tolerance=0.01,
    )  # fmt: skip
    return "right: the flow squeezes each axis by exp(-2), and the density at the origin grows by exp(6)"


def exact_divergence(function: Callable[..., Tensor]) -> str:
    """Exercise 2.2: ``function(velocity, x, t) -> (B,)``, the exact divergence.

    Example:
        >>> from flowbook.divergence import divergence
        >>> exact_divergence(lambda velocity, x, t: divergence(velocity, x, t)[1])
        'right: the diagonal of each Jacobian, summed'
    """
    x, t = _points(4), 0.4
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: _velocity(z, t), point) for point in x])
    diagonal = jacobian.diagonal(dim1=1, dim2=2)
    flat = jacobian.flatten(1)
    diagnose(
        function(_velocity, x.clone(), t), diagonal.sum(1),
        {
            "these are the first columns: the flattened diagonal has the stride D + 1, not D": flat[:, ::3].sum(1),
            "these are the first rows, d v_1 / d x_j: differentiate v_i with respect to x_i": jacobian[:, 0].sum(1),
            "all entries of the Jacobian are added, not its diagonal": flat.sum(1),
            "the diagonal is averaged, not summed": diagonal.mean(1),
            "this is the determinant": torch.linalg.det(jacobian),
            "sign flipped": -diagonal.sum(1),
        },
        "divergence",
    )  # fmt: skip
    return "right: the diagonal of each Jacobian, summed"


def midpoint_log_prob(function: Callable[..., Tensor]) -> str:
    """Exercise 2.3: ``function(velocity, x1, steps) -> (B,)``, log p1 by the midpoint method from t = 1 to 0.

    Example:
        >>> midpoint_log_prob(lambda v, x1, steps: log_prob(v, x1, method="midpoint", steps=steps).log_prob)
        'right: a backward solve to the noise, its density there, minus the integrated divergence'
    """
    x1, steps = _points(4), 5
    result = log_prob(_velocity, x1, method="midpoint", steps=steps)

    def normal(x: Tensor) -> Tensor:
        return -0.5 * (x.square().sum(1) + 3 * math.log(2 * math.pi))

    integral = normal(result.latent) - result.log_prob
    forward = log_prob(lambda x, t: -_velocity(x, 1 - t), x1, method="midpoint", steps=steps)
    uphill = log_prob(lambda x, t: -_velocity(x, t), x1, method="midpoint", steps=steps)
    diagnose(
        function(_velocity, x1.clone(), steps), result.log_prob,
        {
            "this is Euler's method: evaluate velocity and divergence at half a step": log_prob(
                _velocity, x1, method="euler", steps=steps
            ).log_prob,
            "this is Heun's method: the midpoint method uses the slope at half a step": log_prob(
                _velocity, x1, method="heun", steps=steps
            ).log_prob,
            "sign: log p1 is log p0 minus the integral of the divergence from 0 to 1": normal(result.latent) + integral,
            "the density of the noise is missing": -integral,
            "evaluate the density of the noise at the latent, not at x1": normal(x1) - integral,
            "the divergence is summed over the steps without their length h": normal(result.latent) - steps * integral,
            "the divergence is missing: this is the density of the noise at the latent": normal(result.latent),
            "time runs from 0 to 1: x1 lies at t = 1, solve backward from there": forward.log_prob,
            "time runs from 0 to 1: x1 lies at t = 1, solve backward from there (and check your integral's sign)": (
                2 * normal(forward.latent) - forward.log_prob
            ),
            "sign: a backward step subtracts h v": uphill.log_prob,
            "sign: a backward step subtracts h v, here it is added": 2 * normal(uphill.latent) - uphill.log_prob,
        },
        "log_prob",
    )  # fmt: skip
    return "right: a backward solve to the noise, its density there, minus the integrated divergence"


def hutchinson_estimate(function: Callable[..., Tensor]) -> str:
    """Exercise 2.5: ``function(velocity, x, t, noise) -> (B,)``, the mean over the probes in noise, shape (P, B, D).

    Example:
        >>> from flowbook.divergence import hutchinson
        >>> hutchinson_estimate(lambda v, x, t, noise: hutchinson(v, x, t, noise=noise)[1].mean(0))
        'right: the mean over the probes of eps . J eps'
    """
    x, t = _points(4), 0.4
    noise = rademacher(3, like=x, generator=torch.Generator().manual_seed(1))
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: _velocity(z, t), point) for point in x])
    left = torch.einsum("pbi,bij->pbj", noise, jacobian)
    per_probe = (left * noise).sum(2)
    diagnose(
        function(_velocity, x.clone(), t, noise), per_probe.mean(0),
        {
            "the probes are summed, not averaged: P times too large": per_probe.sum(0),
            "only the first probe is used": per_probe[0],
            "the product eps J is not multiplied by eps again": left.sum(2).mean(0),
            "averaged over the dimensions: a trace is a sum": per_probe.mean(0) / 3,
            "sign flipped": -per_probe.mean(0),
        },
        "estimate",
    )  # fmt: skip
    return "right: the mean over the probes of eps . J eps"


def hutchinson_variance(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> str:
    """Exercise 2.4: ``function(matrix) -> (Rademacher, Gaussian)``, the variance of one probe's estimate of the trace.

    Example:
        >>> symmetric = lambda a: (a + a.T) / 2
        >>> off = lambda a: symmetric(a) - torch.diag(a.diagonal())
        >>> hutchinson_variance(lambda a: (2 * off(a).square().sum(), 2 * symmetric(a).square().sum()))
        'right: signs have variance from off the diagonal only, Gaussians from the diagonal too'
    """
    symmetric = (MATRIX + MATRIX.T) / 2
    diagonal = torch.diag(MATRIX.diagonal())
    off = 2 * (symmetric - diagonal).square().sum()
    all_of_it = 2 * symmetric.square().sum()
    rough = 2 * (MATRIX - diagonal).square().sum()
    rademacher_, gaussian = (torch.as_tensor(value) for value in function(MATRIX.clone()))
    diagnose(
        rademacher_, off,
        {
            "the matrix must be made symmetric first: x . A x sees only (A + A^T) / 2": rough,
            "signs have eps_i^2 = 1, so the diagonal adds no variance": all_of_it,
            "this is the standard deviation": off.sqrt(),
            "each pair i, j occurs twice, as (i, j) and (j, i)": off / 2,
        },
        "Rademacher",
    )  # fmt: skip
    diagnose(
        gaussian, all_of_it,
        {
            "the matrix must be made symmetric first: x . A x sees only (A + A^T) / 2": 2 * MATRIX.square().sum(),
            "the variance of eps_i^2 is 2 for a Gaussian: the diagonal counts": off,
            "this is the standard deviation": all_of_it.sqrt(),
            "each pair i, j occurs twice, as (i, j) and (j, i)": all_of_it / 2,
        },
        "Gaussian",
    )  # fmt: skip
    return "right: signs have variance from off the diagonal only, Gaussians from the diagonal too"


def bits(function: Callable[..., Tensor]) -> str:
    """Exercise 2.6: ``function(log_prob, dims, levels)``, bits per dimension of data in [-1, 1] with gray levels.

    Example:
        >>> bits(bits_per_dim)
        'right: nats to bits, per dimension, and the width of a bin'
    """
    nats, dims, levels = torch.tensor([-30.0, 12.0]), 64, 17
    per_dim = -nats / (dims * math.log(2.0))
    diagnose(
        function(nats, dims, levels), bits_per_dim(nats, dims, levels),
        {
            "the offset is missing: a density is not the probability of a gray level": per_dim,
            "one bit too much: that offset is for data in [0, 1]; in [-1, 1] a bin is 2 / levels wide": (
                per_dim + math.log2(levels)
            ),
            "the sign of the offset: the probability of a bin is density times width": per_dim - math.log2(levels / 2),
            "sign flipped: better models have fewer bits": -bits_per_dim(nats, dims, levels),
            "the offset is not per dimension": per_dim + math.log2(levels / 2) / dims,
            "these are nats: divide by log 2": -nats / dims + math.log(levels / 2),
        },
        "bits",
    )  # fmt: skip
    return "right: nats to bits, per dimension, and the width of a bin"
