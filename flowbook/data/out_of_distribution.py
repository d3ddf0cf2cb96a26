r"""Out-of-distribution images for models of digits, without a download: letters, patches of photographs, corruptions.

Letters and patches have the shape (N, 1, size, size) and values in [-1, 1]; letters are light on dark, like the digits.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flowbook._core import validate
from flowbook._core.draws import drawing_device, indices, normal_like
from flowbook.data.images import ImageTensors

FONTS = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, slant in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
)
"""The typefaces that come with matplotlib and have letters in several styles."""


def letters(size: int = 8, margin: int = 0, levels: int = 256) -> ImageTensors:
    """The 26 capital letters in the twelve styles of DejaVu, 312 images; O and I are meant to look like digits.

    Args:
        size: height and width; each letter fills it except for the margin, like the digits.
        margin: dark pixels around a letter, 4 for MNIST's 28 x 28.
        levels: the number of gray levels, 17 for scikit-learn's digits.

    Returns:
        Images (312, 1, size, size) and the letters' positions in the alphabet (312,), 0 to 25.

    Example:
        >>> images, alphabet = letters(size=8, levels=17)
        >>> images.shape, float(images.min()), alphabet.max()
        (torch.Size([312, 1, 8, 8]), -1.0, tensor(25))
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    validate.positive_int("size", size)
    validate.positive_int("margin", margin, at_least=0)
    if 2 * margin >= size:
        raise ValueError(f"margin: expected less than half of size={size}; got {margin}")
    validate.positive_int("levels", levels, at_least=2)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / name), 96) for name in FONTS]
    images = []
    for font in fonts:
        for letter in string.ascii_uppercase:
            page = Image.new("L", (200, 200))
            ImageDraw.Draw(page).text((50, 40), letter, fill=255, font=font)
            ink = page.crop(page.getbbox())
            scale = (size - 2 * margin) / max(ink.size)
            ink = ink.resize([max(1, round(scale * side)) for side in ink.size], Image.Resampling.BOX)
            image = Image.new("L", (size, size))
            image.paste(ink, ((size - ink.width) // 2, (size - ink.height) // 2))
            images.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, size, size))
    alphabet = torch.arange(26, device="cpu").repeat(len(fonts))
    return _quantized(torch.stack(images).float() / 127.5 - 1.0, levels), alphabet


def photo_patches(n: int, size: int = 8, levels: int = 256, generator: torch.Generator | None = None) -> ImageTensors:
    """Square patches at random positions of scikit-learn's two photographs, a temple and a flower, in grayscale.

    Args:
        n: number of patches.
        size: height and width.
        levels: the number of gray levels, 17 for scikit-learn's digits.
        generator: for the positions.

    Returns:
        Images (n, 1, size, size) and the photograph each is from, 0 or 1, shape (n,).

    Example:
        >>> images, photograph = photo_patches(5)
        >>> images.shape, photograph.shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """
    from sklearn.datasets import load_sample_images

    validate.positive_int("n", n)
    validate.positive_int("size", size)
    validate.positive_int("levels", levels, at_least=2)
    validate.generator(generator)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32, device="cpu")  # ITU-R BT.601
    photographs = torch.stack([torch.from_numpy(image.copy()).float() @ luma for image in load_sample_images().images])
    height, width = photographs.shape[1:]
    if size > min(height, width):
        raise ValueError(f"size: expected at most {min(height, width)}, the photographs' height; got {size}")
    which = indices(len(photographs), n, generator)
    top = indices(height - size + 1, n, generator)
    left = indices(width - size + 1, n, generator)
    side = torch.arange(size, device="cpu")
    patches = photographs[which[:, None, None], (top[:, None] + side)[:, :, None], (left[:, None] + side)[:, None, :]]
    return _quantized(patches[:, None] / 127.5 - 1.0, levels), which


def corrupt(images: Tensor, kind: str, generator: torch.Generator | None = None) -> Tensor:
    """Images with one of six corruptions.

    Args:
        images: (N, C, H, W) in [-1, 1].
        kind: "noise", Gaussian of standard deviation 0.5, clipped to [-1, 1]; "blur", the mean over 3 x 3 pixels;
            "negative", with inverted brightness; "rotated", by half a turn; "occluded", a dark rectangle of half the
            sides at a random position; or "shuffled", each image's pixels in its own random order.
        generator: for the random corruptions.

    Returns:
        Images of the same shape.

    Example:
        >>> corrupt(torch.tensor([[[[-1.0, 1.0]]]]), "negative")
        tensor([[[[ 1., -1.]]]])
    """
    validate.one_of("kind", kind, tuple(CORRUPTIONS))
    validate.float_tensor("images", images, min_dim=4, finite=True)
    if images.dim() != 4:
        raise ValueError(f"images: expected shape (N, C, H, W); got {tuple(images.shape)}")
    validate.generator(generator)
    return CORRUPTIONS[kind](images, generator)


def _noise(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return (images + 0.5 * normal_like(images, generator)).clamp(-1, 1)


def _blur(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), value=-1.0), 3, stride=1)


def _occluded(images: Tensor, generator: torch.Generator | None) -> Tensor:
    height, width = images.shape[-2:]
    device = drawing_device(images, generator)
    corners = [
        torch.randint(side - side // 2 + 1, (len(images), 1), generator=generator, device=device).to(images.device)
        for side in (height, width)
    ]
    rows, columns = (
        (torch.arange(side, device=images.device) >= corner)
        & (torch.arange(side, device=images.device) < corner + side // 2)
        for side, corner in zip((height, width), corners, strict=True)
    )
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], -1.0)


def _shuffled(images: Tensor, generator: torch.Generator | None) -> Tensor:
    n, channels, height, width = images.shape
    device = drawing_device(images, generator)
    order = torch.rand(n, height * width, generator=generator, device=device).to(images.device).argsort(1)
    return images.flatten(2).gather(2, order[:, None].expand(-1, channels, -1)).reshape(images.shape)


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "negative": lambda images, generator: -images,
    "rotated": lambda images, generator: images.flip(-2, -1),
    "occluded": _occluded,
    "shuffled": _shuffled,
}


def _quantized(images: Tensor, levels: int) -> Tensor:
    """The nearest of ``levels`` equidistant values from -1 to 1."""
    return ((images + 1) * (levels - 1) / 2).round() * 2 / (levels - 1) - 1
