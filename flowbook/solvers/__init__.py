"""Solvers: one value that says how a flow is solved, and one function that solves it in either direction.

Fixed-step methods are a static loop of our own, which ``torch.compile`` takes whole; the adaptive ones are
torchdiffeq's, held inside [t0, t1].
"""

from flowbook.solvers.adaptive import cannot_go_on
from flowbook.solvers.fixed import FIXED, solve_fixed
from flowbook.solvers.solution import Solution, SolveOptions, refuse, sample, solve
from flowbook.solvers.solver import ADAPTIVE, METHODS, Method, Solver, SolverOptions, as_solver

__all__ = [
    "ADAPTIVE",
    "FIXED",
    "METHODS",
    "Method",
    "Solution",
    "SolveOptions",
    "Solver",
    "SolverOptions",
    "as_solver",
    "cannot_go_on",
    "refuse",
    "sample",
    "solve",
    "solve_fixed",
]
