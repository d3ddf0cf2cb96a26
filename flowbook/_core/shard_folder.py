"""A folder of generated rows on disk: shards that are complete or absent, and a manifest of how they were made.

manifest.json           the settings that determine every number, and a digest of the model
shard_000000/           rows 0 to shard_size - 1
    x0.npy, x1.npy      shape (rows, ...), memory-mapped; the names depend on the kind of folder
    y.npy, y.text.npy   the condition, where there is one: a file for each of its tensors
    shard.json          the number of model calls for each row
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

import flowbook
from flowbook._core import validate
from flowbook._core.files import flush, write_text
from flowbook._core.tree import fields_of, stored_dtype

NOTES = ("torch", "flowbook")  # entries of the manifest for information only, never compared
GROWING = ("n", "values", *NOTES)
"""What may differ between a folder and a larger one that it becomes, with more rows and their conditions."""
PATIENCE = 600.0
"""Seconds that a process waits for another one to write something."""


@dataclass(frozen=True)
class ShardFolder(ABC):
    """The base class of folders of shards; a subclass defines the arrays of a shard."""

    path: Path
    settings: dict[str, Any]
    kind: ClassVar[str]
    """What the folder holds, in the plural."""
    unit: ClassVar[str]
    """One of them."""
    maker: ClassVar[str]
    """The function that makes such folders."""

    @classmethod
    def claim(cls, path: Path, settings: dict[str, Any], first: Callable[[int], Any]) -> Self:
        """Create the folder for these settings, or raise if it was made with other settings.

        A folder may grow: with more rows, and the same settings otherwise, it keeps those that it has. ``first(n)``
        says what "values" would be for the first n of the conditions.
        """
        settings = {"kind": cls.kind} | settings
        if path.exists() and not path.is_dir():
            raise ValueError(f"out: expected a folder; {path} is a file")
        path.mkdir(parents=True, exist_ok=True)
        manifest = path / "manifest.json"
        if not manifest.exists():
            others = [entry.name for entry in path.iterdir() if not entry.name.startswith((".manifest.json.", ".lock"))]
            if others and not manifest.exists():  # another process may just have made the folder; it writes this first
                raise ValueError(f"out: expected an empty folder, or one of {cls.kind}; {path} holds {others[0]}")
            notes = {"torch": torch.__version__, "flowbook": flowbook.__version__}
            write_text(manifest, json.dumps(settings | notes, indent=2) + "\n")
        was = cls._grown(path, settings, first).settings
        names = [name for name in was | settings if name not in NOTES and was.get(name) != settings.get(name)]
        if names:
            differing = "; ".join(f"{name} was {was.get(name)!r}, is {settings.get(name)!r}" for name in names)
            raise ValueError(
                f"out: {path} holds {cls.kind} made with other settings ({differing}); choose another folder"
            )
        return cls(path, settings)

    @classmethod
    def _grown(cls, path: Path, settings: dict[str, Any], first: Callable[[int], Any]) -> Self:
        """The folder, enlarged if it was made with fewer rows and the same settings."""
        with FileLock(path / ".lock"):  # one of several processes enlarges it
            folder = cls.read(path)
            was, n = folder.settings, folder.settings["n"]
            same = all(was.get(name) == settings.get(name) for name in {*was, *settings} - {*GROWING})
            if not same or n >= settings["n"] or was.get("values") != first(n):
                return folder
            last = n // settings["shard_size"]
            if n % settings["shard_size"] and folder.shard(last).exists():  # it gets more rows, and is made again
                shutil.rmtree(folder.shard(last))
            notes = {name: was[name] for name in NOTES if name in was}
            write_text(path / "manifest.json", json.dumps(settings | notes, indent=2) + "\n")
            return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        manifest = path / "manifest.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"folder: {path} holds no {cls.kind}: it has no manifest.json; see {cls.maker}")
        try:
            settings = json.loads(manifest.read_text())
            for name in ("n", "shard_size"):
                validate.positive_int(name, settings[name])
            folder = cls(path, settings)
            folder.arrays(0)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"folder: {manifest} is damaged or was written by another program: {error!r}") from error
        if (kind := settings.get("kind", "rows of an earlier version of flowbook")) != cls.kind:
            raise ValueError(f"folder: expected {cls.kind} in {path}; it holds {kind}")
        return folder

    @property
    def shards(self) -> int:
        return math.ceil(self.settings["n"] / self.settings["shard_size"])

    def shard(self, k: int) -> Path:
        return self.path / f"shard_{k:06d}"

    def rows(self, k: int) -> range:
        """The rows of a shard."""
        size = self.settings["shard_size"]
        return range(k * size, min(self.settings["n"], (k + 1) * size))

    def missing(self) -> list[int]:
        with os.scandir(self.path) as entries:  # one scan of the folder, which may be on a network file system
            there = {entry.name for entry in entries if entry.is_dir()}
        return [k for k in range(self.shards) if self.shard(k).name not in there]

    @abstractmethod
    def arrays(self, rows: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Type and shape of each array of a shard; those of the condition come last."""

    @abstractmethod
    def kept(self, x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
        """The part of a batch that goes into each array, without its condition."""

    def condition_arrays(self, rows: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        fields = fields_of(self.settings["condition"])
        return {name: (stored_dtype(dtype), (rows, *shape)) for name, (dtype, shape) in fields.items()}

    @contextlib.contextmanager
    def writing(self, k: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The arrays of a shard to fill, and a dict of notes; the shard appears once the block ends without error."""
        final = self.shard(k)
        for leftover in self.path.glob(f".{final.name}.*"):  # of a killed process
            shutil.rmtree(leftover)
        temporary = self.path / f".{final.name}.{os.getpid()}"
        temporary.mkdir()
        try:
            arrays = {
                name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", dtype, shape)
                for name, (dtype, shape) in self.arrays(len(self.rows(k))).items()
            }
            notes: dict[str, Any] = {}
            yield arrays, notes
            for array in arrays.values():
                array.flush()
            (temporary / "shard.json").write_text(json.dumps(notes) + "\n")
            for file in temporary.iterdir():
                flush(file)
            flush(temporary)
            os.replace(temporary, final)
            flush(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def open(self, k: int) -> list[Any]:
        """The arrays of a shard, memory-mapped: rows are read from disk when they are indexed."""
        opened = []
        for name, (dtype, shape) in self.arrays(len(self.rows(k))).items():
            file = self.shard(k) / f"{name}.npy"
            try:
                array = np.load(file, mmap_mode="r")
            except (FileNotFoundError, ValueError, EOFError) as error:
                raise self._damaged(file, str(error)) from error
            if (array.dtype, array.shape) != (dtype, shape):
                raise self._damaged(file, f"expected {dtype} {shape}; got {array.dtype} {array.shape}")
            # NumPy's memory map keeps a file descriptor, of which a process has about a thousand; torch's does not.
            size, first = file.stat().st_size, array.offset
            content = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
            opened.append(content[first:].view(dtype).reshape(shape))
        return opened

    def notes(self, k: int) -> dict[str, Any]:
        file = self.shard(k) / "shard.json"
        try:
            return {"nfe": float(json.loads(file.read_text())["nfe"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(file, repr(error)) from error

    def wait_for_others(self) -> None:
        """Wait until the other processes' shards are complete; raise if nothing is written for ``PATIENCE`` seconds."""
        missing, sign, since, pause = self.missing(), self._last_write(), time.monotonic(), 0.1
        while missing:
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
            now, last = self.missing(), self._last_write()
            if len(now) < len(missing) or last != sign:
                since, sign = time.monotonic(), last
            elif time.monotonic() - since > PATIENCE:
                raise TimeoutError(
                    f"out: {len(now)} shards of {self.path} are missing, and no other process has written for "
                    f"{PATIENCE:.0f} seconds; call again to make them"
                )
            missing = now

    def _last_write(self) -> float:
        """When another process last wrote to an incomplete shard."""
        times = [0.0]
        for file in self.path.glob(".shard_*/*"):
            with contextlib.suppress(FileNotFoundError):  # completed and renamed in the meantime
                times.append(file.stat().st_mtime)
        return max(times)

    def _damaged(self, file: Path, what: str) -> ValueError:
        return ValueError(f"folder: {file} is damaged: {what}; remove {file.parent} and call {self.maker} again")
