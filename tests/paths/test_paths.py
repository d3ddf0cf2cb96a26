"""Law 3: a path's velocity is the derivative of its point, and conversions are exact or refuse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ALL_PATHS, INF, MIXTURE, NAN, Recorder, normal
from torch import Tensor

from flowbook.guidance import guided
from flowbook.paths import QUANTITIES, CosinePath, LinearPath, Path, Quantity, VPPath, as_velocity
from flowbook.solvers import sample

PAIRS = list(itertools.permutations(QUANTITIES, 2))
SHAPES = [(5,), (6, 2), (4, 3, 4, 4)]  # the last: as many images as an image is wide

paths = pytest.mark.parametrize("path", ALL_PATHS, ids=repr)


def times(batch: int) -> Tensor:
    return torch.linspace(0.03, 0.97, batch, dtype=torch.float64)


@paths
def test_time_0_is_noise_and_time_1_is_data(path: Path) -> None:
    x0, x1 = normal(4, 3, seed=0), normal(4, 3, seed=1)
    rest_of_data, rest_of_noise = float(path.alpha(0.0)), float(path.sigma(1.0))
    assert 0 <= rest_of_data < 0.2 and 0 <= rest_of_noise <= 0.1
    torch.testing.assert_close(path.interpolate(x0, x1, 0.0), path.sigma(0.0) * x0 + rest_of_data * x1)
    torch.testing.assert_close(path.interpolate(x0, x1, 1.0), x1 + rest_of_noise * x0)
    assert float(path.sigma(0.0)) > 0.98


@paths
def test_alpha_rises_and_sigma_falls(path: Path) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert (path.alpha(t).diff() > 0).all()
    assert (path.sigma(t).diff() < 0).all()


@pytest.mark.parametrize("path", [CosinePath(), VPPath(), VPPath(0.5, 8.0)], ids=repr)
def test_variance_preserving_paths_keep_the_variance(path: Path) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t))


@paths
@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_time_derivative_of_interpolate(path: Path, shape: tuple[int, ...]) -> None:
    x0, x1 = normal(*shape, seed=0), normal(*shape, seed=1)
    t = times(shape[0])
    _, derivative = torch.func.jvp(lambda s: path.interpolate(x0, x1, s), (t,), (torch.ones_like(t),))  # type: ignore[misc]
    torch.testing.assert_close(path.velocity(x0, x1, t), derivative, rtol=1e-10, atol=1e-10)


@paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_at_once_are_the_two_to_rounding(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x0, x1 = normal(*shape, seed=0).to(dtype), normal(*shape, seed=1).to(dtype)
    t = times(shape[0]).to(dtype) * path.last_velocity_time
    xt, v = path.interpolate_and_velocity(x0, x1, t)
    torch.testing.assert_close(xt, path.interpolate(x0, x1, t))
    torch.testing.assert_close(v, path.velocity(x0, x1, t))


@paths
@pytest.mark.parametrize("function", ["alpha", "sigma"])
def test_dots_are_finite_differences(path: Path, function: str) -> None:
    t, h = times(20), 1e-6
    value = getattr(path, function)
    torch.testing.assert_close(getattr(path, function + "_dot")(t), (value(t + h) - value(t - h)) / (2 * h),
                               rtol=1e-6, atol=1e-7)  # fmt: skip


@paths
def test_sigma_times_its_derivative_is_also_right_as_one_number(path: Path) -> None:
    t = times(20)
    torch.testing.assert_close(path.sigma_sigma_dot(t), path.sigma(t) * path.sigma_dot(t))
    assert math.isfinite(float(path.sigma_sigma_dot(1.0)))


@paths
@pytest.mark.parametrize("shape", SHAPES)
def test_one_time_per_sample_is_each_sample_at_its_own_time(path: Path, shape: tuple[int, ...]) -> None:
    x0, x1, t = normal(*shape, seed=0), normal(*shape, seed=1), times(shape[0])
    together = path.interpolate(x0, x1, t)
    alone = torch.cat([path.interpolate(x0[n : n + 1], x1[n : n + 1], float(t[n])) for n in range(len(t))])
    torch.testing.assert_close(together, alone)


def quadruple(path: Path, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Noise, data, score, velocity and v of known pairs, and the state they belong to; written out, not converted."""
    column = t.reshape(-1, *[1] * (x0.dim() - 1))
    xt = path.alpha(column) * x1 + path.sigma(column) * x0
    velocity = path.alpha_dot(column) * x1 + path.sigma_dot(column) * x0
    v = path.alpha(column) * x0 - path.sigma(column) * x1
    return {"noise": x0, "data": x1, "score": -x0 / path.sigma(column), "velocity": velocity, "v": v}, xt


@paths
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_is_exact_for_every_ordered_pair(
    path: Path, shape: tuple[int, ...], source: Quantity, target: Quantity
) -> None:
    t = times(shape[0])
    values, xt = quadruple(path, normal(*shape, seed=0), normal(*shape, seed=1), t)
    torch.testing.assert_close(
        path.convert(values[source], xt, t, source, target), values[target], rtol=1e-9, atol=1e-9
    )


@paths
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_in_float32_keeps_the_digits_that_the_division_leaves(
    path: Path, source: Quantity, target: Quantity
) -> None:
    t = torch.linspace(0.1, 0.9, 16, dtype=torch.float64)
    values, xt = quadruple(path, normal(16, 2, seed=0), normal(16, 2, seed=1), t)
    converted = path.convert(values[source].float(), xt.float(), t.float(), source, target)
    assert converted.dtype == torch.float32
    lost = 1 / float((path.alpha(t) * path.sigma(t) ** 2).min())
    torch.testing.assert_close(converted.double(), values[target], rtol=1e-5 * lost, atol=1e-5 * lost)


def refuses(path: Path, t: float, source: Quantity, target: Quantity) -> bool:
    """Where the contract says that a conversion divides by zero."""
    alpha_is_0, sigma_is_0 = float(path.alpha(t)) == 0, float(path.sigma(t)) == 0
    if alpha_is_0:
        return source in ("noise", "score") and target in ("data", "velocity", "v")
    if not sigma_is_0:
        return False
    if isinstance(path, VPPath):  # velocity -> score has a limit; noise, v -> velocity need the infinite sigma_dot
        return source == "data" or (source in ("noise", "v") and target in ("score", "velocity"))
    return source == "data" or (source in ("noise", "velocity", "v") and target == "score")


def marginal(path: Path, x: Tensor, t: float) -> dict[str, Tensor]:
    """The expected noise, data, score, velocity and v of a mixture at x, all finite at both ends."""
    score, data, alpha, sigma = MIXTURE.score(x, t, path), MIXTURE.denoised(x, t, path), path.alpha(t), path.sigma(t)
    noise = -sigma.to(x) * score
    v = alpha.to(x) * noise - sigma.to(x) * data
    return {"noise": noise, "data": data, "score": score, "velocity": MIXTURE.velocity(x, t, path), "v": v}


@paths
@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("rounding", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_at_both_ends_convert_is_right_or_refuses(
    path: Path, end: float, rounding: float, dtype: torch.dtype, source: Quantity, target: Quantity
) -> None:
    t = end + rounding if end == 1 else end - rounding
    x = normal(5, 2).to(dtype)
    values = marginal(path, x, end)
    if refuses(path, end, source, target):
        with pytest.raises(ValueError, match=r"^t: .*t_range"):
            path.convert(values[source], x, t, source, target)
        return
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    scale = 1 / min(float(path.alpha(end)) or 1.0, 1.0)  # VPPath divides by its alpha(0) = 0.0066
    converted = path.convert(values[source], x, t, source, target)
    torch.testing.assert_close(converted, values[target], rtol=tolerance * scale, atol=tolerance * scale)


@paths
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_conversion_is_finite_on_the_whole_t_range(path: Path, source: Quantity, target: Quantity) -> None:
    low, high = path.t_range
    for t in (low, high):
        x = normal(5, 2)
        assert path.convert(marginal(path, x, t)[source], x, t, source, target).isfinite().all()


def test_vp_path_is_the_score_sde_with_time_reversed() -> None:
    path = VPPath(beta_min=0.1, beta_max=20.0)
    assert float(path.alpha(0.0)) == pytest.approx(math.exp(-19.9 / 4 - 0.05), rel=1e-12)  # 0.0066, not 0
    assert float(path.alpha(1.0)) == 1 and float(path.sigma(1.0)) == 0
    # Song et al. 2021: dx = -beta/2 x ds along s = 1 - t, so d log alpha / dt = beta(s) / 2.
    t = times(9)
    torch.testing.assert_close(path.alpha_dot(t) / path.alpha(t), 0.5 * (0.1 + 19.9 * (1 - t)))


def test_vp_path_keeps_the_digits_of_sigma_near_the_data_in_float32() -> None:
    exact = VPPath().sigma(torch.tensor(1 - 1e-5, dtype=torch.float32).double())
    torch.testing.assert_close(VPPath().sigma(torch.tensor(1 - 1e-5)).double(), exact, rtol=1e-4, atol=0)


def test_vp_path_has_no_conditional_velocity_at_the_data_and_says_where_to_stop() -> None:
    path, x0, x1 = VPPath(), normal(2, 2), normal(2, 2, seed=1)
    with pytest.raises(ValueError, match=r"t: .*infinite at t = 1.*0\.99999"):
        path.velocity(x0, x1, 1.0)
    assert path.velocity(x0.float(), x1.float(), path.last_velocity_time).isfinite().all()


def exact_prediction(path: Path, quantity: Quantity) -> Callable[..., Tensor]:
    def predict(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return marginal(path, x, float(t))[quantity]

    return predict


@paths
@pytest.mark.parametrize("prediction", QUANTITIES)
def test_a_model_of_any_quantity_flows_as_the_velocity_does(path: Path, prediction: Quantity) -> None:
    x0 = normal(16, 2)
    truth = sample(MIXTURE.as_velocity(path), x0, method="rk4", steps=50).x
    converted = sample(as_velocity(exact_prediction(path, prediction), path, prediction), x0, method="rk4", steps=50).x
    torch.testing.assert_close(converted, truth, rtol=0, atol=2e-3)


@paths
def test_converted_velocities_ask_the_model_only_where_the_conversion_is_regular(path: Path) -> None:
    recorder = Recorder(lambda x, t: x)
    sample(as_velocity(recorder, path, "noise"), normal(3, 2), method="rk4", steps=4)
    low, high = path.t_range
    assert low == pytest.approx(min(recorder.times)) and high == pytest.approx(max(recorder.times))


def test_a_converted_guided_model_counts_two_calls() -> None:
    velocity = as_velocity(guided(lambda x, t, y: x, 2.0, null=0), LinearPath(), "data")
    y = torch.zeros(3, dtype=torch.long)
    assert sample(velocity, normal(3, 2), y=y, method="euler", steps=5).nfe == 10


@paths
def test_half_precision_and_python_integers_as_times(path: Path) -> None:
    x0, x1 = normal(3, 2).bfloat16(), normal(3, 2, seed=1).bfloat16()
    assert path.interpolate(x0, x1, 0.5).dtype == torch.bfloat16
    torch.testing.assert_close(path.interpolate(x0, x1, 1), path.interpolate(x0, x1, 1.0))
    assert path.interpolate(x0[:0], x1[:0], torch.empty(0)).shape == (0, 2)


def test_paths_are_values() -> None:
    assert LinearPath() == LinearPath(0.0) and LinearPath(0.1) != LinearPath() and hash(VPPath()) == hash(VPPath())
    with pytest.raises(AttributeError):
        LinearPath().sigma_min = 0.5  # type: ignore[misc]


X = torch.zeros(3, 2)
MISUSE = [
    (lambda p: p.interpolate(X.long(), X, 0.5), TypeError, "x0: .*floating-point.*int64"),
    (lambda p: p.interpolate(X, [0.0], 0.5), TypeError, "x1: .*Tensor.*list"),
    (lambda p: p.interpolate(X, X[:2], 0.5), ValueError, r"x0: .*\(2, 2\).*\(3, 2\)"),
    (lambda p: p.interpolate(X, X, 1.1), ValueError, r"t: .*\[0, 1\].*1\.1"),
    (lambda p: p.interpolate(X, X, -0.1), ValueError, r"t: .*\[0, 1\]"),
    (lambda p: p.interpolate(X, X, NAN), ValueError, r"t: .*nan"),
    (lambda p: p.interpolate(X, X, torch.tensor([0.1, 0.2])), ValueError, r"t: .*\(3,\).*\(2,\)"),
    (lambda p: p.interpolate(X, X, torch.zeros(3, 1)), ValueError, r"t: .*\(3, 1\)"),
    (lambda p: p.velocity(X, X, torch.tensor(5)), TypeError, "t: .*int64"),
    (lambda p: p.velocity(X, X, "0.5"), TypeError, "t: .*str"),
    (lambda p: p.velocity(X, X, True), TypeError, "t: .*bool"),
    (lambda p: p.convert(X, X, 0.5, "eps", "velocity"), ValueError, "source: .*'noise'.*'eps'"),
    (lambda p: p.convert(X, X, 0.5, "noise", "x0"), ValueError, "target: .*'x0'"),
    (lambda p: p.convert(X[:1], X, 0.5), ValueError, r"value: .*\(3, 2\).*\(1, 2\)"),
    (lambda p: p.convert(X.int(), X, 0.5), TypeError, "value: .*int32"),
    (lambda p: p.convert(X, X, 0.5, sourse="noise"), TypeError, "sourse"),
    (lambda p: as_velocity(lambda x, t: x, p, "epsilon"), ValueError, "prediction: .*'epsilon'"),  # type: ignore[arg-type]
]


@paths
@pytest.mark.parametrize(("call", "error", "message"), MISUSE)
def test_misuse_names_the_argument(path: Path, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(path)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: LinearPath(1.0), ValueError, "sigma_min: .*1.0"),
        (lambda: LinearPath(-0.1), ValueError, "sigma_min"),
        (lambda: LinearPath("small"), TypeError, "sigma_min: .*'small'"),  # type: ignore[arg-type]
        (lambda: LinearPath(NAN), ValueError, "sigma_min"),
        (lambda: VPPath(beta_min=0.0), ValueError, "beta_min"),
        (lambda: VPPath(beta_max=0.05), ValueError, "beta_max: .*0.05"),
        (lambda: VPPath(beta_max=INF), ValueError, "beta_max"),
        (lambda: as_velocity(lambda x, t: x, "cosine"), TypeError, "path: .*got 'cosine'"),  # type: ignore[arg-type]
        (lambda: as_velocity(lambda x, t: x, LinearPath(), "data")(torch.ones(2, 1), 1.5), ValueError, "t: .*1.5"),
        (lambda: as_velocity(lambda x, t: x, VPPath), TypeError, "path: .*got the class VPPath itself"),  # type: ignore[arg-type]
    ],
)
def test_impossible_paths_are_refused(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("sigma_min", [0.0, 1e-8, 1e-5, 0.3])
def test_the_linear_path_ends_at_sigma_min_in_float32(sigma_min: float) -> None:
    path = LinearPath(sigma_min)
    assert float(path.sigma(torch.tensor(1.0))) == pytest.approx(sigma_min, rel=1e-6)
    assert float(path.sigma(torch.tensor(0.0))) == 1.0
