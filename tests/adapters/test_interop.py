"""Models of other packages against those packages themselves: ``pip install "flowbook[interop]"``, once a week."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from adapters.exact import MIXTURE, as_predicted, expected_data, gap, noise, seeded
from torch import Tensor, nn

from flowbook.adapters import from_callable, from_edm, from_torchcfm, to_edm
from flowbook.cnf import log_prob
from flowbook.diffusion import NoiseSchedule, probability_flow
from flowbook.inversion import invert, round_trip
from flowbook.paths import LinearPath, karras_grid
from flowbook.solvers import sample

TIGHT: dict[str, Any] = {"method": "dopri5", "rtol": 1e-7, "atol": 1e-7}


def imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs {name}: pip install 'flowbook[interop]'")


def images(n: int = 2, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn(n, channels, size, size, generator=seeded())


# torchcfm -------------------------------------------------------------------------------------------------------------


def test_torchcfm_s_networks_sample_as_in_its_tutorials() -> None:
    imported("torchcfm")
    from torchcfm.models import MLP
    from torchcfm.models.unet import UNetModel
    from torchdiffeq import odeint

    torch.manual_seed(0)
    unet = UNetModel((1, 8, 8), 32, 1, channel_mult=(1, 2), num_classes=3, class_cond=True).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.1)
    y = torch.tensor([0, 2])

    def field(t: Tensor, x: Tensor) -> Tensor:
        return unet(t, x, y)

    times = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        theirs = odeint(field, images(), times, method="dopri5", rtol=1e-5, atol=1e-5)[-1]
    ours = sample(from_torchcfm(unet), images(), y=y, rtol=1e-5, atol=1e-5).x
    assert gap(ours, theirs) < 1e-3 * float(theirs.abs().mean())

    mlp, x0 = MLP(2, time_varying=True), noise(6).float()

    def tutorial(t: Tensor, x: Tensor) -> Tensor:
        return mlp(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))

    with torch.no_grad():
        theirs = odeint(tutorial, x0, times, method="dopri5", rtol=1e-6, atol=1e-6)[-1]
    velocity = from_torchcfm(mlp)
    torch.testing.assert_close(sample(velocity, x0, rtol=1e-6, atol=1e-6).x, theirs, rtol=1e-4, atol=1e-4)
    assert float(round_trip(velocity, x0, method="rk4", steps=20).error.max()) < 1e-4


def test_torchcfm_s_targets_are_those_of_the_linear_path() -> None:
    imported("torchcfm")
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    x0, x1, t = noise(5), noise(5, seed=1), torch.rand(5, generator=seeded(), dtype=torch.float64)
    _, xt, target = ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x0, x1, t)
    torch.testing.assert_close(LinearPath().interpolate(x0, x1, t), xt)
    torch.testing.assert_close(LinearPath().velocity(x0, x1, t), target)


# flow_matching --------------------------------------------------------------------------------------------------------


def test_flow_matching_s_solver_and_ours_agree_in_both_directions() -> None:
    imported("flow_matching")
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    class Wrapped(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return MIXTURE.velocity(x, t.clamp(0, 1), LinearPath())  # their adaptive solver calls beyond 1

    model, x0 = Wrapped(nn.Identity()), noise(200)
    solver = ODESolver(velocity_model=model)
    options: dict[str, Any] = {"step_size": None, "method": "dopri5", "rtol": 1e-7, "atol": 1e-7}
    theirs = solver.sample(x_init=x0, **options)
    ours = sample(model, x0, **TIGHT).x  # nothing needed
    assert gap(ours, theirs) < 2e-4
    assert gap(sample(from_callable(model), x0, **TIGHT).x, theirs) < 2e-4
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    x1 = MIXTURE.sample(50, seeded()).double()
    latent, likelihood = solver.compute_likelihood(
        x_1=x1, log_p0=normal.log_prob, exact_divergence=True, method="midpoint", step_size=0.005
    )
    result = log_prob(model, x1, method="rk4", steps=100)
    assert gap(result.latent, latent) < 1e-2 and gap(result.log_prob, likelihood) < 0.01


# lucidrains -----------------------------------------------------------------------------------------------------------

OBJECTIVES: dict[str, Any] = {"pred_noise": "noise", "pred_x0": "data", "pred_v": "v"}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "random weights"])
def test_denoising_diffusion_pytorch_in_its_three_objectives(objective: str, exact: bool, monkeypatch: Any) -> None:
    package = imported("denoising_diffusion_pytorch")
    torch.manual_seed(0)

    class Exact(nn.Module):
        channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 1, 1, False, False

        def forward(self, x: Tensor, time: Tensor, x_self_cond: Any = None) -> Tensor:
            t = 1 - time.double() / (diffusion.num_timesteps - 1)
            kinds = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
            flat = x.flatten(1)[:, :2].double()
            out = as_predicted(flat, path.alpha(t), path.sigma(t), kinds[objective])
            return out.reshape(x.shape).to(x.dtype)

    shape = (300, 1, 1, 2) if exact else (2, 1, 8, 8)
    model: Any = Exact() if exact else package.Unet(dim=8, dim_mults=(1, 2), channels=1)
    diffusion = package.GaussianDiffusion(
        model, image_size=shape[2:], timesteps=1000, sampling_timesteps=500, objective=objective,
        beta_schedule="linear", auto_normalize=False,
    )  # fmt: skip
    velocity = probability_flow(diffusion.model, NoiseSchedule(diffusion.betas), prediction=OBJECTIVES[objective])
    path = velocity.path
    x0 = torch.randn(shape, generator=seeded())
    monkeypatch.setattr(torch, "randn", lambda *a, **k: x0.clone())
    monkeypatch.setattr(torch, "clamp", lambda x, *a, **k: x)  # their sampler clips to [-1, 1], a flow does not
    theirs = diffusion.ddim_sample(shape)
    monkeypatch.undo()
    ours = sample(velocity, x0, rtol=1e-5, atol=1e-5).x
    scale = max(1.0, float(theirs.abs().mean()))
    assert gap(ours, theirs) < (0.01 if exact else 0.03) * scale  # of 500 steps of first order, and of step 0's noise


def test_rectified_flow_pytorch() -> None:
    package = imported("rectified_flow_pytorch")
    torch.manual_seed(0)
    unet = package.Unet(dim=8, dim_mults=(1, 2), channels=1).eval()
    flow = package.RectifiedFlow(unet, data_shape=(1, 8, 8), data_unnormalize_fn=lambda x: x)
    theirs = flow.sample(steps=21, noise=images())
    ours = sample(from_callable(unet), images(), method="midpoint", steps=20).x
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="dimensions"):
        sample(unet, images(), steps=2)  # without the adapter, a 0-d time breaks it


# k-diffusion ----------------------------------------------------------------------------------------------------------


def kdiffusion() -> Any:
    return imported("k_diffusion")


def denoiser(x: Tensor, sigma: Tensor, shift: Tensor | None = None) -> Tensor:
    moved = 0 if shift is None else shift[:, None]
    return expected_data(x - moved, torch.ones_like(sigma), sigma) + moved


@pytest.mark.parametrize("steps", [10, 20])
def test_heun_is_k_diffusion_s_and_its_other_samplers_approach_the_flow(steps: int) -> None:
    sampling = kdiffusion().sampling
    x0, shift = 80 * noise(200), torch.linspace(-1, 1, 200, dtype=torch.float64)
    sigmas = sampling.get_sigmas_karras(steps + 1, 0.002, 80.0).double()[:-1]  # without the last step, to 0
    theirs = sampling.sample_heun(denoiser, x0, sigmas, {"shift": shift}, disable=True)
    velocity = from_edm(denoiser, rho=1.0)
    grid = karras_grid(steps, path=velocity.path)
    ours = sample(velocity, x0, y={"shift": shift}, method="heun", grid=grid).x
    assert gap(ours, theirs) < 1e-5  # their noise levels are in float32
    flow = sample(from_edm(denoiser), x0, **TIGHT).x
    for name, factor in (("sample_dpmpp_2m", 20.0), ("sample_euler", 5.0), ("sample_lms", 20.0)):
        other = getattr(sampling, name)(
            denoiser, x0, sampling.get_sigmas_karras(101, 0.002, 80.0).double(), disable=True
        )
        assert gap(other, flow) < 1 / factor, name


def test_k_diffusion_s_wrapped_network_and_its_likelihood() -> None:
    package = kdiffusion()
    torch.manual_seed(0)

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.layers(torch.cat([x, sigma.log()[:, None] / 4], dim=1))

    model = package.layers.Denoiser(Inner(), sigma_data=0.5).double()
    x0 = 80 * noise(50)
    sigmas = package.sampling.get_sigmas_karras(61, 0.002, 80.0).double()[:-1]
    theirs = package.sampling.sample_heun(model, x0, sigmas, disable=True)
    velocity = from_edm(model, rho=1.0)
    ours = sample(velocity, x0, method="heun", grid=karras_grid(60, path=velocity.path)).x
    assert gap(ours, theirs) < 1e-5
    x1 = torch.randn(40, 1, generator=seeded(), dtype=torch.float64)

    def one_dimensional(x: Tensor, sigma: Tensor) -> Tensor:  # of data from N(0, 1); there one probe is exact
        return x / (1 + sigma[:, None] ** 2)

    theirs = package.sampling.log_likelihood(one_dimensional, x1, 0.002, 80.0, atol=1e-7, rtol=1e-7)[0]
    found = log_prob(from_edm(one_dimensional), x1, **TIGHT).log_prob
    assert gap(found, theirs) < 0.01
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(x1)[:, 0]
    assert gap(found, exact) < 0.01


def test_our_velocities_go_through_k_diffusion_s_samplers() -> None:
    sampling = kdiffusion().sampling
    velocity, x0 = MIXTURE.as_velocity(LinearPath()), noise(200)
    flow = sample(velocity, x0, **TIGHT).x
    gaps = []
    for steps in (20, 40):
        sigmas = sampling.get_sigmas_karras(steps, 0.002, 80.0).double()
        gaps.append(gap(sampling.sample_heun(to_edm(velocity), 80 * x0, sigmas, disable=True), flow))
    assert gaps[1] < 0.02 and 2.5 < gaps[0] / gaps[1] < 6  # second order

    def conditional(x: Tensor, t: Any, y: Any) -> Tensor:
        return y["shift"][:, None] - x * 0

    shift = torch.linspace(-1, 1, 200, dtype=torch.float64)
    sigmas = sampling.get_sigmas_karras(20, 0.002, 80.0).double()
    x = sampling.sample_euler(to_edm(conditional), 80 * x0, sigmas, {"shift": shift}, disable=True)
    torch.testing.assert_close(
        x, sample(conditional, x0, y={"shift": shift}, method="euler", steps=1).x, rtol=0, atol=0.05
    )


def test_a_latent_of_ours_is_the_noise_of_theirs() -> None:
    sampling = kdiffusion().sampling
    x1 = MIXTURE.sample(50, seeded()).double()
    latent = invert(from_edm(denoiser), x1, **TIGHT).x
    sigmas = sampling.get_sigmas_karras(400, 0.002, 80.0).double()
    assert gap(sampling.sample_dpmpp_2m(denoiser, latent, sigmas, disable=True), x1) < 0.01
    assert math.isclose(float(latent.std()), 80.0, rel_tol=0.1)
