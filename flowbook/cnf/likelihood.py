"""Training by maximum likelihood, with its regularizers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook._core.fields import set_fields
from flowbook.cnf.density import FIFTY_STEPS, Density, Joint, Probing, check_trace, integrate, source_log_prob
from flowbook.cnf.dequantization import dequantize
from flowbook.cnf.gradients import recomputing, solve_adjoint
from flowbook.condition import Condition
from flowbook.data import unpack
from flowbook.divergence import MODES, Mode, Trace
from flowbook.guidance import check_labels
from flowbook.solvers import ADAPTIVE, Solver, SolverOptions, as_solver
from flowbook.velocity import Velocity, evaluating

Gradient = Literal["backprop", "recompute", "adjoint"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)


def nll_loss(
    velocity: Velocity,
    x1: Tensor,
    *,
    y: Condition = None,
    kinetic: float = 0.0,
    jacobian: float = 0.0,
    gradient: Gradient = "backprop",
    trace: Trace = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
    source: Density | None = None,
    nodes: int | None = None,
    mode: Mode = "reverse",
    **solver: Unpack[SolverOptions],
) -> Tensor:
    r"""The mean negative log-density in nats per dimension, to be minimized, with RNODE's regularizers.

    .. math:: L = -\frac{1}{D}\, \mathbb{E} \log p_1(x_1)
              + \frac{\lambda_K}{D}\, \mathbb{E}\! \int_0^1 \|v(x_t, t)\|^2 dt
              + \frac{\lambda_J}{D}\, \mathbb{E}\! \int_0^1 \Big\|\frac{\partial v}{\partial x}\Big\|_F^2 dt

    (Grathwohl et al. 2019; Finlay et al. 2020). The regularizers straighten the flow, so that it needs fewer steps.
    They are integrated along with the state, from quantities that the trace computes anyway.

    Args:
        velocity, x1, y, trace, probes, generator, source, mode: as in :func:`log_prob`.
        nodes: as in :func:`log_prob`; the regularizers are integrated on them too. For gradient="backprop" only.
        kinetic: the weight of the kinetic energy, lambda_K.
        jacobian: the weight of the Jacobian's squared Frobenius norm, lambda_J; estimated with the same probes if the
            trace is.
        gradient: "backprop" backpropagates through the solver's steps and keeps all of their graph; "recompute" gives
            the same gradients and keeps only the states, for one more evaluation each; "adjoint" keeps nothing and
            solves for the gradient backward in time (Chen et al. 2018), with an error of that solve. "recompute" and
            "adjoint" need a module, and give the gradient with respect to its parameters.
        solver: as in :func:`log_prob`. By default 50 steps of rk4, and for the adjoint, whose method must be adaptive,
            dopri5.

    Returns:
        A scalar.

    Raises:
        ValueError, TypeError: for invalid arguments, before the velocity is called.

    Example:
        >>> round(float(nll_loss(lambda x, t: torch.zeros_like(x), torch.zeros(4, 2), steps=2)), 3)
        0.919
    """
    check_trace(trace, probes, generator)
    _check_weights(kinetic, jacobian)
    chosen = _training_solver(gradient, solver)
    _check_nodes(nodes, gradient)
    _check_module(velocity, gradient)
    penalties = kinetic > 0 or jacobian > 0
    joint = Joint(velocity, x1, y, Probing(trace, probes, generator, mode), penalties)
    if gradient == "adjoint":
        latent, integrals = joint.split(solve_adjoint(joint, y, chosen))
        integrals = -integrals
    else:
        field = joint if gradient == "backprop" else recomputing(joint)
        with evaluating(velocity):
            latent, integrals, _ = integrate(joint, field, chosen, nodes=nodes, differentiable=True)
    loss = (integrals[:, :probes].mean(1) - source_log_prob(source, latent, velocity)).mean()
    if penalties:
        energy, norm = integrals[:, probes:].mean(0)
        loss = loss + kinetic * energy + jacobian * norm
    return loss / joint.dims


@dataclass(frozen=True, init=False)
class MaximumLikelihood:
    """:func:`nll_loss` with its options chosen, as the ``loss(velocity, batch)`` that ``fit`` expects.

    A batch is x1, (x1, y) or (x0, x1, y), whose x0 is not used. Probes and dequantization are keyed to the sample, so a
    resumed run continues bit for bit.

    Args:
        trace, probes, kinetic, jacobian, gradient, nodes, mode: as in :func:`nll_loss`.
        levels: the number of gray levels of discrete data, which are then dequantized anew in each batch; None for
            continuous data.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields, as in :func:`nll_loss`.

    Example:
        >>> loss = MaximumLikelihood(steps=2)
        >>> round(float(loss(lambda x, t, y=None: torch.zeros_like(x), torch.zeros(4, 2))), 3)
        0.919
    """

    one_call: ClassVar[bool] = False
    """A step backpropagates through many evaluations of the network."""
    condition_dropout: ClassVar[float] = 0.0

    solver: Solver
    trace: Trace
    probes: int
    kinetic: float
    jacobian: float
    gradient: Gradient
    levels: int | None
    nodes: int | None
    mode: Mode

    def __init__(
        self,
        trace: Trace = "exact",
        probes: int = 1,
        *,
        kinetic: float = 0.0,
        jacobian: float = 0.0,
        gradient: Gradient = "backprop",
        levels: int | None = None,
        nodes: int | None = None,
        mode: Mode = "reverse",
        **solver: Unpack[SolverOptions],
    ):
        check_trace(trace, probes, None)
        _check_weights(kinetic, jacobian)
        chosen = _training_solver(gradient, solver)
        _check_nodes(nodes, gradient)
        validate.one_of("mode", mode, MODES)
        if levels is not None:
            validate.positive_int("levels", levels, at_least=2)
        set_fields(
            self, solver=chosen, trace=trace, probes=probes, kinetic=kinetic, jacobian=jacobian, gradient=gradient,
            levels=levels, nodes=nodes, mode=mode,
        )  # fmt: skip

    def __call__(self, velocity: Velocity, batch: Any) -> Tensor:
        _, x1, y = unpack(batch)
        if self.levels is not None:
            x1 = dequantize(x1, self.levels)
        return nll_loss(
            velocity, x1, y=y, kinetic=self.kinetic, jacobian=self.jacobian, gradient=self.gradient, trace=self.trace,
            probes=self.probes, nodes=self.nodes, mode=self.mode, solver=self.solver,
        )  # fmt: skip

    def check(self, network: nn.Module, data: Any) -> None:
        """Raise ValueError if a label of tensor data is not a class of the network; the null label is none."""
        check_labels(network, data)


def _training_solver(gradient: Gradient, options: SolverOptions) -> Solver:
    validate.one_of("gradient", gradient, GRADIENTS)
    solver = as_solver(options, default=FIFTY_STEPS if gradient != "adjoint" or options.get("method") else Solver())
    if gradient == "adjoint" and solver.fixed:
        raise ValueError(
            f"method: expected an adaptive one for the adjoint, {', '.join(ADAPTIVE)}; got {solver.method!r}"
        )
    return solver


def _check_module(velocity: Velocity, gradient: Gradient) -> None:
    if gradient != "backprop" and not isinstance(velocity, nn.Module):
        raise TypeError(
            f"velocity: expected a torch.nn.Module with gradient={gradient!r}, which needs its parameters; got "
            f"{type(velocity).__name__}"
        )
    if gradient == "adjoint" and isinstance(velocity, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "gradient: 'adjoint' evaluates the velocity in the backward pass, as often as each process's own rows "
            "need, and the processes would wait for each other; expected 'backprop' or 'recompute'"
        )


def _check_nodes(nodes: int | None, gradient: Gradient) -> None:
    if nodes is None:
        return
    validate.positive_int("nodes", nodes)
    if gradient != "backprop":
        raise ValueError(
            f"nodes: expected None with gradient={gradient!r}, which integrates the divergence along with the state; "
            f"got nodes={nodes}, use gradient='backprop'"
        )


def _check_weights(kinetic: float, jacobian: float) -> None:
    for name, weight in (("kinetic", kinetic), ("jacobian", jacobian)):
        validate.number(name, weight, 0, math.inf, high_open=True)
