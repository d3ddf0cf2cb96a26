"""Anomaly scores against closed forms: what each of the four sees, and what it does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import INF, NAN, Recorder, normal, randomized, seeded
from sklearn.metrics import roc_auc_score
from torch import Tensor

from flowbook.analytic import GaussianMixture
from flowbook.diffusion import NoiseSchedule, probability_flow
from flowbook.inversion import Score, anomaly_score, invert
from flowbook.inversion.anomaly import OPTIONS
from flowbook.models import UNet
from flowbook.paths import LinearPath, VPPath

F64 = torch.float64
KINDS: tuple[Score, ...] = tuple(OPTIONS)
MIXTURE = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.7, 0.5], [0.3, 0.7])
DIMS = 100
NORMAL = GaussianMixture(torch.zeros(1, DIMS), 1.0).as_velocity(LinearPath())


def zero(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return torch.zeros_like(x)


def extra(kind: Score) -> dict[str, Any]:
    return {"reference": -2.5} if kind == "typicality" else {"generator": seeded()} if kind == "reconstruction" else {}


def auc(kind: Score, inside: Tensor, outside: Tensor, **options: Any) -> float:
    """The chance that an anomaly scores higher than a sample of the data."""
    scores = torch.cat([anomaly_score(NORMAL, x, kind, **options) for x in (inside, outside)])
    return float(roc_auc_score([0] * len(inside) + [1] * len(outside), scores.numpy()))


# Closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 2, 3)])
@pytest.mark.parametrize("shift", [0.0, 0.75])
def test_law_1_scores_of_a_constant_velocity_are_those_of_noise_moved(shape: tuple[int, ...], shift: float) -> None:
    def field(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, shift)

    x = normal(*shape)
    squares = (x - shift).square().flatten(1).sum(1)
    nats = 0.5 * (squares + 6 * math.log(2 * math.pi))
    cases: tuple[tuple[Score, dict[str, Any], Tensor], ...] = (
        ("likelihood", {}, nats),
        ("typicality", {"reference": -7.0}, (7.0 - nats).abs()),
        ("latent_norm", {}, (squares / 6 - 1).abs()),
        ("latent_norm", {"reference": 3.0}, (squares - 3.0).abs() / 6),
    )
    for kind, options, expected in cases:
        torch.testing.assert_close(anomaly_score(field, x, kind, **options), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(anomaly_score(field, x, nodes=2), nats, rtol=0, atol=1e-12)


def test_the_likelihood_is_the_mixture_s_own_negative_log_density() -> None:
    x = MIXTURE.sample(50, seeded()).double()
    score = anomaly_score(MIXTURE.as_velocity(LinearPath()), x)
    torch.testing.assert_close(score, -MIXTURE.log_prob(x), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", ["typicality", "latent_norm"])
def test_the_reference_stands_for_its_mean(kind: Score) -> None:
    velocity, x, data = MIXTURE.as_velocity(LinearPath()), normal(5, 2), MIXTURE.sample(40, seeded()).double()
    if kind == "typicality":
        mean = -float(anomaly_score(velocity, data, "likelihood").mean())
    else:
        mean = float(invert(velocity, data, method="rk4", steps=50).x.square().sum(1).mean())
    with_data, with_mean = (anomaly_score(velocity, x, kind, reference=m) for m in (data, mean))
    torch.testing.assert_close(with_data, with_mean, rtol=0, atol=1e-10)
    assert not torch.allclose(with_data, anomaly_score(velocity, x, kind, reference=mean + 1))


@pytest.mark.parametrize("path", [LinearPath(), VPPath()])
@pytest.mark.parametrize("noise_std", [0.3, 1.0])
def test_reconstruction_shrinks_by_the_posterior_mean_s_factor(noise_std: float, path: Any) -> None:
    """Data from N(0, d^2 I): d(x + s e) = g (x + s e), so the mean score is (1 - g)^2 |x|^2 / D + g^2 s^2."""
    gaussian = GaussianMixture(torch.zeros(1, 50), 0.6)
    x, gain = normal(3, 50), 0.6**2 / (0.6**2 + noise_std**2)
    score = anomaly_score(
        gaussian.as_velocity(path), x, "reconstruction", noise_std=noise_std, draws=200, path=path, generator=seeded()
    )
    expected = (1 - gain) ** 2 * x.square().mean(1) + gain**2 * noise_std**2
    torch.testing.assert_close(score, expected, rtol=0.03, atol=0)


def test_a_diffusion_model_scores_as_the_mixture_that_it_knows() -> None:
    schedule = NoiseSchedule.linear(1000)
    path = probability_flow(zero, schedule).path

    def noise(x: Tensor, i: Tensor) -> Tensor:
        t = 1 - i / 999
        return path.convert(MIXTURE.denoised(x, t, path), x, t, source="data", target="noise")

    flow, x = probability_flow(noise, schedule), MIXTURE.sample(20, seeded()).double()
    torch.testing.assert_close(anomaly_score(flow, x, steps=200), -MIXTURE.log_prob(x), rtol=0, atol=0.02)
    of_flow, of_truth = (
        anomaly_score(velocity, x, "reconstruction", generator=seeded())
        for velocity in (flow, MIXTURE.as_velocity(LinearPath()))
    )
    torch.testing.assert_close(of_flow, of_truth, rtol=0, atol=1e-6)


# What each sees -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["typicality", "latent_norm"])
def test_what_is_likelier_than_the_data_fools_the_likelihood_and_not_the_two_sided_scores(kind: Score) -> None:
    """N(0, I) in 100 dimensions: its densest points, near 0, are none of its samples."""
    inside, reference = normal(100, DIMS), normal(100, DIMS, seed=2)
    middle, far = 0.6 * normal(100, DIMS, seed=1), 1.4 * normal(100, DIMS, seed=1)
    settings = {"method": "heun", "steps": 5}
    density = {**settings, "trace": "hutchinson", "generator": seeded()}
    assert auc("likelihood", inside, middle, **density) < 0.01 and auc("likelihood", inside, far, **density) > 0.99
    options = density if kind == "typicality" else settings
    for outside in (middle, far):
        assert auc(kind, inside, outside, reference=reference, **options) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_far_from_the_data_scores_higher_than_the_data(kind: Score) -> None:
    velocity, data = MIXTURE.as_velocity(LinearPath()), MIXTURE.sample(200, seeded()).double()
    far = torch.tensor([[6.0, -6.0]], dtype=F64)
    assert float(anomaly_score(velocity, far, kind, **extra(kind))) > float(
        anomaly_score(velocity, data, kind, **extra(kind)).quantile(0.99)
    )


@pytest.mark.parametrize("kind", ["likelihood", "typicality", "latent_norm"])
def test_a_score_does_not_depend_on_the_rest_of_the_batch(kind: Score) -> None:
    velocity, x = MIXTURE.as_velocity(LinearPath()), normal(40, 2)
    together, alone = (anomaly_score(velocity, part, kind, **extra(kind)) for part in (x, x[:3]))
    torch.testing.assert_close(together[:3], alone, rtol=0, atol=1e-12)


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_images_and_labels_in_eval_mode_with_the_mode_given_back(kind: Score, dtype: torch.dtype) -> None:
    network = randomized(UNet(1, 8, 8, (1, 2), blocks=1, num_classes=3, dropout=0.5), scale=0.05).to(dtype)
    x, y = normal(2, 1, 8, 8).to(dtype), torch.tensor([0, 2])
    options = extra(kind) if kind == "reconstruction" else {"method": "heun", "steps": 2, **extra(kind)}
    if kind in ("likelihood", "typicality"):
        options |= {"trace": "hutchinson"}

    def score(labels: Tensor) -> Tensor:
        torch.manual_seed(0)
        if "generator" in options:
            options["generator"] = seeded()
        return anomaly_score(network, x, kind, y=labels, **options)

    network.eval()
    expected = score(y)
    network.train()
    assert torch.equal(score(y), expected) and not torch.equal(score(2 - y), expected)
    assert all(module.training for module in network.modules())
    assert expected.shape == (2,) and expected.dtype == dtype and not expected.requires_grad


# Law 11 ---------------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda v: anomaly_score(v, X, "novelty"), ValueError, "kind: expected one of 'likelihood', 'typicality'"),  # type: ignore[arg-type]
        (lambda v: anomaly_score(v, X[0]), ValueError, "x: expected at least 2 dimensions"),
        (lambda v: anomaly_score(v, X * NAN), ValueError, "x: expected finite numbers"),
        (lambda v: anomaly_score(v, X, y=Y[:1]), ValueError, "y: expected a row for each of"),
        (lambda v: anomaly_score(v, X, reference=1.0), ValueError, "reference: expected None for the score 'lik"),
        (lambda v: anomaly_score(v, X, "typicality"), ValueError, "reference: expected data to compare"),
        (lambda v: anomaly_score(v, X, "latent_norm", reference=X[:, :1]), ValueError, "reference: expected data like"),
        (lambda v: anomaly_score(v, X, "latent_norm", reference=X[:0]), ValueError, "reference: expected data like x"),
        (
            lambda v: anomaly_score(v, X, "latent_norm", reference=INF),
            ValueError,
            "reference: expected a finite number",
        ),
        (lambda v: anomaly_score(v, X, "latent_norm", reference=X, y=Y), ValueError, "reference: expected the mean"),
        (lambda v: anomaly_score(v, X, "latent_norm", trace="exact"), TypeError, "trace: not an option of the score"),
        (lambda v: anomaly_score(v, X, stepz=3), TypeError, "stepz: not an option of the score 'likelihood'; expected"),
        (lambda v: anomaly_score(v, X, "reconstruction", noise_std=0.0), ValueError, "noise_std: expected a number in"),
        (
            lambda v: anomaly_score(v, X, "reconstruction", draws=0),
            ValueError,
            "draws: expected an integer of at least",
        ),
        (lambda v: anomaly_score(v, X, "reconstruction", generator=0), TypeError, "generator: expected a torch.Gen"),
        (lambda v: anomaly_score(v, X, "latent_norm", method="rk5"), ValueError, "method: expected one of"),
    ],
)
def test_law_11_bad_input_is_named_before_the_velocity_is_called(call: Any, error: type[Exception], match: str) -> None:
    field = Recorder(zero)
    with pytest.raises(error, match=match):
        call(field)
    assert field.times == []
