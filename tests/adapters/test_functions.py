"""Functions, denoisers and scores of every convention as velocities, against the closed form."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path as Folder
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters.exact import MIXTURE, expected_data, gap, noise, seeded
from helpers import ALL_PATHS
from torch import Tensor, nn

from flowbook.adapters import from_callable, from_edm, from_score, from_torchcfm, to_edm
from flowbook.analytic import GaussianMixture
from flowbook.cnf import log_prob
from flowbook.guidance import guided
from flowbook.inversion import denoise, invert, round_trip
from flowbook.paths import (
    CosinePath,
    LinearPath,
    Path,
    SubVPPath,
    VEPath,
    VPPath,
    as_velocity,
    change_path,
    karras_grid,
    path_of,
)
from flowbook.reflow import distill, generate_pairs
from flowbook.solvers import sample
from flowbook.training import TrainConfig

T = torch.tensor(0.25, dtype=torch.float64)
X = noise(6)

# from_callable --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["x,t", "t,x"])
@pytest.mark.parametrize("time_scale", [1.0, 1000.0])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("module", [False, True])
def test_a_function_is_called_as_it_wants_and_nothing_else_changes(
    order: Any, time_scale: float, reverse: bool, sign: int, module: bool
) -> None:
    seen = []

    def f(first: Tensor, second: Tensor, **fixed: Any) -> Tensor:
        x, t = (first, second) if order == "x,t" else (second, first)
        seen.append((t, fixed))
        return x + t.reshape(-1, 1)

    class Network(nn.Module):
        def forward(self, *arguments: Tensor, **fixed: Any) -> Tensor:
            return f(*arguments, **fixed)

    velocity = from_callable(
        Network() if module else f, order, time_scale=time_scale, reverse=reverse, sign=sign, mode="plain"
    )
    v = velocity(X, T)
    time = time_scale * (1 - 0.25 if reverse else 0.25)
    torch.testing.assert_close(v, sign * (X + time))
    t, fixed = seen[-1]
    assert t.shape == ((6,) if module else ()) and fixed == {"mode": "plain"}
    own = torch.linspace(0, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(velocity(X, own), sign * (X + time_scale * (1 - own if reverse else own)[:, None]))


NAMES = {"epsilon": "noise", "sample": "data", "x0": "data", "x_start": "data", "v_prediction": "v", "eps": "noise"}


@pytest.mark.parametrize("path", ALL_PATHS, ids=repr)
@pytest.mark.parametrize("output", ["noise", "data", "score", "v", *NAMES])
def test_what_it_predicts_is_converted_on_its_path(output: str, path: Path) -> None:
    quantity: Any = NAMES.get(output, output)

    def model(t: Tensor, x: Tensor) -> Tensor:
        exact = MIXTURE.velocity(x, t / 100, path)
        return path.convert(exact, x, t / 100, source="velocity", target=quantity)

    velocity = from_callable(model, "t,x", time_scale=100.0, output=output, path=path)
    torch.testing.assert_close(velocity(X, T), MIXTURE.velocity(X, T, path), rtol=1e-6, atol=1e-6)
    assert path_of(velocity) is path and velocity.path is path


def test_the_condition_goes_where_it_belongs() -> None:
    def f(x: Tensor, t: Any, *rest: Tensor, **named: Any) -> Any:
        return (x + sum(part.sum() for part in (*rest, *named.values())), "more")

    y = torch.ones(6)
    close = torch.testing.assert_close
    close(from_callable(f)(X, T, y), X + 6)
    close(from_callable(f, condition="labels")(X, T, y), X + 6)
    close(from_callable(f, condition="**")(X, T, {"a": y, "b": y}), X + 12)
    close(from_callable(f, scale=torch.tensor(2.0))(X, T), X + 2)
    close(guided(from_callable(f, null=0.0), 3.0)(X, T, y), X + 18)
    close(from_callable(lambda x, t: SimpleNamespace(sample=x))(X, T), X)
    with pytest.raises(TypeError, match=r"y: expected a dict of keyword arguments with condition='\*\*'"):
        from_callable(f, condition="**")(X, T, y)


def test_a_module_inside_is_trained_copied_and_judged_in_eval_mode() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.norm(self.layer(torch.cat([x, t[:, None]], dim=1)))

    network = Network()
    velocity = from_callable(network, "t,x")
    x = torch.randn(8, 2, generator=seeded())
    before = copy.deepcopy(network.state_dict())
    sample(velocity, x, steps=3)
    sample(lambda x, t: network(t.expand(len(x)), x), x, steps=3)  # behind a function too
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    student = distill(velocity, (x, x, None), TrainConfig(steps=2, batch_size=4))
    assert student is not velocity and all(
        torch.equal(value, before[name]) for name, value in network.state_dict().items()
    )


def test_an_ode_over_another_interval() -> None:
    """dx/ds = cos(s) x from s = 0 to 3: with t = s / 3 the velocity is 3 cos(3 t) x."""
    velocity = from_callable(lambda x, s: torch.cos(s) * x, time_scale=3.0, sign=3.0)
    x = torch.ones(1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        sample(velocity, x, method="rk4", steps=50).x, x * math.exp(math.sin(3.0)), rtol=1e-6, atol=0
    )


def test_torchcfm_s_two_kinds_of_models() -> None:
    class UNetLike(nn.Module):
        def forward(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
            return x * t[:, None] + (0 if y is None else y[:, None])

    class Perceptron(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape == (6, 3)
            return x[:, :2] * x[:, 2:]

    torch.testing.assert_close(from_torchcfm(UNetLike())(X, T), X * 0.25)
    torch.testing.assert_close(from_torchcfm(UNetLike())(X, T, torch.ones(6)), X * 0.25 + 1)
    torch.testing.assert_close(from_torchcfm(Perceptron())(X, T), X * 0.25)
    torch.testing.assert_close(
        sample(from_torchcfm(lambda t, x: t * x), X, method="rk4", steps=20).x, X * math.exp(0.5)
    )


# Denoisers ------------------------------------------------------------------------------------------------------------


def denoiser(x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
    assert sigma.shape == (len(x),)
    shift = 0 if class_labels is None else class_labels[:, None]
    return expected_data(x - shift, torch.ones_like(sigma), sigma) + shift


def edm_sampler(net: Any, x: Tensor, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """EDM's deterministic sampler (Karras et al. 2022, algorithm 1), without its last step to sigma = 0."""
    index = torch.arange(steps + 1, dtype=torch.float64)
    levels = (sigma_max ** (1 / 7) + index / steps * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))) ** 7
    for now, then in itertools.pairwise(levels):
        slope = (x - net(x, now.expand(len(x)))) / now
        ahead = x + (then - now) * slope
        x = x + (then - now) * (slope + (ahead - net(ahead, then.expand(len(x)))) / then) / 2
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [18, 35])
def test_heun_on_karras_grid_is_edm_s_sampler(steps: int, dtype: torch.dtype) -> None:
    velocity = from_edm(denoiser, rho=1.0)
    x0 = 80 * noise(200).to(dtype)
    ours = sample(velocity, x0, method="heun", grid=karras_grid(steps, path=velocity.path)).x
    assert gap(ours, edm_sampler(denoiser, x0, steps)) < (1e-11 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_edm_s_own_spacing_has_about_a_third_of_the_error_of_equal_steps(seed: int) -> None:
    x0, equal, own = 80 * noise(200, seed=seed), from_edm(denoiser), from_edm(denoiser, rho=1.0)
    exact = sample(equal, x0, method="dopri5", rtol=1e-8, atol=1e-8).x
    for steps in (18, 36):
        grid = karras_grid(steps, path=own.path)
        ratio = gap(sample(own, x0, method="heun", grid=grid).x, exact) / gap(
            sample(equal, x0, method="heun", steps=steps).x, exact
        )
        assert 0.2 < ratio < 0.5


def test_the_preconditioned_network_is_the_denoiser() -> None:
    def inside(x: Tensor, c_noise: Tensor, *y: Tensor) -> Tensor:
        sigma = torch.exp(4 * c_noise)
        s = sigma[:, None]
        total = torch.sqrt(s**2 + 0.25)
        data = denoiser(x * total, sigma, *y)
        return (data - 0.25 / total**2 * x * total) * total / (0.5 * s)

    x, y = 3 * noise(6), torch.arange(6, dtype=torch.float64)
    for condition in (None, y):
        ours = from_edm(inside, sigma_data=0.5)(x, T, condition)
        torch.testing.assert_close(ours, from_edm(denoiser)(x, T, condition), rtol=1e-9, atol=1e-9)
    by_name = from_edm(denoiser)(x, T, {"class_labels": y})
    torch.testing.assert_close(by_name, from_edm(denoiser)(x, T, y))


def test_denoisers_have_densities_latents_pairs_and_students(tmp_path: Folder) -> None:
    velocity = from_edm(denoiser)
    x1 = MIXTURE.sample(300, seeded()).double()
    assert float((log_prob(velocity, x1).log_prob - MIXTURE.log_prob(x1)).abs().max()) < 0.01
    latent = invert(velocity, x1, method="rk4", steps=50).x
    assert float(latent.std()) == pytest.approx(80.0, rel=0.1)
    assert float(round_trip(velocity, x1, method="rk4", steps=100).error.max()) < 1e-3
    torch.testing.assert_close(
        denoise(velocity, x1, noise_std=0.5).x, denoiser(x1, torch.full((300,), 0.5)), rtol=1e-4, atol=1e-4
    )
    pairs = generate_pairs(velocity, (2,), 2000, tmp_path / "ve", name="exact", method="rk4", steps=30)
    x0, x1, _ = pairs.batch(torch.arange(2000))
    assert float(x0.std()) == pytest.approx(80.0, rel=0.05)  # the source follows from the path
    assert gap(x1.mean(0).double(), MIXTURE.weights @ MIXTURE.means) < 0.03
    with pytest.raises(ValueError, match="velocity: its noise has standard deviation 80"):
        distill(velocity, pairs)
    straight = change_path(velocity)
    pairs = generate_pairs(straight, (2,), 500, tmp_path / "straight", name="exact", method="rk4", steps=60)
    x0, x1, _ = pairs.batch(torch.arange(500))
    assert float(x0.std()) == pytest.approx(1.0, rel=0.1)
    assert gap(x1, sample(velocity, 80 * x0, method="rk4", steps=100).x) < 0.003


@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VPPath(), SubVPPath(), VEPath()], ids=repr)
def test_every_velocity_is_a_denoiser_of_edm(path: Path) -> None:
    model = to_edm(MIXTURE.as_velocity(path) if path == LinearPath() else _on(path))
    for sigma in (0.01, 0.5, 3.0, 40.0):
        level = torch.full((6,), sigma, dtype=torch.float64)
        found = model(X * sigma, torch.tensor(sigma))
        torch.testing.assert_close(found, denoiser(X * sigma, level), rtol=1e-4, atol=1e-4)
    assert model.round_sigma(0.3) == torch.tensor(0.3) and (model.sigma_min, model.sigma_max) == (0.002, 80.0)
    x = edm_sampler(model, 80 * noise(200), 36)
    assert gap(x, edm_sampler(denoiser, 80 * noise(200), 36)) < 1e-3


def _on(path: Path) -> Any:
    return as_velocity(lambda x, t: MIXTURE.denoised(x, t, path), path, prediction="data")


def test_an_edm_model_hands_its_condition_on() -> None:
    model = to_edm(lambda x, t, y=None: x if y is None else x * 0 + (y["a"] if isinstance(y, dict) else y)[:, None])
    x, y = torch.ones(2, 1), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(model(x, torch.tensor(1.0), y), model(x, torch.tensor(1.0), a=y))
    assert not torch.equal(model(x, torch.tensor(1.0), y), model(x, torch.tensor(1.0)))


# Scores ---------------------------------------------------------------------------------------------------------------

SDES: dict[Any, Path] = {"vp": VPPath(), "subvp": SubVPPath(), "ve": VEPath(0.01, 50.0, rho=math.inf)}


@pytest.mark.parametrize("sde", SDES)
def test_a_score_is_the_probability_flow_of_its_sde(sde: Any) -> None:
    path = SDES[sde]
    velocity = from_score(lambda x, s: MIXTURE.score(x, 1 - s / 999, path), sde, time_scale=999.0)
    assert velocity.path == path
    for t in (0.05, 0.5, 0.95):
        time = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(velocity(X, time), MIXTURE.velocity(X, time, path), rtol=1e-8, atol=1e-8)
    # As Song et al. write it: dx/ds = f(x, s) - g(s)^2 score / 2, with s = 1 - t.
    s, beta = 0.4, 0.1 + 0.4 * 19.9
    score = MIXTURE.score(X, 1 - s, path)
    integral = 0.1 * s + 19.9 * s**2 / 2
    drift, squared = {
        "vp": (-0.5 * beta * X, beta),
        "subvp": (-0.5 * beta * X, beta * (1 - math.exp(-2 * integral))),
        "ve": (0 * X, 2 * math.log(5000) * (0.01 * 5000**s) ** 2),
    }[sde]
    theirs = -(drift - 0.5 * squared * score)
    torch.testing.assert_close(velocity(X, torch.tensor(1 - s, dtype=torch.float64)), theirs, rtol=1e-6, atol=1e-6)
    x1 = MIXTURE.sample(300, seeded()).double()
    left = float(path.sigma(1.0))  # 0.01 of VE
    data = GaussianMixture(MIXTURE.means, torch.sqrt(MIXTURE.stds**2 + left**2), MIXTURE.weights)
    error = log_prob(velocity, x1, method="dopri5", rtol=1e-7, atol=1e-7).log_prob - data.log_prob(x1)
    assert float(error.square().mean().sqrt()) < 0.01  # of VE the source is N(0, 50^2) but nearly: hence 0.004


def test_a_score_may_be_called_with_the_noise_level() -> None:
    path = SDES["ve"]

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (expected_data(x, torch.ones_like(sigma), sigma) - x) / sigma.reshape(-1, 1) ** 2

    velocity = from_score(score, "ve", argument="sigma")
    torch.testing.assert_close(velocity(X, T), MIXTURE.velocity(X, T, path), rtol=1e-8, atol=1e-8)


# Paths ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [LinearPath(), LinearPath(0.1), CosinePath(), VPPath(), SubVPPath(), VEPath()], ids=repr)
@pytest.mark.parametrize(
    "start", [LinearPath(), CosinePath(), VPPath(), SubVPPath(), VEPath(), VEPath(rho=math.inf)], ids=repr
)
def test_a_change_of_path_is_exact_at_every_noise_level_that_both_have(start: Path, to: Path) -> None:
    changed = change_path(_on(start), to)
    assert path_of(changed) == to
    shared = 0
    for t in torch.linspace(0.02, 0.98, 13, dtype=torch.float64):
        level = float(to.sigma(t) / to.alpha(t))
        first, last = (float(start.sigma(u) / start.alpha(u)) for u in start.t_range)
        if not last * 1.001 < level < first * 0.999:
            continue
        shared += 1
        scale = float(to.alpha(t) + to.sigma(t))
        torch.testing.assert_close(changed(scale * X, t), MIXTURE.velocity(scale * X, t, to), rtol=1e-5, atol=1e-5)
        times = torch.full((6,), float(t), dtype=torch.float64)
        torch.testing.assert_close(changed(scale * X, times), changed(scale * X, t))
    assert shared >= 8


def test_latents_of_two_paths_differ_by_a_factor_alone() -> None:
    x1 = MIXTURE.sample(50, seeded()).double()
    tight: Any = {"method": "dopri5", "rtol": 1e-8, "atol": 1e-8}
    on_ve = from_edm(denoiser)
    ours = invert(change_path(on_ve, VPPath()), x1, **tight).x
    torch.testing.assert_close(ours, invert(on_ve, x1, **tight).x / 80, rtol=0, atol=0.02)
    straight = change_path(guided(as_velocity(lambda x, t, y: y[:, None] + 0 * x, VPPath(), "data"), 2.0, 0.0))
    y = torch.tensor([1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        sample(straight, noise(2), y=y, steps=50).x, 2 * y[:, None].expand(2, 2), rtol=0, atol=0.02
    )


def test_karras_grid_has_karras_levels_on_any_path() -> None:
    index = torch.linspace(0, 1, 11, dtype=torch.float64)
    levels = (80 ** (1 / 7) + index * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for path in (VEPath(), VEPath(rho=1.0), VEPath(rho=math.inf)):
        grid = torch.tensor(karras_grid(10, path=path), dtype=torch.float64)
        torch.testing.assert_close(path.sigma(grid), levels, rtol=1e-9, atol=1e-9)
    grid = torch.tensor(karras_grid(10, path=LinearPath(), sigma_min=0.002, sigma_max=80.0), dtype=torch.float64)
    assert (len(grid), float(grid[0]), float(grid[-1])) == (13, 0.0, 1.0)
    torch.testing.assert_close((1 - grid[1:-1]) / grid[1:-1], levels, rtol=1e-9, atol=1e-9)
    even = torch.tensor(karras_grid(4, rho=1.0, path=VEPath(rho=1.0)))
    torch.testing.assert_close(even, torch.linspace(0, 1, 5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "path", [VEPath(), VEPath(0.0, 10.0), VEPath(1.0, 3.0, 1.0), VEPath(rho=math.inf), SubVPPath(1.0, 2.0)]
)
def test_the_new_paths_have_their_derivatives(path: Path) -> None:
    t = torch.linspace(0.001, 0.999, 50, dtype=torch.float64, requires_grad=True)
    for name in ("alpha", "sigma"):
        (derivative,) = torch.autograd.grad((getattr(path, name)(t) + 0 * t).sum(), t)
        torch.testing.assert_close(getattr(path, f"{name}_dot")(t), derivative, rtol=1e-9, atol=1e-9)
    low, high = path.t_range
    assert 0 <= low < high <= 1


def test_a_mixture_on_the_new_paths_obeys_the_laws_of_the_old_ones() -> None:
    for path in (SubVPPath(), VEPath(0.01, 5.0)):
        data = GaussianMixture([[0.7]], [0.5])
        x1 = data.sample(200, seeded()).double()
        source = path.source((1,))
        result = log_prob(data.as_velocity(path), x1, source=source, method="dopri5", rtol=1e-8, atol=1e-8)
        alpha, sigma = float(path.alpha(0.0)), float(path.sigma(0.0))
        end = torch.distributions.Normal(
            float(path.alpha(1.0)) * 0.7, math.hypot(float(path.alpha(1.0)) * 0.5, float(path.sigma(1.0)))
        )
        start = torch.distributions.Normal(alpha * 0.7, math.hypot(alpha * 0.5, sigma))
        exact = result.log_prob - source.log_prob(result.latent) + start.log_prob(result.latent)[:, 0]
        torch.testing.assert_close(exact, end.log_prob(x1)[:, 0], rtol=1e-6, atol=1e-6)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_callable(3), TypeError, "f: expected a function"),  # type: ignore[arg-type]
        (lambda: from_callable(nn.Linear), TypeError, "f: expected .* the class Linear itself"),
        (lambda: from_callable(denoiser, "t, x"), ValueError, "order: expected one of 'x,t', 't,x'; got 't, x'"),  # type: ignore[arg-type]
        (lambda: from_callable(denoiser, output="velocities"), ValueError, "output: expected one of 'noise', .*'x0'"),
        (lambda: from_callable(denoiser, time_scale=math.inf), ValueError, "time_scale: .*inf"),
        (lambda: from_callable(denoiser, sign=0), ValueError, "sign: expected a number that is not 0"),
        (lambda: from_callable(denoiser, reverse=1), TypeError, "reverse: expected True or False"),  # type: ignore[arg-type]
        (lambda: from_callable(denoiser, path="vp"), TypeError, "path: expected a Path"),  # type: ignore[arg-type]
        (lambda: from_callable(denoiser, condition=1), TypeError, "condition: expected the name"),  # type: ignore[arg-type]
        (lambda: from_callable(lambda x, t: 3)(X, T), TypeError, "f: expected a function that returns a tensor"),
        (lambda: from_callable(lambda x, t: ())(X, T), TypeError, "f: expected a function that returns a tensor"),
        (lambda: from_score(denoiser, "edm"), ValueError, "sde: expected one of 'vp', 've', 'subvp'; got 'edm'"),  # type: ignore[arg-type]
        (lambda: from_score(denoiser, argument="t"), ValueError, "argument: expected one of 'time', 'sigma'"),  # type: ignore[arg-type]
        (lambda: from_edm("net"), TypeError, "net: expected a function"),  # type: ignore[arg-type]
        (lambda: from_edm(denoiser, 1.0, 0.5), ValueError, "sigma_min: .*1.0"),
        (lambda: from_edm(denoiser, sigma_data=0.0), ValueError, "sigma_data: .*0.0"),
        (lambda: to_edm(denoiser, -1.0), ValueError, "sigma_min: .*-1"),
        (lambda: VEPath(0.0, 1.0, math.inf), ValueError, "sigma_min: expected a positive number with rho=inf"),
        (lambda: VEPath(rho=0.0), ValueError, "rho: .*0.0"),
        (lambda: SubVPPath(0.0), ValueError, "beta_min: .*0.0"),
        (lambda: change_path(3), TypeError, "velocity: expected a function"),  # type: ignore[arg-type]
        (lambda: change_path(denoiser, "linear"), TypeError, "to: expected a Path"),  # type: ignore[arg-type]
        (lambda: karras_grid(0), ValueError, "n: expected an integer of at least 1"),
        (lambda: karras_grid(4, path=LinearPath()), ValueError, "sigma_max: .*inf"),
        (lambda: karras_grid(4, sigma_max=100.0), ValueError, "noise_std: VEPath.* has noise levels from 0.002 to 80"),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
