r"""The data of the book: six distributions in the plane, and images.

Planar data have ``.sample(n, generator=None) -> (n, 2)``, and ``.log_prob(x)`` where the density is known. Image data
are tensors ``(images, labels)``: images (N, C, H, W) in [-1, 1], labels (N,).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowbook import _validate
from flowbook.analytic import eight_gaussians, two_gaussians

ImageTensors = tuple[Tensor, Tensor]


# Distributions in the plane -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planar:
    """A distribution in the plane, known by how to draw from it.

    Args:
        name: for titles and messages.
        draw: ``draw(n, generator) -> (n, 2)``.
        density: ``density(x) -> (n,)``, the log-density in nats, where it is known.
    """

    name: str
    draw: Callable[[int, torch.Generator | None], Tensor]
    density: Callable[[Tensor], Tensor] | None = None
    dim: int = 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, shape (n, 2)."""
        _validate.positive_int("n", n)
        _validate.generator(generator)
        return self.draw(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density in nats, shape (n,); an error where it has no closed form."""
        if self.density is None:
            raise ValueError(f"log_prob: the density of {self.name} has no closed form")
        _validate.float_tensor("x", x)
        if x.dim() != 2 or x.shape[1] != 2:
            raise ValueError(f"x: expected shape (n, 2); got {tuple(x.shape)}")
        return self.density(x)


class Source(Protocol):
    """Anything that can be drawn from: the planar data, a GaussianMixture."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Pairs:
    """Two distributions drawn side by side, for a flow from one to the other: the source need not be noise.

    Args:
        source: where the flow starts, at t = 0.
        target: where it ends, at t = 1. Both have ``.sample(n, generator=None) -> (n, D)``.

    Example:
        >>> x0, x1, y = Pairs(eight_gaussians(), moons()).sample(5)
        >>> x0.shape, x1.shape, y
        (torch.Size([5, 2]), torch.Size([5, 2]), None)
    """

    source: Source
    target: Source

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            side = getattr(self, name)
            if isinstance(side, type) or not callable(getattr(side, "sample", None)):
                raise TypeError(
                    f"{name}: expected something with sample(n, generator=None), such as moons(); got "
                    f"{_validate.described(side)}"
                )

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, None]:
        """A batch (x0, x1, y) of n independent pairs, x0 and x1 of shape (n, D), without labels."""
        return self.source.sample(n, generator=generator), self.target.sample(n, generator=generator), None


def moons(noise: float = 0.2, scale: float = 3.0, shift: float = -1.0) -> Planar:
    """Two interleaved half circles with Gaussian noise, then ``scale * x + shift`` (by default as torchcfm's tutorial).

    Example:
        >>> moons().sample(3).shape
        torch.Size([3, 2])
    """

    _validate.number("noise", noise, 0, math.inf, high_open=True)
    _finite(scale=scale, shift=shift)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        angle = math.pi * torch.rand(n, generator=generator)
        upper = torch.rand(n, generator=generator) < 0.5
        x = torch.where(upper, angle.cos(), 1.0 - angle.cos())
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
        points = torch.stack([x, y], dim=1) + noise * torch.randn(n, 2, generator=generator)
        return scale * points + shift

    return Planar("moons", draw)


def checkerboard(half_width: float = 4.0, squares: int = 4) -> Planar:
    """The dark squares of a board of ``squares`` by ``squares`` on [-half_width, half_width]^2, uniform.

    Example:
        >>> board = checkerboard()
        >>> board.log_prob(torch.tensor([[1.0, 1.0], [3.0, 1.0]]))
        tensor([-3.4657,    -inf])
    """
    _validate.number("half_width", half_width, 0, math.inf, low_open=True, high_open=True)
    _validate.positive_int("squares", squares, at_least=2)
    if squares % 2:
        raise ValueError(f"squares: expected an even number; got {squares}")
    side = 2.0 * half_width / squares

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        row = torch.randint(squares, (n,), generator=generator)
        column = 2 * torch.randint(squares // 2, (n,), generator=generator) + row % 2
        corner = torch.stack([column, row], dim=1)
        return side * (corner + torch.rand(n, 2, generator=generator)) - half_width

    def density(x: Tensor) -> Tensor:
        cell = torch.floor((x + half_width) / side)
        inside = (x.abs() <= half_width).all(1) & ((cell[:, 0] + cell[:, 1]) % 2 == 0)
        log_area = math.log(2.0 * half_width**2)
        return torch.where(inside, -log_area, -torch.inf).to(x.dtype)

    return Planar("checkerboard", draw, density)


def spirals(noise: float = 0.1, turns: float = 1.5, scale: float = 1.0) -> Planar:
    """Two spiral arms, half a turn apart, with Gaussian noise.

    Example:
        >>> spirals().sample(3).shape
        torch.Size([3, 2])
    """

    _validate.number("noise", noise, 0, math.inf, high_open=True)
    _finite(turns=turns, scale=scale)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        angle = 2 * math.pi * turns * torch.sqrt(torch.rand(n, generator=generator))
        sign = 1.0 - 2.0 * torch.randint(2, (n, 1), generator=generator)
        arm = torch.stack([-angle.cos() * angle, angle.sin() * angle], dim=1) / 3.0
        return scale * (sign * arm + noise * torch.randn(n, 2, generator=generator))

    return Planar("spirals", draw)


def pinwheel(
    blades: int = 5, radial_std: float = 0.3, tangential_std: float = 0.1, rate: float = 0.25, scale: float = 2.0
) -> Planar:
    """Gaussian blades around a centre, twisted the more the farther out (Johnson et al. 2016).

    Example:
        >>> pinwheel().sample(3).shape
        torch.Size([3, 2])
    """
    _validate.positive_int("blades", blades)
    for name, value in (("radial_std", radial_std), ("tangential_std", tangential_std), ("scale", scale)):
        _validate.number(name, value, 0, math.inf, low_open=True, high_open=True)
    _finite(rate=rate)
    scales = torch.tensor([radial_std, tangential_std])

    # Untwisting is a rotation by an angle that depends on the radius alone: it keeps areas, so the density is that of
    # the blades before the twist.
    def rotate(x: Tensor, angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)

    def twist(radius: Tensor) -> Tensor:
        return rate * torch.exp(radius)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        blade = torch.randint(blades, (n,), generator=generator)
        x = torch.randn(n, 2, generator=generator) * scales + torch.tensor([1.0, 0.0])
        return scale * rotate(x, 2 * math.pi * blade / blades + twist(x.norm(dim=1)))

    def density(x: Tensor) -> Tensor:
        x = x / scale
        untwisted = rotate(x, -twist(x.norm(dim=1)))
        std = scales.to(x)
        terms = []
        for blade in range(blades):
            angle = torch.full_like(x[:, 0], -2 * math.pi * blade / blades)
            z = (rotate(untwisted, angle) - torch.tensor([1.0, 0.0]).to(x)) / std
            terms.append(-0.5 * z.square().sum(1) - std.log().sum() - math.log(2 * math.pi))
        return torch.logsumexp(torch.stack(terms), dim=0) - math.log(blades) - 2 * math.log(scale)

    return Planar("pinwheel", draw, density)


# Images ---------------------------------------------------------------------------------------------------------------


def digits(split: str = "train") -> ImageTensors:
    """scikit-learn's 1,797 real handwritten digits, 8 x 8 and grey; they need no download.

    Args:
        split: "train" (1,437 images) or "test" (360), drawn once and for all by class.

    Example:
        >>> images, labels = digits("test")
        >>> images.shape, float(images.min()), float(images.max())
        (torch.Size([360, 1, 8, 8]), -1.0, 1.0)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _validate.one_of("split", split, ("train", "test"))
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    x, y = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    return torch.tensor(x / 8.0 - 1.0, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y, dtype=torch.long)


def mnist(split: str = "train", root: str | Path | None = None) -> ImageTensors:
    """MNIST, 28 x 28 and grey: 60,000 images to train on, 10,000 to test on (LeCun et al. 1998).

    Args:
        split: "train" or "test".
        root: where torchvision keeps its data; by default the folder named by ``FLOWBOOK_DATA``, or
            ``~/.cache/flowbook``. What is missing there is downloaded.
    """
    return _from_torchvision("MNIST", split, root)


def fashion_mnist(split: str = "train", root: str | Path | None = None) -> ImageTensors:
    """Fashion-MNIST, 28 x 28 and grey, as :func:`mnist` (Xiao et al. 2017)."""
    return _from_torchvision("FashionMNIST", split, root)


def cifar10(split: str = "train", root: str | Path | None = None) -> ImageTensors:
    """CIFAR-10, 32 x 32 and coloured: 50,000 images to train on, 10,000 to test on (Krizhevsky 2009)."""
    return _from_torchvision("CIFAR10", split, root)


def image_folder(root: str | Path, size: int, flip: bool = False, labels: bool = True) -> Dataset[Any]:
    """A folder of images in one subfolder per class: resized, cropped to a centred square, in [-1, 1].

    Args:
        root: the folder.
        size: height and width of the result.
        flip: mirror each image left to right with probability 1/2 whenever it is read.
        labels: False leaves them out, for a model without classes.

    Returns:
        A Dataset of (image (3, size, size), label), or of images alone; its ``classes`` name the subfolders.
    """
    from torchvision import datasets, transforms

    _validate.positive_int("size", size)
    _validate.boolean("flip", flip)
    _validate.boolean("labels", labels)
    steps = [transforms.Resize(size), transforms.CenterCrop(size)]
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    if not Path(root).is_dir():
        raise FileNotFoundError(f"root: {root} is not a folder; expected one with a subfolder of images per class")
    folder: Dataset[Any] = datasets.ImageFolder(str(root), transform=transforms.Compose(steps))
    return folder if labels else _WithoutLabels(folder)


class _WithoutLabels(Dataset[Tensor]):
    """The images of a data set of (image, label)."""

    def __init__(self, labelled: Any):
        self.labelled, self.classes = labelled, labelled.classes

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.labelled[index][0]
        return image


def to_unit_interval(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clipped: for showing and saving.

    Example:
        >>> to_unit_interval(torch.tensor([-1.0, 0.0, 3.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (images.clamp(-1, 1) + 1) / 2


def data_root(root: str | Path | None = None) -> Path:
    """The folder of downloaded data: the argument, or ``FLOWBOOK_DATA``, or ``~/.cache/flowbook``."""
    if root is not None:
        return Path(root)
    return Path(os.environ.get("FLOWBOOK_DATA") or Path.home() / ".cache" / "flowbook")


def _finite(**numbers: float) -> None:
    for name, value in numbers.items():
        _validate.number(name, value, -math.inf, math.inf, low_open=True, high_open=True)


def _from_torchvision(name: str, split: str, root: str | Path | None) -> ImageTensors:
    from torchvision import datasets

    _validate.one_of("split", split, ("train", "test"))
    folder = data_root(root)
    build = getattr(datasets, name)
    try:
        stored = build(str(folder), train=split == "train", download=False)
    except RuntimeError:  # torchvision's word for "not there"
        from filelock import FileLock

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{name}.lock"):  # the processes of a run ask at once; one of them fetches
                stored = build(str(folder), train=split == "train", download=True)
        except (RuntimeError, OSError) as error:
            raise RuntimeError(
                f"{name} is neither in {folder} nor could it be downloaded ({error}). Put the files where "
                f"torchvision.datasets.{name}({str(folder)!r}) finds them, or name the folder that has them in the "
                "environment variable FLOWBOOK_DATA"
            ) from error
    images = torch.as_tensor(stored.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1.0, torch.as_tensor(stored.targets)


def grey_levels(x1: Tensor, levels: int) -> Tensor:
    """The number of each value's grey level, 0 to levels - 1, as a float tensor.

    Example:
        >>> grey_levels(torch.tensor([-1.0, 0.0, 1.0]), levels=3)
        tensor([0., 1., 2.])
    """
    _validate.float_tensor("x1", x1)
    _validate.positive_int("levels", levels, at_least=2)
    place = (x1 + 1) * (levels - 1) / 2
    k = place.round()
    if not bool(((place - k).abs() < 1e-2).all()) or not bool(((k >= 0) & (k < levels)).all()):
        raise ValueError(f"x1: expected {levels} equidistant values from -1 to 1, as discrete data have; got others")
    return k


__all__ = [
    "Pairs", "Planar", "Source", "checkerboard", "cifar10", "data_root", "digits", "eight_gaussians", "fashion_mnist",
    "grey_levels", "image_folder", "mnist", "moons", "pinwheel", "spirals", "to_unit_interval", "two_gaussians",
]  # fmt: skip
