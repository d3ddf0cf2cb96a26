"""Generated images, stored as bytes in a folder of shards, for scores that need tens of thousands of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from flowbook._core.shard_folder import ShardFolder
from flowbook._core.shards import Shards
from flowbook._core.tree import map_condition
from flowbook.condition import Condition
from flowbook.data.generation import FolderOptions, generate, generation
from flowbook.data.images import to_unit_interval
from flowbook.data.planar import Source
from flowbook.solvers import Solver, SolverOptions, as_solver
from flowbook.velocity import Velocity


class GenerationOptions(FolderOptions, SolverOptions, total=False):
    """The options of folders of generated data: a solver, or its fields, and how the folder is written."""


def split_options(options: GenerationOptions, default: Solver) -> tuple[Solver, FolderOptions]:
    """Split options into the solver that they describe and the options of the folder."""
    folder: Any = {name: value for name, value in options.items() if name in FolderOptions.__annotations__}
    solver: Any = {name: value for name, value in options.items() if name not in folder}
    return as_solver(solver, default), folder


class ImageShardFolder(ShardFolder):
    kind: ClassVar[str] = "images"
    unit: ClassVar[str] = "image"
    maker: ClassVar[str] = "generate_images"

    def arrays(self, rows: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        return {"images": (np.dtype(np.uint8), (rows, *self.settings["shape"])), **self.condition_arrays(rows)}

    def kept(self, x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
        return {"images": to_bytes(x1)}


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] -> integers from 0 to 255, rounded and clipped, as images are stored and shown.

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
    y: Condition = None,
    seed: int = 0,
    **options: Unpack[GenerationOptions],
) -> ImageShards:
    """Generate n images into a folder, resuming where an earlier call was stopped.

    Args:
        velocity: ``v(x, t, y=None)`` on images in [-1, 1].
        source: the shape of an image, (C, H, W), or an object with ``.sample(n, generator)``.
        n: number of images.
        out: the folder.
        y: the condition of each image, n rows, stored with it.
        seed: the seed of the noise.
        options: a :class:`~flowbook.solvers.Solver` or its fields, by default 25 steps of midpoint; and ``batch_size``,
            ``shard_size``, ``name``, ``progress`` as in :func:`~flowbook.reflow.generate_pairs`.

    Returns:
        The :class:`ImageShards` of the folder.

    Raises:
        ValueError, TypeError: for invalid arguments, and for a folder made with other settings or another model.
        RuntimeError: when the images are not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     white = generate_images(lambda x, t: 1 - x, (1, 4, 4), 10, folder, name="white", progress=False)
        ...     len(white), white.bytes(torch.tensor([3])).shape
        (10, torch.Size([1, 1, 4, 4]))
    """
    solver, how = split_options(options, default=Solver("midpoint", steps=25))
    rows = generation(velocity, source, n=n, y=y, seed=seed, solver=solver, as_data=True)
    return ImageShards(generate(ImageShardFolder, rows, n, out, **how).path)


class ImageShards(Shards):
    """The images of a folder, read from disk row by row: data for ``fit``, or for a score.

    Args:
        folder: made by :func:`generate_images`.

    Raises:
        FileNotFoundError: when there are no images, or some are still missing.
        ValueError: for a damaged file, or a folder of pairs.
    """

    _folder_class = ImageShardFolder

    def __getitem__(self, index: int) -> Any:
        """One image in [-1, 1], shape (C, H, W), and its condition where there is one."""
        rows = self._rows([index])
        image, y = rows["images"][0].float() / 127.5 - 1, self._condition(rows)
        return image if y is None else (image, map_condition(lambda part: part[0], y))

    def bytes(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The images at the given indices as stored, uint8, shape (B, C, H, W)."""
        return self._rows(indices)["images"]
