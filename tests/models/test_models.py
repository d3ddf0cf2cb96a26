"""The networks: shapes, a time input they can see, labels, and each sample by itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import normal, randomized
from torch import Tensor, nn

from flowbook import data
from flowbook import models as package
from flowbook.models import MLP, Autocast, Classifier, CrossEntropy, DiT, UNet, build, describe
from flowbook.models.embedding import LabelEmbedding, TimeEmbedding
from flowbook.models.unet import Attention

SMALL: dict[str, Any] = {"size": 8, "width": 8, "blocks": 1}
MODELS = {
    "MLP": lambda **more: MLP(3, hidden=16, **more),
    "MLP, one layer": lambda **more: MLP(1, hidden=16, depth=1, **more),
    "U-Net": lambda **more: UNet(2, multipliers=(1, 2), **SMALL, **more),
    "U-Net with attention": lambda **more: UNet(1, multipliers=(1, 2, 2), attention=(4, 2), **SMALL, **more),
    "U-Net on patches": lambda **more: UNet(1, multipliers=(1, 2), patch=2, **SMALL, **more),
    "DiT": lambda **more: DiT(1, size=8, width=16, depth=2, heads=2, **more),
    "DiT, color": lambda **more: DiT(3, size=8, patch=4, width=8, depth=1, heads=1, **more),
    "U-Net, one level": lambda **more: UNet(3, multipliers=(1,), **SMALL, **more),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def shape_of(model: Any, batch: int = 4) -> tuple[int, ...]:
    return (batch, model.dim) if isinstance(model, MLP) else (batch, model.channels, model.size, model.size)


def trained(make: Any, classes: int | None = None) -> tuple[nn.Module, Tensor, Tensor]:
    """A model with random weights everywhere, in float64, and an input."""
    model = randomized(make(num_classes=classes)).double().eval()
    return model, normal(*shape_of(model)), torch.linspace(0.1, 0.9, 4, dtype=torch.float64)


@models
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_is_a_velocity(make: Any, classes: int | None, batch: int) -> None:
    model = make(num_classes=classes)
    x = torch.randn(shape_of(model, batch))
    y = None if classes is None else torch.zeros(batch, dtype=torch.long)
    for t in (0.5, 0, 1, torch.tensor(0.5), torch.rand(batch), torch.tensor(0.5, dtype=torch.float64)):
        v = model(x, t, y)
        assert v.shape == x.shape and v.dtype == x.dtype and v.isfinite().all()


@models
def test_one_time_for_all_is_the_same_time_for_each(make: Any) -> None:
    model, x, _ = trained(make)
    torch.testing.assert_close(model(x, 0.3), model(x, torch.full((4,), 0.3, dtype=torch.float64)))


@models
def test_a_sample_s_velocity_depends_on_that_sample_alone(make: Any) -> None:
    model, x, t = trained(make, classes=3)
    y = torch.tensor([0, 1, 2, 0])
    together = model(x, t, y)
    for n in range(4):
        torch.testing.assert_close(
            together[n : n + 1], model(x[n : n + 1], t[n : n + 1], y[n : n + 1]), rtol=1e-9, atol=1e-9
        )


@models
def test_the_model_sees_the_time(make: Any) -> None:
    model, x, _ = trained(make)
    changes = [float((model(x, t + 0.01) - model(x, t)).detach().abs().max()) for t in (0.0, 0.3, 0.6, 0.99)]
    assert min(changes) > 1e-5


@models
def test_labels_matter_and_none_is_the_null(make: Any) -> None:
    model, x, t = trained(make, classes=3)
    assert model.null == model.num_classes == 3
    values = [model(x, t, torch.full((4,), label)) for label in range(4)]
    assert all(float((values[a] - values[b]).abs().max()) > 1e-5 for a in range(4) for b in range(a))
    torch.testing.assert_close(model(x, t), values[3])


@models
def test_every_weight_gets_a_gradient(make: Any) -> None:
    model, x, t = trained(make, classes=3)
    model(x, t, torch.tensor([0, 1, 2, 3])).square().sum().backward()
    blind = [name for name, p in model.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert blind == []


@models
def test_a_model_can_be_built_again_from_its_description(make: Any) -> None:
    model, x, t = trained(make, classes=3)
    described = describe(model)
    assert described is not None
    again = build(described["name"], **described["arguments"]).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, t), model(x, t))


@pytest.mark.parametrize("y", [None, torch.zeros(4, dtype=torch.long)])
def test_a_model_compiles_into_one_graph(y: Tensor | None) -> None:
    model = MLP(2, num_classes=3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for t in (0.5, torch.tensor(0.5), torch.linspace(0, 1, 4)):
        torch.testing.assert_close(compiled(X1, t, y), model(X1, t, y))


def test_foreign_models_have_no_description() -> None:
    class MyMLP(MLP):
        pass

    assert describe(nn.Linear(1, 1)) is None and describe(MyMLP(2)) is None


@models
def test_autocast_to_bf16_works(make: Any) -> None:
    model = make(num_classes=3)
    x = torch.randn(shape_of(model))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x, torch.rand(4), torch.zeros(4, dtype=torch.long)).isfinite().all()
    assert model.bfloat16()(x.bfloat16(), 0.5).dtype == torch.bfloat16


@models
def test_autocast_is_the_network_to_three_digits_in_the_precision_of_x(make: Any) -> None:
    model, x, t = trained(make, classes=3)
    model, x, t = model.float(), x.float(), t.float()
    y = torch.tensor([0, 1, 2, 3])
    field = Autocast(model)
    exact, rounded = model(x, t, y), field(x, t, y)
    assert rounded.dtype == x.dtype and not torch.equal(rounded, exact)
    assert (rounded - exact).square().mean() < (0.02**2) * exact.square().mean()
    assert field.null is not None
    torch.testing.assert_close(field(x, t), field(x, t, torch.full((4,), field.null)))


def test_a_unet_starts_at_zero() -> None:
    assert torch.equal(UNet(1, **SMALL)(torch.randn(2, 1, 8, 8), 0.5), torch.zeros(2, 1, 8, 8))


def test_channels_last_changes_nothing() -> None:
    model, x, t = trained(MODELS["U-Net with attention"])
    plain = model(x, t)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x, t), plain)


@pytest.mark.parametrize(("attention", "layers"), [((), 0), ((8,), 3), ((4,), 4), ((8, 4), 7)])
def test_attention_sits_at_the_resolutions_asked_for(attention: tuple[int, ...], layers: int) -> None:
    # blocks = 1: one on the way down, two on the way up at each level, and one in the middle at the lowest
    model = UNet(1, multipliers=(1, 2), attention=attention, **SMALL)
    assert sum(isinstance(module, Attention) for module in model.modules()) == layers


def test_attention_lets_distant_pixels_talk() -> None:
    # through convolutions alone a corner reaches at most a few pixels far
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    reach = []
    for attention in ((), (32,)):
        model = randomized(UNet(1, size=32, width=8, multipliers=(1,), blocks=1, attention=attention)).double()
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):  # which also mixes all pixels
                module.forward = lambda h: h  # type: ignore[method-assign, assignment]
        (gradient,) = torch.autograd.grad(model(x + normal(1, 1, 32, 32), 0.5)[0, 0, 0, 0], x)
        reach.append(float(gradient[0, 0, -1, -1].abs()))
    assert reach[0] == 0 and reach[1] > 0


def effective_rank(table: Tensor) -> float:
    share = torch.linalg.svdvals(table.double() - table.double().mean(0)).square()
    share = share / share.sum()
    return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))


def test_a_scaled_time_embedding_tells_times_apart_and_a_raw_one_does_not() -> None:
    t = torch.linspace(0, 1, 1001)
    assert effective_rank(TimeEmbedding(128, scale=1000.0)(t)) > 40
    assert effective_rank(TimeEmbedding(128, scale=1.0)(t)) < 4


def test_time_embedding_is_sines_and_cosines_of_its_frequencies() -> None:
    embedding = TimeEmbedding(4, scale=1000.0)(torch.tensor([0.25]))
    angles = torch.tensor([250.0, 2.5])
    torch.testing.assert_close(embedding, torch.cat([angles.sin(), angles.cos()])[None], rtol=1e-4, atol=1e-5)


X1, X2 = torch.zeros(4, 2), torch.zeros(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MLP(0), ValueError, "dim: .*0"),
        (lambda: MLP(2.0), TypeError, "dim: .*2.0"),  # type: ignore[arg-type]
        (lambda: MLP(2, depth=0), ValueError, "depth"),
        (lambda: MLP(2, hidden=2, num_classes=3), ValueError, "hidden: .*2"),
        (lambda: MLP(2, num_classes=0), ValueError, "num_classes: .*0"),
        (lambda: MLP(2, width=3), TypeError, "width"),  # type: ignore[call-arg]
        (lambda: MLP(2)(X1.long(), 0.5), TypeError, "x: .*int64"),
        (lambda: MLP(2)(X1.double(), 0.5), TypeError, "x: .*float32.*float64"),
        (lambda: MLP(3)(X1, 0.5), ValueError, r"x: .*\(B, 3\).*\(4, 2\)"),
        (lambda: MLP(2)(X1, torch.zeros(3)), ValueError, r"t: .*\(4,\).*\(3,\)"),
        (lambda: MLP(2)(X1, 0.5, torch.zeros(4, dtype=torch.long)), ValueError, "y: .*num_classes"),
        (lambda: MLP(2, num_classes=3)(X1, 0.5, torch.full((4,), 4)), ValueError, "y: .*0 to 3.*4"),
        (lambda: MLP(2, num_classes=3)(X1, 0.5, torch.full((4,), -2)), ValueError, "y: .*-2"),
        (lambda: MLP(2, num_classes=3)(X1, 0.5, torch.zeros(4)), TypeError, "y: .*float32"),
        (lambda: UNet(1, size=9, multipliers=(1, 2)), ValueError, "size: .*multiple of 2, .*; got 9"),
        (lambda: UNet(1, size=8, attention=(7,)), ValueError, r"attention: .*\[7\]"),
        (lambda: UNet(1, size=8, patch=0), ValueError, "patch: .*0"),
        (lambda: UNet(0), ValueError, "channels: .*0"),
        (lambda: UNet(1, **SMALL)(X2[:, :, :5], 0.5), ValueError, r"x: .*\(B, 1, 8, 8\).*\(4, 1, 5, 8\)"),
        (lambda: UNet(1, **SMALL)(X2.double(), 0.5), TypeError, "x: .*float32.*float64"),
        (lambda: UNet(1, **SMALL)(X2, 0.5, torch.zeros(4, dtype=torch.long)), ValueError, "y: .*num_classes"),
        (lambda: MLP(2)(X1, 1.5), ValueError, r"t: .*\[0, 1\].*1.5"),
        (lambda: torch.no_grad()(MLP(2))(X1, torch.full((4,), 500.0)), ValueError, r"t: .*\[0, 1\].*500"),
        (lambda: MLP(2)(X1, torch.full((4,), 500)), TypeError, "t: .*float time.*int64"),
        (lambda: MLP(2)(X1, "0.5"), TypeError, "t: .*str"),
        (lambda: torch.no_grad()(UNet(1, **SMALL))(X2, torch.tensor(-1.0)), ValueError, "t: .*-1"),
        (lambda: MLP(2, time_dim="8"), TypeError, "time_dim: .*'8'"),  # type: ignore[arg-type]
        (lambda: UNet(1, size=8, multipliers="12"), TypeError, "multipliers: .*'12'"),  # type: ignore[arg-type]
        (lambda: UNet(1, size=8, multipliers=()), ValueError, "multipliers: .*none"),
        (lambda: UNet(1, size=8, attention=8), TypeError, "attention: .*8"),  # type: ignore[arg-type]
        (lambda: UNet(1, size=8, dropout=2), ValueError, "dropout: .*2"),
        (lambda: DiT(1, size=9), ValueError, "size: .*multiple of patch = 2; got 9"),
        (lambda: DiT(1, size=8, width=10, heads=4), ValueError, "width: .*heads = 4.*10"),
        (lambda: DiT(1, size=8, depth=0), ValueError, "depth: .*0"),
        (lambda: DiT(1, size=8, width=8, depth=1, heads=1)(X2[:, :, :5], 0.5), ValueError, r"x: .*\(B, 1, 8, 8\)"),
        (lambda: Classifier(width=0), ValueError, "width: .*0"),
        (lambda: Classifier(width="abc"), TypeError, "width: .*'abc'"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(shift="big"), TypeError, "shift: .*'big'"),  # type: ignore[arg-type]
        (lambda: TimeEmbedding(3), ValueError, "dim: .*even.*3"),
        (lambda: LabelEmbedding(0, 4), ValueError, "num_classes: .*0"),
        (lambda: Autocast(lambda x, t: x), TypeError, "network: .*function"),  # type: ignore[arg-type]
        (lambda: build("Unet"), ValueError, "model: .*'UNet'.*'Unet'"),
        (lambda: build("MLP", dimension=2), TypeError, "dimension"),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_reaches_the_fused_kernels_in_any_layout(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take queries, keys and values whose numbers lie side by side, and fall back without a word otherwise."""
    real = torch.nn.functional.scaled_dot_product_attention
    strides: list[int] = []

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        strides.extend(part.stride(-1) for part in (q, k, v))
        return real(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model = UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,)).to(memory_format=layout)
    model(torch.zeros(2, 1, 8, 8).to(memory_format=layout), 0.5)
    assert set(strides) == {1}


def test_a_judge_scores_in_eval_mode_and_keeps_its_own() -> None:
    judge = package.load_classifier("digits").train()
    images = data.digits("test")[0][:50]
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    first, again = (package.features_and_labels(judge, images)[0] for _ in range(2))
    assert torch.equal(first, again) and judge.training
    assert all(torch.equal(before[name], value) for name, value in judge.state_dict().items())


def test_a_copy_of_a_compiled_model_has_weights_of_its_own() -> None:
    network = package.Compiled(package.MLP(2, hidden=8), batch_size=4)
    network._graphs["cpu"] = lambda x, t, y: network.velocity(x, t, y)  # as after a call
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert copied._graphs == {} and copied.velocity is not network.velocity and "cpu" in network._graphs


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    network, y = randomized(package.MLP(2, hidden=8, num_classes=3)), torch.tensor([0, 2])
    assert torch.equal(network(torch.zeros(2, 2), 0.5, y.to(dtype)), network(torch.zeros(2, 2), 0.5, y))
