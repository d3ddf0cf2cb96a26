"""Chapter 3's loss: right target, right gradient, right labels; guidance as its formula says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import ALL_PATHS, MIXTURE, NAN, normal, seeded
from torch import Tensor, nn

from flowbook._core import keyed
from flowbook.couplings import Independent, OptimalTransport
from flowbook.flow_matching import FlowMatching, flow_matching_loss
from flowbook.guidance import guided
from flowbook.models import MLP
from flowbook.paths import LinearPath, Path, VPPath

paths = pytest.mark.parametrize("path", ALL_PATHS, ids=repr)
couplings = pytest.mark.parametrize(
    "coupling",
    [Independent(), OptimalTransport(), OptimalTransport("sinkhorn"), OptimalTransport(label_aware=True)],
    ids=repr,
)


@paths
@pytest.mark.parametrize("shape", [(5,), (6, 2), (4, 3, 4, 4)])
def test_the_loss_is_the_mean_squared_gap_to_the_derivative_of_the_path(path: Path, shape: tuple[int, ...]) -> None:
    x0, x1 = normal(*shape, seed=0), normal(*shape, seed=1)
    t = torch.linspace(0.1, 0.9, shape[0], dtype=torch.float64)
    h = 1e-6
    derivative = (path.interpolate(x0, x1, t + h) - path.interpolate(x0, x1, t - h)) / (2 * h)
    loss = flow_matching_loss(lambda x, t, y=None: 0.3 * x, x1, x0=x0, t=t, path=path)
    expected = (0.3 * path.interpolate(x0, x1, t) - derivative).square().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-7)


@couplings
def test_input_and_target_see_the_same_noise(coupling: Any) -> None:
    # On the straight path xt + (1 - t) v = x1. An oracle that solves it for v has loss 0 only if the noise in xt is the
    # noise of the target: with one of them permuted it would be about 2.
    x1, y = normal(64, 2), torch.arange(64) % 3

    def oracle(xt: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return (x1 - xt) / (1 - t[:, None])

    assert float(flow_matching_loss(oracle, x1, y=y, coupling=coupling)) < 1e-20


def test_transport_pairs_before_the_path_mixes() -> None:
    x0, x1 = normal(128, 2), normal(128, 2, seed=1)
    losses = [float(flow_matching_loss(lambda x, t, y=None: torch.zeros_like(x), x1, x0=x0, coupling=coupling))
              for coupling in (Independent(), OptimalTransport())]  # fmt: skip
    paired, _, _ = OptimalTransport()(x0, x1)
    assert losses[1] == pytest.approx(float((x1 - paired).square().mean())) and losses[1] < 0.3 * losses[0]


@paths
def test_the_conditional_loss_has_the_gradient_of_the_marginal_loss(path: Path) -> None:
    # Lipman et al. 2023, theorem 2, on a mixture whose marginal velocity is known: over many batches the two gradients
    # differ by noise alone; against the negated marginal velocity they do not.
    torch.manual_seed(0)
    model = MLP(2, hidden=8, depth=1).double()
    parameters = list(model.parameters())

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    gaps, against, sizes = [], [], []
    for batch in range(150):
        x0, x1 = normal(1000, 2, seed=batch), MIXTURE.sample(1000, seeded(1000 + batch)).double()
        t = 0.95 * torch.rand(1000, generator=seeded(2000 + batch), dtype=torch.float64)
        xt = path.interpolate(x0, x1, t)
        u = MIXTURE.velocity(xt, t, path)
        conditional = gradient(flow_matching_loss(model, x1, x0=x0, t=t, path=path))
        marginal = gradient((model(xt, t) - u).square().mean())
        gaps.append(conditional - marginal)
        against.append(conditional - gradient((model(xt, t) + u).square().mean()))
        sizes.append(marginal)
    z = [torch.stack(g).mean(0) / (torch.stack(g).std(0) / math.sqrt(len(g))) for g in (gaps, against, sizes)]
    assert z[0].abs().max() < 4.5  # the largest of some 120 entries
    assert 0.1 < float(z[0].square().mean()) < 3  # the spread is the standard error's (the entries hang together)
    assert z[1].abs().max() > 20 and z[2].abs().max() > 20


@paths
def test_the_marginal_velocity_has_the_least_loss(path: Path) -> None:
    x1, x0 = MIXTURE.sample(20_000, seeded()).double(), normal(20_000, 2)
    t = 0.95 * torch.rand(20_000, generator=seeded(1), dtype=torch.float64)
    truth = MIXTURE.as_velocity(path)

    def loss(factor: float, shift: float) -> float:
        return float(flow_matching_loss(lambda x, t, y=None: factor * truth(x, t) + shift, x1, x0=x0, t=t, path=path))

    floor = loss(1.0, 0.0)
    assert floor < min(loss(0.9, 0.0), loss(1.1, 0.0), loss(1.0, 0.2), loss(1.0, -0.2), loss(-1.0, 0.0))


class Watching(nn.Module):
    """A model that keeps what it was given."""

    y: Any

    def __init__(self, null: int | None = 10):
        super().__init__()
        self.null = null

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.x, self.t, self.y = x, t, y
        return torch.zeros_like(x)


@paths
def test_times_are_uniform_one_per_sample_and_stop_where_the_target_is_finite(path: Path) -> None:
    model = Watching()
    loss = flow_matching_loss(model, torch.zeros(20_000, 1), path=path)
    assert loss.isfinite() and model.t.shape == (20_000,)
    assert float(model.t.max()) <= path.last_velocity_time
    quantiles = model.t.quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.25, 0.5, 0.75]), rtol=0, atol=0.02)


def test_noise_is_standard_normal_when_it_is_not_given() -> None:
    model = Watching()
    flow_matching_loss(model, torch.zeros(20_000, 2), t=0.0)
    assert abs(float(model.x.mean())) < 0.03 and float(model.x.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("split", [1, 3, 8])
def test_keyed_a_loss_is_the_mean_of_its_parts(split: int) -> None:
    x1, y, model = normal(24, 2), torch.arange(24) % 3, MLP(2, num_classes=3).double()
    loss = FlowMatching(condition_dropout=0.5)
    with keyed.keyed(3, 7, 0):
        whole = loss(model, (x1, y))
    rows, parts = 24 // split, []
    for first in range(0, 24, rows):
        with keyed.keyed(3, 7, first):
            parts.append(loss(model, (x1[first : first + rows], y[first : first + rows])))
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_condition_dropout_replaces_that_share_by_the_null(dropout: float, dtype: torch.dtype) -> None:
    model, y = Watching(), (torch.arange(20_000) % 10).to(dtype)
    before = y.clone()
    flow_matching_loss(model, torch.zeros(20_000, 1), y=y, condition_dropout=dropout)
    dropped = model.y == 10
    assert model.y.dtype == dtype and torch.equal(y, before)
    assert float(dropped.float().mean()) == pytest.approx(dropout, abs=0 if dropout in (0, 1) else 0.015)
    assert torch.equal(model.y[~dropped], y[~dropped])


def test_the_null_comes_from_the_argument_the_model_or_the_wrapped_model() -> None:
    class Wrapper(nn.Module):  # as DistributedDataParallel
        def __init__(self) -> None:
            super().__init__()
            self.module = Watching(null=7)

        def forward(self, *arguments: Tensor) -> Tensor:
            return self.module(*arguments)

    x1, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    model = Watching(null=5)
    flow_matching_loss(model, x1, y=y, condition_dropout=1.0)
    assert model.y.tolist() == [5] * 4
    flow_matching_loss(model, x1, y=y, condition_dropout=1.0, null=3)
    assert model.y.tolist() == [3] * 4
    wrapper = Wrapper()
    flow_matching_loss(wrapper, x1, y=y, condition_dropout=1.0)
    assert wrapper.module.y.tolist() == [7] * 4


def test_no_labels_in_none_out() -> None:
    model = Watching()
    flow_matching_loss(model, torch.zeros(4, 2))
    assert model.y is None


def test_every_form_of_a_batch_is_the_same_loss() -> None:
    x0, x1, y = normal(6, 2), normal(6, 2, seed=1), torch.zeros(6, dtype=torch.long)
    loss, field = FlowMatching(), lambda x, t, y=None: x
    values = []
    for batch in (x1, (x1,), (x1, y), (x0, x1, y), (x0, x1, None)):
        torch.manual_seed(0)
        values.append(float(loss(field, batch)))
    assert values[0] == values[1] == values[2] and values[3] != values[0]
    with pytest.raises(ValueError, match=r"batch: .*4 parts"):
        loss(field, (x0, x1, y, y))


# Guidance -------------------------------------------------------------------------------------------------------------


def labeled(x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
    assert y is not None
    return x * (1.0 + y[:, None])


@pytest.mark.parametrize(("scale", "factor"), [(0.0, 1.0), (1.0, 3.0), (3.0, 7.0), (-1.0, -1.0), (1, 3.0)])
def test_guidance_exaggerates_what_the_label_changes(scale: float, factor: float) -> None:
    x, y = normal(4, 2), torch.full((4,), 2)
    torch.testing.assert_close(guided(labeled, scale, null=0)(x, 0.5, y), factor * x)


def test_scale_1_is_the_labeled_model_and_scale_0_the_unlabeled_one() -> None:
    model, x, y = MLP(2, num_classes=3), torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(guided(model, 1.0, 3)(x, 0.5, y), model(x, 0.5, y))
    torch.testing.assert_close(guided(model, 0.0, 3)(x, 0.5, y), model(x, 0.5))


def test_a_guided_model_holds_the_weights_of_the_model() -> None:
    model = MLP(2, num_classes=3)
    assert set(guided(model, 2.0, 3).parameters()) == set(model.parameters())


# Misuse ---------------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)


def field(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: flow_matching_loss(field, X.long()), TypeError, "x1: .*int64"),
        (lambda: flow_matching_loss(field, torch.tensor(0.0)), ValueError, "x1: .*dimensions"),
        (lambda: flow_matching_loss(field, X, x0=X[:2]), ValueError, r"x0: .*\(4, 2\).*\(2, 2\)"),
        (lambda: flow_matching_loss(field, X, x0=X.int()), TypeError, "x0: .*int32"),
        (lambda: flow_matching_loss(field, X, t=1.5), ValueError, "t: .*1.5"),
        (lambda: flow_matching_loss(field, X, t=torch.zeros(3)), ValueError, r"t: .*\(4,\).*\(3,\)"),
        (lambda: flow_matching_loss(field, X, t=NAN), ValueError, "t: .*nan"),
        (lambda: flow_matching_loss(field, X, t=1.0, path=VPPath()), ValueError, "t: .*infinite"),
        (
            lambda: flow_matching_loss(field, X, y=Y[:1]),
            ValueError,
            r"y: expected a row for each of 4 samples; got shape \(1,\)",
        ),
        (
            lambda: flow_matching_loss(field, X, condition_dropout=0.1),
            ValueError,
            "y: expected a condition for condition_dropout",
        ),
        (lambda: flow_matching_loss(field, X, y=Y, condition_dropout=0.1), ValueError, "null: "),
        (lambda: flow_matching_loss(field, X, y=Y, condition_dropout=1.5), ValueError, "condition_dropout: .*1.5"),
        (lambda: flow_matching_loss(field, X, y=Y, condition_dropout="1"), TypeError, "condition_dropout"),  # type: ignore[arg-type]
        (
            lambda: flow_matching_loss(lambda x, t: x[:, :1], X),
            ValueError,
            r"velocity\(xt, t, y\): .*\(4, 2\).*\(4, 1\)",
        ),
        (lambda: flow_matching_loss(lambda x, t: 0, X), TypeError, r"velocity\(xt, t, y\): .*int"),  # type: ignore[arg-type]
        (lambda: flow_matching_loss(field, X, label_droput=0.1), TypeError, "label_droput"),  # type: ignore[call-arg]
        (lambda: flow_matching_loss(MLP(2, num_classes=3), X, y=Y + 4), ValueError, "y: .*0 to 3.*4"),
        (lambda: flow_matching_loss(MLP(2), X, y=Y), ValueError, "y: .*num_classes"),
        (lambda: FlowMatching(paht=LinearPath()), TypeError, "paht"),  # type: ignore[call-arg]
        (lambda: FlowMatching(path="linear"), TypeError, r"path: .*LinearPath\(\); got 'linear'"),  # type: ignore[arg-type]
        (lambda: FlowMatching(path=LinearPath), TypeError, "path: .*got the class LinearPath itself"),  # type: ignore[arg-type]
        (lambda: FlowMatching(coupling="ot"), TypeError, r"coupling: .*OptimalTransport\(\); got 'ot'"),  # type: ignore[arg-type]
        (lambda: FlowMatching(condition_dropout=10), ValueError, "condition_dropout: .*10"),
        (lambda: flow_matching_loss(field, X, coupling="ot"), TypeError, "coupling: .*got 'ot'"),  # type: ignore[arg-type]
        (lambda: flow_matching_loss(field, X, path="linear"), TypeError, "path: .*got 'linear'"),  # type: ignore[arg-type]
        (lambda: guided(field, "strong", 10), TypeError, "scale: .*'strong'"),  # type: ignore[arg-type]
        (lambda: guided(field, NAN, 10), ValueError, "scale"),
        (lambda: guided(field, 2.0), ValueError, "null: expected what stands for no condition"),
        (lambda: guided(field, 2.0, 10.5)(X, 0.5, Y), TypeError, "null: expected an integer, .*int64; got 10.5"),
        (lambda: guided(field, 2.0, torch.zeros(3))(X, 0.5, X), ValueError, r"null: expected .*\(2,\).*; got \(3,\)"),
        (lambda: guided(field, 2.0, {"a": 1})(X, 0.5, Y), TypeError, "null: expected .* tensor .*; got a dict with a"),
        (lambda: guided(field, 2.0, 1)(X, 0.5, {"a": Y}), TypeError, "null: expected .* a dict with a; got 1"),
        (lambda: guided(field, 2.0, 10)(X, 0.5), ValueError, "y: expected the condition to guide toward"),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
