"""Contract: any condition goes through every public function as it is, row by row."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from flowbook import cnf, data, inversion, metrics, models, reflow
from flowbook._core.tree import built, fields_of, form_of, leaves, map_condition
from flowbook.condition import TrainedOn, as_null, check_condition, is_null, joined, remember, repeated, trained_on
from flowbook.couplings import Independent, OptimalTransport
from flowbook.diffusion import Diffusion, NoiseSchedule, ddim_sample, ddpm_loss, ddpm_sample, variational_bound
from flowbook.divergence import divergence
from flowbook.flow_matching import FlowMatching, flow_matching_loss
from flowbook.guidance import drop_condition, guided
from flowbook.models import MLP, Autocast, Compiled, DiT, UNet, export, read_exported
from flowbook.paths import retimed
from flowbook.reflow import OnlinePairs, PairDataset, Reflow, distill, generate_pairs, rectify
from flowbook.solvers import sample, solve
from flowbook.training import TrainConfig, fit, load

B = 6
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


X = draw(B, 2)
Y: dict[str, Any] = {
    "labels": torch.tensor([0, 1, 2, 0, 1, 2]),
    "numbers": draw(B),
    "vectors": draw(B, 3),
    "text": draw(B, 4, 5),
    "half precision": draw(B, 3).to(torch.bfloat16),
    "mask": torch.tensor([True, False, True, True, False, False]),
    "complex": torch.complex(draw(B), draw(B)),
    "dict": {"label": torch.tensor([0, 1, 2, 0, 1, 2]), "text": draw(B, 4, 5)},
    "dict with nothing in it": {"text": draw(B, 5), "mask": None},
    "tuple": (draw(B, 3), torch.arange(B)),
    "nested": {"image": {"low": draw(B, 1, 2, 2)}, "more": (draw(B), None)},
}
conditions = pytest.mark.parametrize("y", Y.values(), ids=Y)


def shift(y: Any) -> Tensor:
    """A number for each row that depends on every tensor of the condition."""
    total = torch.zeros(len(next(leaves(y))[1]))
    for place, (_, part) in enumerate(leaves(y), start=1):
        real = torch.view_as_real(part) if part.is_complex() else part
        total = total + place * real.float().reshape(len(part), -1).mean(1)
    return total


def moved(x: Tensor, y: Any) -> Tensor:
    return x + shift(y).reshape(-1, *[1] * (x.dim() - 1))


class Shifting(nn.Module):
    """A constant velocity, shift(y); without a condition it is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor | float, y: Any = None) -> Tensor:
        return torch.zeros_like(x) * self.factor if y is None else self.factor * (moved(x, y) - x)


velocity = Shifting()
STEP: Any = {"method": "euler", "steps": 1}
CONFIG = TrainConfig(steps=2, batch_size=4, schedule="constant")


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def zeros(y: Any) -> Any:
    return map_condition(torch.zeros_like, y)


# Every public function ------------------------------------------------------------------------------------------------


@conditions
def test_solves_in_both_directions(y: Any) -> None:
    close(sample(velocity, X, y=y, **STEP).x, moved(X, y))
    close(solve(velocity, X, 0.25, 0.75, y=y, **STEP).x, X + 0.5 * shift(y)[:, None])
    close(inversion.invert(velocity, moved(X, y), y=y, **STEP).x, X)
    assert float(inversion.round_trip(velocity, X, y=y, **STEP).error.max()) < 1e-5
    assert inversion.choose_steps(velocity, X, 1e-3, y=y).steps == 4
    close(sample(retimed(velocity), X, y=y, method="rk4", steps=2).x, moved(X, y))
    close(reflow.encode(velocity, moved(X, y), y=y), X)


@conditions
def test_edits_interpolates_denoises_and_judges(y: Any) -> None:
    new = map_condition(lambda part: part.flip(0), y)
    close(inversion.edit(velocity, X, y, new, **STEP).x, X - shift(y)[:, None] + shift(new)[:, None])
    points = inversion.interpolate(velocity, X, X + 1.0, 3, y=y, spherical=False, **STEP)
    close(points.x, torch.stack([X, X + 0.5, X + 1.0]))
    close(inversion.denoise(velocity, X, noise_std=1.0, y=y).x, 0.5 * X + 0.5 * shift(y)[:, None])
    assert inversion.estimate_noise(velocity, X, y=y).shape == (len(X),)
    close(-inversion.anomaly_score(velocity, X, y=y), cnf.log_prob(velocity, X, y=y).log_prob)


@conditions
def test_densities_and_divergences(y: Any) -> None:
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    for options in ({}, {"nodes": 3}, {"trace": "hutchinson", "probes": 2}):
        found = cnf.log_prob(velocity, X, y=y, **options).log_prob
        torch.testing.assert_close(found, normal.log_prob(X - shift(y)[:, None]), rtol=2e-5, atol=1e-5)
    for gradient in ("backprop", "recompute", "adjoint"):
        nll = cnf.nll_loss(velocity, X, y=y, gradient=gradient, **({} if gradient == "adjoint" else STEP))
        expected = -normal.log_prob(X - shift(y)[:, None]).mean() / 2
        torch.testing.assert_close(nll.detach(), expected, rtol=2e-5, atol=1e-5)
    assert float(divergence(velocity, X, 0.5, y=y)[1].abs().max()) == 0
    images = torch.zeros(B, 1, 2, 2)
    assert cnf.bits_of_images(velocity, images, levels=3, y=y, steps=1, batch_size=4).shape == (B,)


@conditions
def test_losses_and_couplings(y: Any) -> None:
    noise = torch.zeros(B, 2)
    target = moved(noise, y)
    for coupling in (Independent(), OptimalTransport(condition_cost=lambda y: torch.zeros(B, B))):
        x0, x1, kept = coupling(noise, target, y)
        assert kept is y and torch.equal(x1, target) and torch.equal(x0, noise)
    assert float(flow_matching_loss(velocity, target, x0=noise, y=y)) < 1e-10
    assert float(reflow.reflow_loss(velocity, noise, target, y=y)) < 1e-10
    for name, part in leaves(y):
        with pytest.raises(ValueError, match=rf"{name}: expected a row for each of 5 samples"):
            flow_matching_loss(lambda x, t, y: x, X[:5], y=y)
        assert len(part) == B
        break
    assert metrics.straightness(velocity, X, y=y, steps=2) < 1e-10


@conditions
def test_diffusion(y: Any) -> None:
    schedule = NoiseSchedule.cosine(8)

    def model(x: Tensor, i: Tensor, y: Any = None) -> Tensor:
        return moved(torch.zeros_like(x), y)

    close(ddpm_sample(model, X, schedule, y, prediction="data"), moved(torch.zeros_like(X), y))
    close(ddim_sample(model, X, schedule, 3, y=y, prediction="data"), moved(torch.zeros_like(X), y))
    assert float(ddpm_loss(model, moved(torch.zeros_like(X), y), schedule, y, prediction="data")) < 1e-10
    assert variational_bound(model, torch.ones(B, 2), schedule, y, prediction="data").shape == (B,)


@conditions
def test_guidance_and_dropout(y: Any) -> None:
    null = zeros(y)  # of a batch
    close(sample(guided(velocity, 3.0, null), X, y=y, **STEP).x, X + 3 * shift(y)[:, None])
    dropped = drop_condition(velocity, X, y, 1.0, null)
    assert not bool(shift(dropped).any())
    torch.manual_seed(0)
    some = shift(drop_condition(velocity, X, y, 0.5, null)) == shift(y)
    assert 0 < int(some.sum()) < B
    close(inversion.edit(velocity, X, y, y, guidance=2.0, null=null, **STEP).x, X + shift(y)[:, None])


@conditions
def test_pairs_and_images_keep_it_whatever_its_dtype_and_shape(y: Any, tmp_path: Path) -> None:
    pairs = generate_pairs(velocity, (2,), B, tmp_path / "pairs", y=y, batch_size=4, shard_size=4, **STEP)
    x0, x1, kept = pairs.batch(torch.arange(B))
    assert_same(kept, y)
    close(x1, moved(x0, y))
    again = PairDataset(tmp_path / "pairs")
    assert_same(again.labels, y)
    assert_same(again[3][2], map_condition(lambda part: part[3], y))
    assert generate_pairs(velocity, (2,), B, tmp_path / "pairs", y=y, batch_size=4, shard_size=4, **STEP)[0][
        0
    ].shape == (2,)
    other = map_condition(lambda part: part.flip(0), y)
    with pytest.raises(ValueError, match=r"made with other settings \(values was"):
        generate_pairs(velocity, (2,), B, tmp_path / "pairs", y=other, batch_size=4, shard_size=4, **STEP)
    images = data.generate_images(velocity, (1, 2, 2), B, tmp_path / "images", y=y, steps=1)
    assert_same(images[2][1], map_condition(lambda part: part[2], y))
    x0, x1, drawn = OnlinePairs(velocity, (2,), y, **STEP).sample(5)
    close(x1, moved(x0, drawn))


def assert_same(found: Any, expected: Any) -> None:
    assert form_of(found) == form_of(expected)
    for (name, a), (_, b) in zip(leaves(found), leaves(expected), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name


@conditions
def test_fit_trains_on_it_from_tensors_datasets_and_pairs(y: Any, tmp_path: Path) -> None:
    config = TrainConfig(steps=3, batch_size=4, accumulate=2, log_every=1)

    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return B

        def __getitem__(self, index: int) -> Any:
            return X[index], map_condition(lambda part: part[index], y)

    pairs = generate_pairs(velocity, (2,), B, tmp_path, y=y, **STEP)
    for loss, source in (
        (FlowMatching(), (X, y)),
        (FlowMatching(), Items()),
        (Diffusion(NoiseSchedule.linear(1000)), (X, y)),
        (cnf.MaximumLikelihood(steps=1), (X, y)),
        (Reflow(), pairs),
        (Reflow(), (X, X, y)),
    ):
        result = fit(Shifting(), loss, source, config, validation=source)
        assert result.step == 3 and bool(torch.isfinite(result.losses).all())
    coupling = OptimalTransport(condition_cost=lambda y: torch.zeros(4, 4))
    fit(Shifting(), FlowMatching(), (X, y), config, coupling=coupling)
    assert len(rectify(Shifting(), (2,), 1, config, n=B, y=y, name="shifting", **STEP)) == 1
    distill(Shifting(), pairs, config)


@conditions
def test_wrappers_hand_it_on(y: Any) -> None:
    if not any(part.dtype in (torch.bfloat16, torch.complex64) for _, part in leaves(y)):
        with torch.no_grad():
            close(Compiled(velocity, batch_size=4)(X, torch.tensor(0.5), y), moved(X, y) - X)
    torch.testing.assert_close(Autocast(velocity)(X, torch.tensor(0.5), y), moved(X, y) - X, rtol=1e-2, atol=1e-2)


def test_a_condition_s_form_survives_json_and_its_helpers_go_through_it() -> None:
    for y in Y.values():
        assert_same(built(form_of(y), dict(leaves(y))), y)
        assert list(fields_of(form_of(y))) == [name for name, _ in leaves(y)]
        assert_same(joined([y, y]), repeated(y, 2))
        assert len(next(leaves(repeated(y, 3)))[1]) == 3 * B


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ("three", TypeError, "y: expected a tensor with the batch first, or a dict or tuple of such; got 'three'"),
        ({"a": [1, 2]}, TypeError, "y.a.0: expected a tensor .* got 1"),
        ({1: X}, TypeError, "y: expected a dict with strings as keys; got the key 1"),
        (np.zeros(6), TypeError, "y: expected a tensor .* got a ndarray"),
        (torch.tensor(3), ValueError, r"y: expected a row for each of 6 samples; got shape \(\)"),
        ((X, X[:2]), ValueError, r"y.1: expected a row for each of 6 samples; got shape \(2, 2\)"),
    ],
)
def test_what_is_no_condition_is_refused_by_name(y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_condition("y", y, B)
    with pytest.raises(error, match=message):
        sample(velocity, X, y=y, **STEP)


# Guidance of several conditions ---------------------------------------------------------------------------------------


def test_guidance_replaces_only_the_parts_that_the_null_names() -> None:
    y = {"class": torch.tensor([1.0, 2.0]), "layout": torch.tensor([10.0, 20.0])}

    def model(x: Tensor, t: Any, y: Any) -> Tensor:
        return (y["class"] + y["layout"])[:, None].expand_as(x)

    v = guided(model, 3.0, {"class": 0.0})
    close(v(torch.zeros(2, 1), 0.5, y)[:, 0], torch.tensor([10.0 + 3 * 1.0, 20.0 + 3 * 2.0]))
    prompt = guided(model, 2.0, {"class": torch.tensor([0.5, 1.0])})  # another negative one for each sample
    close(prompt(torch.zeros(2, 1), 0.5, y)[:, 0], torch.tensor([10.5 + 2 * 0.5, 21.0 + 2 * 1.0]))


def test_the_keys_of_a_dict_are_dropped_independently() -> None:
    torch.manual_seed(0)
    x = torch.zeros(4000, 1)
    y = {"a": torch.ones(4000), "b": torch.ones(4000, 2), "kept": torch.ones(4000)}
    dropped = drop_condition(velocity, x, y, {"a": 0.25, "b": 0.5}, {"a": 0.0, "b": math.nan, "kept": 0.0})
    a, b = dropped["a"] == 0, dropped["b"].isnan().all(1)
    assert torch.equal(dropped["kept"], y["kept"])
    for share, expected in ((a, 0.25), (b, 0.5), (a & b, 0.125)):
        assert float(share.float().mean()) == pytest.approx(expected, abs=0.03)  # four standard errors
    with pytest.raises(ValueError, match="condition_dropout: expected a, b, kept; got c"):
        drop_condition(velocity, x, y, {"c": 0.1}, {"a": 0.0})
    with pytest.raises(ValueError, match="condition_dropout: expected one number, since y is no dict; got keys a"):
        drop_condition(velocity, x, y["a"], {"a": 0.1}, 0.0)
    with pytest.raises(ValueError, match=r"condition_dropout\.a: expected a number in .*; got 2"):
        FlowMatching(condition_dropout={"a": 2})


def test_uint8_labels_of_256_classes_can_be_dropped() -> None:
    network = MLP(2, num_classes=256)
    y = torch.arange(250, 256, dtype=torch.uint8)
    assert drop_condition(network, X, y, 1.0).tolist() == [256] * B
    fit(network, FlowMatching(condition_dropout=0.5), (X, y), TrainConfig(steps=2, batch_size=4))
    assert bool(torch.isfinite(guided(network, 2.0)(X, torch.tensor(0.5), y)).all())


# The package's networks -----------------------------------------------------------------------------------------------

NETWORKS: dict[str, Callable[..., Any]] = {
    "MLP": lambda **kinds: MLP(2, hidden=16, **kinds),
    "UNet": lambda **kinds: UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), **kinds),
    "DiT": lambda **kinds: DiT(1, 8, width=16, depth=2, heads=2, **kinds),
}
KINDS: dict[str, tuple[dict[str, int], Any]] = {
    "label": ({"num_classes": 3}, Y["labels"]),
    "vector": ({"condition_dim": 3}, Y["vectors"]),
    "context": ({"context_dim": 5}, Y["text"]),
    "all": (
        {"num_classes": 3, "condition_dim": 3, "context_dim": 5},
        {"label": Y["labels"], "vector": Y["vectors"], "context": Y["text"]},
    ),
}
CASES = [
    pytest.param(make, *KINDS[kind], id=f"{name}, {kind}")
    for name, make in NETWORKS.items()
    for kind in KINDS
    if name != "MLP" or kind in ("label", "vector")
]


def awake(network: nn.Module) -> Any:
    """Layers that start at 0 hide what comes before them."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def states(network: Any) -> Tensor:
    return torch.linspace(-1, 1, B * math.prod(network.shape)).reshape(B, *network.shape)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.dim() - 1))


@pytest.mark.parametrize(("make", "kinds", "y"), CASES)
def test_the_condition_matters_row_by_row_and_none_is_the_null(make: Any, kinds: Any, y: Any) -> None:
    network = awake(make(**kinds))
    x, t = states(network), torch.linspace(0, 1, B)
    v = network(x, t, y)
    nothing = as_null(network.null, y)
    torch.testing.assert_close(network(x, t), network(x, t, nothing))
    for row in range(B):
        here = torch.arange(B) == row
        changed = map_condition(lambda part, empty: part.where(~_column(here, part), empty), y, nothing)  # noqa: B023
        difference = (network(x, t, changed) - v).flatten(1).abs().amax(1)
        assert float(difference[row]) > 1e-4 and float(difference.sum() - difference[row]) < 1e-5
    if isinstance(y, dict):
        for key in y:
            without = {name: part for name, part in y.items() if name != key}
            explicit = {**y, key: nothing[key]}
            torch.testing.assert_close(network(x, t, without), network(x, t, explicit))
            torch.testing.assert_close(network(x, t, without), network(x, t, {**y, key: None}))
            assert float((network(x, t, without) - v).abs().max()) > 1e-4


@pytest.mark.parametrize(("make", "kinds", "y"), CASES)
def test_networks_train_guide_compile_export_and_are_rebuilt_with_their_conditions(
    make: Any, kinds: Any, y: Any, tmp_path: Path
) -> None:
    network = make(**kinds)
    config = TrainConfig(steps=4, batch_size=4, log_every=2)
    result = fit(network, FlowMatching(condition_dropout=0.5), (states(network), y), config, out=tmp_path / "run")
    loaded = load(tmp_path / "run")
    x, t = states(network), torch.tensor(0.5)
    torch.testing.assert_close(loaded(x, t, y), result.velocity(x, t, y))
    export(loaded, tmp_path / "file.safetensors")
    again = read_exported(tmp_path / "file.safetensors")
    torch.testing.assert_close(again(x, t, y), loaded(x, t, y), rtol=1e-2, atol=1e-2)
    assert trained_on(again) == TrainedOn(something=True, nothing=True)
    assert bool(torch.isfinite(sample(guided(again, 2.0), x, y=y, **STEP).x).all())
    program = torch.export.export(again, (x, t, y))
    torch.testing.assert_close(program.module()(x, t, y), again(x, t, y))


def test_missing_numbers_and_tokens_are_not_seen() -> None:
    network = awake(MLP(2, hidden=16, condition_dim=3))
    y = Y["vectors"].clone()
    y[0, 1] = math.nan
    other = y.clone()
    other[0, 1] = 0.0  # a number that is 0 is something else than a missing one
    t = torch.tensor(0.5)
    assert float((network(X, t, y) - network(X, t, other)).abs().max()) > 1e-4
    for name in ("UNet", "DiT"):
        attending = awake(NETWORKS[name](context_dim=5))
        x, short = states(attending), Y["text"][:, :2]
        padded = torch.cat([short, torch.full((B, 3, 5), math.nan)], dim=1)
        torch.testing.assert_close(attending(x, t, padded), attending(x, t, short))
        padded[:, 3] = math.nan
        padded[:, 4, 0] = 1.0  # a token is there as a whole or not at all
        torch.testing.assert_close(attending(x, t, padded), attending(x, t, short))
        assert bool(torch.isfinite(attending(x, t, torch.full((B, 0, 5), 0.0))).all())


def test_a_label_of_minus_one_is_no_label() -> None:
    network = awake(MLP(2, hidden=16, num_classes=3))
    t, y = torch.tensor(0.5), torch.tensor([0, -1, 2, -1, 1, 2])
    null = torch.where(y < 0, 3, y)
    assert torch.equal(network(X, t, y), network(X, t, null))
    result = fit(network, FlowMatching(), (X, y), TrainConfig(steps=2, batch_size=4))
    assert trained_on(result.velocity) == TrainedOn(something=True, nothing=True)
    with pytest.raises(ValueError, match="y: expected labels from 0 to 2, and -1 where there is none; got 0 to 3"):
        fit(network, FlowMatching(), (X, null), TrainConfig(steps=1))


NETWORK_MISUSE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: MLP(2)(X, 0.5, X), ValueError, "y: expected None, since this model was built without num_classes"),
    (lambda: MLP(2, condition_dim=3)(X, 0.5, Y["labels"]), TypeError, "y: expected a floating-point tensor"),
    (lambda: MLP(2, condition_dim=3)(X, 0.5, X), ValueError, r"y: expected vectors of shape \(6, 3\); got \(6, 2\)"),
    (lambda: MLP(2, condition_dim=3, num_classes=3)(X, 0.5, X), TypeError, "y: expected a dict with label, vector"),
    (
        lambda: MLP(2, condition_dim=3)(X, 0.5, {"text": X}),
        ValueError,
        "key of y: expected one of 'vector'; got 'text'",
    ),
    (lambda: MLP(2, condition_dim=0), ValueError, "condition_dim: expected an integer of at least 1; got 0"),
    (
        lambda: NETWORKS["DiT"](context_dim=5)(draw(B, 1, 8, 8), 0.5, X),
        ValueError,
        r"y: .* shape \(6, L, 5\); got \(6, 2\)",
    ),
    (lambda: UNet(1, 8, width=8, multipliers=(1,), context_dim=5), ValueError, r"attention: expected some of \[8\]"),
    (lambda: UNet(1, (8, 8, 8, 8)), TypeError, "size: expected an integer, or one to three of them"),
    (lambda: UNet(1, "8"), TypeError, "size: expected an integer, or one to three of them"),  # type: ignore[arg-type]
    (lambda: UNet(1, (8, 6), multipliers=(1, 2, 2)), ValueError, "size: expected a multiple of 4"),
    (lambda: DiT(1, (8, 5)), ValueError, "size: expected a multiple of patch = 2"),
]


@pytest.mark.parametrize(("call", "error", "message"), NETWORK_MISUSE)
def test_misuse_of_a_network_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("size", [(16,), (8, 12), (4, 8, 4), 8], ids=str)
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("name", ["UNet", "DiT"])
def test_sequences_volumes_and_images_of_any_sides(name: str, patch: int, size: Any) -> None:
    if name == "UNet":
        first = (size if isinstance(size, int) else size[0]) // patch
        network: Any = awake(UNet(2, size, width=8, multipliers=(1, 2), blocks=1, patch=patch, attention=(first,)))
    else:
        network = awake(DiT(2, size, patch, width=24, depth=1, heads=2))
    assert network.shape[0] == 2
    x = torch.linspace(-1, 1, 3 * math.prod(network.shape)).reshape(3, *network.shape)
    v = network(x, torch.tensor(0.5))
    assert v.shape == x.shape and bool(torch.isfinite(v).all())
    larger = torch.cat([x, x], dim=-1)  # other sides at sampling than in training
    assert network(larger, torch.tensor(0.5)).shape == larger.shape
    rebuilt = models.build(**_description(network))
    rebuilt.load_state_dict(network.state_dict())
    torch.testing.assert_close(rebuilt.eval()(x, torch.tensor(0.5)), v)
    assert models.cost(network, x[:1]).flops > 0


def _description(network: Any) -> dict[str, Any]:
    described = models.describe(network)
    assert described is not None
    return {"name": described["name"], **described["arguments"]}


# Couplings that see the condition -------------------------------------------------------------------------------------


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def paired(coupling: Any, batches: int = 20) -> float:
    """The correlation of the noise with the condition, x1 = 3 y + a little noise: 0 for the source's own noise."""
    generator = torch.Generator().manual_seed(0)
    x0, y = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(batches):
            c = torch.randn(128, generator=generator)
            data = 3 * c[:, None] + 0.3 * torch.randn(128, 1, generator=generator)
            noise, _, kept = coupling(torch.randn(128, 1, generator=generator), data, c)
            x0.append(noise[:, 0])
            y.append(kept)
    return correlation(torch.cat(x0), torch.cat(y))


def test_a_cost_on_the_condition_keeps_the_noise_independent_of_it() -> None:
    assert abs(paired(Independent())) < 0.06  # three standard errors of 2,560 pairs
    assert paired(OptimalTransport()) > 0.9
    assert abs(paired(OptimalTransport(condition_cost=1e6))) < 0.06
    costs = OptimalTransport(condition_cost=lambda y: 1e6 * (y[:, None] - y).square())
    assert paired(costs) == paired(OptimalTransport(condition_cost=1e6))
    weights = [paired(OptimalTransport(condition_cost=w)) for w in (0.1, 10.0, 1000.0)]
    assert weights == sorted(weights, reverse=True)


def test_label_awareness_takes_a_key_of_a_dict() -> None:
    x0, x1, y = draw(64, 2), draw(64, 2), torch.arange(64) % 4
    alone = OptimalTransport(label_aware=True)(x0, x1, y)[0]
    keyed = OptimalTransport(label_aware="label")(x0, x1, {"label": y, "text": draw(64, 3)})[0]
    assert torch.equal(alone, keyed)
    both = OptimalTransport(label_aware="label", condition_cost=lambda y: torch.zeros(64, 64))
    assert torch.equal(both(x0, x1, {"label": y})[0], alone)
    with pytest.raises(ValueError, match="label_aware: expected a dict y with the key 'label'; got a dict with text"):
        OptimalTransport(label_aware="label")(x0, x1, {"text": y})
    with pytest.raises(TypeError, match=r"label_aware: expected the key of the labels, .* a dict with label"):
        OptimalTransport(label_aware=True)(x0, x1, {"label": y})
    with pytest.raises(TypeError, match="condition_cost: expected a floating-point tensor y"):
        OptimalTransport(condition_cost=1.0)(x0, x1, y)
    with pytest.raises(ValueError, match="y: condition_cost needs the condition of x1"):
        OptimalTransport(condition_cost=1.0)(x0, x1)


def test_a_coupling_blind_to_the_condition_warns_once() -> None:
    coupling = OptimalTransport()
    with pytest.warns(UserWarning, match="OptimalTransport: the batches have conditions, .* does not see"):
        coupling(X, X, Y["labels"])
    aware = (
        Independent(),
        OptimalTransport(label_aware=True),
        OptimalTransport(condition_cost=lambda y: torch.zeros(B, B)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coupling(X, X, Y["labels"])
        OptimalTransport()(X, X)
        for one in aware:
            one(X, X, Y["labels"])
    with pytest.warns(UserWarning, match="OptimalTransport: the batches have conditions"):
        fit(
            MLP(2, num_classes=3),
            FlowMatching(),
            (X, Y["labels"]),
            TrainConfig(steps=3, batch_size=4),
            coupling=OptimalTransport(),
        )


# What a network has learned -------------------------------------------------------------------------------------------

LEARNED: dict[str, tuple[Any, Any, TrainedOn | None]] = {
    "no dropout": (FlowMatching(), (X, Y["labels"]), TrainedOn(something=True, nothing=False)),
    "dropout": (FlowMatching(condition_dropout=0.1), (X, Y["labels"]), TrainedOn(something=True, nothing=True)),
    "no labels": (FlowMatching(), X, TrainedOn(something=False, nothing=True)),
    "diffusion": (Diffusion(NoiseSchedule.cosine(10)), (X, Y["labels"]), TrainedOn(something=True, nothing=False)),
    "pairs": (Reflow(), (X, X, Y["labels"]), TrainedOn(something=True, nothing=False)),
    "pairs with the null": (Reflow(), (X, X, torch.full((B,), 3)), TrainedOn(something=True, nothing=True)),
    "likelihood": (cnf.MaximumLikelihood(steps=1), (X, Y["labels"]), TrainedOn(something=True, nothing=False)),
    "another loss": (
        lambda model, batch: model(batch[0], torch.tensor(0.5), batch[1]).square().mean(),
        (X, Y["labels"]),
        None,
    ),
}


@pytest.mark.parametrize(("loss", "source", "known"), LEARNED.values(), ids=LEARNED)
def test_the_checkpoint_knows_what_the_network_has_learned(loss: Any, source: Any, known: Any, tmp_path: Path) -> None:
    result = fit(MLP(2, num_classes=3), loss, source, CONFIG, out=tmp_path)
    assert trained_on(result.velocity) == trained_on(result.live) == trained_on(load(tmp_path)) == known
    resumed = fit(MLP(2, num_classes=3), loss, source, dataclasses.replace(CONFIG, steps=4), out=tmp_path)
    assert trained_on(resumed.velocity) == known


def test_asking_for_what_was_not_learned_warns() -> None:
    network = MLP(2, num_classes=3)
    y = Y["labels"]

    def messages(known: TrainedOn | None, ask: Callable[[], Any]) -> list[str]:
        remember(network, known)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ask()
        return [str(one.message) for one in caught]

    only, both, never = TrainedOn(True, False), TrainedOn(True, True), TrainedOn(False, True)
    for ask in (
        lambda: sample(network, X, **STEP),
        lambda: inversion.invert(network, X, **STEP),
        lambda: cnf.log_prob(network, X, steps=1),
        lambda: sample(Autocast(network), X, **STEP),
    ):
        assert any("without a condition, y=None, but was trained with a condition" in m for m in messages(only, ask))
        assert messages(both, ask) == messages(never, ask) == messages(None, ask) == []
    assert "train it with condition_dropout" in messages(only, lambda: guided(network, 2.0))[0]
    assert messages(both, lambda: guided(network, 2.0)) == messages(None, lambda: guided(network, 2.0)) == []
    assert "but was trained without any condition" in messages(never, lambda: sample(network, X, y=y, **STEP))[0]
    assert messages(only, lambda: sample(network, X, y=y, **STEP)) == []


def test_is_null_finds_labels_numbers_and_embeddings() -> None:
    assert is_null(3, torch.tensor([0, 3])) and not is_null(3, torch.tensor([0, 2]))
    assert is_null({"a": math.nan}, {"a": torch.tensor([[math.nan, math.nan], [0.0, 1.0]]), "b": torch.ones(2)})
    assert not is_null(math.nan, torch.tensor([[math.nan, 0.0]]))
    assert is_null(torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 2.0], [1.0, 2.0]]))


# Data sets whose items have no condition ------------------------------------------------------------------------------


def test_items_without_a_condition_are_put_together(tmp_path: Path) -> None:
    pairs = generate_pairs(velocity, (2,), B, tmp_path, **STEP)
    source: Any
    for source in (pairs, Subset(pairs, [0, 2, 4, 5]), ConcatDataset([pairs, pairs])):
        assert fit(Shifting(), Reflow(), source, CONFIG).step == 2
    labeled = generate_pairs(velocity, (2,), B, tmp_path / "labeled", y=Y["dict"], **STEP)
    assert fit(Shifting(), Reflow(), Subset(labeled, [0, 1, 2, 3]), CONFIG).step == 2
    assert fit(Shifting(), FlowMatching(), (X, None), CONFIG).step == 2

    class Ragged(Dataset[Any]):
        def __len__(self) -> int:
            return B

        def __getitem__(self, index: int) -> Any:
            return X[index], None if index else torch.tensor(1)

    with pytest.raises((TypeError, ValueError)):
        fit(Shifting(), FlowMatching(), Ragged(), CONFIG)


def test_two_tensors_of_a_data_set_are_data_and_their_condition() -> None:
    source: Any = TensorDataset(X, X + 1)
    with pytest.raises(ValueError, match="y: expected None, since this model was built without num_classes"):
        fit(MLP(2), FlowMatching(), source, CONFIG)
    assert fit(Shifting(), Reflow(), source, CONFIG).step == 2  # which learns from pairs, and from nothing else
    with pytest.raises(ValueError, match="batch: Reflow learns from pairs"):
        fit(Shifting(), Reflow(), X, CONFIG)


# What is not meant ----------------------------------------------------------------------------------------------------


def test_a_null_with_none_of_the_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="null: expected some of the keys of y, text; got txt"):
        guided(lambda x, t, y: x + y["text"], 5.0, {"txt": 0.0})(X, 0.5, {"text": X})
    with pytest.raises(ValueError, match="null: expected one for each key of condition_dropout; it lacks text"):
        drop_condition(lambda x, t, y: x, X, {"text": X, "label": X}, {"text": 1.0}, {"label": 0.0})


@pytest.mark.parametrize(
    ("null", "dtype", "expected"),
    [
        (torch.tensor(256), torch.uint8, torch.tensor([256, 256])),
        (256, torch.uint8, torch.tensor([256, 256])),
        (-1, torch.uint8, torch.tensor([-1, -1])),
        (False, torch.bool, torch.tensor([False, False])),
        (0, torch.bool, torch.tensor([False, False])),
        (0, torch.complex64, torch.zeros(2, dtype=torch.complex64)),
        (2.5, torch.float16, torch.tensor([2.5, 2.5], dtype=torch.float16)),
    ],
)
def test_a_null_keeps_its_value_whatever_the_dtype(null: Any, dtype: torch.dtype, expected: Tensor) -> None:
    filled = as_null(null, torch.ones(2).to(dtype))
    assert filled.dtype == expected.dtype and torch.equal(filled, expected)


@pytest.mark.parametrize("null", [torch.tensor(math.nan), torch.tensor(2.7), 2.7])
def test_a_null_that_labels_cannot_hold_is_refused(null: Any) -> None:
    with pytest.raises(TypeError, match=r"null: expected an integer, since y has dtype torch.int64; got (nan|2\.7)"):
        as_null(null, torch.tensor([1, 2]))


def test_a_null_below_the_classes_changes_nothing_about_them() -> None:
    network = MLP(2, num_classes=5)
    network.null = 2
    check_condition("y", torch.tensor([4, 0]), 2, network)
    with pytest.raises(ValueError, match="from 0 to 4"):
        check_condition("y", torch.tensor([5, 0]), 2, network)


def test_is_null_looks_only_at_what_the_null_names() -> None:
    y = {"label": torch.tensor([0, 1]), "size": torch.tensor([7.0, 7.0])}
    assert not is_null({"label": 3}, y) and is_null({"label": 1}, y)
    assert not is_null(None, torch.tensor([-1, 0]))


def test_missing_numbers_cost_nothing_in_a_coupling() -> None:
    y = torch.tensor([[0.0, math.nan], [1.0, 5.0], [math.nan, 2.0], [4.0, 4.0]])
    coupling = OptimalTransport(condition_cost=1e6)
    paired, _, _ = coupling(X[:4], X[:4], y)
    assert sorted(paired[:, 0].tolist()) == sorted(X[:4, 0].tolist())
    complete = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
    near, _, _ = OptimalTransport(condition_cost=1e6)(X[:4], X[:4].flip(0), complete)
    gone = torch.cat([complete, torch.full((4, 1), math.nan)], 1)
    assert torch.equal(near, OptimalTransport(condition_cost=1e6)(X[:4], X[:4].flip(0), gone)[0])
    with pytest.raises(ValueError, match=r"condition_cost\(y\): expected shape \(4, 4\); got \(4, 7\)"):
        OptimalTransport(condition_cost=lambda y: torch.zeros(4, 7))(X[:4], X[:4], complete)
