"""The data: right shapes, the same for a seed, densities that are densities, images as they were drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import needs_mnist, seeded
from PIL import Image
from torch import Tensor

from flowbook import data
from flowbook.data.images import Split

PLANAR = {
    "two_gaussians": data.two_gaussians, "eight_gaussians": data.eight_gaussians, "moons": data.moons,
    "checkerboard": data.checkerboard, "spirals": data.spirals, "pinwheel": data.pinwheel,
}  # fmt: skip
WITH_DENSITY = ("two_gaussians", "eight_gaussians", "checkerboard", "pinwheel")

planar = pytest.mark.parametrize("make", PLANAR.values(), ids=PLANAR)
with_density = pytest.mark.parametrize("make", [PLANAR[name] for name in WITH_DENSITY], ids=WITH_DENSITY)


@planar
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_samples_are_points_in_the_plane(make: Callable[..., Any], n: int) -> None:
    x = make().sample(n)
    assert x.shape == (n, 2) and x.dtype == torch.float32 and x.isfinite().all() and make().dim == 2


@planar
def test_the_generator_decides_the_sample_or_else_torch_s_seed(make: Callable[..., Any]) -> None:
    distribution = make()
    assert torch.equal(distribution.sample(50, seeded(1)), distribution.sample(50, generator=seeded(1)))
    assert not torch.equal(distribution.sample(50, seeded(1)), distribution.sample(50, seeded(2)))
    state = torch.get_rng_state()
    distribution.sample(50, seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    draws = []
    for _ in range(2):
        torch.manual_seed(4)
        draws.append(distribution.sample(50))
    assert torch.equal(*draws)


def grid(half_width: float, n: int) -> tuple[Tensor, float]:
    """The midpoints of n x n cells on a square, and the area of a cell."""
    step = 2 * half_width / n
    line = (torch.arange(n, dtype=torch.float64) + 0.5) * step - half_width
    return torch.cartesian_prod(line, line), step**2


@with_density
def test_densities_integrate_to_one(make: Callable[..., Any]) -> None:
    points, area = grid(10.0, 800)
    assert float(make().log_prob(points).exp().sum() * area) == pytest.approx(1, abs=2e-3)


@with_density
def test_densities_are_those_of_the_samples(make: Callable[..., Any]) -> None:
    # Cell by cell of a coarse grid: frequencies against integrated density, chi-squared per cell near 1.
    distribution, n, cells, fine = make(), 40_000, 20, 20
    x = distribution.sample(n, seeded()).double()
    points, area = grid(8.0, cells * fine)
    mass = (distribution.log_prob(points).exp() * area).reshape(cells, fine, cells, fine).sum((1, 3)).flatten()
    index = ((x + 8) / 16 * cells).floor().clamp(0, cells - 1).long()
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2)
    expected = n * mass
    filled = expected > 20
    chi_squared = ((counts - expected)[filled] ** 2 / expected[filled]).mean()
    assert 0.4 < float(chi_squared) < 1.8
    assert int(counts[~filled].sum()) < 0.05 * n


@with_density
def test_the_entropy_is_minus_the_mean_log_density(make: Callable[..., Any]) -> None:
    distribution = make()
    points, area = grid(10.0, 1000)
    log_density = distribution.log_prob(points)
    entropy = -float((log_density.exp() * log_density.clamp_min(-1e3)).sum() * area)
    values = -distribution.log_prob(distribution.sample(40_000, seeded()).double())
    assert float(values.mean()) == pytest.approx(entropy, abs=0.01 + 4 * float(values.std()) / 200)


def test_the_checkerboard_has_as_many_dark_squares_as_light_ones_and_none_share_a_side() -> None:
    board = data.checkerboard(half_width=4.0, squares=4)
    centers = torch.cartesian_prod(*2 * [torch.arange(-3.0, 4.0, 2.0)])
    dark = board.log_prob(centers).isfinite().reshape(4, 4)
    assert int(dark.sum()) == 8
    assert not (dark[1:] & dark[:-1]).any() and not (dark[:, 1:] & dark[:, :-1]).any()
    assert board.log_prob(torch.tensor([[5.0, 0.0]])).item() == -math.inf
    assert board.log_prob(board.sample(10_000, seeded())).isfinite().all()


def test_moons_are_two_half_circles_moved_as_the_tutorial_moves_them() -> None:
    x = (data.moons(noise=0.0).sample(5000, seeded()) + 1) / 3
    upper = (x.norm(dim=1) - 1).abs() < 1e-5
    lower = ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs() < 1e-5
    assert (upper | lower).all() and float(upper.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert (x[upper & ~lower, 1] >= -1e-6).all() and (x[lower & ~upper, 1] <= 0.5 + 1e-6).all()
    noisy = data.moons(noise=0.2).sample(5000, seeded())
    assert float((noisy - data.moons(noise=0.0).sample(5000, seeded())).std()) == pytest.approx(0.6, rel=0.05)


def test_spirals_have_two_arms_half_a_turn_apart() -> None:
    x = data.spirals(noise=0.0, turns=1.0).sample(2000, seeded())
    radius = x.norm(dim=1)
    angle = 3 * radius  # the arm's own angle; the point (-cos, sin) of it, or the opposite one
    arm = torch.stack([-angle.cos(), angle.sin()], 1) * radius[:, None]
    first, second = (x - arm).norm(dim=1) < 1e-4, (x + arm).norm(dim=1) < 1e-4
    assert (first | second).all() and float(first.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(radius.max()) <= 2 * math.pi / 3 + 1e-6


def test_scale_stretches_and_the_density_follows() -> None:
    small, large = data.pinwheel(scale=1.0), data.pinwheel(scale=3.0)
    x = small.sample(100, seeded())
    torch.testing.assert_close(large.sample(100, seeded()), 3 * x)
    torch.testing.assert_close(large.log_prob(3 * x.double()), small.log_prob(x.double()) - 2 * math.log(3))


def test_pairs_draw_source_and_target_side_by_side() -> None:
    pairs = data.Unpaired(data.eight_gaussians(), data.moons())
    x0, x1, y = pairs.sample(100, seeded())
    generator = seeded()
    assert torch.equal(x0, data.eight_gaussians().sample(100, generator)) and y is None
    assert torch.equal(x1, data.moons().sample(100, generator))


# Images ---------------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_without_overlap_and_by_class() -> None:
    (train, train_labels), (test, test_labels) = data.digits("train"), data.digits("test")
    assert train.shape == (1437, 1, 8, 8) and test.shape == (360, 1, 8, 8)
    assert train.dtype == torch.float32 and train_labels.dtype == torch.long
    assert float(train.min()) == -1 and float(train.max()) == 1
    assert torch.equal(data.digits("test")[0], test)
    share = torch.bincount(train_labels) / 1437 - torch.bincount(test_labels) / 360
    assert share.abs().max() < 0.003
    # every image of the collection is in exactly one part (a few of them are equal to each other)
    from sklearn.datasets import load_digits

    whole = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    both = torch.cat([train, test]).flatten(1)
    assert sorted(both.tolist()) == sorted(whole.tolist())


def test_digits_keep_image_and_label_together() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    known = {tuple(row): label for row, label in zip(source.data.tolist(), source.target.tolist(), strict=True)}
    images, labels = data.digits("test")
    for image, label in zip(images, labels, strict=True):
        assert known[tuple((8 * (image.flatten() + 1)).tolist())] == int(label)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images of several sizes and modes: left half black, right half white."""
    for name, (width, height), mode in [("ants", (12, 8), "RGB"), ("bees", (8, 20), "L"), ("bees", (9, 9), "RGBA")]:
        (tmp_path / name).mkdir(exist_ok=True)
        image = Image.new("RGB", (width, height), "black")
        image.paste("white", (width // 2, 0, width, height))
        image.convert(mode).save(tmp_path / name / f"{mode}.png")
    return tmp_path


def test_a_folder_of_images_is_resized_cropped_and_scaled(folder: Path) -> None:
    images = data.image_folder(folder, size=8)
    assert len(images) == 3 and images.classes == ["ants", "bees"]
    for image, label in (images[n] for n in range(3)):
        assert image.shape == (3, 8, 8) and image.dtype == torch.float32 and label in (0, 1)
        assert float(image[:, :, 0].max()) == -1 and float(image[:, :, -1].min()) == 1  # black left, white right


def test_a_folder_can_be_read_without_its_labels(folder: Path) -> None:
    images = data.image_folder(folder, size=8, labels=False)
    assert len(images) == 3 and images.classes is None
    assert torch.equal(images[1], data.image_folder(folder, size=8)[1][0])


def test_flips_mirror_half_of_the_images(folder: Path) -> None:
    torch.manual_seed(0)
    images = data.image_folder(folder, size=8, flip=True)
    mirrored = [float(images[0][0][0, 0, 0]) == 1 for _ in range(200)]
    assert 70 < sum(mirrored) < 130


def test_to_unit_interval_is_the_inverse_of_the_scaling_to_minus_one_and_one() -> None:
    images = torch.rand(2, 1, 4, 4, generator=seeded())
    torch.testing.assert_close(data.to_unit_interval(2 * images - 1), images)


@pytest.mark.parametrize("load", [data.mnist, data.fashion_mnist, data.cifar10])
def test_a_failed_download_says_what_was_tried_and_what_to_do(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def fails(*arguments: object, **more: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", fails)
    monkeypatch.setattr(datasets.CIFAR10, "download", fails)
    with pytest.raises(RuntimeError, match=r"neither in .* nor could it be downloaded.*no route to host") as caught:
        load(root=tmp_path / "empty")
    assert str(tmp_path / "empty") in str(caught.value) and "FLOWBOOK_DATA" in str(caught.value)


def test_the_data_folder_is_the_argument_or_the_variable_or_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWBOOK_DATA", "/some/where")
    assert data.data_root("here") == Path("here") and data.data_root() == Path("/some/where")
    monkeypatch.delenv("FLOWBOOK_DATA")
    assert data.data_root() == Path.home() / ".cache" / "flowbook"


@needs_mnist
@pytest.mark.parametrize(("split", "count", "first"), [("train", 60_000, [5, 0, 4, 1]), ("test", 10_000, [7, 2, 1, 0])])
def test_mnist_is_mnist(split: Split, count: int, first: list[int]) -> None:
    images, labels = data.mnist(split)
    assert images.shape == (count, 1, 28, 28) and images.dtype == torch.float32 and labels.dtype == torch.long
    assert float(images.min()) == -1 and float(images.max()) == 1
    assert labels[:4].tolist() == first
    assert float(data.to_unit_interval(images).mean()) == pytest.approx(0.131, abs=0.003)  # ink, not paper, is 1


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.moons().sample(0), ValueError, "n: .*0"),
        (lambda: data.moons().sample(1.5), TypeError, "n: .*1.5"),  # type: ignore[arg-type]
        (lambda: data.moons().log_prob(X), ValueError, "moons has no closed form"),
        (lambda: data.spirals().log_prob(X), ValueError, "spirals has no closed form"),
        (lambda: data.checkerboard().log_prob(X.long()), TypeError, "x: .*int64"),
        (lambda: data.pinwheel().log_prob(X[:, :1]), ValueError, r"x: .*\(n, 2\).*\(3, 1\)"),
        (lambda: data.checkerboard(squares=3), ValueError, "squares: .*even.*3"),
        (lambda: data.checkerboard(squares=0), ValueError, "squares: .*0"),
        (lambda: data.pinwheel(blades=0), ValueError, "blades: .*0"),
        (lambda: data.moons(nose=0.1), TypeError, "nose"),  # type: ignore[call-arg]
        (lambda: data.digits("val"), ValueError, "split: .*'train', 'test'.*'val'"),  # type: ignore[arg-type]
        (lambda: data.mnist("valid"), ValueError, "split: .*'valid'"),  # type: ignore[arg-type]
        (lambda: data.image_folder("no/such/folder", 8), FileNotFoundError, "root: no/such/folder is not a folder"),
        (lambda: data.image_folder(".", 0), ValueError, "size: .*0"),
        (lambda: data.image_folder(".", 8, flip="yes"), TypeError, "flip: .*'yes'"),  # type: ignore[arg-type]
        (lambda: data.image_folder(".", 8, labels="yes"), TypeError, "labels: .*'yes'"),  # type: ignore[arg-type]
        (lambda: data.moons().sample(4, 0), TypeError, "generator: .*torch.Generator or None; got 0"),  # type: ignore[arg-type]
        (lambda: data.moons(noise="wide"), TypeError, "noise: .*'wide'"),  # type: ignore[arg-type]
        (lambda: data.moons(scale="wide"), TypeError, "scale: .*'wide'"),  # type: ignore[arg-type]
        (lambda: data.spirals(noise=-1), ValueError, "noise: .*-1"),
        (lambda: data.checkerboard(half_width=0), ValueError, "half_width: .*0"),
        (lambda: data.pinwheel(radial_std="wide"), TypeError, "radial_std: .*'wide'"),  # type: ignore[arg-type]
        (lambda: data.eight_gaussians(radius="wide"), TypeError, "radius: .*'wide'"),  # type: ignore[arg-type]
        (lambda: data.two_gaussians(std=0), ValueError, "std: .*0"),
        (lambda: data.Unpaired("X", data.moons()), TypeError, r"source: .*sample\(n, generator=None\).*; got 'X'"),
        (lambda: data.Unpaired(data.moons(), data.moons), TypeError, "target: .*got a function"),
        (lambda: data.Unpaired(data.moons(), data.Planar), TypeError, "target: .*the class Planar itself"),
    ],
)
def test_misuse_names_the_argument(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
