r"""Continuous normalizing flows (chapter 2): the density of what a velocity makes, by the trace identity.

.. math:: \frac{d}{dt} \log p_t(x_t) = -\nabla\!\cdot v(x_t, t)
          \quad\Longrightarrow\quad
          \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla\!\cdot v(x_t, t)\, dt

along the flow of v (Chen et al. 2018, theorem 1). One call works for points, images, labels and diffusion models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flowbook import _validate
from flowbook._model import Velocity, evaluating, model_calls
from flowbook.data import grey_levels
from flowbook.divergence import divergence, hutchinson, rademacher
from flowbook.solvers import solve

TRACES = ("exact", "hutchinson")


class Density(Protocol):
    """Anything with ``log_prob(x) -> (B,)``, such as a GaussianMixture."""

    def log_prob(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogProb:
    """What :func:`log_prob` returns."""

    log_prob: Tensor
    """The log-density of each sample in nats, shape (B,)."""
    std_err: Tensor
    """Its standard error over the probes, shape (B,). It is 0 for the exact trace and NaN for a single probe."""
    latent: Tensor
    """Where the flow leads each sample at t = 0, shape (B, ...)."""
    nfe: int
    """The number of times the velocity was evaluated (each with its divergence); a guided velocity counts two."""


def log_prob(
    velocity: Velocity, x1: Tensor, *, y: Tensor | None = None, trace: str = "exact", probes: int = 1,
    generator: torch.Generator | None = None, source: Density | None = None, method: str = "rk4",
    steps: int | None = None, rtol: float = 1e-5, atol: float = 1e-5, differentiable: bool = False,
) -> LogProb:  # fmt: skip
    """The log-density of x1 under the flow of a velocity that starts in the source.

    State and integrated divergence are solved together from t = 1 to 0. The module runs in eval mode.

    Args:
        velocity: ``v(x, t, y=None)``. Each sample's velocity must depend on that sample alone.
        x1: data, shape (B, ...), floating point.
        y: labels, shape (B,), passed on to the velocity.
        trace: "exact", D derivative products for each evaluation; or "hutchinson", one for each probe.
        probes: number of Rademacher probes of "hutchinson", drawn once for the whole solve.
        generator: of the probes.
        source: the density at t = 0; the standard normal when None.
        method, steps, rtol, atol: as in :func:`flowbook.solvers.solve`; a fixed-step method takes 50 steps when
            ``steps`` is None. With fixed steps a sample's value does not depend on the rest of its batch.
        differentiable: keep the graph, to train on the result.

    Raises:
        ValueError, TypeError: for arguments that do not fit, before the velocity is called.

    Example:
        >>> double = lambda x, t: math.log(2.0) * x  # x1 = 2 x0
        >>> result = log_prob(double, torch.zeros(1, 1))
        >>> torch.distributions.Normal(0.0, 2.0).log_prob(torch.zeros(1)) - result.log_prob < 1e-6
        tensor([True])
    """
    _validate.one_of("trace", trace, TRACES)
    _validate.positive_int("probes", probes)
    _validate.float_tensor("x1", x1, min_dim=2)
    if trace == "exact" and probes != 1:
        raise ValueError(f"probes: the exact trace takes none; got {probes}, use trace='hutchinson'")
    if steps is None and method in ("euler", "midpoint", "heun", "rk4"):
        steps = 50
    noise = rademacher(probes, like=x1, generator=generator) if trace == "hutchinson" else None
    shape, dims = x1.shape, x1[0].numel()

    def joint(state: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        x = state[:, :dims].reshape(shape)
        if noise is None:
            v, div = divergence(velocity, x, t, y=y, create_graph=differentiable)
            traces = div[:, None]
        else:
            v, per_probe = hutchinson(velocity, x, t, y=y, noise=noise, create_graph=differentiable)
            traces = per_probe.T
        return torch.cat([v.flatten(1), traces], dim=1)

    start = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), probes)], dim=1)
    with evaluating(velocity):
        solution = solve(
            joint, start, 1.0, 0.0, y=y, method=method, steps=steps, rtol=rtol, atol=atol, differentiable=differentiable
        )
    latent, integrals = solution.x[:, :dims].reshape(shape), solution.x[:, dims:]
    if trace == "exact":
        spread = torch.zeros_like(integrals[:, 0])
    else:
        spread = integrals.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(integrals[:, 0], math.nan)
    return LogProb(
        log_prob=_source_log_prob(source, latent) + integrals.mean(1),
        std_err=spread.detach(),
        latent=latent,
        nfe=solution.nfe * model_calls(velocity),
    )


def nll_loss(velocity: Velocity, x1: Tensor, *, y: Tensor | None = None, **options: Any) -> Tensor:
    """The mean negative log-density in nats per dimension, to be minimised by backpropagation through the solver.

    Args:
        velocity, x1, y: as in :func:`log_prob`.
        options: of :func:`log_prob`.

    Returns:
        A scalar (Grathwohl et al. 2019, equation 4).

    Example:
        >>> round(float(nll_loss(lambda x, t: torch.zeros_like(x), torch.zeros(4, 2), steps=2)), 3)
        0.919
    """
    result = log_prob(velocity, x1, y=y, differentiable=True, **options)
    return -result.log_prob.mean() / x1[0].numel()


def _source_log_prob(source: Density | None, x: Tensor) -> Tensor:
    if source is not None:
        return source.log_prob(x)
    flat = x.flatten(1)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))


# Discrete data --------------------------------------------------------------------------------------------------------


def dequantize(x1: Tensor, levels: int = 256, generator: torch.Generator | None = None) -> Tensor:
    """Uniform dequantisation: each grey level becomes a random value in its own bin of [-1, 1] (Theis et al. 2016).

    Level k of ``levels`` fills the bin from ``2 k / levels - 1`` to ``2 (k + 1) / levels - 1``.

    Args:
        x1: discrete data, ``levels`` equidistant values from -1 to 1, shape (B, ...).
        levels: number of grey levels: 256 for most images, 17 for the digits.
        generator: of the noise.

    Example:
        >>> dequantize(torch.tensor([[-1.0, 1.0]]), levels=2).abs().max() <= 1
        tensor(True)
    """
    k = grey_levels(x1, levels)
    noise = torch.rand(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
    return 2 * (k + noise) / levels - 1


def bits_per_dim(log_prob: Tensor, dims: int, levels: int = 256) -> Tensor:
    """Bits per dimension of discrete data from the log-density of dequantised data in [-1, 1].

    A bin is 2 / levels wide, so ``-log2 P = -log2 p - D log2(2 / levels)``: the offset is 7 bits for 256 levels (8 if
    the density were of data in [0, 1]).

    Args:
        log_prob: nats, any shape.
        dims: D.
        levels: as in :func:`dequantize`.

    Example:
        >>> uniform = torch.tensor([-3.0 * math.log(2.0)])  # three dimensions, each uniform on [-1, 1]
        >>> bits_per_dim(uniform, dims=3)
        tensor([8.])
    """
    _validate.positive_int("dims", dims)
    _validate.positive_int("levels", levels, at_least=2)
    return -log_prob / (dims * math.log(2.0)) + math.log2(levels / 2)


def discrete_log_prob(
    density: Callable[[Tensor], Tensor], x1: Tensor, levels: int = 256, draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """The log-probability of discrete data from a density of dequantised data, in nats, shape (B,).

    With one draw its mean is a lower bound; more draws are averaged as probabilities and close the gap (the importance-
    weighted bound; Burda et al. 2016, equation 8).

    Args:
        density: ``x -> log p(x)``, shape (B,): for example ``lambda x: log_prob(velocity, x).log_prob``.
        x1: discrete data, as in :func:`dequantize`.
        levels: number of grey levels.
        draws: dequantisations of each sample.
        generator: of the noise.

    Example:
        >>> uniform = lambda x: torch.full((len(x),), -2 * math.log(2.0))  # two dimensions
        >>> discrete_log_prob(uniform, torch.ones(1, 2), levels=16) / math.log(2.0)
        tensor([-8.])
    """
    _validate.positive_int("draws", draws)
    logs = torch.stack([density(dequantize(x1, levels, generator)) for _ in range(draws)])
    return torch.logsumexp(logs, 0) - math.log(draws) + x1[0].numel() * math.log(2 / levels)
