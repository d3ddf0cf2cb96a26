"""Denoising enters the path where its noise is as strong, and the posterior mean is what no estimate beats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import ALL_PATHS, INF, NAN, Recorder, normal, randomized, seeded
from torch import Tensor, nn

from flowbook.analytic import GaussianMixture
from flowbook.diffusion import NoiseSchedule, SchedulePath, probability_flow
from flowbook.guidance import guided
from flowbook.inversion import Estimate, denoise, estimate_noise
from flowbook.inversion.denoising import HALVINGS
from flowbook.models import UNet
from flowbook.paths import CosinePath, LinearPath, Path, VPPath, as_velocity, path_of, retimed, time_of_noise

F64 = torch.float64
MIXTURE = GaussianMixture([[-0.6, 0.0], [0.6, 0.3]], 0.1, [0.3, 0.7])
SCHEDULE = NoiseSchedule.linear(1000)
PATHS = [*ALL_PATHS, SchedulePath(SCHEDULE)]
paths = pytest.mark.parametrize("path", PATHS, ids=repr)


def zero(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return torch.zeros_like(x)


def observed(noise_std: float | Tensor, n: int = 2000) -> tuple[Tensor, Tensor]:
    """Points of the mixture, and the same with noise."""
    x1 = MIXTURE.sample(n, seeded()).double()
    return x1, x1 + noise_std * normal(n, 2, seed=1)


def squared_error(x: Tensor, x1: Tensor) -> float:
    return float((x - x1).square().sum(1).mean())


# Where the path is entered --------------------------------------------------------------------------------------------


@paths
def test_the_time_of_a_noise_level_has_that_level(path: Path) -> None:
    times = torch.tensor([0.05, 0.3, 0.5, 0.9, 0.99], dtype=F64)
    levels = path.sigma(times) / path.alpha(times)
    torch.testing.assert_close(time_of_noise(path, levels), times, rtol=0, atol=1e-9)
    at_end = float(path.sigma(1.0) / path.alpha(1.0))
    assert float(time_of_noise(path, at_end)) == pytest.approx(1.0, abs=1e-6)


def test_the_least_noise_of_a_schedule_may_be_rounded() -> None:
    assert float(time_of_noise(SchedulePath(SCHEDULE), 0.01)) == 1.0
    with pytest.raises(ValueError, match=r"noise levels from 0.01 to 157.4; got 0.0099 to 0.0099"):
        time_of_noise(SchedulePath(SCHEDULE), 0.0099)


def test_on_the_linear_path_the_time_is_one_over_one_plus_the_level() -> None:
    levels = torch.tensor([0.0, 0.5, 1.0, 3.0, 1e4], dtype=F64)
    torch.testing.assert_close(time_of_noise(LinearPath(), levels), 1 / (1 + levels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("noise_std", [0.5, torch.tensor([0.5, 0.1, 2.0])])
@paths
def test_law_1_the_ode_leaves_the_state_where_velocity_is_zero_and_a_constant_adds_the_time_left(
    path: Path, noise_std: float | Tensor
) -> None:
    x, c = normal(3, 1, 4, 4), 2.0
    for shift in (0.0, c):
        result = denoise(
            lambda x, t, shift=shift: torch.full_like(x, shift), x, noise_std=noise_std, path=path, estimate="ode",
            method="heun", steps=3,
        )  # fmt: skip
        t = result.t.reshape(-1, 1, 1, 1)
        torch.testing.assert_close(result.x, path.alpha(t) * x + shift * (1 - t), rtol=1e-9, atol=1e-9)
        assert result.nfe == 6


# The two estimates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.15, 0.3, 1.0])
@paths
def test_the_mean_is_the_exact_posterior_mean_and_the_ode_s_end_has_a_larger_error(
    path: Path, noise_std: float
) -> None:
    x1, x = observed(noise_std)
    velocity = MIXTURE.as_velocity(path)
    mean = denoise(velocity, x, noise_std=noise_std, path=path)
    # The posterior mean by Bayes in the observation's own coordinates: no path enters.
    weights = torch.softmax(
        MIXTURE.weights.log() - (x[:, None] - MIXTURE.means).square().sum(2) / (2 * (0.01 + noise_std**2)), dim=1
    )
    shrunk = MIXTURE.means + 0.01 / (0.01 + noise_std**2) * (x[:, None] - MIXTURE.means)
    exact = (weights[..., None] * shrunk).sum(1)
    torch.testing.assert_close(mean.x, exact, rtol=0, atol=1e-7)
    assert mean.nfe == 1
    end = denoise(velocity, x, noise_std=noise_std, path=path, estimate="ode")
    assert squared_error(mean.x, x1) < squared_error(end.x, x1) < squared_error(x, x1)
    if noise_std >= 0.3:
        assert squared_error(end.x, x1) > 1.15 * squared_error(mean.x, x1)


@paths
def test_for_one_gaussian_the_ode_takes_the_square_root_of_the_mean_s_factor(path: Path) -> None:
    """Mean m + g (x - m) with g = d^2 / (d^2 + s^2), the ODE m + sqrt(g) (x - m): it keeps the spread of the data."""
    gaussian, s = GaussianMixture([[1.0, -2.0]], 0.7), 0.9
    x = gaussian.means + 3 * normal(5, 2)
    velocity, gain = gaussian.as_velocity(path), 0.7**2 / (0.7**2 + s**2)
    centered = x - gaussian.means
    mean = denoise(velocity, x, noise_std=s, path=path).x
    torch.testing.assert_close(mean, gaussian.means + gain * centered, rtol=0, atol=1e-7)
    end = denoise(velocity, x, noise_std=s, path=path, estimate="ode", rtol=1e-9, atol=1e-9).x
    left = float(path.sigma(1.0))  # what a path leaves at t = 1 is part of the answer
    spread = math.sqrt((float(path.alpha(1.0)) * 0.7) ** 2 + left**2) / math.sqrt(0.7**2 + s**2)
    torch.testing.assert_close(end, float(path.alpha(1.0)) * gaussian.means + spread * centered, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"estimate": "ode", "method": "rk4", "steps": 10}])
@paths
def test_each_sample_is_denoised_at_its_own_level(path: Path, options: dict[str, Any]) -> None:
    levels = torch.tensor([0.11, 0.4, 1.0, 2.5], dtype=F64)
    _, x = observed(levels[:, None], 4)
    velocity = MIXTURE.as_velocity(path)
    together = denoise(velocity, x, noise_std=levels, path=path, **options)
    assert together.t.shape == together.noise_std.shape == (4,)
    for n in range(4):
        alone = denoise(velocity, x[n : n + 1], noise_std=float(levels[n]), path=path, **options)
        torch.testing.assert_close(together.x[n], alone.x[0], rtol=0, atol=1e-9)
        assert together.nfe == alone.nfe


def test_levels_do_not_meet_the_last_axis_of_square_images() -> None:
    levels, x = torch.tensor([0.2, 0.5, 1.0, 4.0], dtype=F64), normal(4, 4, 4, 4)
    pull = as_velocity(lambda x, t, y=None: torch.full_like(x, 0.5), CosinePath(), "data")
    torch.testing.assert_close(denoise(pull, x, noise_std=levels).x, torch.full_like(x, 0.5))
    times = denoise(pull, x, noise_std=levels).t
    seen = denoise(lambda x, t: x, x, noise_std=levels).x  # data = x_t + (1 - t) v = (2 - t) t x, sample by sample
    entered = (1 / (1 + levels)).reshape(4, 1, 1, 1)
    torch.testing.assert_close(seen, (2 - entered) * entered * x)
    torch.testing.assert_close(times, time_of_noise(CosinePath(), levels))


def test_without_noise_the_data_stay() -> None:
    x1 = MIXTURE.sample(5, seeded()).double()
    ways: list[dict[str, Any]] = [{}, {"estimate": "ode"}]
    for options in ways:
        assert torch.equal(denoise(MIXTURE.as_velocity(LinearPath()), x1, noise_std=0.0, **options).x, x1)


def test_the_trap_of_an_observation_that_is_not_shrunk_to_the_path() -> None:
    """The state at t is alpha(t) x, not x. Data and noise from N(0, I): the mean is x / 2, the mistake gives back x."""
    x1, noise = normal(2000, 2), normal(2000, 2, seed=1)
    path, t, x = LinearPath(), torch.tensor(0.5, dtype=F64), x1 + noise
    velocity = GaussianMixture([[0.0, 0.0]], 1.0).as_velocity(path)
    wrong = path.convert(velocity(x, t), x, t, source="velocity", target="data")
    torch.testing.assert_close(wrong, x)
    torch.testing.assert_close(denoise(velocity, x, noise_std=1.0).x, x / 2)


# Diffusion models -----------------------------------------------------------------------------------------------------


def diffusion_model(x: Tensor, i: Tensor, y: Tensor | None = None) -> Tensor:
    """The exact noise in x_i for the mixture; label 9 means none."""
    path, t = PATHS[-1], 1 - i / 999
    y = None if y is None or bool((y == 9).any()) else y
    return path.convert(MIXTURE.denoised(x, t, path, y), x, t, source="data", target="noise")


@pytest.mark.parametrize("guide", [False, True])
def test_a_diffusion_model_is_denoised_on_its_own_path_also_behind_guidance(guide: bool) -> None:
    flow = probability_flow(diffusion_model, SCHEDULE)
    y = torch.ones(2000, dtype=torch.long) if guide else None
    _, x = observed(0.5)
    velocity = guided(flow, 1.0, 9) if guide else flow
    result = denoise(velocity, x, noise_std=0.5, y=y)
    exact = denoise(MIXTURE.as_velocity(LinearPath()), x, noise_std=0.5, y=y).x
    torch.testing.assert_close(result.x, exact, rtol=0, atol=1e-6)
    assert result.nfe == 1 + guide
    with pytest.raises(ValueError, match=r"noise_std: SchedulePath\(steps=1000\) has noise levels from 0.01 to 157.4;"):
        denoise(velocity, x, noise_std=0.001, y=y)


def test_the_path_of_a_velocity_is_found_behind_wrappers() -> None:
    velocity: Any
    converted = as_velocity(zero, CosinePath(), "noise")
    for velocity in (converted, guided(converted, 2.0, 9), guided(guided(converted, 2.0, 9), 2.0, 9)):
        assert path_of(velocity) == CosinePath()
    for velocity in (zero, guided(zero, 2.0, 9), nn.Identity()):
        assert path_of(velocity) == LinearPath()


# The level of the noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VPPath(), SchedulePath(SCHEDULE)], ids=repr)
def test_the_estimated_level_is_right_in_the_mean_and_spreads_as_its_formula_says(path: Path, noise_std: float) -> None:
    """Data from N(0, d^2 I) in D dimensions: the likeliest s has s^2 + d^2 = |x|^2 / D."""
    dims, spread, n = 400, 0.2, 200
    velocity = GaussianMixture(torch.zeros(1, dims), spread).as_velocity(path)
    x = spread * normal(n, dims) + noise_std * normal(n, dims, seed=1)
    levels = estimate_noise(velocity, x, path=path, generator=seeded())
    exact = (x.square().mean(1) - spread**2).clamp_min(1e-4).sqrt()
    torch.testing.assert_close(levels, exact, rtol=0.01, atol=0.01)
    assert float(levels.mean()) == pytest.approx(noise_std, rel=0.03, abs=0.01)
    expected = (spread**2 + noise_std**2) / (noise_std * math.sqrt(2 * dims))
    assert float(levels.std()) < 1.5 * expected + 0.01


def test_what_the_model_cannot_tell_from_data_counts_as_noise_too() -> None:
    """Without the divergence, the residual alone: too small, all the more the wider the data."""
    x = normal(50, 400) + 0.5 * normal(50, 400, seed=1)
    velocity = GaussianMixture(torch.zeros(1, 400), 1.0).as_velocity(LinearPath())
    assert float(estimate_noise(velocity, x).mean()) == pytest.approx(0.5, rel=0.03)
    residual = float((x - denoise(velocity, x, noise_std=0.5).x).square().mean().sqrt())
    assert residual == pytest.approx(0.5 * math.sqrt(0.2), rel=0.03)


def test_a_blind_denoising_estimates_the_level_and_counts_it() -> None:
    means = 2.0 * torch.sign(normal(3, 200))
    mixture = GaussianMixture(means, 0.1)
    x1 = mixture.sample(40, seeded()).double()
    x = x1 + 0.6 * normal(40, 200, seed=1)
    calls = 0

    def counted(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return mixture.velocity(x, t, LinearPath())

    blind = denoise(counted, x, generator=seeded())
    assert blind.nfe == calls == HALVINGS + 1
    assert float((blind.noise_std / 0.6 - 1).abs().max()) < 0.2
    told = denoise(counted, x, noise_std=0.6)
    assert squared_error(blind.x, x1) < 1.05 * squared_error(told.x, x1)
    assert torch.equal(blind.x, denoise(counted, x, generator=seeded()).x)
    followed = denoise(counted, x, estimate="ode", method="heun", steps=4, generator=seeded())
    assert followed.nfe == HALVINGS + 8


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("noise_std", [0.5, None])
@pytest.mark.parametrize("options", [{}, {"estimate": "ode", "method": "heun", "steps": 2}])
def test_a_network_runs_in_eval_mode_gets_its_mode_back_and_keeps_the_dtype(
    options: dict[str, Any], noise_std: float | None, dtype: torch.dtype
) -> None:
    network = randomized(UNet(1, 8, 8, (1, 2), blocks=1, num_classes=3, dropout=0.5), scale=0.05).to(dtype)
    x, y = normal(2, 1, 8, 8).to(dtype), torch.tensor([0, 2])
    expected = denoise(network.eval(), x, noise_std=noise_std, y=y, generator=seeded(), **options)
    result = denoise(network.train(), x, noise_std=noise_std, y=y, generator=seeded(), **options)
    assert torch.equal(result.x, expected.x) and result.x.dtype == result.t.dtype == result.noise_std.dtype == dtype
    assert all(module.training for module in network.modules())
    assert not result.x.requires_grad and all(weight.grad is None for weight in network.parameters())


# Law 11 ---------------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda v: denoise(v, X[0], noise_std=1.0), ValueError, "x: expected at least 2 dimensions"),
        (lambda v: denoise(v, X + NAN, noise_std=1.0), ValueError, "x: expected finite numbers; got 4"),
        (lambda v: denoise(v, X, noise_std=-1.0), ValueError, r"noise_std: expected a number in \[0, inf\)"),
        (lambda v: denoise(v, X, noise_std=INF), ValueError, "noise_std: expected a number"),
        (lambda v: denoise(v, X, noise_std="1"), TypeError, "noise_std: expected a number; got '1'"),  # type: ignore[arg-type]
        (lambda v: denoise(v, X, noise_std=torch.ones(3)), ValueError, "noise_std: expected one number, or one for"),
        (lambda v: denoise(v, X, noise_std=-torch.ones(2)), ValueError, "noise_std: expected numbers of at least 0"),
        (lambda v: denoise(v, X, noise_std=torch.ones(2) * NAN), ValueError, "noise_std: expected finite numbers"),
        (lambda v: denoise(v, X, noise_std=torch.ones(2).long()), TypeError, "noise_std: expected a floating"),
        (lambda v: denoise(v, X, noise_std=0.05, path=LinearPath(0.1)), ValueError, "noise levels from 0.1 to inf"),
        (lambda v: denoise(v, X, noise_std=1.0, path=LinearPath), TypeError, "path: expected a Path"),  # type: ignore[arg-type]
        (lambda v: denoise(v, X, noise_std=1.0, estimate="median"), ValueError, "estimate: expected one of 'mean'"),  # type: ignore[arg-type]
        (lambda v: denoise(v, X, noise_std=1.0, steps=3), TypeError, "steps: expected no solver options"),
        (lambda v: denoise(v, X, noise_std=1.0, estimate="ode", t0=0.3), TypeError, "t0: denoise enters the path"),  # type: ignore[call-arg]
        (lambda v: denoise(v, X, noise_std=1.0, y=Y[:1]), ValueError, "y: expected a row for each of"),
        (lambda v: estimate_noise(v, X, generator=0), TypeError, "generator: expected a torch.Generator"),  # type: ignore[arg-type]
        (lambda v: time_of_noise(VPPath(), 1e3), ValueError, r"noise_std: VPPath\(.*\) has noise levels from 0 to 1"),
    ],
)
def test_law_11_bad_input_is_named_before_the_velocity_is_called(call: Any, error: type[Exception], match: str) -> None:
    field = Recorder(zero)
    with pytest.raises(error, match=match):
        call(field)
    assert field.times == []


def test_law_11_a_velocity_that_is_not_finite_has_no_noise_level() -> None:
    with pytest.raises(RuntimeError, match="velocity: expected finite values to estimate the noise from"):
        estimate_noise(lambda x, t: x * NAN, X + 1)


@pytest.mark.parametrize("estimate", ["mean", "ode"])
def test_a_flow_in_another_time_or_compiled_denoises_as_before(estimate: Estimate) -> None:
    data = GaussianMixture([[1.0]], 0.5)
    path = SchedulePath(NoiseSchedule.linear(1000))
    x = torch.tensor([[1.5]], dtype=torch.float64)
    options: dict[str, Any] = {"estimate": estimate, "noise_std": 0.7}
    options |= {"rtol": 1e-9, "atol": 1e-9} if estimate == "ode" else {}
    posterior = (1.0 / 0.25 + 1.5 / 0.49) / (1 / 0.25 + 1 / 0.49)
    for own in (path, LinearPath(), CosinePath()):
        flow = as_velocity(lambda x, t, y=None, own=own: data.denoised(x, t, own), own, "data")
        found = denoise(flow, x, **options).x
        assert estimate == "ode" or float(found) == pytest.approx(posterior, abs=1e-6)
        changed = (retimed(flow), guided(retimed(flow, 2.0), 1.0, 3), torch.compile(flow, backend="eager"))
        for other in (changed[0], changed[2]):
            torch.testing.assert_close(denoise(other, x, **options).x, found, rtol=0, atol=1e-5)
        assert path_of(changed[1]) == path_of(retimed(flow, 2.0)) != own and path_of(changed[2]) == own
