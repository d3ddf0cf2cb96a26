"""The assignment that is handed to the solver with potentials taken off is the same assignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import NAN, seeded
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowbook import data
from flowbook._core.assignment import FEW, assign


def planar(n: int) -> Tensor:
    x, y = data.eight_gaussians().sample(n, seeded(0)).double(), data.moons().sample(n, seeded(1)).double()
    return -(x - x.mean(0)) @ (y - y.mean(0)).T


def gaussians(n: int) -> Tensor:
    a, b = (torch.randn(n, 64, dtype=torch.float64, generator=seeded(seed)) for seed in (0, 1))
    return torch.cdist(a, b).square()


def tiny(n: int) -> Tensor:
    return planar(n) * 1e-12


def far_from_zero(n: int) -> Tensor:
    return planar(n) + 1e6


def heavy_tailed(n: int) -> Tensor:
    return torch.rand(n, n, dtype=torch.float64, generator=seeded(0)).log().abs() ** 8


def same_points(n: int) -> Tensor:
    x = torch.randn(n, 2, dtype=torch.float64, generator=seeded(0))
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()


def constant(n: int) -> Tensor:
    return torch.full((n, n), 3.0, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 7, 200, FEW + 100])
@pytest.mark.parametrize("problem", [planar, gaussians, tiny, far_from_zero, heavy_tailed, same_points, constant])
def test_assignment_is_a_permutation_of_the_solvers_own_cost(problem: Any, n: int) -> None:
    cost = problem(n)
    columns = assign(cost)
    assert sorted(columns.tolist()) == list(range(n))
    rows, best = linear_sum_assignment(cost.numpy())
    scale = float((cost - cost.mean()).abs().max()) * n
    assert float(cost[torch.arange(n), columns].sum()) == pytest.approx(
        cost.numpy()[rows, best].sum(), abs=1e-11 * scale
    )


def test_costs_that_are_no_numbers_are_refused_by_the_solver() -> None:
    cost = planar(20)
    cost[3, 4] = NAN
    with pytest.raises(ValueError, match="invalid numeric entries"):
        assign(cost)
