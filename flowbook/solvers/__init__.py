"""Solvers: one object that describes how a flow is solved, and one function that solves it in either direction.

Fixed-step methods are a static loop, which ``torch.compile`` compiles as one graph; the adaptive methods are
torchdiffeq's, with every evaluation kept inside [t0, t1].
"""

from flowbook.solvers.fixed import FIXED, solve_fixed
from flowbook.solvers.solution import Solution, SolveOptions, sample, solve
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
    "sample",
    "solve",
    "solve_fixed",
]
