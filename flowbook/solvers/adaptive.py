"""Adaptive methods: torchdiffeq's, with every evaluation kept inside [t0, t1]."""

from __future__ import annotations

import torch
from torch import Tensor

from flowbook._core import progress
from flowbook._core.times import widest_dtype
from flowbook.solvers.fixed import Field
from flowbook.solvers.solver import Solver


def solve_adaptive(f: Field, x: Tensor, solver: Solver, times: list[float]) -> list[Tensor]:
    """The states at ``times``, whose first and last are the start and the end of the solve.

    Raises:
        RuntimeError: when the method fails, or has used up ``max_calls``.
    """
    from torchdiffeq import odeint

    low, high = min(times), max(times)
    watch = _Watch(solver, times)

    # torchdiffeq's search for an initial step size may evaluate beyond the end, and so do its steps, unless `step_t`
    # puts the end of a step there.
    def inside(t: Tensor, state: Tensor) -> Tensor:
        watch.before_call(t)
        return f(state, t.clamp(low, high).to(state.dtype))

    grid = torch.tensor(times, dtype=widest_dtype(x.device), device=x.device)
    options = {"step_t": grid[-1:], "dtype": grid.dtype}
    try:
        with watch:
            states = odeint(inside, x, grid, rtol=solver.rtol, atol=solver.atol, method=solver.method, options=options)
    except AssertionError as error:  # raised for step size underflow and for a state that is not finite
        raise adaptive_failure(solver, x, error) from error
    return list(states.unbind(0))


def adaptive_failure(solver: Solver, x: Tensor, error: Exception) -> RuntimeError:
    """The error to raise when torchdiffeq gives up."""
    return RuntimeError(
        f"{solver.method} failed: {error}. The velocity is not finite or changes too fast for rtol={solver.rtol:g}, "
        f"atol={solver.atol:g} in {x.dtype}; inspect its values, loosen the tolerances or use a fixed-step method"
    )


class _Watch:
    """Counts the calls up to ``max_calls``, and shows a progress bar of the solve's time in a terminal."""

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
                f"atol={self.solver.atol:g}, or use a fixed-step method"
            )
        if self.bar is not None and self.calls % 20 == 0:
            reached = abs(float(t) - self.times[0]) / abs(self.times[-1] - self.times[0])
            self.bar.set_postfix_str(f"t = {float(t):.3f}, {self.calls} evaluations", refresh=False)
            self.bar.update(max(0.0, min(reached, 1.0) - self.bar.n))

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None:
        if self.bar is not None:
            self.bar.close()
