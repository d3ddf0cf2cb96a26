"""A data set in a folder of shards, read row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowbook._core.digest import digest
from flowbook._core.shard_folder import GROWING, ShardFolder
from flowbook._core.tree import built, fields_of, from_stored


class Shards(Dataset[Any]):
    """The base class of data sets of pairs and of images."""

    _folder_class: ClassVar[type[ShardFolder]]

    def __init__(self, folder: str | Path):
        self._folder = self._folder_class.read(Path(folder))
        self.manifest = self._folder.settings
        """The settings that the folder was made with."""
        if missing := self._folder.missing():
            raise FileNotFoundError(
                f"folder: {len(missing)} of {self._folder.shards} shards are missing in {folder}; make them by calling "
                f"{self._folder.maker} again, with the same settings"
            )
        self._shards = [self._folder.open(k) for k in range(self._folder.shards)]
        self.labels = self._condition(self._all(fields_of(self.manifest["condition"])))
        """The condition of all rows, such as labels of shape (n,), or None."""

    def identity(self) -> str:
        """What determines the rows, wherever the folder lies and however many there are."""
        settings = {name: value for name, value in self.manifest.items() if name not in GROWING}
        return f"{type(self).__name__} {digest(settings)[:16]}"

    def __len__(self) -> int:
        return int(self.manifest["n"])

    def __reduce__(self) -> Any:
        return type(self), (self._folder.path,)  # a copy reopens the files instead of carrying their content

    def _all(self, names: Iterable[str]) -> dict[str, Tensor]:
        """All rows of some arrays."""
        places = [list(self._folder.arrays(0)).index(name) for name in names]
        return {
            name: from_stored(np.concatenate([arrays[place] for arrays in self._shards]), self._dtype(name))
            for name, place in zip(names, places, strict=True)
        }

    def _dtype(self, name: str) -> str:
        """The dtype of an array's tensors."""
        fields = fields_of(self.manifest["condition"])
        return fields[name][0] if name in fields else str(self.manifest["dtype"] if name in ("x0", "x1") else "uint8")

    def _condition(self, rows: dict[str, Tensor]) -> Any:
        return built(self.manifest["condition"], rows)

    def _rows(self, indices: Tensor | Sequence[int]) -> dict[str, Tensor]:
        """The rows of each array at the given indices, or where a mask is True."""
        indices = torch.as_tensor(indices, device=None if isinstance(indices, Tensor) else "cpu")
        if indices.dtype == torch.bool:
            if indices.shape != (len(self),):
                raise ValueError(f"indices: expected a mask of shape ({len(self)},); got {tuple(indices.shape)}")
            indices = indices.nonzero()[:, 0]
        if indices.dim() != 1 or indices.is_floating_point():
            raise TypeError(
                f"indices: expected integers of shape (B,); got {indices.dtype} of shape {tuple(indices.shape)}"
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"indices: expected 0 to {len(self) - 1}; got {indices.min()} to {indices.max()}")
        parts = [np.empty((len(indices), *shape[1:]), dtype) for dtype, shape in self._folder.arrays(0).values()]
        for row, index in enumerate(indices.tolist()):
            k, place = divmod(index, self.manifest["shard_size"])
            for part, array in zip(parts, self._shards[k], strict=True):
                part[row] = array[place]
        names = self._folder.arrays(0)
        return {name: from_stored(part, self._dtype(name)) for name, part in zip(names, parts, strict=True)}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.manifest["shape"])

    @property
    def nfe(self) -> float:
        """The mean number of model calls for a row."""
        shards = range(self._folder.shards)
        return sum(self._folder.notes(k)["nfe"] * len(self._folder.rows(k)) for k in shards) / len(self)
