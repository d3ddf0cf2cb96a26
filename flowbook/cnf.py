r"""Continuous normalizing flows (chapter 2): the density of what a velocity makes, by the trace identity.

.. math:: \frac{d}{dt} \log p_t(x_t) = -\nabla\!\cdot v(x_t, t)
          \quad\Longrightarrow\quad
          \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla\!\cdot v(x_t, t)\, dt

along the flow of v (Chen et al. 2018, theorem 1). One call works for points, images, labels and diffusion models, and
its mean over the data, with the sign turned, is a loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from flowbook import _validate
from flowbook._gradients import recomputing, solve_adjoint
from flowbook._model import Velocity, evaluating, model_calls
from flowbook.batch import unpack
from flowbook.dequantization import bits_per_dim as bits_per_dim
from flowbook.dequantization import dequantize as dequantize
from flowbook.dequantization import discrete_log_prob as discrete_log_prob
from flowbook.divergence import MODES, jacobian_terms, rademacher
from flowbook.solvers import ADAPTIVE, FIXED, METHODS, solve

TRACES = ("exact", "hutchinson")
GRADIENTS = ("backprop", "recompute", "adjoint")


class Density(Protocol):
    """Anything with ``log_prob(x) -> (B,)``, such as a GaussianMixture."""

    def log_prob(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogProb:
    """What :func:`log_prob` returns."""

    log_prob: Tensor
    """The log-density of each sample in nats, shape (B,)."""
    std_err: Tensor
    """Its standard error over the probes, shape (B,). It is 0 for the exact trace and NaN for a single probe.

    In few dimensions with few probes it is itself uncertain: in two dimensions random signs take two values only, and P
    probes that happen to agree, one time in 2^(P-1), give 0. The exact trace costs no more there.
    """
    latent: Tensor
    """Where the flow leads each sample at t = 0, shape (B, ...)."""
    nfe: int
    """The number of times the velocity was evaluated; a guided velocity counts two."""
    nfe_trace: int
    """How many of these evaluations took the derivative products too, which are the dear part."""


def log_prob(
    velocity: Velocity, x1: Tensor, *, y: Tensor | None = None, trace: str = "exact", probes: int = 1,
    generator: torch.Generator | None = None, source: Density | None = None, method: str = "rk4",
    steps: int | None = None, rtol: float = 1e-5, atol: float = 1e-5, nodes: int | None = None, mode: str = "reverse",
    differentiable: bool = False,
) -> LogProb:  # fmt: skip
    """The log-density of x1 under the flow of a velocity that starts in the source.

    State and integrated divergence are solved together from t = 1 to 0. Or, with ``nodes``, the state alone, and the
    divergence is integrated along its way by Gauss and Legendre's rule: it is smooth in t where the velocity is, needs
    far fewer values than the state needs steps, and each of them costs D derivative products. The module runs in eval
    mode.

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
        nodes: of Gauss and Legendre's rule; None takes the divergence in every evaluation. 16 to 20 are enough where
            some 12 steps of rk4 are; compare with twice as many where an error matters. Between its steps the solver
            interpolates the state, as accurately as :func:`flowbook.solvers.solve` says of ``save_at``.
        mode: of the derivative products, as in :func:`flowbook.divergence.divergence`.
        differentiable: keep the graph, to train on the result.

    Raises:
        ValueError, TypeError: for arguments that do not fit, before the velocity is called.

    Example:
        >>> double = lambda x, t: math.log(2.0) * x  # x1 = 2 x0
        >>> result = log_prob(double, torch.zeros(1, 1))
        >>> torch.distributions.Normal(0.0, 2.0).log_prob(torch.zeros(1)) - result.log_prob < 1e-6
        tensor([True])
    """
    _check_trace(trace, probes, generator)
    joint = _Joint(velocity, x1, y, trace=trace, probes=probes, generator=generator, mode=mode)
    options = _solver_options(method, steps, rtol, atol, nodes)
    with evaluating(velocity):
        latent, integrals, nfe = _integrate(joint, joint, x1, y, nodes, differentiable, options)
    if trace == "exact":
        spread = torch.zeros_like(integrals[:, 0])
    else:
        spread = integrals.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(integrals[:, 0], math.nan)
    calls = model_calls(velocity)
    return LogProb(
        log_prob=_source_log_prob(source, latent) - integrals.mean(1),
        std_err=spread.detach(),
        latent=latent,
        nfe=nfe * calls,
        nfe_trace=(nfe if nodes is None else nodes) * calls,
    )


def _integrate(
    joint: _Joint, field: Velocity, x1: Tensor, y: Tensor | None, nodes: int | None, differentiable: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """The latent, the integrals from 0 to 1 of what the joint integrates, shape (B, P) or (B, P + 2), and the number
    of evaluations."""
    if nodes is None:
        solution = solve(field, joint.start, 1.0, 0.0, y=y, differentiable=differentiable, **options)
        latent, integrals = joint.split(solution.x)
        return latent, -integrals, solution.nfe  # they were integrated from 1 to 0
    points, weights = np.polynomial.legendre.leggauss(nodes)  # on [-1, 1], in increasing order
    times = [(1 - point) / 2 for point in points.tolist()]
    path = solve(
        joint.velocity, x1, 1.0, 0.0, y=y, save_at=[1.0, *times, 0.0], differentiable=differentiable, **options
    )
    assert path.trajectory is not None  # since it was asked for
    integrals = torch.zeros_like(joint.start[:, joint.dims :])
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        for time, weight, x in zip(path.times[1:-1], (weights / 2).tolist(), path.trajectory[1:-1], strict=True):
            integrals = integrals + weight * joint.rates(x, time, y)[1]
    return path.x, integrals, path.nfe // model_calls(joint.velocity) + nodes


class _Joint:
    """The state and, beside it, what is integrated along its way: traces, and the two penalties if asked for."""

    def __init__(
        self, velocity: Velocity, x1: Tensor, y: Tensor | None, *, trace: str, probes: int,
        generator: torch.Generator | None, mode: str, penalties: bool = False,
    ):  # fmt: skip
        _validate.float_tensor("x1", x1, min_dim=2)
        _validate.one_of("mode", mode, MODES)
        self.velocity, self.mode, self.penalties = velocity, mode, penalties
        self.shape, self.dims, self.probes = x1.shape, x1.shape[1:].numel(), probes
        self.noise = rademacher(probes, like=x1, generator=generator) if trace == "hutchinson" else None
        self.start = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), probes + 2 * penalties)], dim=1)

    def __call__(self, state: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        v, rates = self.rates(state[:, : self.dims].reshape(self.shape), t, y)
        return torch.cat([v.flatten(1), rates], dim=1)

    def rates(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity, and what is to be integrated: the trace by each probe (B, P), then the two penalties."""
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
        return state[:, : self.dims].reshape(self.shape), state[:, self.dims :]


# Training by maximum likelihood ---------------------------------------------------------------------------------------


def nll_loss(
    velocity: Velocity, x1: Tensor, *, y: Tensor | None = None, kinetic: float = 0.0, jacobian: float = 0.0,
    gradient: str = "backprop", trace: str = "exact", probes: int = 1, generator: torch.Generator | None = None,
    source: Density | None = None, method: str | None = None, steps: int | None = None, rtol: float = 1e-5,
    atol: float = 1e-5, nodes: int | None = None, mode: str = "reverse",
) -> Tensor:  # fmt: skip
    r"""The mean negative log-density in nats per dimension, to be minimised, with RNODE's regularisers.

    .. math:: L = -\frac{1}{D}\, \mathbb{E} \log p_1(x_1)
              + \frac{\lambda_K}{D}\, \mathbb{E}\! \int_0^1 \|v(x_t, t)\|^2 dt
              + \frac{\lambda_J}{D}\, \mathbb{E}\! \int_0^1 \Big\|\frac{\partial v}{\partial x}\Big\|_F^2 dt

    (Grathwohl et al. 2019; Finlay et al. 2020). The regularisers straighten the flow, so that it needs fewer steps.
    They are integrated along with the state, from what the trace has computed anyway.

    Args:
        velocity, x1, y, trace, probes, generator, source, steps, rtol, atol, mode: as in :func:`log_prob`.
        nodes: as in :func:`log_prob`; the regularisers are integrated on them too. For gradient="backprop".
        kinetic: the weight of the kinetic energy, lambda_K.
        jacobian: the weight of the Jacobian's squared Frobenius norm, lambda_J; its estimate by the same probes when
            the trace is estimated.
        gradient: "backprop" goes back through the solver's steps and keeps all of their graph; "recompute" gives the
            same gradients and keeps only the states, for one more evaluation each; "adjoint" keeps nothing and solves
            backward in time for the gradient (Chen et al. 2018), which then has an error of its own. The last two take
            the gradient by the parameters of a module.
        method: as in :func:`log_prob`. By default "rk4", and for the adjoint, whose method must be adaptive, "dopri5".

    Returns:
        A scalar.

    Raises:
        ValueError, TypeError: for arguments that do not fit, before the velocity is called.

    Example:
        >>> round(float(nll_loss(lambda x, t: torch.zeros_like(x), torch.zeros(4, 2), steps=2)), 3)
        0.919
    """
    _check_trace(trace, probes, generator)
    _check_weights(kinetic, jacobian)
    options = _solver_options(_training_method(gradient, method), steps, rtol, atol, nodes)
    _check_nodes(nodes, gradient)
    if gradient != "backprop" and not isinstance(velocity, nn.Module):
        raise TypeError(
            f"velocity: gradient={gradient!r} asks for a torch.nn.Module, whose parameters it can find; got "
            f"{type(velocity).__name__}"
        )
    if gradient == "adjoint" and isinstance(velocity, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "gradient: 'adjoint' evaluates the velocity in the backward pass, as often as its own share of the batch "
            "needs, and processes that train together would wait for each other; expected 'backprop' or 'recompute'"
        )
    penalties = kinetic > 0 or jacobian > 0
    joint = _Joint(velocity, x1, y, trace=trace, probes=probes, generator=generator, mode=mode, penalties=penalties)
    if gradient == "adjoint":
        latent, integrals = joint.split(solve_adjoint(joint, y, options))
        integrals = -integrals
    else:
        field = joint if gradient == "backprop" else recomputing(joint)
        with evaluating(velocity):
            latent, integrals, _ = _integrate(joint, field, x1, y, nodes, True, options)
    loss = (integrals[:, :probes].mean(1) - _source_log_prob(source, latent)).mean()
    if penalties:
        energy, norm = integrals[:, probes:].mean(0)
        loss = loss + kinetic * energy + jacobian * norm
    return loss / joint.dims


@dataclass(frozen=True)
class MaximumLikelihood:
    """:func:`nll_loss` with its options chosen, as the ``loss(velocity, batch)`` that ``fit`` asks for.

    A batch is x1, (x1, y) or (x0, x1, y), whose x0 is not used. Probes and dequantisation are drawn with
    :mod:`flowbook.keyed`, so a run that is resumed goes on bit for bit.

    Example:
        >>> loss = MaximumLikelihood(steps=2)
        >>> round(float(loss(lambda x, t, y=None: torch.zeros_like(x), torch.zeros(4, 2))), 3)
        0.919
    """

    trace: str = "exact"
    probes: int = 1
    method: str | None = None
    steps: int | None = None
    kinetic: float = 0.0
    jacobian: float = 0.0
    gradient: str = "backprop"
    levels: int | None = None
    """The number of grey levels of discrete data, which are then dequantised anew in each batch; None for others."""
    rtol: float = 1e-5
    atol: float = 1e-5
    nodes: int | None = None
    mode: str = "reverse"

    def __post_init__(self) -> None:
        _check_trace(self.trace, self.probes, None)
        _check_weights(self.kinetic, self.jacobian)
        _solver_options(_training_method(self.gradient, self.method), self.steps, self.rtol, self.atol, self.nodes)
        _check_nodes(self.nodes, self.gradient)
        _validate.one_of("mode", self.mode, MODES)
        if self.levels is not None:
            _validate.positive_int("levels", self.levels, at_least=2)

    def __call__(self, velocity: Velocity, batch: Any) -> Tensor:
        _, x1, y = unpack(batch)
        if self.levels is not None:
            x1 = dequantize(x1, self.levels)
        return nll_loss(
            velocity, x1, y=y, kinetic=self.kinetic, jacobian=self.jacobian, gradient=self.gradient, trace=self.trace,
            probes=self.probes, method=self.method, steps=self.steps, rtol=self.rtol, atol=self.atol, nodes=self.nodes,
            mode=self.mode,
        )  # fmt: skip


def _solver_options(
    method: str, steps: int | None, rtol: float, atol: float, nodes: int | None = None
) -> dict[str, Any]:
    """The arguments of ``solve``, 50 fixed steps being the default."""
    if nodes is not None:
        _validate.positive_int("nodes", nodes)
    _validate.one_of("method", method, METHODS)
    if method in FIXED:
        steps = 50 if steps is None else steps
        _validate.positive_int("steps", steps)
    elif steps is not None:
        raise ValueError(f"steps: {method} chooses its own steps by rtol and atol; got steps={steps}")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        _validate.number(name, tolerance, 0, 1, low_open=True)
    return {"method": method, "steps": steps, "rtol": rtol, "atol": atol}


def _training_method(gradient: str, method: str | None) -> str:
    _validate.one_of("gradient", gradient, GRADIENTS)
    if method is None:
        return "dopri5" if gradient == "adjoint" else "rk4"
    if gradient == "adjoint" and method not in ADAPTIVE:
        raise ValueError(f"method: the adjoint takes an adaptive one, {', '.join(ADAPTIVE)}; got {method!r}")
    return method


def _check_trace(trace: str, probes: int, generator: torch.Generator | None) -> None:
    _validate.one_of("trace", trace, TRACES)
    _validate.positive_int("probes", probes)
    _validate.generator(generator)
    if trace == "exact" and probes != 1:
        raise ValueError(f"probes: the exact trace takes none; got {probes}, use trace='hutchinson'")


def _check_nodes(nodes: int | None, gradient: str) -> None:
    if nodes is not None and gradient != "backprop":
        raise ValueError(
            f"nodes: the divergence is integrated beside the state with gradient={gradient!r}; got nodes={nodes}, use "
            "gradient='backprop'"
        )


def _check_weights(kinetic: float, jacobian: float) -> None:
    for name, weight in (("kinetic", kinetic), ("jacobian", jacobian)):
        _validate.number(name, weight, 0, math.inf, high_open=True)


def _source_log_prob(source: Density | None, x: Tensor) -> Tensor:
    if source is not None:
        log_p = source.log_prob(x)
        if log_p.shape != (len(x),):
            raise ValueError(
                f"source: expected log_prob(x) of shape ({len(x)},), one number for each sample; got "
                f"{tuple(log_p.shape)} (torch.distributions.Independent sums over dimensions)"
            )
        return log_p
    flat = x.flatten(1)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))
