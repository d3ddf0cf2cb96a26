"""Law 8: the diffusion chapter's module, held against the closed form wherever there is one."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import INF
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flowbook import data, diffusion, models, solvers
from flowbook.analytic import GaussianMixture
from flowbook.diffusion import NoiseSchedule, Prediction, SchedulePath, StepModel, Variance
from flowbook.diffusion.bound import log_bin
from flowbook.diffusion.samplers import VARIANCES
from flowbook.diffusion.schedule import PREDICTIONS
from flowbook.guidance import guided
from flowbook.paths import LinearPath
from flowbook.solvers import Method
from flowbook.training import TrainConfig, fit, load

F64 = torch.float64
SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
SHORT = NoiseSchedule.cosine(8)
schedules = pytest.mark.parametrize("schedule", list(SCHEDULES.values()), ids=list(SCHEDULES))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class ExactNoise(nn.Module):
    """The noise that the exact denoiser of N(mean, std^2) sees in x_i; linear in x, so moments can be followed."""

    def __init__(self, schedule: NoiseSchedule, mean: float = 1.5, std: float = 0.5):
        super().__init__()
        self.schedule, self.mean, self.std = schedule, mean, std
        self.steps_seen: list[int] = []

    def forward(self, x: Tensor, i: Tensor, y: Tensor | None = None) -> Tensor:
        self.steps_seen.append(int(i.flatten()[0]))
        abar = self.schedule.alphas_cumprod[i].reshape(-1, 1).to(x)
        variance = abar * self.std**2 + 1 - abar
        return (1 - abar).sqrt() * (x - abar.sqrt() * self.mean) / variance


def affine(sampler: object, points: Tensor) -> tuple[float, float]:
    """Slope and intercept of a deterministic sampler of a linear model, from two starting points."""
    low, high = (float(v) for v in sampler(points))  # type: ignore[operator]
    slope = (high - low) / float(points[1] - points[0])
    return slope, low - slope * float(points[0])


# The schedule ---------------------------------------------------------------------------------------------------------


@schedules
def test_law_8_coefficients_at_step_0_are_exactly_1_and_0_with_variance_0(schedule: NoiseSchedule) -> None:
    x, x1 = normal(3, 2), normal(3, 2, seed=1)
    mean, variance = schedule.posterior(x, x1, 0)
    assert torch.equal(mean, x1)
    assert float(variance) == 0.0
    mean, variance = schedule.posterior(x.float(), x1.float(), torch.zeros(3, dtype=torch.long))
    assert torch.equal(mean, x1.float()) and not bool(variance.any())


def test_the_trap_of_index_minus_one() -> None:
    """``alphas_cumprod[i - 1]`` at i = 0 reads the last entry: variance 0.99996 and 9999 times x_i, for 0 and 0."""
    schedule = NoiseSchedule.linear(1000)
    abar, beta = schedule.alphas_cumprod, schedule.betas
    assert float(beta[0] * (1 - abar[-1]) / (1 - abar[0])) == pytest.approx(0.99996, abs=1e-5)
    assert float(schedule.alphas[0].sqrt() * (1 - abar[-1]) / (1 - abar[0])) == pytest.approx(9999, rel=1e-3)
    with pytest.raises(ValueError, match="i: expected steps from 0 to 999; got -1"):
        schedule.add_noise(normal(1, 1), -1, normal(1, 1))


@schedules
def test_one_jump_is_many_steps(schedule: NoiseSchedule) -> None:
    """x_i = sqrt(1 - beta) x_{i-1} + sqrt(beta) noise, i times: mean and variance agree with the closed form."""
    mean, variance = 1.0, 0.0
    for i, beta in enumerate(schedule.betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        if i in (0, 1, 10, 500, 999):
            assert float(schedule.add_noise(torch.ones(1, 1, dtype=F64), i, torch.zeros(1, 1, dtype=F64))) == (
                pytest.approx(mean, rel=1e-9)
            )
            assert float(1 - schedule.alphas_cumprod[i]) == pytest.approx(variance, rel=1e-9)


@schedules
@pytest.mark.parametrize("i", [1, 10, 500, 999])
def test_the_posterior_is_bayes_on_a_grid(schedule: NoiseSchedule, i: int) -> None:
    x1, x = 0.7, -0.4
    abar, beta = float(schedule.alphas_cumprod[i - 1]), float(schedule.betas[i])
    mean, variance = schedule.posterior(torch.tensor([[x]], dtype=F64), torch.tensor([[x1]], dtype=F64), i)
    z = float(mean) + math.sqrt(float(variance)) * torch.linspace(-12, 12, 40_001, dtype=F64)
    log = -0.5 * (z - math.sqrt(abar) * x1) ** 2 / (1 - abar) - 0.5 * (x - math.sqrt(1 - beta) * z) ** 2 / beta
    weight = torch.softmax(log, 0)
    by_hand = float((weight * z).sum())
    assert float(mean) == pytest.approx(by_hand, abs=1e-9)
    assert float(variance) == pytest.approx(float((weight * (z - by_hand) ** 2).sum()), rel=1e-6)


@schedules
def test_conversions_are_inverse_to_one_another(schedule: NoiseSchedule) -> None:
    x1, noise, i = normal(4, 1, 4, 4), normal(4, 1, 4, 4, seed=1), torch.tensor([0, 3, 500, 999])
    x = schedule.add_noise(x1, i, noise)
    signal, spread = schedule.amplitudes(i, x)
    faces: dict[Prediction, Tensor] = {"noise": noise, "data": x1, "v": signal * noise - spread * x1}
    for source, value in faces.items():
        for target, wanted in faces.items():
            torch.testing.assert_close(schedule.convert(value, x, i, source, target), wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(schedule.predict_data(x, i, noise), x1, rtol=1e-8, atol=1e-8)


def test_what_a_schedule_refuses_and_warns_of() -> None:
    for betas in (torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.5]), torch.tensor([-0.1]), torch.tensor([math.nan])):
        with pytest.raises(ValueError, match="betas"):
            NoiseSchedule(betas)
    with pytest.raises(TypeError, match="betas"):
        NoiseSchedule([0.1, 0.2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="betas: expected one variance per step"):
        NoiseSchedule(torch.full((2, 2), 0.1))
    with pytest.warns(UserWarning, match=r"keeps 0\.78 of the data's amplitude"):
        NoiseSchedule.linear(50)
    with pytest.warns(UserWarning, match=r"0\.22"):  # the source text's T = 300
        NoiseSchedule.linear(300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(NoiseSchedule.linear(300, rescale=True).alphas_cumprod[-1].sqrt()) < 0.01
        NoiseSchedule.cosine(50)
        for steps in (2, 10, 20):  # what the warning advises; 10 steps rescaled would end in a beta of 2
            assert float(NoiseSchedule.linear(steps, rescale=True).betas[-1]) == 0.999


def test_a_last_step_of_pure_noise_takes_a_model_of_v_or_data() -> None:
    schedule = NoiseSchedule(torch.cat([torch.linspace(1e-3, 0.2, 99), torch.ones(1)]).double())
    assert schedule.ends_in_pure_noise and not NoiseSchedule.linear(1000).ends_in_pure_noise
    x, two = torch.randn(4, 2), lambda x, i, y=None: torch.full_like(x, 2.0)
    assert torch.equal(diffusion.ddpm_sample(two, x, schedule, prediction="data"), torch.full_like(x, 2.0))
    close = torch.testing.assert_close
    close(diffusion.ddim_sample(two, x, schedule, 5, prediction="data"), torch.full_like(x, 2.0))
    flow = diffusion.probability_flow(two, schedule, prediction="data")
    end = float(flow.path.alpha(1.0)) * 2
    close(solvers.sample(flow, x, method="rk4", steps=50).x, torch.full_like(x, end), rtol=0, atol=0.2)
    for prediction in (None, "noise"):
        for use in (
            lambda: diffusion.ddpm_sample(two, x, schedule, prediction=prediction),  # noqa: B023
            lambda: diffusion.ddpm_loss(two, x, schedule, prediction=prediction),  # noqa: B023
            lambda: diffusion.probability_flow(two, schedule, prediction=prediction),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="prediction: expected 'v' or 'data' with a schedule whose last step"):
                use()


@pytest.mark.parametrize(
    ("i", "error", "match"),
    [
        (1000, ValueError, "i: expected steps from 0 to 999; got 1000"),
        (0.5, TypeError, "i: expected an integer step"),
        (torch.tensor([0.0, 1.0]), TypeError, "i: expected an integer step or a long tensor; got dtype"),
        (torch.tensor([1, 2, 3]), ValueError, r"i: expected one step per sample, shape \(\) or \(2,\)"),
        (torch.tensor([0, -1]), ValueError, "got -1 to 0"),
    ],
)
def test_law_11_a_wrong_step_is_named(i: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        SCHEDULES["linear"].add_noise(normal(2, 1), i, normal(2, 1))  # type: ignore[arg-type]


# Training -------------------------------------------------------------------------------------------------------------


def test_the_loss_draws_every_step_and_compares_what_was_asked_for() -> None:
    schedule, seen = NoiseSchedule.cosine(20), []

    def model(x: Tensor, i: Tensor) -> Tensor:
        seen.append(i)
        return torch.zeros_like(x)

    torch.manual_seed(0)
    for _ in range(20):
        diffusion.ddpm_loss(model, torch.zeros(100, 1), schedule)
    counts = torch.bincount(torch.cat(seen), minlength=20)
    assert len(counts) == 20 and int(counts.min()) > 60 and int(counts.max()) < 140  # 100 +- 10
    x1, noise, i = normal(5, 2), normal(5, 2, seed=1), torch.arange(5)
    x = schedule.add_noise(x1, i, noise)
    for prediction in PREDICTIONS:
        answer = schedule.convert(noise, x, i, "noise", prediction)
        loss = diffusion.ddpm_loss(
            lambda x, i, answer=answer: answer, x1, schedule, i=i, noise=noise, prediction=prediction
        )
        assert float(loss) == pytest.approx(0.0, abs=1e-20)


def test_half_precision_still_draws_every_step() -> None:
    """bfloat16 times have 8 bits: steps drawn from them would miss most of 1,000."""
    schedule, seen = SCHEDULES["linear"], []

    def model(x: Tensor, i: Tensor) -> Tensor:
        seen.append(i)
        return torch.zeros_like(x)

    torch.manual_seed(0)
    diffusion.ddpm_loss(model, torch.zeros(20_000, 1, dtype=torch.bfloat16), schedule)
    assert len(seen[0].unique()) > 990


def test_condition_dropout_reaches_the_network_behind_the_step_model() -> None:
    network = models.MLP(2, hidden=8, num_classes=3)
    seen = []
    network.register_forward_hook(lambda module, arguments, output: seen.append(arguments[2]))
    loss = diffusion.Diffusion(SCHEDULES["linear"], condition_dropout=0.5)
    torch.manual_seed(0)
    loss(network, (torch.zeros(1000, 2), torch.zeros(1000, dtype=torch.long)))
    assert 400 < int((seen[0] == 3).sum()) < 600


# Sampling -------------------------------------------------------------------------------------------------------------


def moments(schedule: NoiseSchedule, variance: Variance, last_noise: bool = False) -> tuple[float, float]:
    """Mean and standard deviation of the ancestral sampler's output for the exact denoiser, in closed form.

    The predicted data is a + b x with E[x1 | x]; every step is affine, so mean and variance obey a recursion.
    """
    abar, mean, spread = schedule.alphas_cumprod, 0.0, 1.0
    for i in reversed(range(schedule.steps)):
        a = float(abar[i])
        gain = math.sqrt(a) * 0.25 / (a * 0.25 + 1 - a)  # of E[x1 | x] in x
        one = torch.ones(1, 1, dtype=F64)
        of_data, _ = schedule.posterior(0 * one, one, i)
        of_state, step_variance = schedule.posterior(one, 0 * one, i)
        slope = float(of_data) * gain + float(of_state)
        offset = float(of_data) * (1.5 - gain * math.sqrt(a) * 1.5)
        added = float(step_variance) if variance == "posterior" else float(schedule.betas[i])
        mean, spread = slope * mean + offset, slope**2 * spread + (added if i > 0 or last_noise else 0.0)
    return mean, math.sqrt(spread)


def test_law_8_the_1000_step_sampler_returns_the_gaussian_in_closed_form() -> None:
    for variance in VARIANCES:
        mean, std = moments(SCHEDULES["linear"], variance)
        assert mean == pytest.approx(1.5, abs=1e-3)
        assert std == pytest.approx(0.5, abs=5e-3)


def test_the_sampler_does_what_the_closed_form_says_and_visits_every_step_once() -> None:
    schedule = NoiseSchedule.cosine(60)
    model = ExactNoise(schedule)
    x = diffusion.ddpm_sample(model, normal(40_000, 1), schedule, generator=torch.Generator().manual_seed(1))
    assert model.steps_seen == list(reversed(range(60)))
    mean, std = moments(schedule, "posterior")
    assert float(x.mean()) == pytest.approx(mean, abs=5 * std / 200)
    assert float(x.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * 40_000))


def test_the_trap_of_noise_at_the_last_step() -> None:
    """sqrt(beta_0) = 0.01 of extra noise where there should be none."""
    schedule = SCHEDULES["linear"]
    right, wrong = moments(schedule, "beta")[1], moments(schedule, "beta", last_noise=True)[1]
    assert math.sqrt(wrong**2 - right**2) == pytest.approx(0.010, abs=1e-4)
    once = diffusion.ddpm_sample(ExactNoise(NoiseSchedule(torch.tensor([0.9999]))), normal(4, 1), NoiseSchedule(
        torch.tensor([0.9999])), variance="beta")  # fmt: skip
    assert float(once.std()) < 0.1 * math.sqrt(0.9999)


def test_the_trap_of_an_unscheduled_number_of_steps() -> None:
    """Betas made for 1,000 steps at T = 50: the mean of N(1.5, 0.5^2) comes out as 1.087, with DDIM as 0.722."""
    with pytest.warns(UserWarning, match="keeps 0.78"):
        schedule = NoiseSchedule.linear(50)
    assert float(schedule.alphas_cumprod[-1].sqrt()) == pytest.approx(0.776, abs=1e-3)
    assert moments(schedule, "posterior")[0] == pytest.approx(1.087, abs=2e-3)
    model = ExactNoise(schedule)
    _, mean = affine(
        lambda x: diffusion.ddim_sample(model, x[:, None], schedule, 50).flatten(), torch.tensor([-1.0, 1.0], dtype=F64)
    )
    assert mean == pytest.approx(0.722, abs=2e-3)


def test_the_trap_of_renoising_the_predicted_data() -> None:
    """Fresh noise on the predicted data instead of the posterior: standard deviation 0.35 for 0.5, at any T."""
    for steps, slack in ((100, 0.02), (1000, 0.01)):
        schedule = NoiseSchedule.linear(steps, rescale=True)
        abar, spread = schedule.alphas_cumprod, 1.0
        for i in reversed(range(steps)):
            a = float(abar[i])
            gain = math.sqrt(a) * 0.25 / (a * 0.25 + 1 - a)
            before = float(abar[i - 1]) if i > 0 else 1.0
            spread = before * gain**2 * spread + 1 - before
        assert math.sqrt(spread) == pytest.approx(0.35, abs=slack)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 333, 600, 999, 1000])
def test_ddim_jumps_are_contiguous_whatever_the_count(steps: int) -> None:
    visited = diffusion.ddim_steps(1000, steps)
    assert len(visited) == steps and visited[0] == 999 and visited[-1] >= 0
    assert all(a > b for a, b in itertools.pairwise(visited))
    model = ExactNoise(SCHEDULES["linear"])
    diffusion.ddim_sample(model, normal(2, 1), SCHEDULES["linear"], steps)
    assert model.steps_seen == visited


def test_ddim_with_eta_1_on_every_step_is_ancestral_sampling() -> None:
    schedule = NoiseSchedule.cosine(40)
    model, x = ExactNoise(schedule), normal(5, 1)
    one = diffusion.ddim_sample(model, x, schedule, 40, eta=1.0, generator=torch.Generator().manual_seed(3))
    other = diffusion.ddpm_sample(model, x, schedule, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_clipping_keeps_the_predicted_data_in_bounds_and_none_leaves_them_alone() -> None:
    """The trap: a noise biased by 0.02, one DDIM step from x = 0.24 sqrt(abar): -2.91 without, -1 with clipping."""
    schedule = SCHEDULES["linear"]

    def biased(x: Tensor, i: Tensor) -> Tensor:
        return torch.full_like(x, 0.02)

    start = torch.full((1, 1), 0.24, dtype=F64) * schedule.alphas_cumprod[-1].sqrt()
    assert float(diffusion.ddim_sample(biased, start, schedule, 1)) == pytest.approx(-2.91, abs=0.03)
    assert float(diffusion.ddim_sample(biased, start, schedule, 1, clip=1.0)) == -1.0


# The bridge -----------------------------------------------------------------------------------------------------------


@schedules
def test_the_schedule_as_a_path_meets_the_schedule_at_every_step(schedule: NoiseSchedule) -> None:
    path = SchedulePath(schedule)
    t = 1 - torch.arange(1000, dtype=F64) / 999
    torch.testing.assert_close(path.alpha(t), schedule.alphas_cumprod.sqrt(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.sigma(t), (1 - schedule.alphas_cumprod).sqrt(), rtol=1e-9, atol=1e-12)
    between, h = torch.rand(50, dtype=F64, generator=torch.Generator().manual_seed(0)), 1e-7
    for value, dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        torch.testing.assert_close(
            (value(between + h) - value(between - h)) / (2 * h), dot(between), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_is_one_velocity(prediction: Prediction) -> None:
    schedule, mixture = NoiseSchedule.cosine(50), GaussianMixture([[-1.0, 0.5], [1.0, 0.0]], 0.3)
    path = SchedulePath(schedule)

    def model(x: Tensor, i: Tensor) -> Tensor:
        t = 1 - i / 49
        data = mixture.denoised(x, t, path)
        noise = path.convert(data, x, t, source="data", target="noise")
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        return {"data": data, "noise": noise, "v": alpha * noise - sigma * data}[prediction]

    velocity = diffusion.probability_flow(model, schedule, prediction=prediction)
    x = normal(6, 2)
    for t in (0.0, 0.3, 0.77, 1.0):
        torch.testing.assert_close(velocity(x, t), mixture.velocity(x, t, path), rtol=1e-7, atol=1e-7)
    times = torch.rand(6, dtype=F64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(velocity(x, times), mixture.velocity(x, times, path), rtol=1e-7, atol=1e-7)


def test_a_model_of_integer_steps_is_interpolated_and_counted_twice() -> None:
    schedule = NoiseSchedule.cosine(10)

    def model(x: Tensor, i: Tensor) -> Tensor:
        assert not i.is_floating_point() and int(i.min()) >= 0 and int(i.max()) <= 9
        return i.reshape(-1, 1).to(x).expand_as(x)

    def smooth(x: Tensor, i: Tensor) -> Tensor:
        return i.reshape(-1, 1).to(x).expand_as(x)

    stepwise = diffusion.probability_flow(model, schedule, integer_steps=True)
    exact, x = diffusion.probability_flow(smooth, schedule), normal(3, 1)
    for t in (0.0, 0.4, 1.0):
        torch.testing.assert_close(stepwise(x, t), exact(x, t))
    assert solvers.sample(stepwise, x, method="euler", steps=5).nfe == 10


ORDER_SCHEDULE = NoiseSchedule.cosine(9)
POINTS = torch.tensor([[-1.4], [-0.3], [0.2], [1.1]], dtype=F64)
MIXTURE = GaussianMixture([[-0.6], [0.6]], 0.4, [0.3, 0.7])


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_solvers_keep_their_order_on_the_probability_flow(method: Method, order: int) -> None:
    """Steps that end on the schedule's own, where the second derivative of the log-SNR jumps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = SchedulePath(NoiseSchedule.linear(9, 0.2, 0.5))
    velocity = MIXTURE.as_velocity(path)
    truth = solvers.sample(velocity, POINTS, method="rk4", steps=8 * 128).x
    counts = [8 * 4, 8 * 8, 8 * 16]
    errors = [float((solvers.sample(velocity, POINTS, method=method, steps=n).x - truth).abs().max()) for n in counts]
    slope = math.log(errors[0] / errors[-1]) / math.log(4)
    assert slope == pytest.approx(order, abs=0.15)


def test_ddim_converges_to_the_probability_flow_with_order_1() -> None:
    steps = 2049
    schedule = NoiseSchedule.linear(steps, rescale=True)
    path = SchedulePath(schedule)

    def model(x: Tensor, i: Tensor) -> Tensor:
        return MIXTURE.denoised(x, 1 - i.to(x) / (steps - 1), path)

    flow = solvers.sample(diffusion.probability_flow(model, schedule, prediction="data"), POINTS, method="rk4",
                          steps=steps - 1).x  # fmt: skip
    # The flow ends at step 0, DDIM in the data: the exact flow's last jump is DDIM's own, to the error of one step.
    i = torch.zeros(len(POINTS), dtype=torch.long)
    truth = model(flow, i)
    errors = []
    for count in (32, 64, 128):
        x = diffusion.ddim_sample(model, POINTS, schedule, count, prediction="data")
        errors.append(float((x - truth).abs().max()))
    assert math.log(errors[0] / errors[-1]) / math.log(4) == pytest.approx(1, abs=0.15)


def test_a_diffusion_model_is_a_velocity_on_the_linear_path_by_convert() -> None:
    """Rescale the state and the time, and the flow of one path is the flow of the other: the same samples."""
    schedule = NoiseSchedule.cosine(30)
    path, linear = SchedulePath(schedule), LinearPath()
    velocity = MIXTURE.as_velocity(path)
    x0 = normal(20, 1)
    # On the linear path, x_t = t x1 + (1 - t) x0 has the signal-to-noise ratio of the schedule at one time s(t), and is
    # the schedule's state divided by alpha + sigma.
    end = solvers.sample(velocity, x0, rtol=1e-8, atol=1e-8).x
    alpha, sigma = path.alpha(1.0), path.sigma(1.0)
    t1 = float(alpha / (alpha + sigma))
    first_alpha, first_sigma = path.alpha(0.0), path.sigma(0.0)
    t0 = float(first_alpha / (first_alpha + first_sigma))
    other = solvers.solve(MIXTURE.as_velocity(linear), x0 / (first_alpha + first_sigma), t0, t1, rtol=1e-8, atol=1e-8).x
    torch.testing.assert_close(other * (alpha + sigma), end, rtol=1e-5, atol=1e-5)


def test_guidance_and_labels_pass_through_the_bridge() -> None:
    network = models.MLP(2, hidden=8, num_classes=3).double()
    velocity = diffusion.probability_flow(StepModel(network, SCHEDULES["linear"]), SCHEDULES["linear"])
    assert velocity.null == 3
    solution = solvers.sample(
        guided(velocity, 2.0, 3), normal(4, 2), y=torch.tensor([0, 1, 2, 0]), method="euler", steps=3
    )
    assert solution.nfe == 6


# The bound ------------------------------------------------------------------------------------------------------------


def test_the_bound_is_above_the_true_entropy_and_near_it_for_the_exact_model() -> None:
    """Two gray levels with weights 0.3 and 0.7, one pixel: the exact denoiser's bound, against the exact entropy."""
    schedule = SCHEDULES["linear"]
    path = SchedulePath(schedule)
    weights = torch.tensor([0.3, 0.7], dtype=F64)
    entropy = float(-(weights * weights.log2()).sum())
    levels = GaussianMixture([[-1.0], [1.0]], 1e-4, [0.3, 0.7])

    def model(x: Tensor, i: Tensor) -> Tensor:
        return levels.denoised(x, 1 - i.to(x) / 999, path)

    x1 = torch.where(
        torch.rand(2000, 1, dtype=F64, generator=torch.Generator().manual_seed(0)) < 0.3, -1.0, 1.0
    ).double()
    bound = diffusion.variational_bound(
        model, x1, schedule, levels=2, prediction="data", generator=torch.Generator().manual_seed(1)
    )
    share = float((x1 < 0).double().mean())
    empirical = -(share * math.log2(0.3) + (1 - share) * math.log2(0.7))
    error = float(bound.std()) / math.sqrt(len(bound))
    assert entropy - 5 * error < float(bound.mean()) < empirical + 0.03 + 5 * error
    wrong = diffusion.variational_bound(
        lambda x, i: model(x, i) * 0.5, x1, schedule, levels=2, prediction="data",
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert float(wrong.mean()) > float(bound.mean()) + 0.1


def test_the_bound_refuses_data_without_levels() -> None:
    with pytest.raises(ValueError, match="x1: expected 256 equidistant values from -1 to 1"):
        diffusion.variational_bound(lambda x, i: x, normal(2, 3), SCHEDULES["linear"])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: diffusion.ddim_sample(lambda x, i: x, normal(2, 1), s, 0), "steps"),
        (lambda s: diffusion.ddim_sample(lambda x, i: x, normal(2, 1), s, 1001), "steps: expected at most"),
        (lambda s: diffusion.ddim_sample(lambda x, i: x, normal(2, 1), s, 5, eta=2.0), "eta"),
        (lambda s: diffusion.ddpm_sample(lambda x, i: x, normal(2, 1), s, variance="small"), "variance"),  # type: ignore[arg-type]
        (lambda s: diffusion.ddpm_sample(lambda x, i: x[:1], normal(2, 1), s), r"model\(x, i, y\)"),
        (lambda s: diffusion.ddpm_sample(lambda x, i: x, normal(2, 1) * math.nan, s), "x: expected finite"),
        (lambda s: diffusion.ddpm_loss(lambda x, i: x, normal(2, 1), s, prediction="score"), "prediction"),  # type: ignore[arg-type]
        (lambda s: diffusion.probability_flow(lambda x, i: x, s, prediction="score"), "prediction"),  # type: ignore[arg-type]
    ],
)
def test_law_11_bad_input_is_named(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(SCHEDULES["linear"])  # type: ignore[operator]


CALLS = {
    "ddpm_sample": lambda model, s: diffusion.ddpm_sample(model, torch.zeros(2, 2), s),
    "ddim_sample": lambda model, s: diffusion.ddim_sample(model, torch.zeros(2, 2), s, 3),
    "ddpm_loss": lambda model, s: diffusion.ddpm_loss(model, torch.zeros(2, 2), s),
    "bits_per_dim": lambda model, s: diffusion.variational_bound(model, torch.ones(2, 2), s),
    "probability_flow": diffusion.probability_flow,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_model_of_steps_or_one_of_another_schedule_is_refused(call: Callable[..., object]) -> None:
    schedule, network = SCHEDULES["linear"], models.MLP(2, hidden=8)
    with pytest.raises(TypeError, match="got MLP, which takes a time"):
        call(network, schedule)
    with pytest.raises(TypeError, match="probability flow, whose model"):
        call(diffusion.Diffusion(schedule).velocity(network), schedule)
    with pytest.raises(ValueError, match="made for, of 1000 steps; got 60"):
        call(StepModel(network, schedule), NoiseSchedule.cosine(60))


PREDICTING = {
    "ddpm_sample": lambda model, **options: diffusion.ddpm_sample(
        model, torch.ones(2, 2), SHORT, generator=torch.Generator().manual_seed(0), **options
    ),
    "ddim_sample": lambda model, **options: diffusion.ddim_sample(model, torch.ones(2, 2), SHORT, 4, **options),
    "bits_per_dim": lambda model, **options: diffusion.variational_bound(
        model, torch.ones(2, 2), SHORT, generator=torch.Generator().manual_seed(0), **options
    ),
    "ddpm_loss": lambda model, **options: diffusion.ddpm_loss(
        model, torch.ones(2, 2), SHORT, i=torch.tensor([3, 5]), noise=torch.ones(2, 2), **options
    ),
    "probability_flow": lambda model, **options: diffusion.probability_flow(model, SHORT, **options)(
        torch.ones(2, 2), 0.4
    ),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("use", PREDICTING.values(), ids=PREDICTING)
def test_a_step_model_knows_what_it_predicts(use: Callable[..., Tensor], prediction: Prediction) -> None:
    """Sampled as if it predicted the noise, a model of the data gives samples that are no data, and no error."""

    def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.tanh(x + t.reshape(-1, 1))

    knowing = StepModel(network, SHORT, prediction)
    told = use(lambda x, i: knowing(x, i), prediction=prediction)
    assert torch.equal(use(knowing), told) and torch.equal(use(knowing, prediction=prediction), told)
    other = next(name for name in PREDICTIONS if name != prediction)
    with pytest.raises(ValueError, match=f"prediction: expected '{prediction}', .*; got '{other}'"):
        use(knowing, prediction=other)
    assert not torch.equal(use(lambda x, i: knowing(x, i), prediction=other), told)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_law_10_20_steps_are_10_and_a_resume_and_10_bit_for_bit(prediction: Prediction, tmp_path: Path) -> None:
    def network() -> models.MLP:
        torch.manual_seed(0)
        return models.MLP(2, hidden=16)

    loss = diffusion.Diffusion(NoiseSchedule.linear(50, rescale=True), prediction=prediction)
    config = TrainConfig(steps=20, batch_size=16, accumulate=2, ema_half_life=100.0)
    whole = fit(network(), loss, data.moons(), config, out=tmp_path / "whole")
    first = fit(network(), loss, data.moons(), config, out=tmp_path / "cut", stop_after=10)
    torch.manual_seed(123)
    second = fit(network(), loss, data.moons(), config, out=tmp_path / "cut")
    assert torch.equal(torch.cat([first.losses, second.losses]), whole.losses)
    stored: Any = load(tmp_path / "cut")
    x = normal(3, 2).float()
    assert torch.equal(stored(x, 0.3), whole.velocity(x, 0.3))
    assert stored.model.prediction == prediction


def test_the_probability_flow_refuses_times_outside_0_and_1() -> None:
    flow = diffusion.Diffusion(SCHEDULES["linear"]).velocity(models.MLP(2, hidden=8))
    with pytest.raises(ValueError, match="t: expected times in"):
        flow(torch.zeros(2, 2), 1.5)


def test_samplers_run_in_eval_mode_and_give_the_mode_back() -> None:
    network = nn.Dropout(0.5)
    model = StepModel(lambda x, t, y=None: network(x), NoiseSchedule.cosine(3))
    model.dropout = network
    model.train()
    x = normal(50, 1)
    once = diffusion.ddim_sample(model, x, NoiseSchedule.cosine(3), 3)
    assert torch.equal(once, diffusion.ddim_sample(model, x, NoiseSchedule.cosine(3), 3))
    assert network.training


class Moves(TorchDispatchMode):
    """Counts tensors that go from the CPU to another device, which would have to wait for a GPU's earlier work."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" != result.device.type:
            self.count += 1
        return result


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(1000), NoiseSchedule.cosine(50)])
def test_on_another_device_the_tables_are_moved_once(schedule: NoiseSchedule) -> None:
    """And no value of a tensor there is read: the meta device has none."""
    x, i = torch.zeros(3, 2, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    path, t = SchedulePath(schedule), torch.zeros((), device="meta")

    def use() -> None:
        schedule.add_noise(x, i, x)
        schedule.predict_data(x, i, x)
        schedule.posterior(x, x, i)
        schedule.posterior(x, x, 7)
        path.convert(x, x, t)

    use()
    with Moves() as moves:
        use()
    assert moves.count == 0
    assert schedule.on(x.device) is schedule.on(x.device) is schedule.on(x.device).on(x.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x", "mean", "std"),
    [(0.2, 0.25, 0.02), (0.2, -0.3, 0.05), (0.2, 0.9, 0.01), (-0.4, 0.9, 0.01), (1.0, 0.3, 0.01), (-1.0, 0.0, 0.1)],
)
def test_the_last_bin_of_the_bound_is_right_far_out(x: float, mean: float, std: float, dtype: torch.dtype) -> None:
    lower, upper = (-INF if x == -1 else (x - 0.1 - mean) / std), (INF if x == 1 else (x + 0.1 - mean) / std)
    z = torch.linspace(max(lower, -200.0), min(upper, 200.0), 1_000_001, dtype=torch.float64)
    expected = torch.logsumexp(-0.5 * z**2, 0) + math.log(float(z[1] - z[0]) / math.sqrt(2 * math.pi))
    at, center, spread = (torch.tensor(value, dtype=dtype) for value in (x, mean, std))
    found = log_bin(at, center, spread, levels=11)
    assert float(found) == pytest.approx(float(expected), rel=1e-2 if expected < -100 else 2e-3, abs=1e-4)


def test_a_model_that_errs_at_the_last_step_pays_for_it_in_full() -> None:
    schedule, x1 = NoiseSchedule.linear(1000), torch.ones(1, 1)

    def errs(x: Tensor, i: Tensor) -> Tensor:
        return torch.where(i[:, None] > 0, 1.0, 0.5)

    bits = diffusion.variational_bound(errs, x1, schedule, prediction="data")
    assert float(bits) == pytest.approx(1782.15, rel=1e-3)  # the Gaussian's tail beyond 49.6 standard deviations


def test_what_a_model_predicts_is_known_behind_wrappers() -> None:
    schedule = NoiseSchedule.linear(1000)
    model = StepModel(models.MLP(2, hidden=8), schedule, "v")
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    expected = diffusion.ddim_sample(model, x, schedule, 5)
    wrapped = torch.compile(model, backend="eager")
    torch.testing.assert_close(diffusion.ddim_sample(wrapped, x, schedule, 5), expected)
    torch.testing.assert_close(
        diffusion.ddim_sample(models.Autocast(model), x, schedule, 5), expected, rtol=0.1, atol=0.1
    )
    for wrapper in (torch.nn.DataParallel, models.Autocast, lambda m: models.Compiled(m, 4)):
        with pytest.raises(ValueError, match="expected 'v', which the model predicts; got 'noise'"):
            diffusion.ddim_sample(wrapper(model), x, schedule, 5, prediction="noise")


def test_the_cosine_schedule_leaves_the_noise_hundreds_of_times_faster_than_the_linear_one() -> None:
    at, rate = torch.tensor(0.0, dtype=torch.float64), []
    for schedule in (NoiseSchedule.cosine(1000), NoiseSchedule.linear(1000)):
        path = SchedulePath(schedule)
        rate.append(float(path.alpha_dot(at) / path.alpha(at)))
    assert rate[0] > 200 * rate[1]
