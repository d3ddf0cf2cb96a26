"""Laws 1 and 2: what a solve moves, where it looks, how exact it is and what it leaves behind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ADAPTIVE, ALL_PATHS, FIXED, INF, METHODS, MIXTURE, NAN, Recorder, normal, options
from torch import Tensor, nn

from flowbook import metrics
from flowbook.analytic import eight_gaussians
from flowbook.divergence import divergence, rademacher
from flowbook.flow_matching import flow_matching_loss
from flowbook.guidance import guided
from flowbook.models import MLP
from flowbook.paths import LinearPath, Path, as_velocity
from flowbook.solvers import Method, Solution, sample, solve

methods = pytest.mark.parametrize("method", METHODS)
fixed = pytest.mark.parametrize("method", FIXED)
adaptive = pytest.mark.parametrize("method", ADAPTIVE)

CALLS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab3": 1}  # of a step
EXTRA = {"ab3": 1}  # to start
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab3": 3}
WINDOWS = [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7), (0.7, 0.2), (0.5, 0.5001)]

# Fields with a solution in closed form, x(t) from x at time 0.


def growth(x: Tensor, t: Tensor) -> Tensor:
    return 3 * torch.cos(3 * t) * x


def growth_solution(x: Tensor, t: float) -> Tensor:
    return x * math.exp(math.sin(3 * t))


def swirl(x: Tensor, t: Tensor) -> Tensor:
    """Smooth, nonlinear, dependent on time, and not contracting."""
    return (1 + t) * torch.stack([-x[:, 1], x[:, 0]], 1) + 0.3 * torch.sin(x)


# Law 1 ----------------------------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("shape", [(5,), (3, 2), (2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_velocity_is_the_identity(method: Method, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(*shape).to(dtype)
    rounding = 0.0 if method in FIXED else 64 * torch.finfo(dtype).eps  # of torchdiffeq's interpolation at t1
    for t0, t1 in WINDOWS:
        moved = solve(lambda x, t: torch.zeros_like(x), x, t0, t1, **options(method)).x
        torch.testing.assert_close(moved, x, rtol=rounding, atol=0)
    torch.testing.assert_close(
        sample(lambda x, t: torch.zeros_like(x), x, **options(method)).x, x, rtol=rounding, atol=0
    )


@methods
@pytest.mark.parametrize(("t0", "t1"), WINDOWS)
def test_constant_velocity_moves_by_c_times_the_signed_time(method: Method, t0: float, t1: float) -> None:
    x, c = normal(3, 2), torch.tensor([2.0, -0.5], dtype=torch.float64)
    moved = solve(lambda x, t: c.expand_as(x), x, t0, t1, **options(method)).x
    torch.testing.assert_close(moved, x + c * (t1 - t0), rtol=1e-12, atol=1e-12)


@methods
def test_sampling_moves_by_plus_c_and_back_by_minus_c(method: Method) -> None:
    x, c = normal(3, 2), torch.tensor([2.0, -0.5], dtype=torch.float64)
    torch.testing.assert_close(sample(lambda x, t: c.expand_as(x), x, **options(method)).x, x + c)
    torch.testing.assert_close(solve(lambda x, t: c.expand_as(x), x, 1.0, 0.0, **options(method)).x, x - c)


@methods
def test_zero_and_constant_velocity_through_the_other_entry_points(method: Method) -> None:
    x, y = normal(4, 2), torch.zeros(4, dtype=torch.long)
    c = torch.tensor([2.0, -0.5], dtype=torch.float64)

    def constant(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return c.expand_as(x)

    def zero(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    torch.testing.assert_close(sample(guided(constant, 3.0, 1), x, y=y, **options(method)).x, x + c)
    torch.testing.assert_close(sample(guided(zero, 3.0, 1), x, y=y, **options(method)).x, x, rtol=1e-14, atol=0)
    as_constant = as_velocity(constant, LinearPath(), "velocity")
    torch.testing.assert_close(sample(as_constant, x, **options(method)).x, x + c)


def test_zero_and_constant_velocity_in_losses_metrics_and_divergence() -> None:
    x0, c = normal(4, 2), torch.tensor([2.0, -0.5], dtype=torch.float64)

    def constant(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return c.expand_as(x)

    def zero(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    assert float(flow_matching_loss(constant, x0 + c, x0=x0)) == pytest.approx(0, abs=1e-28)
    assert float(flow_matching_loss(zero, x0 + c, x0=x0)) == pytest.approx(float(c.square().mean()))
    assert float(flow_matching_loss(lambda x, t: -constant(x, t), x0 + c, x0=x0)) == pytest.approx(4.25 * 2)
    velocity: Any
    for velocity, energy in ((zero, 0.0), (constant, 4.25)):
        assert metrics.path_energy(velocity, x0, steps=4) == pytest.approx(energy)
        assert metrics.straightness(velocity, x0, steps=4) == pytest.approx(0, abs=1e-28)
        ways: list[dict[str, Any]] = [{}, {"method": "hutchinson", "noise": rademacher(2, like=x0)}]
        for extra in ways:
            v, div = divergence(velocity, x0, 0.5, **extra)
            assert torch.equal(v, velocity(x0, 0.5)) and torch.equal(div, torch.zeros(4, dtype=torch.float64))
    assert metrics.normalized_path_energy(constant, x0, x0 + c, steps=4) == pytest.approx(0, abs=1e-12)


# Law 2: there and back, and how exact ---------------------------------------------------------------------------------


@adaptive
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_forward_then_back_returns_within_the_tolerance(method: Method, tolerance: float) -> None:
    x = normal(6, 2)
    there = solve(swirl, x, rtol=tolerance, atol=tolerance, method=method).x
    back = solve(swirl, there, 1.0, 0.0, rtol=tolerance, atol=tolerance, method=method).x
    assert (there - x).abs().max() > 0.5
    # Fehlberg's pair of orders 1 and 2 estimates the error of the lower one, and loosely.
    assert (back - x).abs().max() < (3000 if method == "fehlberg2" else 200) * tolerance


@pytest.mark.parametrize(
    ("method", "error"), [("euler", 0.1), ("midpoint", 1e-3), ("heun", 1e-3), ("rk4", 1e-7), ("ab3", 1e-4)]
)
def test_forward_then_back_returns_to_the_order_of_the_method(method: Method, error: float) -> None:
    x = normal(6, 2)
    back = solve(swirl, solve(swirl, x, method=method, steps=64).x, 1.0, 0.0, method=method, steps=64).x
    assert (back - x).abs().max() < error


@pytest.mark.parametrize("path", ALL_PATHS, ids=repr)
def test_a_mixture_s_flow_goes_back_to_its_noise(path: Path) -> None:
    velocity, x0 = MIXTURE.as_velocity(path), normal(16, 2)
    x1 = sample(velocity, x0, rtol=1e-9, atol=1e-9).x
    torch.testing.assert_close(solve(velocity, x1, 1.0, 0.0, rtol=1e-9, atol=1e-9).x, x0, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.1, 0.6)])
def test_halving_the_step_divides_the_error_by_2_to_the_order(method: Method, order: int, t0: float, t1: float) -> None:
    x = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)[:, None]
    exact = growth_solution(x, t1) / math.exp(math.sin(3 * t0))
    errors = [float((solve(growth, x, t0, t1, method=method, steps=n).x - exact).abs().max()) for n in (160, 320)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@fixed
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (0.9, 0.2)])
def test_steps_of_unequal_lengths_have_the_order_of_the_method(method: Method, t0: float, t1: float) -> None:
    x = normal(3, 2)

    def error(steps: int) -> float:
        grid = t0 + (t1 - t0) * (1 - (1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64)) ** 1.5)
        solution = solve(lambda x, t: 2 * t * x, x, t0, t1, method=method, grid=grid)
        assert solution.nfe == CALLS[method] * steps + EXTRA.get(method, 0)
        return float((solution.x - x * math.exp(t1**2 - t0**2)).abs().max())

    assert error(40) / error(80) == pytest.approx(2 ** ORDERS[method], rel=0.25)


@fixed
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (0.8, 0.25)])
def test_an_even_grid_is_as_many_steps(method: Method, t0: float, t1: float) -> None:
    x, grid = normal(3, 2), [t0 + (t1 - t0) * n / 8 for n in range(9)]
    by_grid = solve(swirl, x, t0, t1, method=method, grid=grid, save_at=[t0, 0.5, t1])
    by_steps = solve(swirl, x, t0, t1, method=method, steps=8, save_at=[t0, 0.5, t1])
    torch.testing.assert_close(by_grid.trajectory, by_steps.trajectory, rtol=0, atol=1e-14)
    assert by_grid.nfe == by_steps.nfe


@adaptive
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_adaptive_methods_meet_the_tolerance(method: Method, t0: float, t1: float) -> None:
    x = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)[:, None]
    exact = growth_solution(x, t1) / math.exp(math.sin(3 * t0))
    error = (solve(growth, x, t0, t1, method=method, rtol=1e-6, atol=1e-6).x - exact).abs().max()
    assert error < 3e-4 if method == "fehlberg2" else error < 2e-5


# Law 2: where and how often the velocity is called --------------------------------------------------------------------


@fixed
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("save_at", [None, [0.0, 0.3, 0.31, 1.0]])
def test_nfe_of_fixed_steps(method: Method, steps: int, save_at: list[float] | None) -> None:
    recorder = Recorder(swirl)
    solution = solve(recorder, normal(3, 2), method=method, steps=steps, save_at=save_at)
    assert solution.nfe == len(recorder.times) == CALLS[method] * steps + EXTRA.get(method, 0)


@adaptive
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_nfe_of_adaptive_methods(method: Method, tolerance: float) -> None:
    recorder = Recorder(swirl)
    solution = solve(recorder, normal(3, 2), method=method, rtol=tolerance, atol=tolerance)
    assert solution.nfe == len(recorder.times) > 5


@methods
def test_a_guided_velocity_counts_two_and_a_twice_guided_four(method: Method) -> None:
    y = torch.ones(3, dtype=torch.long)
    recorder = Recorder(swirl)
    once = solve(guided(recorder, 2.0, 0), normal(3, 2), y=y, **options(method))
    assert once.nfe == len(recorder.times) and once.nfe % 2 == 0
    recorder = Recorder(swirl)
    twice = solve(guided(guided(recorder, 2.0, 0), 2.0, 0), normal(3, 2), y=y, **options(method))
    assert twice.nfe == len(recorder.times) == 2 * once.nfe


FIELDS: dict[str, Any] = {
    "zero": lambda x, t: torch.zeros_like(x),
    "constant": lambda x, t: torch.ones_like(x),
    "nearly constant": lambda x, t: torch.ones_like(x) + 1e-9 * t,
    "tiny": lambda x, t: 1e-12 * x,
    "smooth": swirl,
    "stiff": lambda x, t: -200.0 * (x - torch.cos(6 * t)),
    "a late pulse": lambda x, t: 50 * torch.exp(-(((t - 0.99) / 0.01) ** 2)) * torch.ones_like(x),
    "rising": lambda x, t: x / (1.05 - t),
    "not smooth": lambda x, t: torch.sign(t - 0.437) * torch.ones_like(x),
}


@methods
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(("t0", "t1"), WINDOWS)
def test_the_velocity_is_never_called_outside_the_interval(method: Method, name: str, t0: float, t1: float) -> None:
    if name == "stiff" and t0 > t1:
        t0, t1 = 0.55, 0.5  # backward it grows by exp(200 t)
    recorder = Recorder(FIELDS[name])
    solution = solve(recorder, normal(3, 2), t0, t1, **options(method, steps=9, tolerance=1e-3))
    assert min(recorder.times) >= min(t0, t1) and max(recorder.times) <= max(t0, t1)
    assert recorder.times[0] == t0 and len(recorder.times) == solution.nfe


@methods
def test_in_float32_no_time_leaves_the_interval_by_more_than_its_own_rounding(method: Method) -> None:
    recorder = Recorder(swirl)
    solve(recorder, normal(3, 2).float(), 0.1, 0.7, **options(method, steps=9, tolerance=1e-4))
    low, high = float(torch.tensor(0.1, dtype=torch.float32)), float(torch.tensor(0.7, dtype=torch.float32))
    assert min(recorder.times) >= low and max(recorder.times) <= high


# Law 2: trajectories --------------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
def test_save_at_changes_neither_the_steps_nor_the_result(method: Method, t0: float, t1: float) -> None:
    x = normal(3, 2)
    plain, saving = Recorder(swirl), Recorder(swirl)
    without = solve(plain, x, t0, t1, **options(method))
    save_at = torch.linspace(t0, t1, 12, dtype=torch.float64)
    solution = solve(saving, x, t0, t1, save_at=save_at, **options(method))
    assert plain.times == saving.times and without.nfe == solution.nfe
    assert torch.equal(without.x, solution.x) and without.trajectory is None
    assert solution.trajectory is not None and solution.trajectory.shape == (12, 3, 2)
    assert torch.equal(solution.trajectory[-1], solution.x) and torch.equal(solution.trajectory[0], x)
    torch.testing.assert_close(solution.times, save_at)
    assert without.times.tolist() == [t0, t1]


@pytest.mark.parametrize("method", [method for method in FIXED if method != "ab3"])  # which remembers earlier steps
def test_states_saved_on_the_grid_are_the_steps_own(method: Method) -> None:
    x = normal(3, 2)
    grid = torch.linspace(0, 1, 9, dtype=torch.float64)
    trajectory = solve(swirl, x, method=method, steps=8, save_at=grid).trajectory
    assert trajectory is not None
    for n in range(1, 9):
        stepped = solve(swirl, trajectory[n - 1], float(grid[n - 1]), float(grid[n]), method=method, steps=1).x
        torch.testing.assert_close(trajectory[n], stepped, rtol=1e-12, atol=1e-12)


def dense_error(method: Method, back: bool = False, **how: Any) -> float:
    x = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)[:, None]
    times = torch.linspace(0, 1, 38, dtype=torch.float64)
    exact = torch.stack([growth_solution(x, float(t)) for t in times])
    if back:
        solution = solve(growth, exact[-1], 1.0, 0.0, method=method, save_at=times.flip(0), **how)
        exact = exact.flip(0)
    else:
        solution = solve(growth, x, method=method, save_at=times, **how)
    assert solution.trajectory is not None
    return float((solution.trajectory - exact).abs().max())


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 3), ("ab3", 3)])
def test_states_between_the_steps_are_exact_to_their_order(method: Method, order: int, back: bool) -> None:
    coarse, fine = dense_error(method, back, steps=40), dense_error(method, back, steps=160)
    assert coarse / fine > 0.8 * 4**order


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(
    ("method", "bound"),
    [("dopri5", 5e-6), ("adaptive_heun", 1e-5), ("dopri8", 1e-3), ("bosh3", 2e-3), ("fehlberg2", 2e-3)],
)
def test_states_between_adaptive_steps_are_as_exact_as_documented(method: Method, bound: float, back: bool) -> None:
    tolerance = 1e-6 if method != "dopri5" else 1e-7
    assert dense_error(method, back, rtol=tolerance, atol=tolerance) < bound


# Law 2: modes, gradients, compilation ---------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Dropout deep inside, one part frozen in eval mode, and a look at its own mode when called."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 2))
        self.frozen = nn.Sequential(nn.Dropout(0.5)).eval()
        self.modes: list[bool] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.modes += [module.training for module in self.modules()]
        return self.frozen(self.net(x))


@methods
@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: guided(v, 2.0, 0), lambda v: as_velocity(v, LinearPath(), "velocity")]
)
def test_the_model_runs_in_eval_mode_and_gets_its_modes_back(method: Method, wrap: Any) -> None:
    model = Noisy().train()
    model.frozen.eval()
    before = [module.training for module in model.modules()]
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    first = solve(wrap(model), x, y=y, **options(method, tolerance=1e-3)).x
    assert not any(model.modes) and model.modes
    assert [module.training for module in model.modules()] == before
    assert torch.equal(first, solve(wrap(model), x, y=y, **options(method, tolerance=1e-3)).x)  # no dropout


@methods
def test_modes_come_back_after_an_error(method: Method) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            raise ArithmeticError("failed inside")

    model = Failing().train()
    with pytest.raises(ArithmeticError, match="failed inside"):
        solve(model, torch.zeros(3, 2), **options(method))
    assert model.training


@methods
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (0.5, 0.5)])
def test_no_gradients_unless_asked(method: Method, t0: float, t1: float) -> None:
    model, x = MLP(2, hidden=8), torch.zeros(3, 2, requires_grad=True)
    save_at = None if t0 == t1 else [t0, 0.4, t1]
    solution = solve(model, x, t0, t1, save_at=save_at, **options(method, tolerance=1e-3))
    assert not solution.x.requires_grad
    assert solution.trajectory is None or not solution.trajectory.requires_grad
    assert x.requires_grad and all(p.requires_grad for p in model.parameters())


@methods
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_gradients_through_the_solver_are_those_of_the_flow(method: Method, t0: float, t1: float) -> None:
    # dx/dt = a x: x1 = x0 exp(a), so d x1 / d x0 = exp(a) and d x1 / d a = x0 exp(a).
    sign = t1 - t0
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.3]], dtype=torch.float64, requires_grad=True)
    end = solve(lambda x, t: rate * x, x, t0, t1, differentiable=True, **options(method, 2000, 1e-6)).x
    by_x, by_rate = torch.autograd.grad(end.sum(), (x, rate))
    tolerance = {"euler": 1e-3, "fehlberg2": 1e-3, "bosh3": 1e-4}.get(method, 1e-5)
    assert float(by_x) == pytest.approx(math.exp(sign * 0.7), rel=tolerance)
    assert float(by_rate) == pytest.approx(sign * 1.3 * math.exp(sign * 0.7), rel=tolerance)


@fixed
@pytest.mark.parametrize("save_at", [None, [0.0, 0.3, 1.0]])
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_torch_compile_takes_a_fixed_step_solve_whole(
    method: Method, save_at: list[float] | None, backend: str
) -> None:
    torch.compiler.reset()
    model, x = MLP(2, hidden=8), torch.randn(3, 2)

    def run(x: Tensor) -> Tensor:
        solution = solve(model, x, method=method, steps=3, save_at=save_at)
        return solution.x if solution.trajectory is None else solution.trajectory

    model.eval()
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend=backend)(x), run(x))


# What the velocity is given, and what comes out -----------------------------------------------------------------------


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_shape_are_kept(method: Method, dtype: torch.dtype) -> None:
    x = normal(2, 3, 4, 4).to(dtype)
    solution = solve(Recorder(lambda x, t: -x), x, save_at=[0, 0.5, 1], **options(method, tolerance=1e-2))
    assert isinstance(solution, Solution) and solution.trajectory is not None
    assert solution.x.dtype == solution.trajectory.dtype == dtype and solution.x.shape == x.shape
    assert solution.times.dtype == torch.promote_types(dtype, torch.float32)


@methods
def test_labels_reach_every_call_and_are_left_out_when_there_are_none(method: Method) -> None:
    recorder, y = Recorder(swirl), torch.tensor([1, 0, 2])
    solve(recorder, normal(3, 2), y=y, **options(method))
    assert all(label is y for label in recorder.labels)
    solve(lambda x, t: -x, normal(3, 2), **options(method))  # takes no labels at all


@methods
def test_an_empty_interval_or_batch_costs_nothing(method: Method) -> None:
    recorder, x = Recorder(swirl), normal(3, 2)
    assert torch.equal(solve(recorder, x, 0.3, 0.3, **options(method)).x, x)
    assert solve(recorder, x[:0], save_at=[0, 0.5, 1], **options(method)).trajectory.shape == (3, 0, 2)  # type: ignore[union-attr]
    assert recorder.times == []


@methods
def test_the_input_is_left_alone_also_when_it_is_not_contiguous(method: Method) -> None:
    x = normal(2, 3).T
    before = x.clone()
    result = solve(swirl, x, **options(method)).x
    assert torch.equal(x, before)
    torch.testing.assert_close(result, solve(swirl, x.contiguous(), **options(method)).x)


@fixed
def test_with_fixed_steps_a_point_does_not_depend_on_the_rest_of_its_batch(method: Method) -> None:
    x = normal(8, 2)
    together, alone = (solve(swirl, points, method=method, steps=8).x[:2] for points in (x, x[:2]))
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-14)


@adaptive
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adaptive_method_that_cannot_go_on_says_why(method: Method, dtype: torch.dtype) -> None:
    x = torch.ones(2, 2, dtype=dtype)
    with pytest.raises(RuntimeError, match=f"{method} failed.*not finite or changes too fast.*rtol"):
        solve(lambda x, t: x / (t - 0.5).clamp_min(0) * 0 + torch.where(t > 0.5, NAN, 1.0), x, method=method)


@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_that_end_in_nan_say_so(method: Method) -> None:
    x = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match=f"{method} with 4 steps ended with 2 of 4 numbers NaN or infinite"):
        solve(lambda x, t: x * torch.tensor([1.0, NAN]), x, method=method, steps=4)
    with pytest.raises(RuntimeError, match="the steps are too long"):
        solve(lambda x, t: 1e30 * x, x, method=method, steps=4)


def test_numpy_s_numbers_are_numbers_and_an_autocast_velocity_may_be_shorter() -> None:
    x = torch.ones(2, 2)
    solution = solve(lambda x, t: x, x, np.float64(0), np.float32(1), method="euler", steps=np.int64(2))  # type: ignore[arg-type]
    assert torch.equal(solution.x, solve(lambda x, t: x, x, method="euler", steps=2).x) and solution.x.dtype == x.dtype
    weight = torch.eye(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert solve(lambda x, t: x @ weight, x, method="euler", steps=1).x.dtype == torch.float32


X = torch.zeros(3, 2)
MISUSE = [
    ({"x": X.long()}, TypeError, "x: .*int64"),
    ({"x": [0.0]}, TypeError, "x: .*list"),
    ({"x": torch.tensor(0.0)}, ValueError, "x: .*dimensions"),
    ({"x": torch.tensor([[NAN, 0.0]])}, ValueError, "x: .*finite.*1 of .* NaN"),
    ({"x": torch.tensor([[INF, 0.0]])}, ValueError, "x: .*finite"),
    ({"velocity": 3}, TypeError, "velocity: .*callable.*int"),
    ({"velocity": lambda x, t: x[:, :1]}, ValueError, r"velocity\(x, t, y\): .*\(3, 2\).*\(3, 1\)"),
    ({"velocity": lambda x, t: 0.0}, TypeError, r"velocity\(x, t, y\): .*Tensor.*float"),
    ({"velocity": lambda x, t: x.double()}, TypeError, r"velocity\(x, t, y\): .*dtype of x, torch.float32.*float64"),
    ({"t0": -0.1}, ValueError, r"t0: .*-0\.1"),
    ({"t1": 1000}, ValueError, "t1: .*1000"),
    ({"t1": NAN}, ValueError, "t1"),
    ({"t0": "0"}, TypeError, "t0"),
    ({"t1": torch.tensor(1.0)}, TypeError, "t1"),
    ({"y": torch.zeros(2, dtype=torch.long)}, ValueError, r"y: expected a row for each of 3 samples; got shape \(2,\)"),
    ({"y": 7}, TypeError, "y: expected a tensor .* got 7"),
    ({"save_at": [0.0, 0.5]}, ValueError, "save_at: .*end at t1 = 1"),
    ({"save_at": [0.5, 1.0]}, ValueError, "save_at: .*start at t0 = 0"),
    ({"save_at": [1.0]}, ValueError, "save_at"),
    ({"save_at": []}, ValueError, "save_at"),
    ({"save_at": [0.0, 0.7, 0.3, 1.0]}, ValueError, "save_at: .*order"),
    ({"save_at": [0.0, 0.5, 0.5, 1.0]}, ValueError, "save_at: .*order"),
    ({"save_at": [0.0, NAN, 1.0]}, ValueError, "save_at: .*order"),
    ({"save_at": 1.0}, TypeError, "save_at: .*float"),
    ({"rtoll": 1e-3}, TypeError, "rtoll"),
]


@methods
@pytest.mark.parametrize(("change", "error", "message"), MISUSE)
def test_misuse_names_the_argument(
    method: Method, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"velocity": lambda x, t, y=None: x, "x": X, **options(method), **change}
    with pytest.raises(error, match=message):
        solve(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "rk45"}, ValueError, "method: .*'dopri5', 'euler'.*'rk45'"),
        ({"method": "euler"}, ValueError, "steps: euler takes fixed steps"),
        (
            {"method": "euler", "steps": 2, "grid": [0.0, 1.0]},
            ValueError,
            "grid: .*; got steps=2",
        ),
        ({"method": "dopri5", "grid": [0.0, 1.0]}, ValueError, "grid: dopri5 chooses its own steps"),
        ({"method": "euler", "grid": [0.0, 0.5]}, ValueError, "grid: expected times that start at t0 = 0 and end at"),
        ({"method": "euler", "grid": [0.0, 0.7, 0.7, 1.0]}, ValueError, "grid: expected times in strictly increasing"),
        ({"method": "euler", "grid": 10}, TypeError, "grid: expected a sequence of times; got int"),
        ({"method": "euler", "steps": 0}, ValueError, "steps: .*0"),
        ({"method": "euler", "steps": 2.0}, TypeError, "steps: .*2.0"),
        ({"method": "euler", "steps": True}, TypeError, "steps: .*True"),
        ({"method": "dopri5", "steps": 10}, ValueError, "steps: dopri5 chooses its own"),
        ({"rtol": 0.0}, ValueError, "rtol"),
        ({"atol": -1.0}, ValueError, "atol"),
        ({"atol": "small"}, TypeError, "atol"),
    ],
)
def test_misuse_of_the_method_names_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(lambda x, t: x, X, **change)


@pytest.mark.parametrize("name", ["t0", "t1"])
def test_sample_always_runs_from_0_to_1(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: sample runs from 0 to 1"):
        sample(lambda x, t: x, X, **{name: 0.5})  # type: ignore[arg-type]


def test_a_solve_can_be_mapped() -> None:
    x = normal(5, 2)
    found = torch.vmap(lambda z: sample(lambda x, t: -x, z[None], method="euler", steps=4).x[0])(x)
    torch.testing.assert_close(found, x * 0.75**4)


def test_a_compiled_solve_runs_a_module_in_eval_mode_too() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return self.drop(x)

    module = Dropping().train()
    solve_it = torch.compile(lambda z: sample(module, z, method="euler", steps=2).x, backend="eager", fullgraph=True)
    torch.testing.assert_close(solve_it(torch.ones(3, 2)), torch.full((3, 2), 2.25))
    assert module.training and module.drop.training


@pytest.mark.parametrize(("method", "tolerance"), [("bosh3", 1e-5), ("dopri8", 1e-5), ("dopri8", 1e-9)])
def test_between_the_steps_of_some_methods_the_state_is_less_exact_than_at_the_end(
    method: Method, tolerance: float
) -> None:
    velocity, x = eight_gaussians().as_velocity(LinearPath()), normal(50, 2)
    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    exact = sample(velocity, x, method="dopri5", rtol=1e-11, atol=1e-11, save_at=times).trajectory
    found = sample(velocity, x, method=method, rtol=tolerance, atol=tolerance, save_at=times).trajectory
    assert exact is not None and found is not None
    errors = (found - exact).abs().flatten(1).amax(1)
    assert 10 < float(errors[1:-1].max() / errors[-1]) < 1e5
