"""No false alarm on what other packages do: once a week, by the extra ``interop``; for diffusers in every run."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from flowbook import laws
from flowbook.diffusion import NoiseSchedule
from flowbook.paths import CosinePath


def imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs {name}: pip install 'flowbook[interop]'")


class Net(nn.Module):
    """A function as a network, for packages that take nothing else."""

    def __init__(self, function: Any):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1))

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return self.function(*given, **named)


# diffusers ------------------------------------------------------------------------------------------------------------


def test_the_training_loop_of_diffusers_is_ddpm() -> None:
    scheduler = diffusers.DDPMScheduler()
    schedule = NoiseSchedule(scheduler.betas.double())

    def loss(model: Any, x1: Tensor) -> Tensor:
        noise, i = torch.randn_like(x1), torch.randint(0, 1000, (len(x1),))
        return torch.nn.functional.mse_loss(model(scheduler.add_noise(x1, noise, i), i), noise)

    assert laws.check_loss(loss, shape=(1, 8, 8), path=schedule).startswith("right: a regression on the noise")


@pytest.mark.parametrize("kind", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
def test_the_sampling_loops_of_diffusers_are_ddpm_and_ddim(kind: Any) -> None:
    short = NoiseSchedule.linear(50, rescale=True)
    scheduler = kind(num_train_timesteps=50, trained_betas=short.betas.numpy(), clip_sample=False)

    def sampler(model: Any, x: Tensor) -> Tensor:
        scheduler.set_timesteps(50)
        for i in scheduler.timesteps:
            x = scheduler.step(model(x, i), i, x).prev_sample
        return x

    name = kind.__name__[:4]
    assert laws.check_sampler(sampler, path=short).startswith(f"right: {name}")


def test_flow_matching_of_diffusers_in_its_own_convention() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    def sampler(model: Any, x: Tensor) -> Tensor:
        scheduler.set_timesteps(50)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(len(x))), t, x).prev_sample
        return x

    theirs: Any = {"time_scale": 1000.0, "reverse": True, "sign": -1}
    assert laws.check_sampler(sampler, **theirs).startswith("right: from noise to data in 50 calls")
    with pytest.raises(laws.Violation, match="time_scale"):
        laws.check_sampler(sampler)

    def loss(model: Any, x1: Tensor) -> Tensor:
        noise, sigma = torch.randn_like(x1), torch.rand(len(x1))[:, None]
        return (model((1 - sigma) * x1 + sigma * noise, 1000 * sigma) - (noise - x1)).square().mean()

    assert laws.check_loss(loss, **theirs).startswith("right")


# torchcfm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("ConditionalFlowMatcher", 0.0),
        ("ConditionalFlowMatcher", 0.1),
        ("ExactOptimalTransportConditionalFlowMatcher", 0.0),
        ("ExactOptimalTransportConditionalFlowMatcher", 0.1),
        ("VariancePreservingConditionalFlowMatcher", 0.0),
    ],
)
def test_torchcfm(name: str, sigma: float) -> None:
    torchcfm = imported("torchcfm")
    matcher = getattr(torchcfm.conditional_flow_matching, name)(sigma=sigma)
    path = CosinePath() if name.startswith("Variance") else laws.Convention().path

    def loss(model: Any, x1: Tensor) -> Tensor:
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        return torch.mean((model(t, xt) - ut) ** 2)

    with torch.random.fork_rng():
        verdict = laws.check_loss(loss, order="t,x", path=path)
    assert verdict.startswith("right") and ("noise of 0.1 added" in verdict) == bool(sigma)


# Meta's flow_matching -------------------------------------------------------------------------------------------------


def test_flow_matching_of_meta() -> None:
    imported("flow_matching")
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler
    from flow_matching.solver import ODESolver

    path = AffineProbPath(scheduler=CondOTScheduler())

    def loss(model: Any, x1: Tensor) -> Tensor:
        x0, t = torch.randn_like(x1), torch.rand(len(x1))
        drawn = path.sample(t=t, x_0=x0, x_1=x1)
        return torch.pow(model(drawn.x_t, drawn.t) - drawn.dx_t, 2).mean()

    def sampler(model: Any, x: Tensor) -> Tensor:
        return ODESolver(velocity_model=lambda x, t: model(x, t)).sample(x_init=x, method="midpoint", step_size=0.05)

    def log_prob(model: Any, x: Tensor) -> Tensor:
        prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
        solver = ODESolver(velocity_model=lambda x, t: model(x, t))
        return solver.compute_likelihood(
            x_1=x, method="midpoint", step_size=0.05, exact_divergence=True, log_p0=prior.log_prob
        )[1]

    def as_path(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
        drawn = path.sample(t=t, x_0=x0, x_1=x1)
        return drawn.x_t, drawn.dx_t

    assert laws.check_loss(loss).startswith("right")
    assert laws.check_sampler(sampler).startswith("right")
    assert laws.check_log_prob(log_prob).startswith("right")
    assert laws.check_path(as_path).startswith("right")


# zuko -----------------------------------------------------------------------------------------------------------------


def test_zuko() -> None:
    zuko = imported("zuko")

    def transform(model: Any) -> Any:
        return zuko.transforms.FreeFormJacobianTransform(lambda t, x: model(x, t), t0=1.0, t1=0.0)

    def log_prob(model: Any, x: Tensor) -> Tensor:
        base = zuko.distributions.DiagNormal(torch.zeros(2), torch.ones(2))
        return zuko.distributions.NormalizingFlow(transform(model), base).log_prob(x)

    def sampler(model: Any, x: Tensor) -> Tensor:
        return transform(model).inv(x)

    assert laws.check_log_prob(log_prob).startswith("right")
    assert laws.check_sampler(sampler).startswith("right")


# lucidrains -----------------------------------------------------------------------------------------------------------


def test_rectified_flow_of_lucidrains() -> None:
    package = imported("rectified_flow_pytorch")

    def made(model: Any) -> Any:
        return package.RectifiedFlow(
            Net(model), data_shape=(2,), data_normalize_fn=lambda x: x, data_unnormalize_fn=lambda x: x
        )

    def loss(model: Any, x1: Tensor) -> Tensor:
        return made(model)(x1)

    def sampler(model: Any, x: Tensor) -> Tensor:
        return made(model).sample(batch_size=len(x), steps=32, noise=x)

    assert laws.check_loss(loss).startswith("right")
    assert laws.check_sampler(sampler).startswith("right")


@pytest.mark.parametrize(("objective", "output"), [("pred_noise", "noise"), ("pred_x0", "data"), ("pred_v", "v")])
def test_denoising_diffusion_of_lucidrains(objective: str, output: str) -> None:
    package = imported("denoising_diffusion_pytorch")

    def made(model: Any) -> Any:
        net = Net(lambda x, i, *rest: model(x, i))
        net.channels = net.out_dim = 1  # type: ignore[assignment]
        net.self_condition = net.random_or_learned_sinusoidal_cond = False  # type: ignore[assignment]
        return package.GaussianDiffusion(net, image_size=8, timesteps=100, objective=objective, auto_normalize=False)

    schedule = NoiseSchedule(made(lambda x, i: x).betas.double())
    verdict = laws.check_loss(lambda model, x1: made(model)(x1), shape=(1, 8, 8), path=schedule, output=output)
    assert verdict.startswith(f"right: a regression on the {output}")
