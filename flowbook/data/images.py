"""Images: standard data sets as tensors ``(images, labels)``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flowbook._core import validate

ImageTensors = tuple[Tensor, Tensor]
Split = Literal["train", "test"]


def digits(split: Split = "train") -> ImageTensors:
    """scikit-learn's 1,797 real handwritten digits, 8 x 8, grayscale; they need no download.

    Args:
        split: "train" (1,437 images) or "test" (360), a fixed split stratified by class.

    Example:
        >>> images, labels = digits("test")
        >>> images.shape, float(images.min()), float(images.max())
        (torch.Size([360, 1, 8, 8]), -1.0, 1.0)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    validate.one_of("split", split, ("train", "test"))
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    x, y = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    return torch.from_numpy(x / 8.0 - 1.0).float().reshape(-1, 1, 8, 8), torch.from_numpy(y).long()


def mnist(split: Split = "train", root: str | Path | None = None) -> ImageTensors:
    """MNIST, 28 x 28, grayscale: 60,000 training and 10,000 test images (LeCun et al. 1998).

    Args:
        split: "train" or "test".
        root: where torchvision keeps its data; by default the folder named by ``FLOWBOOK_DATA``, or
            ``~/.cache/flowbook``. Missing data are downloaded there.
    """
    return _from_torchvision("MNIST", split, root)


def fashion_mnist(split: Split = "train", root: str | Path | None = None) -> ImageTensors:
    """Fashion-MNIST, 28 x 28, grayscale, as :func:`mnist` (Xiao et al. 2017)."""
    return _from_torchvision("FashionMNIST", split, root)


def cifar10(split: Split = "train", root: str | Path | None = None) -> ImageTensors:
    """CIFAR-10, 32 x 32, color: 50,000 training and 10,000 test images (Krizhevsky 2009)."""
    return _from_torchvision("CIFAR10", split, root)


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
        return Path(root).expanduser()
    return Path(os.environ.get("FLOWBOOK_DATA") or Path.home() / ".cache" / "flowbook")


def _from_torchvision(name: str, split: Split, root: str | Path | None) -> ImageTensors:
    from torchvision import datasets

    validate.one_of("split", split, ("train", "test"))
    folder = data_root(root)
    build = getattr(datasets, name)
    try:
        stored = build(str(folder), train=split == "train", download=False)
    except RuntimeError:  # raised by torchvision for missing data
        from filelock import FileLock

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{name}.lock"):  # one of a run's processes downloads
                stored = build(str(folder), train=split == "train", download=True)
        except (RuntimeError, OSError) as error:
            raise RuntimeError(
                f"{name} is neither in {folder} nor could it be downloaded ({error}). Put the files where "
                f"torchvision.datasets.{name}({str(folder)!r}) finds them, or set the environment variable "
                "FLOWBOOK_DATA to the folder that has them"
            ) from error
    images = torch.as_tensor(stored.data, device="cpu")
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1.0, torch.as_tensor(stored.targets, device="cpu")


def gray_levels(x1: Tensor, levels: int) -> Tensor:
    """The index of each value's gray level, 0 to levels - 1, as a float tensor.

    Example:
        >>> gray_levels(torch.tensor([-1.0, 0.0, 1.0]), levels=3)
        tensor([0., 1., 2.])
    """
    validate.float_tensor("x1", x1)
    validate.positive_int("levels", levels, at_least=2)
    place = (x1 + 1) * (levels - 1) / 2
    k = place.round()
    if not bool(((place - k).abs() < 1e-2).all()) or not bool(((k >= 0) & (k < levels)).all()):
        raise ValueError(f"x1: expected {levels} equidistant values from -1 to 1 (discrete data); got other values")
    return k
