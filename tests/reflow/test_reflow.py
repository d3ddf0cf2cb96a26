"""Reflow: times, losses against a batch worked out by hand, straighter paths, and students of few steps."""

from __future__ import annotations

import copy
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import NAN, normal, randomized, seeded
from torch import Tensor, nn

from flowbook import metrics, reflow
from flowbook._core import keyed
from flowbook.analytic import two_gaussians
from flowbook.flow_matching import flow_matching_loss
from flowbook.models import MLP
from flowbook.paths import LinearPath
from flowbook.reflow import (  # fmt: skip
    OnlinePairs,
    PairDataset,
    Reflow,
    Times,
    curvature,
    distill,
    encode,
    rectify,
    reflow_loss,
    reflow_times,
    straightness,
    transport_cost,
)
from flowbook.solvers import sample
from flowbook.training import TrainConfig


def constant(c: float) -> Any:
    return lambda x, t, y=None: torch.full_like(x, c)


def mean_absolute(a: Tensor, b: Tensor) -> Tensor:
    """A distance that is no network: the mean absolute difference of each sample."""
    return (a - b).abs().flatten(1).mean(1)


# Times ----------------------------------------------------------------------------------------------------------------


def test_t0_is_the_first_time_and_t1_the_last() -> None:
    assert torch.equal(reflow_times("t0", 4, eps=0.25), torch.full((4,), 0.25))
    assert torch.equal(reflow_times("t1", 4, eps=0.25), torch.ones(4))
    assert float(reflow_times("t0", 1)) == pytest.approx(1e-3)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.2])
@pytest.mark.parametrize("k", [1, 2, 3, 16])
def test_k_times_are_even_from_eps_alike_often_and_never_1(k: int, eps: float) -> None:
    t = reflow_times(k, 4000, eps=eps, generator=seeded(), like=torch.empty(0, dtype=torch.float64))
    wanted = torch.tensor([eps + j * (1 - eps) / k for j in range(k)], dtype=torch.float64)
    place = (t[:, None] - wanted).abs().argmin(1)
    torch.testing.assert_close(t, wanted[place], rtol=0, atol=1e-12)
    share = place.bincount(minlength=k) / len(t)
    assert (share - 1 / k).abs().max() < 4 * math.sqrt(1 / k / len(t))


def test_uniform_times_fill_eps_to_1() -> None:
    t = reflow_times("uniform", 20_000, eps=0.2, generator=seeded())
    assert 0.2 <= t.min() < 0.21 and 0.99 < t.max() <= 1
    assert abs(float(t.mean()) - 0.6) < 0.01 and abs(float(t.std()) - 0.8 / math.sqrt(12)) < 0.01


@pytest.mark.parametrize("times", ["uniform", 4])
def test_times_belong_to_the_sample_and_not_to_the_process(times: Times | int) -> None:
    with keyed.keyed(seed=1, step=2, first=0):
        whole = reflow_times(times, 20)
    with keyed.keyed(seed=1, step=2, first=12):
        part = reflow_times(times, 8)
    assert torch.equal(whole[12:], part) and len(whole.unique()) > 3
    assert torch.equal(reflow_times(times, 9, generator=seeded()), reflow_times(times, 9, generator=seeded()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"times": "t2"}, ValueError, "times: expected 'uniform', 't0', 't1' or a number of times.*'t2'"),
        ({"times": 0}, ValueError, "times: .*0"),
        ({"times": 2.0}, ValueError, r"times: .*2\.0"),
        ({"times": True}, ValueError, "times: .*True"),
        ({"times": None}, ValueError, "times: .*None"),
        ({"eps": 1.0}, ValueError, "eps: .*1"),
        ({"eps": -0.1}, ValueError, r"eps: .*-0\.1"),
        ({"eps": NAN}, ValueError, "eps: .*nan"),
        ({"batch": 2.5}, TypeError, r"batch: .*2\.5"),
        ({"generator": 0}, TypeError, "generator: .*0"),
    ],
)
def test_law_11_wrong_times_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults: dict[str, Any] = {"times": "uniform", "batch": 4}
    with pytest.raises(error, match=message):
        reflow_times(**defaults | arguments)


# The loss, against numbers worked out by hand -------------------------------------------------------------------------
# Two pairs of three dimensions, and the velocity v = 2 x + t + y. At times='t0' with eps = 1/4 the states are
#   x_t = x0 + (x1 - x0)/4: (1, 2, 0) + (2, -2, 4)/4 = (1.5, 1.5, 1) and (0, -1, 0) + (-1, 1, 4)/4 = (-.25, -.75, 1)
# so v (labels 0 and 3)   : (3.25, 3.25, 2.25)                       and (2.75, 1.75, 5.25)
# and v - (x1 - x0)       : (1.25, 5.25, -1.75)                      and (3.75, 0.75, 1.25)

X0 = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
X1 = torch.tensor([[3.0, 0.0, 4.0], [-1.0, 0.0, 4.0]], dtype=torch.float64)
Y = torch.tensor([0, 3])
SQUARES = 1.25**2 + 5.25**2 + 1.75**2 + 3.75**2 + 0.75**2 + 1.25**2
MEAN, HALF_SUM = SQUARES / 3 / 2, 0.5 * SQUARES / 2
SEEN = (1.25 + 5.25 + 1.75 + 3.75 + 0.75 + 1.25) / 3 / 2  # of x0 + v from x1: the same differences

BY_HAND: list[tuple[dict[str, Any], float]] = [
    ({}, MEAN),
    ({"reduce_mean": False}, HALF_SUM),
    ({"distance": "lpips", "perceptual": mean_absolute}, SEEN),
    ({"distance": "lpips", "perceptual": mean_absolute, "reduce_mean": False}, SEEN),
    ({"distance": "lpips+l2", "perceptual": mean_absolute}, MEAN + SEEN),
    ({"distance": "lpips+l2", "perceptual": mean_absolute, "reduce_mean": False}, HALF_SUM + SEEN),
]


def linear(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    column = (-1, *[1] * (x.dim() - 1))
    return 2 * x + t.reshape(column) + (0 if y is None else y.reshape(column))


@pytest.mark.parametrize(("options", "wanted"), BY_HAND)
def test_the_loss_of_a_batch_is_the_one_worked_out_by_hand(options: dict[str, Any], wanted: float) -> None:
    value = reflow_loss(linear, X0, X1, y=Y, times="t0", eps=0.25, **options)
    assert value.shape == () and float(value) == pytest.approx(wanted, rel=1e-12)
    assert float(Reflow(times="t0", eps=0.25, **options)(linear, (X0, X1, Y))) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3), (1, 6, 6)])
@pytest.mark.parametrize("times", ["uniform", "t0", "t1", 3])
@pytest.mark.parametrize("reduce_mean", [True, False])
def test_the_loss_of_every_time_schedule_is_that_of_a_loop_over_samples_and_dimensions(
    shape: tuple[int, ...], times: Times | int, reduce_mean: bool
) -> None:
    x0, x1, y = normal(6, *shape), normal(6, *shape, seed=1), torch.arange(6)
    with keyed.keyed(seed=0, step=0, first=0):
        value = reflow_loss(linear, x0, x1, y=y, times=times, reduce_mean=reduce_mean, eps=0.1)
    with keyed.keyed(seed=0, step=0, first=0):
        t = reflow_times(times, 6, eps=0.1, like=x1).tolist()
    losses = []
    for n in range(6):
        squares = []
        for a, b in zip(x0[n].flatten().tolist(), x1[n].flatten().tolist(), strict=True):
            v = 2 * (t[n] * b + (1 - t[n]) * a) + t[n] + n
            squares.append((v - (b - a)) ** 2)
        losses.append(sum(squares) / len(squares) if reduce_mean else 0.5 * sum(squares))
    assert float(value) == pytest.approx(sum(losses) / 6, rel=1e-12)


def test_half_the_sum_has_the_difference_as_its_gradient() -> None:
    v = X0.clone().requires_grad_()
    reflow_loss(lambda x, t: v, X0, X1, times="t0", reduce_mean=False).backward()
    torch.testing.assert_close(v.grad, (X0 - (X1 - X0)) / 2)  # of the batch's mean


def test_with_fresh_noise_it_is_the_loss_of_flow_matching() -> None:
    x1 = normal(64, 3)
    with keyed.keyed(seed=0, step=0, first=0):
        ours = reflow_loss(linear, None, x1, eps=0.0)
    with keyed.keyed(seed=0, step=0, first=0):
        theirs = flow_matching_loss(linear, x1)
    torch.testing.assert_close(ours, theirs)


def test_the_model_s_time_is_t_itself() -> None:
    seen = []
    reflow_loss(lambda x, t: seen.append(t) or x, X0, X1, times="t1")  # type: ignore[func-returns-value]
    assert torch.equal(seen[0], torch.ones(2, dtype=torch.float64))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"distance": "lpips", "perceptual": mean_absolute}, ValueError, "times: distance='lpips' .* only at times='t0'.*"),
    ({"distance": "lpips", "perceptual": mean_absolute, "times": "t1"}, ValueError, "got times='t1'"),
    ({"distance": "lpips+l2", "perceptual": mean_absolute, "times": 2}, ValueError, "got times=2"),
    ({"distance": "lpips", "times": "t0"}, ValueError, r"perceptual: distance='lpips' needs a function.*LPIPS\(\)"),
    ({"distance": "lpips", "times": "t0", "perceptual": "alex"}, TypeError, "perceptual: .*'alex'"),
    ({"perceptual": mean_absolute}, ValueError, "perceptual: distance='l2' does not use it"),
    ({"distance": "l1"}, ValueError, "distance: .*'lpips[+]l2'.*'l1'"),
    ({"distance": "l2+lpips"}, ValueError, "distance: .*'l2[+]lpips'"),
    ({"times": "t"}, ValueError, "times: .*'t'"),
    ({"eps": 2}, ValueError, "eps: .*2"),
    ({"reduce_mean": 1}, TypeError, "reduce_mean: .*1"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_options_that_do_not_go_together_are_refused_with_the_reason(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for make in (lambda: reflow_loss(linear, X0, X1, **options), lambda: Reflow(**options)):
        with pytest.raises(error, match=message):
            make()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x0": X0[:1]}, ValueError, r"x0: expected the shape of x1, \(2, 3\); got \(1, 3\)"),
        ({"x1": X1[0]}, ValueError, "x1: expected at least 2 dimensions"),
        ({"x1": X1.long()}, TypeError, "x1: .*int64"),
        ({"y": torch.zeros(3, dtype=torch.long)}, ValueError, r"y: .*\(3,\)"),
        ({"velocity": lambda x, t: x[:, :1]}, ValueError, r"velocity\(xt, t, y\): .*\(2, 1\)"),
        (
            {"distance": "lpips", "times": "t0", "perceptual": lambda a, b: (a - b).abs().mean()},
            ValueError, r"perceptual\(x0 \+ v, x1\): .*\(2,\); got \(\)",
        ),
    ],
)  # fmt: skip
def test_law_11_what_does_not_fit_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults: dict[str, Any] = {"velocity": linear, "x0": X0, "x1": X1}
    with pytest.raises(error, match=message):
        reflow_loss(**defaults | arguments)


def test_reflow_refuses_a_batch_without_its_noise() -> None:
    with pytest.raises(ValueError, match=r"batch: Reflow learns from pairs .* use FlowMatching\(\)"):
        Reflow()(linear, X1)


# Law 1 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, -1.5])
@pytest.mark.parametrize("times", ["uniform", "t0", "t1", 5])
def test_law_1_pairs_of_a_constant_velocity_are_learned_by_it_alone(c: float, times: Times | int) -> None:
    x0 = normal(16, 2, 3)
    assert float(reflow_loss(constant(c), x0, x0 + c, times=times)) < 1e-30
    assert float(reflow_loss(constant(-c - 1), x0, x0 + c, times=times)) == pytest.approx((2 * c + 1) ** 2)
    pairs = OnlinePairs(constant(c), (2, 3), method="euler", steps=1)
    assert float(Reflow(times=times)(constant(c), pairs.sample(8))) < 1e-12


@pytest.mark.parametrize("c", [0.0, 2.0])
def test_law_1_the_encoder_moves_data_back_by_a_constant(c: float) -> None:
    x1 = normal(5, 3)
    torch.testing.assert_close(encode(constant(c), x1), x1 - c, rtol=0, atol=1e-15)
    assert straightness(constant(c), x1, steps=7) < 1e-25
    assert float(curvature(constant(c), x1, steps=7)[1].max()) == 0
    assert transport_cost(x1, x1 + c) == pytest.approx(3 * c**2)


def test_the_encoder_asks_at_t_1_with_the_labels() -> None:
    x1, y = normal(3, 2), torch.tensor([0, 4, 2])
    torch.testing.assert_close(encode(linear, x1, y=y), x1 - (2 * x1 + 1 + y[:, None]))


# Measures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 1.5, 2, 4])
def test_the_transport_cost_is_the_mean_power_of_the_distance_over_all_dimensions(power: float) -> None:
    x0 = torch.zeros(2, 1, 2, 2)
    x1 = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]], [[[0.0, 0.0], [1.0, 0.0]]]])
    assert transport_cost(x0, x1, power=power) == pytest.approx((5**power + 1) / 2)
    assert transport_cost(x0, x1) == pytest.approx(13)


@pytest.mark.parametrize("a", [1.0, -2.0])
def test_curvature_is_the_squared_acceleration_along_the_path(a: float) -> None:
    # x' = a x moves x0 to x0 exp(a t), whose second derivative is a^2 x0 exp(a t).
    x0 = normal(50, 3)
    times, values = curvature(lambda x, t: a * x, x0, steps=200)
    assert times.shape == values.shape == (200,) and times[0] == 0.0025 and times[-1] == 0.9975
    wanted = a**4 * x0.square().sum(1).mean() * torch.exp(2 * a * times)
    torch.testing.assert_close(values, wanted, rtol=1e-4, atol=0)


def test_curvature_is_there_where_the_path_bends() -> None:
    times, values = curvature(lambda x, t: torch.where(t < 0.5, 1.0, 3.0) * torch.ones_like(x), normal(4, 2), steps=10)
    assert values.argmax() in (4, 5) and int((values > 0).sum()) == 1 and abs(float(times[values.argmax()]) - 0.5) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transport_cost(X0, X1[:1]), "x1: expected the shape of x0"),
        (lambda: transport_cost(X0 * NAN, X1), "x0: expected finite numbers"),
        (lambda: transport_cost(X0, X1, power=0), "power: .*0"),
        (lambda: curvature(linear, X0, steps=0), "steps: .*0"),
        (lambda: curvature(linear, X0 * NAN, steps=1), "x: expected finite numbers"),
        (lambda: encode(linear, X0 * NAN), "x: expected finite numbers"),
    ],
)
def test_law_11_measures_name_what_is_wrong(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_module_s_names_are_those_of_the_contract() -> None:
    assert straightness is metrics.straightness
    for name in ("generate_pairs", "PairDataset", "OnlinePairs", "rectify", "distill"):
        assert callable(getattr(reflow, name))


# Law 9: the method ----------------------------------------------------------------------------------------------------

SOLVER: dict[str, Any] = {"method": "rk4", "steps": 20, "batch_size": 1000}
PLANE = TrainConfig(steps=1500, batch_size=256, learning_rate=0.01, warmup_steps=50, ema_half_life=30_000.0)


@pytest.fixture(scope="module")
def two_rounds() -> dict[str, Any]:
    """From the exact velocity from N(0, I) to two Gaussians: the flows, and where each leads the same noise."""
    exact = two_gaussians().as_velocity(LinearPath())
    torch.manual_seed(0)
    student = MLP(2, hidden=64)
    flows: list[Any] = [exact, *rectify(exact, (2,), 2, PLANE, n=10_000, student=student, name="exact", **SOLVER)]
    x0 = torch.randn(4000, 2, generator=seeded(7))
    ends = [sample(flow, x0, method="rk4", steps=50).x for flow in flows]
    return {"flows": flows, "x0": x0, "ends": ends}


def test_law_9_one_round_straightens_the_flow_of_two_gaussians(two_rounds: dict[str, Any]) -> None:
    first, once, twice = (straightness(flow, two_rounds["x0"], steps=50) for flow in two_rounds["flows"])
    assert first > 1 and once < first / 50 and twice < first / 50


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 4.0])
def test_law_9_no_round_raises_the_transport_cost(two_rounds: dict[str, Any], power: float) -> None:
    x0, ends = two_rounds["x0"], two_rounds["ends"]
    independent = transport_cost(x0, two_gaussians().sample(4000, seeded(8)), power=power)
    costs = [transport_cost(x0, x1, power=power) for x1 in ends]
    assert costs[0] < 0.95 * independent  # rectifying the independent pairs is a round as well
    assert costs[1] < 1.005 * costs[0] and costs[2] < 1.005 * costs[1]


def test_law_9_the_data_stay_what_they_were_and_one_step_reaches_them(two_rounds: dict[str, Any]) -> None:
    truth, x0 = two_gaussians().sample(1000, seeded(9)), two_rounds["x0"][:1000]
    exact, *simulated = (metrics.wasserstein2(x1[:1000], truth) for x1 in two_rounds["ends"])
    ends = [sample(flow, x0, method="euler", steps=1).x for flow in two_rounds["flows"]]
    coarse, *one_step = (metrics.wasserstein2(x1, truth) for x1 in ends)
    assert coarse > 3 * exact
    assert max(simulated + one_step) < 1.1 * exact


def test_rectify_leaves_the_velocity_alone_and_starts_each_round_where_the_last_one_ended() -> None:
    first = randomized(MLP(2, hidden=16))
    before = copy.deepcopy(first.state_dict())
    still = TrainConfig(steps=1, batch_size=8, learning_rate=1e-12)
    once, twice = rectify(first, (2,), 2, still, n=50, **SOLVER)
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())
    assert once is not twice is not first and not once.training
    for flow in (once, twice):
        for name, value in flow.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


def test_each_round_has_pairs_of_its_own_noise_from_the_last_round_s_averaged_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TrainConfig(steps=4, batch_size=8, checkpoint_every=2)
    flows = rectify(MLP(2, hidden=16, num_classes=3), (2,), 2, config, n=60, y=torch.arange(60) % 3, out=tmp_path,
                    **SOLVER)  # fmt: skip
    pairs = [PairDataset(tmp_path / f"round_{k}" / "pairs") for k in (1, 2)]
    (x0, _, y), (other_x0, other_x1, other_y) = (one.batch(torch.arange(60)) for one in pairs)
    assert not torch.equal(x0, other_x0) and torch.equal(y, other_y)
    wanted = sample(flows[0], other_x0, y=other_y, method="rk4", steps=20).x
    torch.testing.assert_close(other_x1, wanted, rtol=0, atol=1e-6)


def test_law_10_rounds_that_were_interrupted_go_on_bit_for_bit(tmp_path: Path) -> None:
    def run(out: Path, rounds: int) -> list[nn.Module]:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="out: the run in .* is at step 6 already")
            return rectify(MLP(2, hidden=16), (2,), rounds, TrainConfig(steps=6, batch_size=8), n=40, out=out, **SOLVER)

    run(tmp_path / "a", 1)
    resumed, whole = run(tmp_path / "a", 2), run(tmp_path / "b", 2)
    for ours, theirs in zip(resumed, whole, strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_distilled_student_does_in_k_steps_what_the_teacher_did_in_many(steps: int) -> None:
    def teacher(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:  # turns the plane by a quarter
        return math.pi / 2 * torch.stack([-x[:, 1], x[:, 0]], dim=1)

    pairs = OnlinePairs(teacher, (2,), method="rk4", steps=20)
    torch.manual_seed(0)
    start = MLP(2, hidden=64)
    before = copy.deepcopy(start.state_dict())
    student = distill(start, pairs, TrainConfig(steps=600, batch_size=256, learning_rate=0.01), steps=steps)
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())
    x0 = torch.randn(500, 2, generator=seeded())
    x1 = torch.stack([-x0[:, 1], x0[:, 0]], dim=1)
    ours, theirs = (sample(one, x0, method="euler", steps=steps).x for one in (student, teacher))
    error = [float((x - x1).square().mean().sqrt()) for x in (ours, theirs)]
    assert error[0] < 0.1 and error[0] < 0.5 * error[1]


def test_distillation_takes_every_distance() -> None:
    torch.manual_seed(0)
    pairs = (torch.zeros(64, 2), torch.full((64, 2), 1.5), None)
    config = TrainConfig(steps=200, batch_size=32, learning_rate=0.02)
    for distance in ("lpips", "lpips+l2"):
        student = distill(MLP(2, hidden=16), pairs, config, distance=distance, perceptual=mean_absolute)
        x1 = sample(student, torch.zeros(1, 2), method="euler", steps=1).x
        torch.testing.assert_close(x1, torch.full((1, 2), 1.5), rtol=0, atol=0.1)
    with pytest.raises(ValueError, match="times: distance='lpips'"):
        distill(MLP(2), pairs, config, steps=2, distance="lpips", perceptual=mean_absolute)


def test_an_encoder_trained_at_t1_finds_the_noise_in_one_evaluation() -> None:
    # Data 3 x0 + 1: the encoder that knows it is x0 = (x1 - 1) / 3, so v(x1, 1) = x1 - x0.
    from flowbook.training import fit

    x0 = torch.randn(2000, 2, generator=seeded())
    torch.manual_seed(0)
    config = TrainConfig(steps=600, batch_size=128, learning_rate=0.01)
    velocity = fit(MLP(2, hidden=64), Reflow(times="t1"), (x0, 3 * x0 + 1, None), config).velocity
    fresh = torch.randn(500, 2, generator=seeded(1))
    assert (encode(velocity, 3 * fresh + 1) - fresh).square().mean().sqrt() < 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rounds": 0}, ValueError, "rounds: .*0"),
        ({"velocity": linear}, TypeError, r"velocity: expected a torch\.nn\.Module to train a copy of"),
        ({"velocity": linear, "student": linear}, TypeError, r"student: expected a torch\.nn\.Module"),
        ({"loss": "l2"}, TypeError, "loss: expected a Reflow"),
        ({"steps_": 3}, TypeError, "steps_"),
        ({"n": 0}, ValueError, "n: .*0"),
    ],
)
def test_law_11_rectify_names_what_is_wrong_before_any_work(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    usual: dict[str, Any] = {"velocity": MLP(2, hidden=8), "source": (2,), "rounds": 1, "out": tmp_path / "run"}
    with pytest.raises(error, match=message):
        rectify(**usual | SOLVER | arguments)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match=re.escape("velocity: expected a Module such as MLP(2)")):
        distill(linear, (X0, X1, None))  # type: ignore[arg-type]


def test_numpy_s_integers_are_integers_for_times() -> None:
    assert set(reflow_times(np.int64(4), 200, eps=0.0).tolist()) == {0.0, 0.25, 0.5, 0.75}  # type: ignore[arg-type]
