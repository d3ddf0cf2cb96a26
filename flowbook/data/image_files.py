"""Generated images as files that every viewer and every tool reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from flowbook._core import progress as bars
from flowbook._core import validate
from flowbook._core.files import write_text
from flowbook.condition import Condition
from flowbook.data.generation import generation, identity_of_velocity
from flowbook.data.images import to_unit_interval
from flowbook.data.planar import Source
from flowbook.solvers import Solver, SolverOptions, as_solver
from flowbook.velocity import Velocity

SETTINGS = ".flowbook.json"
"""The file that says how the images of a folder were made."""


def generate_files(
    velocity: Velocity,
    source: Source | Sequence[int],
    n: int,
    out: str | Path,
    *,
    y: Condition = None,
    seed: int = 0,
    batch_size: int = 256,
    name: str | None = None,
    **solver: Unpack[SolverOptions],
) -> int:
    """Draw n images into PNG files ``000000.png`` and so on; files that are there already are kept.

    The noise of an image depends on the seed and its number alone. Under torchrun the processes share the batches.

    Args:
        velocity: a velocity of images with 1 or 3 channels, called on its own device.
        source: the shape of an image, (C, H, W), or an object with ``.sample(n, generator)``.
        n: number of images.
        out: the folder.
        y: the condition of each image, n rows.
        seed: of the noise.
        batch_size: images solved at once.
        name: what identifies the velocity, in place of the digest of its parameters; required for a function.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields; by default 25 steps of midpoint.

    Returns:
        The number of files written.

    Raises:
        ValueError, TypeError: for invalid arguments, and for a folder of another model, seed or solver, or of something
            else than images made here.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> with TemporaryDirectory() as folder:
        ...     generate_files(lambda x, t: torch.ones_like(x), (1, 4, 4), 3, folder, steps=1, name="ones")
        ...     sorted(file.name for file in Path(folder).glob("*.png"))
        3
        ['000000.png', '000001.png', '000002.png']
    """
    validate.positive_int("batch_size", batch_size)
    rows = generation(
        velocity,
        source,
        n=n,
        y=y,
        seed=seed,
        solver=as_solver(solver, default=Solver("midpoint", steps=25)),
        as_data=True,
    )
    first = rows.rows(0, 1)[1]  # a trial, so that invalid arguments fail before anything is written
    if first.dim() != 4 or first.shape[1] not in (1, 3):
        raise ValueError(f"source: expected images of 1 or 3 channels, (C, H, W); got shape {tuple(first.shape[1:])}")
    folder, written = Path(out).expanduser(), 0
    _claim(folder, {"seed": seed, "solver": str(rows.solver), "shape": list(first.shape[1:]),
                    "velocity": identity_of_velocity(velocity, name)})  # fmt: skip
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    starts = range(rank * batch_size, n, processes * batch_size)
    with bars.bar(False if rank > 0 else None, total=n, initial=0, unit="image") as bar:
        for start in starts:
            names = [folder / f"{k:06d}.png" for k in range(start, min(n, start + batch_size))]
            if missing := [file for file in names if not file.is_file()]:
                images = rows.rows(start, len(names))[1]
                for file, image in zip(names, images, strict=True):
                    if file in missing:
                        _save(file, image)
                written += len(missing)
            bar.update(len(names))
    return written


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Create the folder for these settings, or raise for one of others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SETTINGS
    if not file.is_file():
        others = [entry.name for entry in folder.iterdir() if entry.name != SETTINGS]
        if others:
            raise ValueError(f"out: expected an empty folder, or one of images made here; {folder} holds {others[0]}")
        write_text(file, json.dumps(settings) + "\n")
    was = json.loads(file.read_text())
    if differing := [name for name in settings if was.get(name) != settings[name]]:
        said = "; ".join(f"{name} was {was.get(name)!r}, is {settings[name]!r}" for name in differing)
        raise ValueError(f"out: {folder} holds images made with other settings ({said}); choose another folder")


def _save(path: Path, image: Tensor) -> None:
    """Written under another name first: a file that is there is complete."""
    from PIL import Image

    pixels = (to_unit_interval(image.float()) * 255).round().byte().permute(1, 2, 0).numpy()
    drawn: Any = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    drawn.save(temporary, format="PNG")
    os.replace(temporary, path)
