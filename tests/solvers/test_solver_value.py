"""One value says how a flow is solved, and one mechanism makes it of keywords, everywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ADAPTIVE, FIXED, METHODS, normal, options, seeded
from torch import Tensor

from flowbook import data, inversion, metrics, models
from flowbook.cnf import MaximumLikelihood, bits_of_images, log_prob, nll_loss
from flowbook.guidance import guided
from flowbook.paths import LinearPath
from flowbook.reflow import OnlinePairs, generate_pairs
from flowbook.solvers import Method, Solver, as_solver, sample, solve

GRID = [0.0, 0.1, 0.4, 1.0]


class Counting:
    """A smooth velocity that knows how often it is called, and when."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Any, y: Tensor | None = None) -> Tensor:
        self.times.append(float(torch.as_tensor(t).flatten()[0]))
        return torch.sin(x + torch.as_tensor(t).to(x.dtype))


# The value ------------------------------------------------------------------------------------------------------------


def test_without_a_method_steps_and_grids_take_midpoint_and_the_rest_dopri5() -> None:
    assert (Solver().method, Solver(rtol=1e-7).method) == ("dopri5", "dopri5")
    assert (Solver(steps=3).method, Solver(grid=GRID).method) == ("midpoint", "midpoint")


@pytest.mark.parametrize("method", METHODS)
def test_a_solver_is_read_back_from_its_word(method: Method) -> None:
    solver = Solver(**options(method, steps=7, tolerance=3e-4))
    assert Solver.parse(str(solver)) == solver and eval(repr(solver), {"Solver": Solver.parse}) == solver
    assert hash(Solver.parse(str(solver))) == hash(solver) and solver.fixed == (method in FIXED)


def test_a_grid_is_read_back_from_its_word_bit_for_bit() -> None:
    solver = Solver("heun", grid=1 - (1 - torch.linspace(0, 1, 6, dtype=torch.float64)) ** 1.5)
    assert Solver.parse(str(solver)) == solver


def test_a_solver_cannot_be_changed_but_copied_with_a_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Solver().rtol = 1e-3  # type: ignore[misc]
    assert dataclasses.replace(Solver(), method="rk4", steps=3) == Solver("rk4", steps=3)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": "rk45"}, ValueError, "method: expected one of 'dopri5', 'euler'.*; got 'rk45'"),
    ({"method": "euler"}, ValueError, "steps: euler takes fixed steps; expected their number"),
    ({"method": "euler", "steps": 0}, ValueError, "steps: .*0"),
    ({"method": "euler", "steps": 2.0}, TypeError, r"steps: .*2\.0"),
    ({"method": "euler", "steps": 2, "grid": GRID}, ValueError, "grid: .*got steps=2 as well"),
    ({"method": "dopri5", "steps": 2}, ValueError, "steps: dopri5 chooses its own steps.*got steps=2"),
    ({"method": "dopri8", "grid": GRID}, ValueError, "grid: dopri8 chooses its own steps"),
    ({"method": "rk4", "steps": 2, "rtol": 1e-3}, ValueError, r"rtol: rk4 takes fixed steps.*rtol=0\.001"),
    ({"method": "rk4", "steps": 2, "max_calls": 9}, ValueError, "max_calls: rk4 takes fixed steps"),
    ({"rtol": 0.0}, ValueError, "rtol"),
    ({"atol": math.nan}, ValueError, "atol"),
    ({"max_calls": 0}, ValueError, "max_calls: .*0"),
    ({"grid": [0.0]}, ValueError, "grid: expected at least two times"),
    ({"grid": [0.0, 2.0]}, ValueError, r"grid: expected times in \[0, 1\]"),
    ({"grid": [0.0, 0.5, 0.5, 1.0]}, ValueError, "grid: expected times in strictly increasing"),
    ({"grid": 5}, TypeError, "grid: expected a sequence of times; got int"),
]


@pytest.mark.parametrize(("fields", "error", "message"), WRONG)
def test_law_11_a_solver_that_cannot_be_is_named(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Solver(**fields)


@pytest.mark.parametrize("word", ["", "rk4:10", "rk4:steps=ten", "rk4:steps=1,steps=2", "rk4:order=4", "rk4:steps"])
def test_law_11_a_word_that_is_no_solver_is_named(word: str) -> None:
    with pytest.raises(ValueError, match=r"^(method|solver|steps): "):
        Solver.parse(word)
    with pytest.raises(TypeError, match="solver: expected a string"):
        Solver.parse(4)  # type: ignore[arg-type]


# The mechanism --------------------------------------------------------------------------------------------------------

RK4, ADAPTIVELY = Solver("rk4", steps=50), Solver()


@pytest.mark.parametrize(
    ("given", "default", "meant"),
    [
        ({}, RK4, RK4),
        ({}, ADAPTIVELY, ADAPTIVELY),
        ({"steps": 4}, RK4, Solver("rk4", steps=4)),
        ({"steps": 4}, ADAPTIVELY, Solver("midpoint", steps=4)),
        ({"grid": GRID}, ADAPTIVELY, Solver("midpoint", grid=GRID)),
        ({"method": "heun"}, RK4, Solver("heun", steps=50)),
        ({"method": "dopri8"}, RK4, Solver("dopri8")),
        ({"rtol": 1e-3}, RK4, Solver("dopri5", rtol=1e-3)),
        ({"max_calls": 9}, ADAPTIVELY, Solver(max_calls=9)),
        ({"method": None, "steps": None}, RK4, RK4),
        ({"solver": Solver("euler", steps=1)}, RK4, Solver("euler", steps=1)),
    ],
)  # fmt: skip
def test_what_is_not_said_is_the_default_s(given: dict[str, Any], default: Solver, meant: Solver) -> None:
    assert as_solver(given, default) == meant  # type: ignore[arg-type]


X = normal(6, 2)
IMAGES = torch.zeros(2, 1, 28, 28)
ZEROS = torch.zeros(6, dtype=torch.long)


def draw(folder: Path, **how: Any) -> Any:
    return generate_pairs(Counting(), (2,), 8, folder, name="counting", **how).batch(torch.arange(8))[1]


EVERYWHERE: dict[str, Callable[..., Any]] = {
    "solve": lambda v, **how: solve(v, X, **how).x,
    "sample": lambda v, **how: sample(v, X, **how).x,
    "invert": lambda v, **how: inversion.invert(v, X, **how).x,
    "round_trip": lambda v, **how: inversion.round_trip(v, X, **how).reconstruction,
    "interpolate": lambda v, **how: inversion.interpolate(v, X, 1 + X, 3, **how).x,
    "edit": lambda v, **how: inversion.edit(v, X, ZEROS, ZEROS + 1, **how).x,
    "denoise": lambda v, **how: inversion.denoise(v, X, noise_std=1.0, path=LinearPath(), estimate="ode", **how).x,
    "anomaly": lambda v, **how: inversion.anomaly_score(v, X, "latent_norm", **how),
    "log_prob": lambda v, **how: log_prob(v, X, **how).log_prob,
    "log_prob on nodes": lambda v, **how: log_prob(v, X, nodes=4, **how).log_prob,
    "nll_loss": lambda v, **how: nll_loss(v, X, **how),
    "MaximumLikelihood": lambda v, **how: MaximumLikelihood(**how)(v, X),
    "bits_of_images": lambda v, **how: bits_of_images(v, IMAGES, levels=3, **how),
    "OnlinePairs": lambda v, **how: OnlinePairs(v, (2,), **how).sample(4, seeded())[1],
}  # fmt: skip


@pytest.mark.parametrize("use", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_solver_and_its_fields_are_the_same_everywhere_grids_included(use: Callable[..., Any]) -> None:
    for fields in ({"method": "heun", "steps": 3}, {"method": "rk4", "grid": GRID}, {"method": "bosh3", "rtol": 1e-3}):
        a, b = Counting(), Counting()
        assert torch.equal(use(a, **fields), use(b, solver=Solver(**fields)))
        assert a.times == b.times and len(a.times) > 0


@pytest.mark.parametrize("use", EVERYWHERE.values(), ids=EVERYWHERE)
def test_law_11_misuse_of_the_mechanism_is_named_everywhere_before_anything_is_solved(use: Callable[..., Any]) -> None:
    for how, error, message in (
        ({"solver": Solver(), "steps": 3}, TypeError, "solver: expected either a solver or its fields"),
        ({"solver": "rk4:steps=3"}, TypeError, "solver: expected a Solver such as"),
        ({"stepz": 3}, TypeError, "stepz"),
        ({"method": "rk45"}, ValueError, "method: .*rk45"),
    ):
        velocity = Counting()
        with pytest.raises(error, match=message):
            use(velocity, **how)
        assert velocity.times == []


def test_pairs_images_and_scores_take_a_solver_too(tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [{"method": "heun", "steps": 3}, {"method": "rk4", "grid": GRID}]
    for n, fields in enumerate(ways):
        a, b = draw(tmp_path / f"a{n}", **fields), draw(tmp_path / f"b{n}", solver=Solver(**fields))
        assert torch.equal(a, b)
    images = data.generate_images(Counting(), (1, 4, 4), 4, tmp_path / "images", name="v", grid=GRID)
    assert images.manifest["solver"] == "midpoint:grid=0.0/0.1/0.4/1.0"
    judge, reference = models.load_classifier("digits"), None
    velocity = models.load_pretrained("digits")
    reference = metrics.moments(models.features_and_labels(judge, data.digits("test")[0])[0])
    scores = metrics.score_velocity(velocity, judge, reference, n=80, solver=Solver("euler", steps=2))
    assert scores.solver == "euler:steps=2" and scores.nfe == 2


# What it does ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_walked_in_the_direction_of_the_solve() -> None:
    there, back = Counting(), Counting()
    sample(there, X, method="euler", grid=GRID)
    inversion.invert(back, X, method="euler", grid=GRID)
    assert there.times == pytest.approx(GRID[:-1]) and back.times == pytest.approx(GRID[:0:-1])
    assert inversion.round_trip(Counting(), X, method="rk4", grid=torch.linspace(0, 1, 60)).error.max() < 1e-6


def test_of_a_grid_an_edit_walks_the_part_up_to_the_turn() -> None:
    velocity, y = Counting(), torch.zeros(6, dtype=torch.long)
    inversion.edit(velocity, X, y, y, strength=0.7, method="euler", grid=GRID)
    assert velocity.times == pytest.approx([1.0, 0.4, 0.3, 0.4])
    assert Solver("euler", grid=GRID).between(0.3, 1.0).grid == (0.3, 0.4, 1.0)
    with pytest.raises(ValueError, match=r"grid: expected times that cover 0 to 0\.5"):
        Solver("euler", grid=[0.2, 0.5]).between(0.0, 0.5)


def test_a_grid_of_other_ends_is_refused() -> None:
    for grid in ([0.0, 0.5], [0.1, 1.0]):
        with pytest.raises(ValueError, match="grid: expected times that start at t0 = 0 and end at t1 = 1"):
            sample(Counting(), X, grid=grid)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_an_adaptive_method_stops_at_max_calls_and_says_where(method: Method, ends: tuple[float, float]) -> None:
    stiff = Counting()
    with pytest.raises(RuntimeError, match=rf"max_calls: {method} has used up its 50 evaluations at t = .*Allow more"):
        solve(lambda x, t: -1e6 * stiff(x, t), X, *ends, method=method, max_calls=50)
    assert len(stiff.times) == 50
    smooth = solve(Counting(), X, *ends, method=method, rtol=1e-3, atol=1e-3, max_calls=5000)
    assert smooth.nfe <= 5000


def test_likelihoods_and_the_adjoint_stop_at_max_calls() -> None:
    class Stiff(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = torch.nn.Parameter(torch.tensor(1e6, dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return -self.k * torch.sin(x)

    with pytest.raises(RuntimeError, match="max_calls: dopri5 has used up its 60"):
        log_prob(Stiff(), X, method="dopri5", max_calls=60)
    with pytest.raises(RuntimeError, match="max_calls: dopri5 has used up its 60"):
        nll_loss(Stiff(), X, gradient="adjoint", max_calls=60)


# Half precision -------------------------------------------------------------------------------------------------------

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("method", FIXED)
def test_a_solve_in_half_agrees_with_float32_to_its_own_resolution(
    dtype: torch.dtype, steps: int, method: Method
) -> None:
    x = (torch.arange(8.0).reshape(4, 2) - 3.5) / 2
    exactly = {
        "constant": lambda x, t: torch.ones_like(x),
        "smooth": lambda x, t: (0.5 * torch.cos(3 * t)).to(x.dtype) - 0.3 * x,
    }
    for field in exactly.values():
        whole = solve(field, x, method=method, steps=steps).x
        half = solve(field, x.to(dtype), method=method, steps=steps)
        assert half.x.dtype == dtype
        # One rounding of the result, and of the velocity at each call, whose errors are averaged by the integral.
        torch.testing.assert_close(half.x.float(), whole, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALF)
def test_an_adaptive_solve_in_half_and_its_latents_move_as_in_float32(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, dtype=dtype)
    assert float(solve(lambda x, t: torch.ones_like(x), x, rtol=1e-3, atol=1e-3).x) == 1.0
    trip = inversion.round_trip(lambda x, t: torch.ones_like(x), x, method="heun", steps=1000)
    assert float(trip.latent) == -1.0 and float(trip.error) < 1e-4  # once 0.99 and 0.11


@pytest.mark.parametrize("dtype", HALF)
def test_the_network_sees_its_own_dtype_and_a_time_in_float32(dtype: torch.dtype) -> None:
    seen = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype))
        return -x

    solution = solve(field, torch.ones(2, 2, dtype=dtype), method="rk4", steps=2, save_at=[0.0, 0.3, 1.0])
    assert set(seen) == {(dtype, torch.float32)}
    assert solution.trajectory is not None and solution.trajectory.dtype == dtype


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["mlp", "unet", "dit"])
def test_the_package_s_networks_take_half_and_know_the_time_as_well_as_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    makes: dict[str, Any] = {
        "mlp": lambda: models.MLP(2, hidden=16),
        "unet": lambda: models.UNet(1, 8, width=8, multipliers=(1, 2), blocks=1),
        "dit": lambda: models.DiT(1, 8, width=32, depth=1, heads=2),
    }
    network = makes[name]()
    x = torch.randn(4, 2) if name == "mlp" else torch.randn(4, 1, 8, 8)
    whole = sample(network, x, method="heun", steps=8).x
    half = sample(network.to(dtype), x.to(dtype), method="heun", steps=8).x
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), whole, rtol=0.05, atol=0.05)
    embedding = network.time if name == "mlp" else network.time[0]
    a, b = (embedding(torch.tensor([t])) for t in (0.5, 0.5004))  # the same number in bfloat16
    assert a.dtype == torch.float32 and not torch.equal(a, b)


def test_a_density_in_half_is_accumulated_in_float32() -> None:
    x = torch.full((3, 2), 0.5, dtype=torch.bfloat16)
    result = log_prob(lambda x, t: 0.25 * x, x, method="rk4", steps=200)
    exact = log_prob(lambda x, t: 0.25 * x, x.double(), method="rk4", steps=200).log_prob
    assert result.log_prob.dtype == torch.float32 and result.latent.dtype == torch.bfloat16
    torch.testing.assert_close(result.log_prob.double(), exact, rtol=0, atol=5e-3)


def test_a_guided_velocity_names_no_null_where_the_model_does() -> None:
    network = models.load_pretrained("digits")
    assert guided(network, 2.0).null == guided(network, 2.0, 10).null == 10
