"""A flow in another time is the same flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import MIXTURE, normal
from torch import Tensor

from flowbook import cnf, solvers
from flowbook.guidance import guided
from flowbook.paths import CosinePath, LinearPath, retimed

FINE: dict[str, Any] = {"method": "rk4", "steps": 200}


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
@pytest.mark.parametrize("power", [1, 2, 3.5])
def test_ends_latents_and_densities_are_those_of_the_flow_itself(path: object, power: float) -> None:
    velocity, x = MIXTURE.as_velocity(path), normal(6, 2)  # type: ignore[arg-type]
    same = retimed(velocity, power)
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        wanted = solvers.solve(velocity, x, t0, t1, **FINE).x
        torch.testing.assert_close(solvers.solve(same, x, t0, t1, **FINE).x, wanted, rtol=0, atol=1e-6)
    wanted = cnf.log_prob(velocity, x, **FINE).log_prob
    torch.testing.assert_close(cnf.log_prob(same, x, **FINE).log_prob, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("power", [1, 2, 3, 3.5])
def test_law_1_zero_stays_and_a_constant_moves_by_itself(power: float) -> None:
    x, c = normal(5, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for velocity, shift in ((torch.zeros_like, 0 * c), (lambda x: c.expand_as(x), c)):
        field = retimed(lambda x, t, v=velocity: v(x), power)
        for t0, t1, sign in ((0.0, 1.0, 1.0), (1.0, 0.0, -1.0)):
            ends = solvers.solve(field, x, t0, t1, method="rk4", steps=200).x
            # rk4 integrates p (1 - u)^(p - 1) exactly for whole p up to 4
            torch.testing.assert_close(ends, x + sign * shift, rtol=0, atol=1e-12 if power in (1, 2, 3) else 1e-8)


def test_a_time_of_u_is_the_time_of_t_that_it_stands_for() -> None:
    seen: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        seen.append(t)
        return x if y is None else x * y[:, None]

    x, u = normal(3, 2), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    v = retimed(velocity, 3)(x, u)
    assert torch.equal(seen[0], torch.tensor([0.0, 0.875, 1.0], dtype=torch.float64))
    torch.testing.assert_close(v, torch.tensor([[3.0], [0.75], [0.0]], dtype=torch.float64) * x)
    labels = torch.tensor([1, 2, 3])
    torch.testing.assert_close(retimed(velocity, 3)(x, 0.0, labels), 3 * x * labels[:, None])


def test_where_the_flow_closes_in_on_its_data_fine_steps_near_the_end_save_most_of_the_error() -> None:
    """Data of width 0.01: the velocity changes on that scale, at the end alone."""
    from flowbook.analytic import GaussianMixture

    narrow = GaussianMixture([[-1.0], [1.0]], 0.01)
    x = narrow.sample(50, torch.Generator().manual_seed(0)).double()
    velocity = narrow.as_velocity(LinearPath())
    errors = [
        float((cnf.log_prob(v, x, method="rk4", steps=20).log_prob - narrow.log_prob(x)).abs().max())
        for v in (velocity, retimed(velocity))
    ]
    assert errors[1] < 0.1 * errors[0]


def test_labels_the_null_and_the_count_of_calls_pass_through() -> None:
    field = retimed(guided(lambda x, t, y: x * y[:, None], 2.0, null=3))
    assert field.null == 3
    x, y = normal(2, 2), torch.tensor([0, 1])
    assert solvers.sample(field, x, y=y, method="euler", steps=5).nfe == 10


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: retimed(lambda x, t: x, 0.5), ValueError, r"power: .*0\.5"),
        (lambda: retimed(lambda x, t: x, "cubic"), TypeError, "power: .*'cubic'"),  # type: ignore[arg-type]
        (lambda: retimed("velocity"), TypeError, "velocity: .*'velocity'"),  # type: ignore[arg-type]
        (lambda: retimed(lambda x, t: x)(torch.zeros(2, 2), 1.5), ValueError, r"t: .*1\.5"),
    ],
)
def test_law_11_bad_input_is_named(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
