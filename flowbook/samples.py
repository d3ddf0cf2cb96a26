"""Many images: what a velocity makes of noise, as bytes in a folder of shards, for scores of tens of thousands.

The folder is written as that of :mod:`flowbook.pairs` is: shards complete or absent, noise and label of image n by the
seed and n alone, so that a killed run goes on, and processes share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flowbook import pairs
from flowbook._model import Velocity
from flowbook._pair_files import PairFolder
from flowbook._shards import Shards
from flowbook.data import Source, to_unit_interval


class _ImageFolder(PairFolder):
    kind: ClassVar[str] = "images"

    def arrays(self, rows: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        labels = {} if self.settings["labels"] is None else {"y": (np.dtype(np.int64), (rows,))}
        return {"images": (np.dtype(np.uint8), (rows, *self.settings["shape"])), **labels}

    def kept(self, x0: Tensor, x1: Tensor, y: Tensor | None) -> dict[str, Tensor | None]:
        return {"images": to_bytes(x1), "y": y}


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] -> the nearest of 0 to 255, clipped: how images are stored and shown.

    Example:
        >>> to_bytes(torch.tensor([-2.0, -1.0, 0.0, 1.0])).tolist()
        [0, 0, 128, 255]
    """
    return (255 * to_unit_interval(images.float()) + 0.5).to(torch.uint8)


def generate_images(
    velocity: Velocity,
    source: Source | Sequence[int],
    n: int,
    out: str | Path,
    *,
    y: Tensor | None = None,
    batch_size: int = 256,
    seed: int = 0,
    method: str = "midpoint",
    steps: int | None = 25,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    shard_size: int = 4096,
    name: str | None = None,
    progress: bool | None = None,
) -> ImageShards:
    """Draw n images into a folder, going on where an earlier call was stopped.

    Args:
        velocity: ``v(x, t, y=None)`` on images in [-1, 1].
        source: the shape of an image, (C, H, W), or something with ``.sample(n, generator)``.
        n: number of images.
        out: the folder.
        y: a label for each image, shape (n,), kept with it.
        batch_size, seed, method, steps, rtol, atol, shard_size, name, progress: as in
            :func:`~flowbook.pairs.generate_pairs`.

    Returns:
        The :class:`ImageShards` of the folder.

    Raises:
        ValueError, TypeError: for arguments that do not fit, and for a folder made with other settings or weights.
        RuntimeError: when the images are not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     white = generate_images(lambda x, t: 1 - x, (1, 4, 4), 10, folder, name="white", progress=False)
        ...     len(white), white.bytes(torch.tensor([3])).shape
        (10, torch.Size([1, 1, 4, 4]))
    """
    solver = {"method": method} | ({"rtol": rtol, "atol": atol} if steps is None else {"steps": steps})
    teacher = pairs.teacher(velocity, source, y, n, seed, solver)
    return ImageShards(pairs.generate(_ImageFolder, teacher, n, Path(out), batch_size, shard_size, name, progress).path)


class ImageShards(Shards):
    """The images of a folder, read row by row from the disk: data for ``fit``, or for a score.

    Args:
        folder: made by :func:`generate_images`.

    Raises:
        FileNotFoundError: when there are no images, or not all of them yet.
        ValueError: for a damaged file, or a folder of pairs.
    """

    _folder_class, _maker = _ImageFolder, "generate_images"

    def __getitem__(self, index: int) -> Any:
        """One image in [-1, 1], shape (C, H, W), and its label where there are labels."""
        image, *y = self._rows(torch.tensor([index]))
        image = image[0].float() / 127.5 - 1
        return (image, y[0][0]) if y else image

    def bytes(self, indices: Tensor) -> Tensor:
        """The images of some indices as they are stored, uint8, shape (B, C, H, W)."""
        return self._rows(indices)[0]
