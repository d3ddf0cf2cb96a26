"""Foreign images are what their names say, in the shape and the gray levels of the digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import normal, seeded
from torch import Tensor

from flowbook import data
from flowbook.data import CORRUPTIONS, corrupt, gray_levels, letters, photo_patches
from flowbook.data.out_of_distribution import FONTS

DIGITS = data.digits("test")[0][:40]


def make(kind: str, **options: Any) -> tuple[Tensor, Tensor]:
    return letters(**options) if kind == "letters" else photo_patches(60, generator=seeded(), **options)


@pytest.mark.parametrize("kind", ["letters", "photo_patches"])
@pytest.mark.parametrize(("size", "levels"), [(8, 17), (28, 256)])
def test_images_have_the_shape_and_the_levels_of_digits(kind: str, size: int, levels: int) -> None:
    images, labels = make(kind, size=size, levels=levels)
    assert images.shape == (len(labels), 1, size, size) and images.dtype == torch.float32
    gray_levels(images, levels)  # raises for values between the levels
    assert float(images.min()) >= -1 and float(images.max()) <= 1 and images.unique().numel() > levels // 3
    assert labels.dtype == torch.long
    again, _ = make(kind, size=size, levels=levels)
    assert torch.equal(again, images)


@pytest.mark.parametrize("margin", [0, 4])
def test_a_letter_fills_its_square_but_for_the_margin(margin: int) -> None:
    images, alphabet = letters(size=28, margin=margin)
    assert len(images) == 26 * len(FONTS) and alphabet.bincount().tolist() == [len(FONTS)] * 26
    ink = images[:, 0] > -1
    rows, columns = (ink.any(axis).float() for axis in (2, 1))
    inside = 28 - 2 * margin
    for side in (rows, columns):
        assert float(side.sum(1).max()) <= inside and not bool(side[:, :margin].any())
    assert bool((torch.maximum(rows.sum(1), columns.sum(1)) >= inside - 1).all())  # BOX may leave the rim black
    assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_the_letters_are_upright_light_on_dark_and_in_order() -> None:
    images, alphabet = letters(size=28)
    ink = (images[:, 0] + 1) / 2

    def of(letter: str) -> Tensor:
        return ink[alphabet == ord(letter) - ord("A")].mean(0)

    assert of("L")[21:].sum() > 1.2 * of("L")[:7].sum()  # the foot of L is below
    assert of("T")[:7].sum() > 1.2 * of("T")[21:].sum()  # the bar of T above
    assert of("L")[:14, :14].sum() > 5 * of("L")[:14, 14:].sum()  # its stem on the left
    assert float(ink.mean()) < 0.5


def test_a_patch_is_cut_from_one_place_of_its_photograph() -> None:
    from sklearn.datasets import load_sample_images

    images, which = photo_patches(6, size=5, generator=seeded(3))
    assert set(photo_patches(60, generator=seeded())[1].tolist()) == {0, 1}
    for image, photograph in zip(images[:, 0], which, strict=True):
        colors = torch.tensor(load_sample_images().images[int(photograph)]).float()
        gray = (colors @ torch.tensor([0.299, 0.587, 0.114])).round()
        windows = gray.unfold(0, 5, 1).unfold(1, 5, 1).reshape(-1, 5, 5)
        assert float((windows - (image + 1) * 127.5).abs().amax((1, 2)).min()) < 0.01


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_changes_images_repeats_itself_and_leaves_its_input(kind: str) -> None:
    before = DIGITS.clone()
    damaged = corrupt(DIGITS, kind, seeded())
    assert torch.equal(DIGITS, before) and damaged.shape == DIGITS.shape and damaged.dtype == DIGITS.dtype
    assert float(damaged.min()) >= -1 and float(damaged.max()) <= 1
    assert bool(((damaged - DIGITS).abs().flatten(1).amax(1) > 0).all())
    assert torch.equal(corrupt(DIGITS, kind, seeded()), damaged)
    assert corrupt(normal(3, 2, 5, 7).clamp(-1, 1), kind).shape == (3, 2, 5, 7)


def test_each_corruption_does_what_its_name_says() -> None:
    assert torch.equal(corrupt(corrupt(DIGITS, "negative"), "negative"), DIGITS)
    turned = corrupt(DIGITS, "rotated")
    assert torch.equal(turned[:, :, 0, 0], DIGITS[:, :, -1, -1]) and torch.equal(corrupt(turned, "rotated"), DIGITS)
    shuffled = corrupt(DIGITS, "shuffled", seeded())
    assert torch.equal(shuffled.flatten(1).sort().values, DIGITS.flatten(1).sort().values)
    light = torch.ones(500, 1, 8, 6)
    dark = corrupt(light, "occluded", seeded()) == -1
    assert bool((dark.flatten(1).sum(1) == 4 * 3).all())
    assert bool((dark.any(3).sum(2) == 4).all()) and bool((dark.any(2).sum(2) == 3).all())
    assert bool(dark.any(0).all())  # anywhere
    blurred = corrupt(torch.zeros(1, 1, 4, 4), "blur")
    assert torch.equal(blurred[0, 0, 1:3, 1:3], torch.zeros(2, 2)) and float(blurred[0, 0, 0, 0]) == pytest.approx(
        -5 / 9
    )
    noisy = corrupt(torch.zeros(100, 1, 8, 8), "noise", seeded())
    assert float(noisy[noisy.abs() < 1].std()) == pytest.approx(0.44, abs=0.01)  # N(0, 0.5^2), cut at two deviations


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: letters(size=0), ValueError, "size: expected an integer of at least 1"),
        (lambda: letters(size=8, margin=4), ValueError, "margin: expected less than half of size=8; got 4"),
        (lambda: letters(levels=1), ValueError, "levels: expected an integer of at least 2"),
        (lambda: photo_patches(0), ValueError, "n: expected an integer of at least 1"),
        (lambda: photo_patches(2, size=1000), ValueError, "size: expected at most 427"),
        (lambda: photo_patches(2, generator=0), TypeError, "generator: expected a torch.Generator"),  # type: ignore[arg-type]
        (lambda: corrupt(DIGITS, "rust"), ValueError, "kind: expected one of 'noise', 'blur'"),
        (lambda: corrupt(DIGITS[0], "blur"), ValueError, "images: expected at least 4 dimensions"),
        (lambda: corrupt(DIGITS.long(), "blur"), TypeError, "images: expected a floating-point tensor"),
    ],
)
def test_law_11_bad_input_is_named(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
