"""Law 5: score, velocity, denoiser and density of the mixtures are one another's consequences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import ALL_PATHS, MIXTURE, NAN, normal, seeded
from torch import Tensor

from flowbook.analytic import GaussianMixture, eight_gaussians, two_gaussians
from flowbook.paths import CosinePath, LinearPath, Path, Quantity, VPPath
from flowbook.solvers import solve

MIXTURES = {
    "three in the plane": MIXTURE,
    "one Gaussian": GaussianMixture([[0.5, -1.0]], 0.7),
    "on a line": GaussianMixture([[-0.6], [0.6]], 0.1, [0.3, 0.7]),
    "eight": eight_gaussians(),
}

paths = pytest.mark.parametrize("path", ALL_PATHS, ids=repr)
mixtures = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
labeled = pytest.mark.parametrize("with_labels", [False, True], ids=["marginal", "given the component"])


def states(mixture: GaussianMixture, n: int = 24) -> tuple[Tensor, Tensor]:
    """Points and times all over the flow."""
    return 1.5 * normal(n, mixture.dim), torch.linspace(0.02, 0.98, n, dtype=torch.float64)


def labels(mixture: GaussianMixture, n: int, with_labels: bool) -> Tensor | None:
    return torch.arange(n) % len(mixture.means) if with_labels else None


@mixtures
def test_log_prob_is_that_of_torch_distributions(mixture: GaussianMixture) -> None:
    components = torch.distributions.Independent(
        torch.distributions.Normal(mixture.means, mixture.stds[:, None].expand_as(mixture.means)), 1
    )
    reference = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), components)
    x = 3 * normal(50, mixture.dim)
    torch.testing.assert_close(mixture.log_prob(x), reference.log_prob(x), rtol=1e-10, atol=1e-10)


@mixtures
@paths
def test_the_marginal_starts_as_noise_and_ends_as_the_data(mixture: GaussianMixture, path: Path) -> None:
    x = 3 * normal(50, mixture.dim)
    if not isinstance(path, VPPath):  # which keeps a trace of the data at t = 0
        standard = -0.5 * x.square().sum(1) - 0.5 * mixture.dim * math.log(2 * math.pi)
        torch.testing.assert_close(mixture.marginal_log_prob(x, 0.0, path), standard)
    if float(path.sigma(1.0)) == 0:
        torch.testing.assert_close(mixture.marginal_log_prob(x, 1.0, path), mixture.log_prob(x))


@mixtures
@paths
@labeled
def test_score_is_the_gradient_of_the_log_density(mixture: GaussianMixture, path: Path, with_labels: bool) -> None:
    x, t = states(mixture)
    y = labels(mixture, len(x), with_labels)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.marginal_log_prob(x, t, path, y).sum(), x)
    torch.testing.assert_close(mixture.score(x, t, path, y), gradient, rtol=1e-9, atol=1e-9)


@mixtures
@paths
@labeled
def test_velocity_and_density_satisfy_the_continuity_equation(
    mixture: GaussianMixture, path: Path, with_labels: bool
) -> None:
    x, t = states(mixture)
    y = labels(mixture, len(x), with_labels)
    x.requires_grad_()
    t.requires_grad_()
    change, score = torch.autograd.grad(mixture.marginal_log_prob(x, t, path, y).sum(), (t, x))
    v = mixture.velocity(x, t, path, y)
    divergence: Any = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(mixture.dim))
    terms = torch.stack([change, divergence, (v * score).sum(1)])
    residual = terms.sum(0) / terms.abs().sum(0).clamp_min(1)
    torch.testing.assert_close(residual, torch.zeros_like(residual), rtol=0, atol=1e-8)


@paths
def test_velocity_is_the_mean_conditional_velocity_among_the_pairs_that_meet(path: Path) -> None:
    # E[(u(x_t) - dx_t/dt) phi(x_t)] = 0 for every phi: what flow matching's regression finds.
    n = 200_000
    x0, x1 = normal(n, 2, seed=1), MIXTURE.sample(n, seeded(2)).double()
    t = torch.rand(n, generator=seeded(3), dtype=torch.float64) * 0.95
    xt = path.interpolate(x0, x1, t)
    gap = MIXTURE.velocity(xt, t, path) - path.velocity(x0, x1, t)
    for phi in (torch.ones(n), xt[:, 0], xt[:, 1].sin(), t * xt[:, 0].cos()):
        products = gap * phi[:, None]
        standard_error = products.std(0) / math.sqrt(n)
        assert (products.mean(0).abs() < 4.5 * standard_error).all()


@mixtures
@paths
@labeled
@pytest.mark.parametrize("source", ["score", "velocity"])
def test_denoised_agrees_with_convert(
    mixture: GaussianMixture, path: Path, with_labels: bool, source: Quantity
) -> None:
    x, t = states(mixture)
    y = labels(mixture, len(x), with_labels)
    value = getattr(mixture, source)(x, t, path, y)
    converted = path.convert(value, x, t, source, "data")
    torch.testing.assert_close(mixture.denoised(x, t, path, y), converted, rtol=1e-8, atol=1e-8)


@paths
@pytest.mark.parametrize("quantity", ["score", "velocity", "denoised"])
def test_the_whole_is_the_average_of_its_components_given_x(path: Path, quantity: str) -> None:
    x, t = states(MIXTURE)
    components = [torch.full((len(x),), k) for k in range(3)]
    joint = torch.stack([MIXTURE.marginal_log_prob(x, t, path, y) + MIXTURE.weights[y].log() for y in components])
    posterior = (joint - MIXTURE.marginal_log_prob(x, t, path)).exp()
    torch.testing.assert_close(posterior.sum(0), torch.ones(len(x), dtype=torch.float64))
    average = sum(
        p[:, None] * getattr(MIXTURE, quantity)(x, t, path, y) for p, y in zip(posterior, components, strict=True)
    )
    torch.testing.assert_close(getattr(MIXTURE, quantity)(x, t, path), average, rtol=1e-9, atol=1e-9)


@mixtures
@paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0, 0.0, 0.5, 1.0, 1, 1 + 1e-7])
def test_everything_is_finite_from_end_to_end_and_far_out(
    mixture: GaussianMixture, path: Path, dtype: torch.dtype, t: float
) -> None:
    x = torch.cat([normal(4, mixture.dim), 50 * normal(4, mixture.dim)]).to(dtype)
    for quantity in (mixture.score, mixture.velocity, mixture.denoised, mixture.marginal_log_prob):
        value = quantity(x, t, path)
        assert value.dtype == dtype and value.isfinite().all()


def cumulative(mixture: GaussianMixture, x: Tensor, t: float, path: Path) -> Tensor:
    """The distribution function of x_t on a line."""
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    std = (alpha**2 * mixture.stds**2 + sigma**2).sqrt()
    return (torch.special.ndtr((x - alpha * mixture.means[:, 0]) / std) * mixture.weights).sum(1, keepdim=True)


@paths
def test_on_a_line_the_flow_keeps_every_quantile(path: Path) -> None:
    mixture = GaussianMixture([[-1.0], [1.5]], [0.5, 0.3], [0.4, 0.6])
    x0 = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
    x1 = solve(mixture.as_velocity(path), x0, rtol=1e-9, atol=1e-9).x
    torch.testing.assert_close(
        cumulative(mixture, x1, 1.0, path), cumulative(mixture, x0, 0.0, path), rtol=0, atol=1e-6
    )


@paths
def test_a_labeled_flow_goes_to_its_own_component(path: Path) -> None:
    y = torch.arange(3).repeat_interleave(50)
    x0 = normal(150, 2)
    x1 = solve(MIXTURE.as_velocity(path), x0, y=y, rtol=1e-8, atol=1e-8).x
    # A Gaussian stays a Gaussian: the flow is the linear map between the marginals at the two ends.
    start, end = path.alpha(0.0) * MIXTURE.means[y], path.alpha(1.0) * MIXTURE.means[y]
    spread = [(path.alpha(t) ** 2 * MIXTURE.stds[y] ** 2 + path.sigma(t) ** 2).sqrt()[:, None] for t in (0.0, 1.0)]
    torch.testing.assert_close(x1, end + spread[1] / spread[0] * (x0 - start), rtol=0, atol=1e-6)


def test_entropy_of_one_gaussian_is_closed_and_of_far_ones_adds_the_choice() -> None:
    one = GaussianMixture([[3.0, -1.0, 0.0]], 0.5)
    gaussian = 3 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    assert one.entropy() == pytest.approx(gaussian, rel=1e-12)
    far = GaussianMixture([[100.0, 0.0, 0.0], [-100.0, 0.0, 0.0]], 0.5, [0.25, 0.75])
    choice = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert far.entropy(100_000, seeded()) == pytest.approx(gaussian + choice, abs=0.02)


def test_samples_have_the_moments_and_labels_of_the_mixture() -> None:
    n = 200_000
    x, y = MIXTURE.sample_labeled(n, seeded())
    frequencies = torch.bincount(y, minlength=3) / n
    torch.testing.assert_close(frequencies.double(), MIXTURE.weights, rtol=0, atol=0.005)
    for k in range(3):
        own = x[y == k].double()
        torch.testing.assert_close(own.mean(0), MIXTURE.means[k], rtol=0, atol=0.02)
        torch.testing.assert_close(own.std(0), MIXTURE.stds[k].expand(2), rtol=0.02, atol=0)


def test_the_generator_decides_the_sample_and_torch_s_seed_without_one() -> None:
    assert torch.equal(MIXTURE.sample(5, seeded(7)), MIXTURE.sample(5, seeded(7)))
    assert not torch.equal(MIXTURE.sample(5, seeded(7)), MIXTURE.sample(5, seeded(8)))
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(MIXTURE.sample(5))
    assert torch.equal(*draws)


def test_the_named_mixtures_lie_where_the_text_says() -> None:
    assert two_gaussians().means.tolist() == [[-4.0, 0.0], [4.0, 0.0]]
    assert two_gaussians().stds.tolist() == [1.0, 1.0]
    torch.testing.assert_close(eight_gaussians().means.norm(dim=1), torch.full((8,), 5.0, dtype=torch.float64))
    assert eight_gaussians().stds.square().tolist() == pytest.approx([0.1] * 8)


def test_weights_are_normalized_and_one_std_serves_all() -> None:
    mixture = GaussianMixture([[0.0], [1.0]], 0.5, [1, 3])
    assert mixture.weights.tolist() == [0.25, 0.75] and mixture.stds.tolist() == [0.5, 0.5]


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianMixture([0.0, 1.0], 1.0), ValueError, r"means: .*\(K, D\).*\(2,\)"),  # type: ignore[list-item]
        (lambda: GaussianMixture([[0.0]], [1.0, 2.0]), ValueError, r"stds: .*1 means.*\(2,\)"),
        (lambda: GaussianMixture([[0.0]], 0.0), ValueError, "stds: .*positive"),
        (lambda: GaussianMixture([[0.0]], -1.0), ValueError, "stds: .*positive"),
        (lambda: GaussianMixture([[0.0]], 1.0, [0.5, 0.5]), ValueError, r"weights: .*\(2,\)"),
        (lambda: GaussianMixture([[0.0], [1.0]], 1.0, [1.0, 0.0]), ValueError, "weights: .*positive"),
        (lambda: GaussianMixture([[NAN]], 1.0), ValueError, "means: .*finite"),
        (lambda: GaussianMixture([[0.0]], 1.0, wieghts=[1.0]), TypeError, "wieghts"),  # type: ignore[call-arg]
        (lambda: MIXTURE.sample(0), ValueError, "n: .*0"),
        (lambda: MIXTURE.sample(2.5), TypeError, "n: .*2.5"),  # type: ignore[arg-type]
        (lambda: MIXTURE.sample(2, 0), TypeError, "generator: .*0"),  # type: ignore[arg-type]
        (lambda: MIXTURE.as_velocity("linear"), TypeError, r"path: .*LinearPath\(\); got 'linear'"),  # type: ignore[arg-type]
        (lambda: MIXTURE.log_prob(X.long()), TypeError, "x: .*int64"),
        (lambda: MIXTURE.log_prob(torch.zeros(3, 5)), ValueError, r"x: .*\(B, 2\).*\(3, 5\)"),
        (lambda: MIXTURE.log_prob(torch.zeros(2)), ValueError, r"x: .*\(2,\)"),
        (lambda: MIXTURE.score(X, 1.5, LinearPath()), ValueError, "t: .*1.5"),
        (lambda: MIXTURE.velocity(X, torch.zeros(2), CosinePath()), ValueError, r"t: .*\(3,\).*\(2,\)"),
        (lambda: MIXTURE.velocity(X, 0.5, LinearPath(), torch.tensor([0, 1, 3])), ValueError, "y: .*0 to 2.*3"),
        (lambda: MIXTURE.denoised(X, 0.5, LinearPath(), torch.tensor([0.0, 1.0, 2.0])), TypeError, "y: .*float32"),
        (lambda: MIXTURE.marginal_log_prob(X, 0.5, LinearPath(), torch.tensor([0])), ValueError, r"y: .*\(3,\)"),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
