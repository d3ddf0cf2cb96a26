"""The exact assignment problem, faster than by SciPy's solver alone."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 20
FEW = 1000
"""Up to this many points one regularization of Sinkhorn's iteration pays; beyond, a decreasing sequence of them."""


def assign(cost: Tensor) -> Tensor:
    """The column of each row in a permutation of least total cost, shape (n,).

    SciPy's solver is exact. Subtracting a constant from a row or a column changes the cost of every permutation by the
    same amount, so the solver gets the cost minus the Sinkhorn potentials (Cuturi 2013): most rows then find their
    column at once, which at least halves the time for points in the plane.

    Args:
        cost: float64, shape (n, n).

    Example:
        >>> assign(torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64))
        tensor([1, 0])
    """
    from scipy.optimize import linear_sum_assignment

    cost = cost.detach().cpu()
    reduced = cost - _potentials(cost, (0.05,) if len(cost) <= FEW else (0.1, 0.02, 0.004))
    reduced -= reduced.amin(1, keepdim=True)
    _, columns = linear_sum_assignment(reduced.numpy())
    return torch.from_numpy(columns)


def _potentials(cost: Tensor, regs: tuple[float, ...]) -> Tensor:
    """One potential for each column, shape (n,): rough ones suffice, so float32 and few iterations outside the log."""
    spread = float(cost.std(correction=0))
    potentials = cost.new_zeros(len(cost))
    if spread == 0 or float(cost.sum()) > torch.finfo(torch.float32).max:  # the solver needs none
        return potentials
    scaled = cost.float().sub_(float(cost.mean())).div_(spread)
    kernel = torch.empty_like(scaled)  # one buffer for all steps: allocating new ones would double the cost
    for reg in regs:
        torch.sub((potentials / spread).float(), scaled, out=kernel)
        kernel.sub_(kernel.amax(1, keepdim=True)).div_(reg).exp_()
        b = scaled.new_ones(len(cost))
        for _ in range(ITERATIONS):
            a = 1 / (kernel @ b).clamp_min(1e-30)
            b = 1 / (a @ kernel).clamp_min(1e-30)  # all entries of a column far from every row may underflow
        potentials = potentials + reg * spread * b.log()
    return potentials
