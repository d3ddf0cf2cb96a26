"""A recipe for data of your own: what the files say is inferred, the rest is a sensible default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flowbook._core import validate

GRAY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
ARRAYS = (".npz", ".npy", ".safetensors", ".pt", ".pth")


def own_data(path: str | Path, size: str | int | None = None, channels: int | None = None) -> dict[str, Any]:
    """The recipe for a folder of images or a file of arrays.

    Args:
        path: a folder, flat or with one subfolder for each class; or a file that :func:`flowbook.data.tensors` reads.
        size: of images: 64, or height and width as "48x64"; required for a folder.
        channels: 1 or 3; None gives 1 where all images are gray.

    Raises:
        FileNotFoundError, ValueError: for a path without data, and for a missing size.

    Example:
        >>> own_data("no/such/folder", 64)
        Traceback (most recent call last):
        FileNotFoundError: --data: no/such/folder is neither a folder nor a file
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _of_images(path, size, channels)
    if not path.is_file():
        raise FileNotFoundError(f"--data: {path} is neither a folder nor a file")
    if path.suffix not in ARRAYS:
        raise ValueError(f"--data: expected a folder of images, or a file {', '.join(ARRAYS)}; got {path}")
    if size is not None or channels is not None:
        raise ValueError("--size, --channels: are for folders of images; a file of arrays says them itself")
    return _of_arrays(path)


def _of_images(path: Path, size: str | int | None, channels: int | None) -> dict[str, Any]:
    from flowbook.data import find_images

    if size is None:
        raise ValueError("--size: expected the size of the images to make, such as --size 64; got none")
    height, width = _sides(size)
    files, classes = find_images(path)
    labeled = classes is not None and len(classes) > 1
    channels = _channels(files) if channels is None else channels
    validate.one_of("--channels", channels, (1, 3))
    source: dict[str, Any] = {"name": "image_folder", "root": str(path.resolve()), "size": _one(height, width)}
    source |= {"channels": channels, "labels": labeled}
    model = _network(channels, height, width)
    return _recipe(model | ({"num_classes": len(classes)} if labeled and classes else {}), source, images=True)


def _of_arrays(path: Path) -> dict[str, Any]:
    from flowbook import data

    _, x1, y = data.unpack(data.tensors(path))
    source: dict[str, Any] = {"name": "tensors", "path": str(path.resolve())}
    if x1.dim() == 2:
        model: dict[str, Any] = {"name": "MLP", "dim": x1.shape[1]}
        source["standardize"] = True
    elif x1.dim() == 4 and x1.shape[1] not in (1, 3) and x1.shape[3] in (1, 3):
        raise ValueError(f"--data: expected images (N, C, H, W), channels first; got shape {tuple(x1.shape)} in {path}")
    elif x1.dim() == 4:
        model = _network(int(x1.shape[1]), int(x1.shape[2]), int(x1.shape[3]))
    else:
        raise ValueError(f"--data: expected rows (N, D) or images (N, C, H, W) in {path}; got shape {tuple(x1.shape)}")
    return _recipe(model | _conditions(y), source, images=x1.dim() == 4)


def _conditions(y: Any) -> dict[str, int]:
    """The arguments of a network for a condition: classes for integers, else the length of a vector."""
    if y is None:
        return {}
    if not hasattr(y, "dim"):
        raise ValueError(
            "--data: expected one array y; for several, write a recipe (see `flowbook recipes --show digits`)"
        )
    if not y.is_floating_point():
        found = y.long().unique().tolist()
        if found != list(range(len(found))):
            few = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
            raise ValueError(f"--data: expected labels y from 0 to {len(found) - 1}, without gaps; got {few}")
        return {"num_classes": len(found)}
    if y.dim() == 1:
        raise ValueError("--data: expected vectors y of shape (N, C); got shape (N,): store y[:, None]")
    return {"condition_dim": int(y.shape[1])}


def _network(channels: int, height: int, width: int) -> dict[str, Any]:
    """A U-Net that halves the sides until the smaller one is 8 or odd, with attention where it has 16 or fewer."""
    levels, side = 1, min(height, width)
    while levels < 4 and side > 8 and height % 2**levels == width % 2**levels == 0:
        levels, side = levels + 1, side // 2
    size, smallest = _one(height, width), min(height, width)
    model: dict[str, Any] = {"name": "UNet", "channels": channels, "size": size, "width": 64 if smallest > 16 else 32}
    model |= {"multipliers": [1, 2, 2, 2][:levels], "blocks": 2 if smallest > 16 else 1}
    return model | ({"attention": [side]} if height == width and side <= 16 else {})


def _recipe(model: dict[str, Any], source: dict[str, Any], *, images: bool) -> dict[str, Any]:
    conditional = any(name in model for name in ("num_classes", "condition_dim"))
    train: dict[str, Any] = {
        "steps": 50_000 if images else 5_000, "batch_size": 64 if images else 256,
        "learning_rate": 5e-4 if images else 2e-3,
        "warmup_steps": 500 if images else 100, "schedule": "cosine", "gradient_clip": 1.0, "beta2": 0.99,
        "ema_half_life": 50_000.0, "device": "auto", "seed": 0, "log_every": 50, "checkpoint_every": 1000,
    }  # fmt: skip
    recipe: dict[str, Any] = {
        "model": model,
        "data": source,
        "loss": {"name": "flow_matching", "condition_dropout": 0.1 if conditional else 0.0},
        "train": train | ({"preview_every": 1000} if images else {}),
    }
    return recipe | ({"preview": {"solver": "midpoint:steps=20"}} if images else {})


def _sides(size: str | int) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(size))
    if found is None or int(found[1]) < 1:
        raise ValueError(f"--size: expected one number, or height x width, such as 64 or 48x64; got {size}")
    return int(found[1]), int(found[2] or found[1])


def _one(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


def _channels(files: list[Path]) -> int:
    """1 where all images are gray, by what their headers say."""
    from PIL import Image

    for file in files:
        with Image.open(file) as image:
            if image.mode not in GRAY:
                return 3
    return 1
