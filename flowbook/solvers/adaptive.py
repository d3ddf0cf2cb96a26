"""Adaptive methods: torchdiffeq's, held inside [t0, t1]."""

from __future__ import annotations

import torch
from torch import Tensor

from flowbook._core import progress
from flowbook.solvers.fixed import Field
from flowbook.solvers.solver import Solver


def solve_adaptive(f: Field, x: Tensor, solver: Solver, times: list[float]) -> list[Tensor]:
    """The states at ``times``, which start where the solve starts and end where it ends.

    Raises:
        RuntimeError: when the method cannot go on, or has used up ``max_calls``.
    """
    from torchdiffeq import odeint

    low, high = min(times), max(times)
    watch = _Watch(solver, times)

    # torchdiffeq's search for a first step may look beyond the end; its steps do unless `step_t` makes one end there.
    def inside(t: Tensor, state: Tensor) -> Tensor:
        watch.before_call(t)
        return f(state, t.clamp(low, high).to(state.dtype))

    grid = torch.tensor(times, dtype=torch.float64, device=x.device)
    options = {"step_t": grid[-1:]}
    try:
        with watch:
            states = odeint(inside, x, grid, rtol=solver.rtol, atol=solver.atol, method=solver.method, options=options)
    except AssertionError as error:  # its word for "the step went to 0" and "the state is not finite"
        raise cannot_go_on(solver, x, error) from error
    return list(states.unbind(0))


def cannot_go_on(solver: Solver, x: Tensor, error: Exception) -> RuntimeError:
    """What to say when torchdiffeq gives up."""
    return RuntimeError(
        f"{solver.method} cannot go on: {error}. The velocity is not finite or changes too fast for "
        f"rtol={solver.rtol:g}, atol={solver.atol:g} in {x.dtype}; look at its values, loosen the tolerance or take a "
        "fixed-step method"
    )


class _Watch:
    """Counts the calls up to ``max_calls``, and shows a bar of the time reached where a person watches."""

    def __init__(self, solver: Solver, times: list[float]):
        self.solver, self.calls, self.times = solver, 0, times
        self.bar = None
        if not torch.compiler.is_compiling() and progress.watched():
            self.bar = progress.bar(total=1.0, delay=progress.PATIENCE, leave=False, bar_format="{l_bar}{bar}{postfix}")

    def before_call(self, t: Tensor) -> None:
        self.calls += 1
        limit = self.solver.max_calls
        if limit is not None and self.calls > limit:
            raise RuntimeError(
                f"max_calls: {self.solver.method} has used up its {limit} evaluations at t = {float(t):.4g}, between "
                f"{self.times[0]:g} and {self.times[-1]:g}. Allow more, loosen rtol={self.solver.rtol:g} and "
                f"atol={self.solver.atol:g}, or take a fixed-step method"
            )
        if self.bar is not None and self.calls % 20 == 0:
            reached = abs(float(t) - self.times[0]) / abs(self.times[-1] - self.times[0])
            self.bar.set_postfix_str(f"t = {float(t):.3f}, {self.calls} evaluations", refresh=False)
            self.bar.update(max(0.0, min(reached, 1.0) - self.bar.n))

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None:
        if self.bar is not None:
            self.bar.close()
