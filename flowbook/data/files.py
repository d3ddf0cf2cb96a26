"""Tensors in a file: data and conditions for recipes and the shell."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

PARTS = ("x0", "x1", "y")


def tensors(path: str | Path) -> Any:
    """Data from a file of named arrays: x1, (x1, y) or (x0, x1, y), as ``fit`` takes them.

    Args:
        path: ``.npz`` of NumPy, ``.safetensors``, or ``.pt`` with a dict of tensors. The arrays are ``x1``; ``x0``,
            where there are pairs; and ``y``, or ``y.text``, ``y.label`` and so on for a condition of several parts. A
            ``.npy``, and a ``.pt`` with one tensor, is x1.

    Raises:
        FileNotFoundError, ValueError: for a missing or damaged file, another ending, and other names.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/mine.npz", x1=np.zeros((3, 2)), **{"y.speed": np.ones(3)})
        ...     x1, y = tensors(f"{folder}/mine.npz")
        >>> x1.shape, y
        (torch.Size([3, 2]), {'speed': tensor([1., 1., 1.], dtype=torch.float64)})
    """
    found = arrays(path)
    if "x1" not in found:
        raise ValueError(f"path: expected an array x1 in {path}; got {', '.join(found) or 'none'}")
    x0, y = found.get("x0"), condition_of(found, path)
    x1 = found["x1"]
    return (x0, x1, y) if x0 is not None else x1 if y is None else (x1, y)


def condition(path: str | Path) -> Any:
    """The condition in a file as :func:`tensors` reads it; other arrays are left out.

    Raises:
        ValueError: for a file without one.
    """
    y = condition_of(arrays(path), path)
    if y is None:
        raise ValueError(f"path: expected an array y in {path}, or y.NAME; got neither")
    return y


def condition_of(found: dict[str, Tensor], path: str | Path) -> Any:
    """The condition among named arrays, or None."""
    parts = {name.partition(".")[2]: array for name, array in found.items() if name.startswith("y.")}
    strange = [name for name in found if name not in PARTS and not name.startswith("y.")]
    if strange or ("y" in found and parts):
        raise ValueError(
            f"path: expected arrays x1, x0 and y, or y.NAME for the parts of a condition, in {path}; got "
            f"{', '.join(found)}"
        )
    return parts or found.get("y")


def arrays(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a file by their names."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"path: {path} does not exist")
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}
        if path.suffix == ".npy":
            return {"x1": torch.from_numpy(np.load(path))}
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pt", ".pth"):
            found = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(found, Tensor):
                return {"x1": found}
            return {str(name): value for name, value in dict(found).items()}
    except (ValueError, TypeError, OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"path: {path} is damaged, or holds something else than named arrays: {error}") from error
    raise ValueError(f"path: expected a file .npz, .npy, .safetensors or .pt; got {path}")
