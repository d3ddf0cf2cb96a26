"""The measures: known distances of known samples, known energies of known flows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import INF, NAN, normal, seeded
from torch import Tensor, nn

from flowbook import metrics
from flowbook.data import moons


@pytest.mark.parametrize("seed", range(3))
def test_wasserstein2_is_the_least_over_all_permutations(seed: int) -> None:
    a, b = normal(6, 2, seed=seed), normal(6, 2, seed=seed + 10)
    least = min(float((a - b[list(order)]).square().sum(1).mean()) for order in itertools.permutations(range(6)))
    assert metrics.wasserstein2(a, b) == pytest.approx(math.sqrt(least), rel=1e-12)


@pytest.mark.parametrize("distance", [metrics.wasserstein2, metrics.sliced_wasserstein])
def test_distances_are_distances(distance: Any) -> None:
    a, b = normal(64, 2), 2 * normal(64, 2, seed=1)

    def d(u: Tensor, v: Tensor) -> float:
        return distance(u, v) if distance is metrics.wasserstein2 else distance(u, v, generator=seeded())

    assert d(a, a) == d(a, a[torch.randperm(64, generator=seeded())]) == 0
    assert d(a, b) == pytest.approx(d(b, a)) and d(a, b) > 0
    assert d(3 * a, 3 * b) == pytest.approx(3 * d(a, b))  # the distance, not its square
    assert d(a, b) <= d(a, a + 1) + d(a + 1, b)
    assert d(a.reshape(64, 1, 1, 2), b.reshape(64, 1, 1, 2)) == pytest.approx(d(a, b))


def test_wasserstein2_of_a_translation_is_its_length() -> None:
    a = normal(50, 2)
    assert metrics.wasserstein2(a, a + torch.tensor([3.0, 4.0])) == pytest.approx(5.0)
    far = a.float() + 1e5
    assert metrics.wasserstein2(far, far + 1) == pytest.approx(math.sqrt(2), rel=1e-2)


def test_sliced_wasserstein_is_at_most_wasserstein2_and_a_projection_s_mean() -> None:
    a, b = normal(128, 3), 1.5 * normal(128, 3, seed=1) + 1
    assert metrics.sliced_wasserstein(a, b, generator=seeded()) <= metrics.wasserstein2(a, b)
    # the mean of a squared projection of a translation c in D dimensions is |c|^2 / D
    shifted = metrics.sliced_wasserstein(a, a + 1, projections=20_000, generator=seeded())
    assert shifted == pytest.approx(1.0, rel=0.02)
    line = normal(50, 1)
    assert metrics.sliced_wasserstein(line, line.exp()) == pytest.approx(metrics.wasserstein2(line, line.exp()))


def test_mmd_is_unbiased_and_sees_a_difference() -> None:
    same = [metrics.mmd(normal(60, 2, seed=2 * k), normal(60, 2, seed=2 * k + 1), bandwidth=1.0) for k in range(60)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(60) and min(same) < 0
    shifted = [metrics.mmd(normal(60, 2, seed=k), normal(60, 2, seed=k + 100) + 1.0, bandwidth=1.0) for k in range(10)]
    assert min(shifted) > max(same)


def test_mmd_of_two_gaussians_is_the_closed_form() -> None:
    # E k over independent N(m, 1), N(m', 1): (h^2 / (h^2 + 2))^(1/2) exp(-(m - m')^2 / (2 (h^2 + 2)))
    a, b, h2 = normal(2000, 1), normal(2000, 1, seed=1) + 1.5, 0.7**2
    exact = 2 * math.sqrt(h2 / (h2 + 2)) * (1 - math.exp(-(1.5**2) / (2 * (h2 + 2))))
    assert metrics.mmd(a, b, bandwidth=0.7) == pytest.approx(exact, rel=0.1)


# Flows ----------------------------------------------------------------------------------------------------------------

OMEGA = 1.3


def rotation(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return OMEGA * torch.stack([-x[:, 1], x[:, 0]], 1)


def test_energy_and_straightness_of_a_rotation_are_the_closed_forms() -> None:
    x0 = normal(64, 2)
    square = float(x0.square().sum(1).mean())
    assert metrics.path_energy(rotation, x0, steps=4000) == pytest.approx(OMEGA**2 * square, rel=1e-3)
    # X1 - X0 is the mean of v over the way, so the integral is a variance: the energy less |X1 - X0|^2.
    bent = (OMEGA**2 - (2 - 2 * math.cos(OMEGA))) * square
    assert metrics.straightness(rotation, x0, steps=4000) == pytest.approx(bent, rel=5e-3)


def test_energy_is_at_least_the_squared_distance_of_the_ends_with_equality_for_transport() -> None:
    x0 = normal(128, 2)
    angle = torch.tensor(OMEGA)
    turn = torch.tensor([[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]], dtype=torch.float64)
    assert metrics.path_energy(rotation, x0, steps=500) > metrics.wasserstein2(x0, x0 @ turn) ** 2
    # from x to 3 x along straight lines is a gradient of a convex function: optimal
    stretch = lambda x, t: 2 * x / (1 + 2 * t)  # noqa: E731
    assert metrics.normalized_path_energy(stretch, x0, 3 * x0, steps=2000) == pytest.approx(0, abs=1e-3)
    assert metrics.straightness(stretch, x0, steps=2000) == pytest.approx(0, abs=1e-3)
    assert metrics.normalized_path_energy(lambda x, t: 2 * torch.ones_like(x), x0, x0 + 1, steps=3) == pytest.approx(
        3.0
    )


@pytest.mark.parametrize("measure", [metrics.path_energy, metrics.straightness])
def test_flow_measures_run_in_eval_mode_with_labels_and_without_gradients(measure: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            assert not self.layer[1].training and y is not None and not torch.is_grad_enabled()
            return self.layer(x)

    model = Model().train()
    x, y = torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    assert measure(model, x, steps=3, y=y) == measure(model, x, steps=3, y=y)
    assert model.training and model.layer[1].training


# Images ---------------------------------------------------------------------------------------------------------------


def gaussian_moments(seed: int, dim: int = 4) -> tuple[Tensor, Tensor]:
    root = normal(dim, dim, seed=seed)
    return normal(dim, seed=seed + 50), root @ root.T + 0.1 * torch.eye(dim, dtype=torch.float64)


def test_frechet_distance_is_the_formula_with_scipy_s_matrix_root() -> None:
    a, b = gaussian_moments(0), gaussian_moments(1)
    root = scipy.linalg.sqrtm((a[1] @ b[1]).numpy()).real
    exact = float((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace()) - 2 * np.trace(root)
    assert metrics.frechet_from_moments(a, b) == pytest.approx(exact, rel=1e-9)
    assert metrics.frechet_from_moments(b, a) == pytest.approx(exact, rel=1e-9)
    assert metrics.frechet_from_moments(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_scaled_features_is_in_closed_form() -> None:
    x = normal(500, 5)
    mean, covariance = metrics.moments(x)
    exact = float((mean * 2 - mean).square().sum() + covariance.trace())  # (2 - 1)^2 tr
    assert metrics.frechet_distance(x, 2 * x) == pytest.approx(exact, rel=1e-9)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(covariance, torch.from_numpy(np.cov(x.numpy().T)))


def test_frechet_distance_of_one_feature_is_of_means_and_stds() -> None:
    x = normal(100, 1)
    assert metrics.frechet_distance(x, 3 * x + 1) == pytest.approx(
        float((2 * x.mean() + 1) ** 2 + (2 * x.std()) ** 2), rel=1e-9
    )


def test_torchmetrics_fid_agrees_on_features_of_one_s_own() -> None:
    class Features(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return images.double().flatten(1)

    fid: Any = metrics.inception_fid(Features())
    a, b = torch.rand(60, 3, 2, 2, generator=seeded()), 0.7 * torch.rand(60, 3, 2, 2, generator=seeded(1))
    fid.update(a, real=True)
    fid.update(b, real=False)
    assert float(fid.compute()) == pytest.approx(metrics.frechet_distance(a.flatten(1), b.flatten(1)), rel=1e-3)


def test_nearest_neighbors_are_the_nearest() -> None:
    data, x = moons().sample(50, seeded()), moons().sample(20, seeded(1))
    distance, index = metrics.nearest_neighbors(x, data)
    for n in range(20):
        all_distances = (data - x[n]).norm(dim=1)
        assert int(index[n]) == int(all_distances.argmin())
        assert float(distance[n]) == pytest.approx(float(all_distances.min()), rel=1e-4)
    assert metrics.nearest_neighbors(data, data)[1].tolist() == list(range(50))


A = torch.zeros(5, 2)
F = normal(10, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.wasserstein2(A, A[:4]), ValueError, r"b: .*\(5, 2\).*\(4, 2\)"),
        (lambda: metrics.wasserstein2(A, A[:, :1]), ValueError, r"b: .*\(5, 2\).*\(5, 1\)"),
        (lambda: metrics.wasserstein2(A.long(), A), TypeError, "a: .*int64"),
        (lambda: metrics.wasserstein2(A, A + NAN), ValueError, "b: .*finite"),
        (lambda: metrics.wasserstein2(A[:, 0], A[:, 0]), ValueError, "a: .*2 dimensions"),
        (lambda: metrics.sliced_wasserstein(A, A[:4]), ValueError, r"b: .*\(4, 2\)"),
        (lambda: metrics.sliced_wasserstein(A, A, projections=0), ValueError, "projections: .*0"),
        (lambda: metrics.mmd(A, A[:1]), ValueError, "a, b: .*2 samples"),
        (lambda: metrics.mmd(A, A[:, :1]), ValueError, "b: .*dimension of a, 2; got 1"),
        (lambda: metrics.mmd(A, A, bandwidth=0.0), ValueError, "bandwidth"),
        (lambda: metrics.path_energy(rotation, A + INF), ValueError, "x0: .*finite"),
        (lambda: metrics.path_energy(rotation, A, steps=0), ValueError, "steps: .*0"),
        (lambda: metrics.straightness(rotation, A.int(), steps=1), TypeError, "x0: .*int32"),
        (lambda: metrics.straightness(lambda x, t: x[:, :1], A, steps=1), ValueError, r"velocity.*\(5, 2\).*\(5, 1\)"),
        (lambda: metrics.frechet_distance(F, F[:3]), ValueError, "features: .*3 features; got 3"),
        (lambda: metrics.frechet_distance(F, F[:, :2]), ValueError, r"b: .*\(3,\).*\(2,\)"),
        (lambda: metrics.nearest_neighbors(A, F), ValueError, "data: .*dimension of x, 2; got 3"),
        (lambda: metrics.wasserstein2(A, A, squared=True), TypeError, "squared"),  # type: ignore[call-arg]
        (lambda: metrics.wasserstein2(A[:0], A[:0]), ValueError, r"a: .*at least one sample; got shape \(0, 2\)"),
        (lambda: metrics.sliced_wasserstein(A[:0], A[:0]), ValueError, "a: .*at least one sample"),
        (lambda: metrics.sliced_wasserstein(A, A, generator=0), TypeError, "generator: .*0"),  # type: ignore[arg-type]
        (lambda: metrics.nearest_neighbors(A, A[:0]), ValueError, "data: .*at least one sample"),
        (lambda: metrics.mmd(A, A), ValueError, "bandwidth: the median distance of a and b is 0"),
        (lambda: metrics.normalized_path_energy(rotation, A, A, steps=2), ValueError, "x1: expected samples that"),
        (lambda: metrics.path_energy(lambda x, t: x.double(), A), TypeError, "velocity.*float32.*float64"),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_distances_hold_far_from_the_origin_and_for_huge_numbers() -> None:
    a, b = normal(64, 3, seed=0), normal(64, 3, seed=1)
    distance, index = metrics.nearest_neighbors(b.float() + 1e3, torch.cat([a, b]).float() + 1e3)
    assert float(distance.max()) < 1e-3 and torch.equal(index, torch.arange(64) + 64)
    assert metrics.mmd(a + 1e7, b + 1e7, 1.0) == pytest.approx(metrics.mmd(a, b, 1.0), abs=1e-6)
    assert metrics.wasserstein2(1e19 * a.float(), 1e19 * b.float()) == pytest.approx(
        1e19 * metrics.wasserstein2(a.float(), b.float()), rel=1e-5
    )


def test_a_set_of_low_rank_is_at_distance_0_from_itself() -> None:
    features = 100 * normal(200, 8, seed=0) @ normal(8, 64, seed=1)
    assert 0 <= metrics.frechet_distance(features, features) < 1e-4


def test_moments_that_are_not_finite_are_refused() -> None:
    mean, covariance = metrics.moments(normal(100, 3))
    with pytest.raises(ValueError, match="a: expected finite numbers"):
        metrics.frechet_from_moments((NAN * mean, covariance), (mean, covariance))
    with pytest.raises(ValueError, match="b: expected finite numbers"):
        metrics.frechet_from_moments((mean, covariance), (mean, INF * covariance))


@pytest.mark.parametrize(("dim", "low", "high"), [(2, 0.0, 0.3), (8, 0.35, 0.65), (64, 0.9, 1.0)])
def test_the_energy_of_an_optimal_flow_from_independent_samples_is_as_the_docstring_says(
    dim: int, low: float, high: float
) -> None:
    shift = torch.full((dim,), 2 / math.sqrt(dim), dtype=torch.float64)
    x0, x1 = normal(256, dim, seed=0), normal(256, dim, seed=1) + shift
    found = metrics.normalized_path_energy(lambda x, t: shift.expand_as(x), x0, x1, steps=2)
    assert low <= found < high
