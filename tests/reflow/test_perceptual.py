"""Perceptual distances: those of the papers, frozen, at home on small gray images, and never without their weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from torch import Tensor, nn

from flowbook import models
from flowbook.data import digits
from flowbook.models import Classifier, load_classifier
from flowbook.reflow import LPIPS, ClassifierDistance, Reflow


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as torchvision stores them, untrained: the classifier's layers are there too."""
    from torchvision.models import alexnet

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    state = alexnet(weights=None, num_classes=2).state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("classifier.4")}, path)
    return path


@pytest.fixture(scope="module")
def from_file(file: Path) -> LPIPS:
    return LPIPS(weights=file)


@pytest.fixture(scope="module", params=["lpips", "classifier"])
def distance(request: pytest.FixtureRequest, from_file: LPIPS) -> nn.Module:
    return from_file if request.param == "lpips" else ClassifierDistance(load_classifier("mnist"))


# Both -----------------------------------------------------------------------------------------------------------------


def test_it_is_a_distance_for_each_sample(distance: nn.Module) -> None:
    a, b = images(5, 1, 28, 28), images(5, 1, 28, 28, seed=1)
    value = distance(a, b)
    assert value.shape == (5,) and value.dtype == torch.float32 and float(value.detach().min()) > 0
    torch.testing.assert_close(distance(b, a), value)
    assert torch.equal(distance(a, a), torch.zeros(5))
    torch.testing.assert_close(distance(a[:2], b[:2]), value[:2])
    assert float(distance(a, a + 0.01 * (b - a)).max()) < float(value.min())


def test_it_is_frozen_and_gradients_reach_the_image_alone(distance: nn.Module) -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.distance = distance

    Loss().train()
    assert not any(module.training for module in distance.modules())
    a = images(2, 1, 28, 28).requires_grad_()
    b = images(2, 1, 28, 28, seed=1)
    distance(a, b).sum().backward()
    assert a.grad is not None and bool(torch.isfinite(a.grad).all()) and float(a.grad.abs().max()) > 0
    assert all(not weight.requires_grad and weight.grad is None for weight in distance.parameters())


def test_it_is_one_of_reflow_s_distances(distance: nn.Module) -> None:
    x0, x1, v = (images(3, 1, 28, 28, seed=seed) for seed in range(3))
    loss = Reflow(times="t0", distance="lpips+l2", perceptual=distance)
    wanted = distance(x0 + v, x1).mean() + (v - (x1 - x0)).square().mean()
    torch.testing.assert_close(loss(lambda x, t: v, (x0, x1, None)), wanted)
    assert len(repr(loss)) < 300  # it is stored with a run


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (images(2, 28, 28), images(2, 28, 28), r"a: expected .*images, shape \(B, .*\); got \(2, 28, 28\)"),
        (images(2, 2, 28, 28), images(2, 2, 28, 28), r"a: expected .*images.*\(2, 2, 28, 28\)"),
        (images(2, 1, 28, 28), images(1, 1, 28, 28), r"b: expected the shape of a, \(2, 1, 28, 28\)"),
    ],
)
def test_law_11_what_is_no_pair_of_images_is_named(distance: nn.Module, a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distance(a, b)


# LPIPS ----------------------------------------------------------------------------------------------------------------


def test_lpips_is_that_of_its_authors_with_the_weights_of_the_file(file: Path, from_file: LPIPS) -> None:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torchvision, for lpips
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(file, weights_only=True)
    layers = [(name, layer) for name, layer in theirs.net.named_modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 5
    for name, layer in layers:
        number = name.split(".")[1]
        layer.load_state_dict({kind: state[f"features.{number}.{kind}"] for kind in ("weight", "bias")})
    a, b = images(2, 3, 64, 80), images(2, 3, 64, 80, seed=1)
    torch.testing.assert_close(from_file(a, b), theirs(a, b).flatten())


def test_lpips_is_the_formula_written_out(from_file: LPIPS) -> None:
    a, b = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    inner: Any = from_file.distance
    total = torch.zeros(2)
    x, y = ((image - shift[:, None, None]) / scale[:, None, None] for image in (a, b))
    for slice_, head in zip([getattr(inner.net, f"slice{n}") for n in range(1, 6)], inner.lins, strict=True):
        x, y = slice_(x), slice_(y)
        difference = F.normalize(x, dim=1) - F.normalize(y, dim=1)
        weights = head.model[-1].weight.flatten()
        assert (weights >= 0).all() and weights.std() > 0  # the package's own, learned from people
        total += (difference.square() * weights[:, None, None]).sum(1).mean((1, 2))
    torch.testing.assert_close(from_file(a, b), total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 20, 40), (3, 63, 64)])
def test_small_and_gray_images_are_brought_to_what_the_backbone_needs(from_file: LPIPS, shape: tuple[int, ...]) -> None:
    a, b = images(2, *shape), images(2, *shape, seed=1)
    size = [round(side * 64 / min(shape[1:])) for side in shape[1:]]
    large = [F.interpolate(x, size=size, mode="bilinear").repeat(1, 3 // shape[0], 1, 1) for x in (a, b)]
    assert min(large[0].shape[2:]) == 64
    torch.testing.assert_close(from_file(a, b), from_file.distance(*large).flatten())


def test_images_that_are_large_enough_are_left_alone(from_file: LPIPS) -> None:
    a, b = images(1, 3, 70, 90), images(1, 3, 70, 90, seed=1)
    assert torch.equal(from_file(a, b), from_file.distance(a, b).flatten())
    assert from_file(a.double(), b.double()).dtype == torch.float64


def test_32_pixels_are_enough() -> None:
    torch.manual_seed(0)
    assert float(LPIPS(weights="random", size=32)(images(1, 1, 28, 28), images(1, 1, 28, 28, seed=1))) > 0
    with pytest.raises(ValueError, match=r"size: .*32; got 31"):
        LPIPS(weights="random", size=31)


def test_random_weights_are_those_of_the_seed_and_come_only_by_name() -> None:
    a, b = images(1, 1, 28, 28), images(1, 1, 28, 28, seed=1)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(float(LPIPS(weights="random")(a, b)))
    assert values[0] == values[1] != values[2]


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", nothing)
    for net, url in (("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")):
        with pytest.raises(
            RuntimeError, match=f"weights: .*{url}.* could not be downloaded: .*no route.*pass its path"
        ):
            LPIPS(net)


def test_the_download_s_weights_are_used(monkeypatch: pytest.MonkeyPatch, file: Path, from_file: LPIPS) -> None:
    asked = []

    def state(url: str, *_: Any, **options: Any) -> Any:
        asked.append((url.rsplit("/")[-1], options.get("check_hash")))
        return torch.load(file, weights_only=True)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", state)
    a, b = images(1, 1, 28, 28), images(1, 1, 28, 28, seed=1)
    assert torch.equal(LPIPS()(a, b), from_file(a, b)) and asked == [("alexnet-owt-7be5be79.pth", True)]


def test_law_11_files_of_something_else_are_named(tmp_path: Path, file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights: expected 'torchvision', 'random' or the path .*nowhere"):
        LPIPS(weights="nowhere")
    with pytest.raises(ValueError, match=r"net: .*'alex'.*'alexnet'"):
        LPIPS("alexnet", weights="random")
    state = torch.load(file, weights_only=True)
    wrong = {
        "damaged": (None, "is damaged or not a file of torch.save"),
        "list": ([1], "holds a list"),
        "lacking": ({"features.0.weight": state["features.0.weight"]}, "it lacks features.0.bias"),
        "shape": (state | {"features.0.weight": torch.zeros(1)}, "is not torchvision's alex: .*size mismatch"),
    }
    for name, (content, message) in wrong.items():
        path = tmp_path / name
        if content is None:
            path.write_bytes(file.read_bytes()[:1000])
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=f"(?s)weights: {re.escape(str(path))} .*{message}|{message}"):
            LPIPS(weights=path)


# The classifier's -----------------------------------------------------------------------------------------------------


def test_the_classifier_s_distance_is_the_formula_written_out() -> None:
    torch.manual_seed(0)
    judge = Classifier(size=8, width=4, features=6).eval()
    a, b = images(2, 1, 8, 8), images(2, 1, 8, 8, seed=1)
    layers: list[Any] = []
    hooks = [layer.register_forward_hook(lambda *call: layers.append(call[2])) for layer in judge.body
             if isinstance(layer, nn.SiLU)]  # fmt: skip
    judge(a)
    of_a, layers[:] = list(layers), []
    judge(b)
    of_b = list(layers)
    for hook in hooks:
        hook.remove()
    assert len(of_a) == 5
    wanted = []
    for n in range(2):
        total = 0.0
        for one, other in zip(of_a, of_b, strict=True):
            f, g = (x[n].reshape(x.shape[1], -1).T for x in (one, other))  # places, channels
            places = [(p / p.norm() - q / q.norm()).square().sum() for p, q in zip(f, g, strict=True)]
            total += float(torch.stack(places).mean().detach())
        wanted.append(total)
    torch.testing.assert_close(ClassifierDistance(judge)(a, b), torch.tensor(wanted))


def test_it_tells_digits_of_different_classes_apart_better_than_pixels_do() -> None:
    x, y = digits("test")
    distance, (a, b) = ClassifierDistance(load_classifier("digits")), torch.triu_indices(60, 60, offset=1)
    apart = {}
    for name, values in (("seen", distance(x[a], x[b])), ("pixels", (x[a] - x[b]).square().flatten(1).mean(1))):
        same = y[a] == y[b]
        apart[name] = float(values[~same].mean() / values[same].mean())
    assert apart["seen"] > 1.2 * apart["pixels"] > 1.2, apart


def test_the_classifier_that_was_passed_keeps_its_own_mode_and_weights() -> None:
    judge = Classifier(size=8, width=4).train()
    distance = ClassifierDistance(judge)
    assert judge.training and all(weight.requires_grad for weight in judge.parameters())
    assert repr(distance) == repr(ClassifierDistance(judge)) != repr(ClassifierDistance(Classifier(size=8, width=4)))
    with pytest.raises(TypeError, match="classifier: expected a Classifier such as load_classifier"):
        ClassifierDistance(models.MLP(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a: expected the classifier's images, shape \(B, \*\(1, 8, 8\)\)"):
        distance(images(1, 1, 28, 28), images(1, 1, 28, 28))
