"""Your own images: a folder of files, flat or with a subfolder for each class."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowbook._core import validate

SHOWN = 3
"""How many names a message shows."""
MODES = {1: "L", 3: "RGB"}
HIGHEST = {"I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "I": 65535.0}
"""The number that is white, of images with more than 8 bits a channel."""


class ImageFolder(Dataset[Any]):
    """The images of a folder; made by :func:`image_folder`."""

    def __init__(self, root: Path, files: list[Path], classes: list[str] | None, reader: ImageReader, labels: bool):
        self.root, self.files, self.reader = root, files, reader
        self.classes = classes if labels else None
        """The names of the classes, in the order of their labels; None without labels."""
        self.targets = None if self.classes is None else [self.classes.index(file.parent.name) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.image(index) if self.targets is None else (self.image(index), self.targets[index])

    def image(self, index: int) -> Tensor:
        """One image, shape (C, H, W), without its label."""
        return self.reader(self.files[index])

    def identity(self) -> str:
        """What determines the images, wherever the folder lies: names and sizes of the files, and how they are read."""
        sha = hashlib.sha256(repr((self.reader, self.classes)).encode())
        for file in self.files:
            sha.update(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}\n".encode())
        return f"{len(self)} images {sha.hexdigest()[:16]}"


class ImageReader:
    """Read an image file as a tensor (C, H, W) in [-1, 1]."""

    def __init__(self, size: tuple[int, int], channels: int, flip: bool, background: tuple[int, int, int]):
        self.size, self.channels, self.flip, self.background = size, channels, flip, background

    def __repr__(self) -> str:
        return f"ImageReader({self.size}, {self.channels}, {self.flip}, {self.background})"

    def __call__(self, file: Path) -> Tensor:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                image: Any = ImageOps.exif_transpose(opened)
                pixels = self._pixels(image, file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"data: {file} cannot be read: {error}. Remove it, or leave out such files by unreadable='skip'"
            ) from error
        x = torch.from_numpy(pixels)
        if self.flip and bool(torch.rand(()) < 0.5):
            x = x.flip(-1)
        return 2 * x - 1

    def _pixels(self, image: Any, file: Path) -> np.ndarray[Any, Any]:
        """The pixels, from 0 to 1, float32 (C, H, W)."""
        if image.mode == "F" or image.mode in HIGHEST:
            return self._deep(image, file)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = self._over_background(image.convert("RGBA"))
        image = self._fitted(image.convert(MODES[self.channels]))
        pixels = np.asarray(image, dtype=np.float32) / 255
        return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))

    def _over_background(self, image: Any) -> Any:
        from PIL import Image

        page = Image.new("RGBA", image.size, (*self.background, 255))
        page.alpha_composite(image)
        return page

    def _deep(self, image: Any, file: Path) -> np.ndarray[Any, Any]:
        """Gray images with more than 8 bits: 16 bits are divided by their largest value, floats are taken as 0 to 1."""
        from PIL import Image

        values = np.asarray(image, dtype=np.float32) / HIGHEST.get(image.mode, 1.0)
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(values).all() and low >= 0 and high <= 1 + 1e-6):
            raise ValueError(f"expected values from 0 to 1 in an image of mode {image.mode}; got {low:g} to {high:g}")
        fitted = np.asarray(self._fitted(Image.fromarray(values)), dtype=np.float32)
        return np.repeat(fitted[None].clip(0, 1), self.channels, axis=0)

    def _fitted(self, image: Any) -> Any:
        """Resized so that it covers the size, and cut to it around the center."""
        from PIL import ImageOps
        from PIL.Image import Resampling

        height, width = self.size
        return ImageOps.fit(image, (width, height), method=Resampling.BILINEAR)


def image_folder(
    root: str | Path,
    size: int | Sequence[int],
    *,
    flip: bool = False,
    labels: bool | None = None,
    channels: int = 3,
    background: str = "white",
    unreadable: str = "raise",
) -> ImageFolder:
    """A folder of images, flat or with one subfolder for each class: resized, cut around the center, in [-1, 1].

    Read are all formats that Pillow reads, in the orientation that their EXIF data say; 16-bit images are divided by
    65535, and images of floats hold 0 to 1. Hidden files and folders are left out, and so are files of other kinds,
    with a note that counts them.

    Args:
        root: the folder. Images in it make a flat one, without labels; otherwise each of its subfolders with images,
            in alphabetical order, is a class.
        size: height and width of the result, or one number for both.
        flip: mirror each image left to right with probability 1/2 whenever it is read.
        labels: False omits the labels of subfolders; None gives them where there are subfolders.
        channels: 3 for color, 1 for gray.
        background: the color behind transparent pixels, such as "white" or "#204080".
        unreadable: "raise" refuses a folder with files that cannot be opened, and names them; a file that is cut off
            further down is named when it is read. "skip" decodes every file once at the start, and leaves out, with a
            note, those that cannot be read.

    Returns:
        A Dataset of images (channels, H, W), or of (image, label) with ``classes``, the names of the subfolders.

    Raises:
        FileNotFoundError: for a folder that is not there, or has no images.
        ValueError: for images both in the folder and in subfolders, for files that cannot be read, and for invalid
            arguments.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30), "white").save(f"{folder}/a.png")
        ...     image_folder(folder, size=8)[0].shape
        torch.Size([3, 8, 8])
    """
    from PIL import ImageColor

    validate.boolean("flip", flip)
    if labels is not None:
        validate.boolean("labels", labels)
    validate.one_of("channels", channels, tuple(MODES))
    validate.one_of("unreadable", unreadable, ("raise", "skip"))
    sides: tuple[Any, ...] = (
        (size, size) if validate.is_integer(size) else tuple(size) if isinstance(size, (tuple, list)) else ()
    )
    if len(sides) != 2:
        raise ValueError(f"size: expected one number, or height and width; got {size}")
    for side in sides:
        validate.positive_int("size", side)
    try:
        color = ImageColor.getrgb(background)[:3]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"background: expected a color, such as 'white' or '#204080'; got {background!r}") from error
    root = Path(root).expanduser()
    files, classes = find_images(root, labels)
    reader = ImageReader((int(sides[0]), int(sides[1])), channels, flip, (color[0], color[1], color[2]))
    files = _readable(files, reader, unreadable)
    if classes is not None:  # those that still have images
        classes = sorted({file.parent.name for file in files}, key=classes.index)
    return ImageFolder(root, files, classes, reader, labels=classes is not None and labels is not False)


def find_images(root: Path, labels: bool | None = None) -> tuple[list[Path], list[str] | None]:
    """The image files of a folder, and the names of its classes, or None where it is flat."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is not a folder; expected one of images, or of subfolders per class")
    others: Counter[str] = Counter()
    flat = list(_images(root, others))
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    by_class = {folder.name: found for folder in folders if (found := list(_images(folder, others, below=True)))}
    if flat and by_class:
        raise ValueError(
            f"root: expected images either in {root} or in its subfolders; got {len(flat)} in it, and more in "
            f"{_few(by_class)}"
        )
    if others:
        counts = ", ".join(f"{count} {suffix or 'without an ending'}" for suffix, count in others.most_common(SHOWN))
        warnings.warn(
            f"root: {others.total()} entries of {root} are no images and are left out ({counts})", stacklevel=4
        )
    if not flat and not by_class:
        deeper = next((folder for folder in folders if any(entry.is_dir() for entry in folder.iterdir())), None)
        hint = f"; there are folders within {deeper.name}: name the folder with the classes" if deeper else ""
        raise FileNotFoundError(f"root: no images in {root} or its subfolders{hint}")
    if labels and not by_class:
        raise ValueError(f"labels: expected subfolders in {root}, one for each class; got images alone")
    return (flat, None) if flat else ([file for found in by_class.values() for file in found], list(by_class))


def _images(folder: Path, others: Counter[str], below: bool = False) -> Iterator[Path]:
    from PIL import Image

    known = Image.registered_extensions()
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_file():
            if entry.is_symlink():
                others["broken links"] += 1
            elif below and entry.is_dir():
                others["folders within classes"] += 1
            continue
        suffix = entry.suffix.lower()
        if suffix in known and known[suffix] in Image.OPEN and suffix not in (".pdf", ".mpg", ".mpeg"):
            yield entry
        else:
            others[suffix] += 1


def _readable(files: list[Path], reader: ImageReader, unreadable: str) -> list[Path]:
    """The files that can be read: their headers are looked at, or, to skip some, all of each is decoded."""
    from PIL import Image

    wrong: dict[Path, str] = {}
    for file in files:
        try:
            if unreadable == "skip":
                reader(file)
            else:
                with warnings.catch_warnings():  # of large images, which are reduced
                    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                    with Image.open(file):
                        pass
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            wrong[file] = str(error)
    if not wrong:
        return files
    reason = next(iter(wrong.values())).splitlines()[0].removeprefix("data: ")
    said = f"{len(wrong)} of {len(files)} files cannot be read: {_few(str(file) for file in wrong)} ({reason})"
    if unreadable == "raise":
        raise ValueError(f"root: {said}. Remove them, or leave them out by unreadable='skip'")
    if len(wrong) == len(files):
        raise ValueError(f"root: {said}")
    warnings.warn(f"root: {said}; they are left out", stacklevel=3)
    return [file for file in files if file not in wrong]


def _few(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
