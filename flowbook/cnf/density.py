"""The log-density of a flow, by integrating the divergence along its trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Unpack

import numpy as np
import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.progress import patiently
from flowbook._core.times import working_dtype
from flowbook.condition import Condition, check_condition, warn_untrained
from flowbook.divergence import MODES, TRACES, Mode, Trace, jacobian_terms, rademacher
from flowbook.paths import log_normal, path_of
from flowbook.solvers import Solver, SolverOptions, as_solver, solve
from flowbook.velocity import Velocity, check_order, evaluating, model_calls, said_by

FIFTY_STEPS = Solver("rk4", steps=50)


class Density(Protocol):
    """Anything with ``log_prob(x) -> (B,)``, such as a GaussianMixture."""

    def log_prob(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogProb:
    """What :func:`log_prob` returns."""

    log_prob: Tensor
    """The log-density of each sample in nats, shape (B,), in float32 at least."""
    std_err: Tensor
    """Its standard error over the probes, shape (B,). It is 0 for the exact trace and NaN for a single probe.

    In few dimensions with few probes it is itself uncertain: in two dimensions random signs give two values only, and P
    probes that happen to agree, with probability 2^-(P-1), give 0. The exact trace costs no more there.
    """
    latent: Tensor
    """The state of each sample at t = 0, shape (B, ...)."""
    nfe: int
    """The number of times the velocity was evaluated; a guided velocity counts two."""
    nfe_trace: int
    """The number of these evaluations that also computed the trace, which is the expensive part."""


def log_prob(
    velocity: Velocity,
    x1: Tensor,
    *,
    y: Condition = None,
    trace: Trace = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
    source: Density | None = None,
    nodes: int | None = None,
    mode: Mode = "reverse",
    differentiable: bool = False,
    **solver: Unpack[SolverOptions],
) -> LogProb:
    """The log-density of x1 under the flow of a velocity that starts from the source.

    State and integrated divergence are solved together from t = 1 to 0. With ``nodes``, the state is solved alone, and
    the divergence is integrated along the trajectory by Gauss-Legendre quadrature: it is as smooth in t as the
    velocity, and needs far fewer nodes than the solver needs evaluations. At each node the trace is computed once: by D
    VJPs, or one for each probe (in forward mode JVPs). A module runs in eval mode.

    Args:
        velocity: ``v(x, t, y=None)``. Each sample's velocity must depend on that sample alone.
        x1: data, shape (B, ...), floating point.
        y: the condition, passed on to the velocity; None calls it without one.
        trace: "exact", D VJPs (in forward mode JVPs) for each evaluation; or "hutchinson", one for each probe.
        probes: number of Rademacher probes of "hutchinson", drawn once for the whole solve.
        generator: for the probes.
        source: the density at t = 0; None is the noise of the path, N(0, I) on all but VEPath.
        nodes: number of nodes of the Gauss-Legendre rule; None computes the divergence in every evaluation. 16 to 20
            suffice where about 12 rk4 steps do; compare with twice as many where the error matters. Between its
            steps the solver interpolates the state, with the accuracy given for ``save_at`` in
            :func:`flowbook.solvers.solve`.
        mode: mode of the Jacobian products, as in :func:`flowbook.divergence.divergence`.
        differentiable: keep the graph, to train on the result.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields; by default 50 steps of rk4. With fixed
            steps a sample's value does not depend on the rest of its batch.

    Raises:
        ValueError, TypeError: for invalid arguments, before the velocity is called.

    Example:
        >>> double = lambda x, t: math.log(2.0) * x  # x1 = 2 x0
        >>> result = log_prob(double, torch.zeros(1, 1))
        >>> torch.distributions.Normal(0.0, 2.0).log_prob(torch.zeros(1)) - result.log_prob < 1e-6
        tensor([True])
    """
    check_trace(trace, probes, generator)
    chosen = as_solver(solver, default=FIFTY_STEPS)
    z1, volume = standardized_by(velocity, x1)
    joint = Joint(velocity, z1, y, Probing(trace, probes, generator, mode))
    warn_untrained(velocity, y, stacklevel=2)
    with evaluating(velocity):
        latent, integrals, nfe = integrate(joint, joint, chosen, nodes=nodes, differentiable=differentiable)
    if trace == "exact":
        spread = torch.zeros_like(integrals[:, 0])
    else:
        spread = integrals.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(integrals[:, 0], math.nan)
    calls = model_calls(velocity)
    return LogProb(
        log_prob=source_log_prob(source, latent, velocity) - integrals.mean(1) - volume,
        std_err=spread.detach(),
        latent=latent,
        nfe=nfe * calls,
        nfe_trace=(nfe if nodes is None else nodes) * calls,
    )


def standardized_by(velocity: Velocity, x1: Tensor) -> tuple[Tensor, float]:
    """Data in the units of the network, and the logarithm of the factor by which densities differ in them.

    Example:
        >>> standardized_by(lambda x, t: x, torch.ones(1, 2))
        (tensor([[1., 1.]]), 0.0)
    """
    check_order(velocity)
    scale = said_by(velocity, "standardizer")
    return (x1, 0.0) if scale is None else (scale(x1), scale.log_volume(x1))


def integrate(
    joint: Joint, field: Velocity, solver: Solver, *, nodes: int | None, differentiable: bool
) -> tuple[Tensor, Tensor, int]:
    """The latent, the integrals of the joint's rates from 0 to 1, shape (B, P) or (B, P + 2), and the number of
    evaluations."""
    if nodes is None:
        solution = solve(field, joint.start, 1.0, 0.0, y=joint.y, differentiable=differentiable, solver=solver)
        latent, integrals = joint.split(solution.x)
        return latent, -integrals, solution.nfe  # they were integrated from 1 to 0
    validate.positive_int("nodes", nodes)
    points, weights = np.polynomial.legendre.leggauss(nodes)  # on [-1, 1], in increasing order
    times = [1.0, *((1 - point) / 2 for point in points.tolist()), 0.0]
    path = solve(joint.velocity, joint.x1, 1.0, 0.0, y=joint.y, save_at=times, differentiable=differentiable,
                 solver=solver)  # fmt: skip
    assert path.trajectory is not None  # since it was asked for
    integrals = torch.zeros_like(joint.start[:, joint.dims :])
    values = list(zip(path.times[1:-1], (weights / 2).tolist(), path.trajectory[1:-1], strict=True))
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        for time, weight, x in patiently(values, unit="node"):
            integrals = integrals + weight * joint.rates(x, time, joint.y)[1]
    return path.x, integrals, path.nfe // model_calls(joint.velocity) + nodes


@dataclass(frozen=True)
class Probing:
    """How the trace is computed."""

    trace: Trace
    probes: int
    generator: torch.Generator | None
    mode: Mode


class Joint:
    """The state, with what is integrated along its trajectory: the traces and, with ``penalties``, two penalties."""

    def __init__(self, velocity: Velocity, x1: Tensor, y: Condition, how: Probing, penalties: bool = False):
        validate.float_tensor("x1", x1, min_dim=2, finite=True)
        validate.one_of("mode", how.mode, MODES)
        check_condition("y", y, len(x1), velocity)
        self.velocity, self.x1, self.y = velocity, x1, y
        self.mode, self.probes, self.penalties = how.mode, how.probes, penalties
        self.shape, self.dims = x1.shape, x1.shape[1:].numel()
        estimated = how.trace == "hutchinson"
        self.noise = rademacher(how.probes, like=x1, generator=how.generator) if estimated else None
        start = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), how.probes + 2 * penalties)], dim=1)
        self.start = start.to(working_dtype(x1.dtype))

    def __call__(self, state: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        v, rates = self.rates(self.split(state)[0], t, y)
        return torch.cat([v.flatten(1), rates], dim=1).to(state.dtype)

    def rates(self, x: Tensor, t: Tensor, y: Condition = None) -> tuple[Tensor, Tensor]:
        """The velocity, and the integrands: the trace by each probe (B, P), then the two penalties."""
        v, traces, norms = jacobian_terms(
            self.velocity, x, t, y, self.noise,
            create_graph=torch.is_grad_enabled(), mode=self.mode, squares=self.penalties,
        )  # fmt: skip
        parts = [traces.T]
        if self.penalties:
            parts += [v.flatten(1).square().sum(1, keepdim=True), norms.mean(0)[:, None]]
        return v, torch.cat(parts, dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The latent and, as integrated so far, the traces and the penalties."""
        return state[:, : self.dims].reshape(self.shape).to(self.x1.dtype), state[:, self.dims :]


def check_trace(trace: Trace, probes: int, generator: torch.Generator | None) -> None:
    """Raise for probes that the trace does not take."""
    validate.one_of("trace", trace, TRACES)
    validate.positive_int("probes", probes)
    validate.generator(generator)
    if trace == "exact" and probes != 1:
        raise ValueError(
            f"probes: expected 1 with trace='exact', which needs none; got {probes}, use trace='hutchinson'"
        )


def source_log_prob(source: Density | None, x: Tensor, velocity: Velocity) -> Tensor:
    """The log-density of latents, shape (B,), under the noise of the velocity's path where no source is given."""
    if source is not None:
        log_p = source.log_prob(x)
        if log_p.shape != (len(x),):
            raise ValueError(
                f"source: expected log_prob(x) of shape ({len(x)},), one number for each sample; got "
                f"{tuple(log_p.shape)} (torch.distributions.Independent sums over dimensions)"
            )
        return log_p
    return log_normal(x, path_of(velocity).source_std)
