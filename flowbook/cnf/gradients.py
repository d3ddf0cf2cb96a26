"""The gradient of a solved state with respect to a module's parameters without keeping the solver's graph: by
recomputing each step, or by a solve backward in time (the adjoint)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flowbook._core import validate
from flowbook._core.times import widest_dtype
from flowbook.condition import Condition, check_condition
from flowbook.solvers import Solver
from flowbook.solvers.adaptive import adaptive_failure
from flowbook.velocity import Velocity, evaluating


class Augmented(Protocol):
    """A field of the state and of what is integrated along with it, with the velocity that it is computed from."""

    velocity: Velocity
    start: Tensor

    def __call__(self, state: Tensor, t: Tensor, y: Condition = None) -> Tensor: ...


def recomputing(joint: Augmented) -> Velocity:
    """The same field without its graph, which the backward pass recomputes."""
    parameters = _parameters(joint.velocity)
    again = _as_now(joint.velocity, joint.start)

    def field(state: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        def evaluate(state: Tensor) -> Tensor:
            with again():
                return joint(state, t, y)

        return _Recomputed.apply(evaluate, state, *parameters)

    return field


class _Recomputed(torch.autograd.Function):
    """A function of the state and of parameters that keeps no graph: the backward pass recomputes it.

    ``torch.utils.checkpoint`` would recompute it already in the forward pass, once for each vector-Jacobian product.
    """

    @staticmethod
    def forward(ctx: Any, function: Any, state: Tensor, *parameters: Tensor) -> Tensor:
        ctx.function, ctx.parameters = function, parameters
        ctx.save_for_backward(state)
        return function(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (state,) = ctx.saved_tensors
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            value = ctx.function(state)
            return None, *torch.autograd.grad(value, (state, *ctx.parameters), gradient, allow_unused=True)


def solve_adjoint(joint: Augmented, y: Condition, solver: Solver) -> Tensor:
    """The joint state at t = 0; its gradient is solved backward in time (Chen et al. 2018, appendix C)."""
    from torchdiffeq import odeint_adjoint

    again = _as_now(joint.velocity, joint.start)
    start = joint.start
    validate.float_tensor("x1", start, finite=True)
    check_condition("y", y, len(start), joint.velocity)
    calls = 0

    def field(t: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if solver.max_calls is not None and calls > solver.max_calls:
            raise RuntimeError(
                f"max_calls: {solver.method} has used up its {solver.max_calls} evaluations, both directions together"
            )
        with again():
            return joint(state, t.clamp(0.0, 1.0).to(state.dtype), y)

    times = torch.tensor([1.0, 0.0], dtype=widest_dtype(start.device), device=start.device)
    try:
        states = odeint_adjoint(
            field, start, times, rtol=solver.rtol, atol=solver.atol, method=solver.method,
            options={"step_t": times[1:], "dtype": times.dtype},
            adjoint_options={"step_t": times[:1], "dtype": times.dtype},
            adjoint_params=_parameters(joint.velocity),
        )  # fmt: skip
    except AssertionError as error:  # raised for step size underflow and for a state that is not finite
        raise adaptive_failure(solver, start, error) from error
    return states[-1]


def _parameters(velocity: Velocity) -> tuple[Tensor, ...]:
    assert isinstance(velocity, nn.Module)  # nll_loss has checked it
    return tuple(parameter for parameter in velocity.parameters() if parameter.requires_grad)


def _as_now(velocity: Velocity, x: Tensor) -> Any:
    """A context for what runs in the backward pass: eval mode, and the autocast of the forward pass."""
    device = x.device.type
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with evaluating(velocity), torch.autocast(device, dtype=dtype, enabled=enabled):
            yield

    return context
