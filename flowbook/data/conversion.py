"""What people have as data: arrays, tables, loaders, dicts; brought into the forms that a training knows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from flowbook._core import validate
from flowbook._core.seeding import seeded
from flowbook._core.tree import map_condition
from flowbook.data.standardizer import Standardizer

PARTS = ("x0", "x1", "y")


@dataclass(frozen=True)
class Standardized:
    """Data in standard units, and how they were brought there; made by :func:`standardized`."""

    data: Any
    standardizer: Standardizer


def standardized(data: Any) -> Standardized:
    """Data of any scale for ``fit``: each column of a table, or each channel of images, with mean 0 and deviation 1.

    Args:
        data: x1 or (x1, y): tensors, NumPy arrays or DataFrames. A condition stays as it is.

    Raises:
        ValueError, TypeError: for data that are not such, and for columns that never change.

    Example:
        >>> given = standardized(torch.tensor([[100.0, 0.1], [300.0, 0.3]]))
        >>> given.data
        tensor([[-0.7071, -0.7071],
                [ 0.7071,  0.7071]])
    """
    found = as_data(data)
    x1, rest = (found, ()) if isinstance(found, Tensor) else (found[0], found[1:]) if _is_tuple(found) else (None, ())
    if not isinstance(x1, Tensor) or len(rest) > 1:
        raise TypeError(f"data: expected x1 or (x1, y), as arrays; got {validate.described(data)}")
    scale = Standardizer.of(x1)
    return Standardized(scale(x1) if not rest else (scale(x1), *rest), scale)


def as_data(data: Any, dtype: torch.dtype | None = None, name: str = "data") -> Any:
    """Data as a training takes them: tensors from arrays and tables, tuples from dicts, a Dataset from a DataLoader.

    Args:
        data: anything; what is not known is returned as it is.
        dtype: of the network. Floating-point arrays of another one are converted, with a note.
        name: for messages.

    Warns:
        UserWarning: for a conversion from float64, and for the settings of a DataLoader, which ``fit`` does not use.

    Raises:
        TypeError: for a column that holds no numbers, and for a dict without x1.

    Example:
        >>> as_data({"x1": np.ones((2, 2), dtype=np.float32), "y": [0, 1]})
        (tensor([[1., 1.],
                [1., 1.]]), tensor([0, 1]))
    """
    if isinstance(data, DataLoader):
        return as_data(_dataset_of(data, name), dtype, name)
    if isinstance(data, Mapping):
        data = _from_dict(data, name)
    if isinstance(data, tuple) and 1 <= len(data) <= 3:
        parts = [_as_condition(part, f"{name}[{k}]") if k == 2 or (k == 1 == len(data) - 1) else
                 as_array(part, f"{name}[{k}]") for k, part in enumerate(data)]  # fmt: skip
        ends = len(parts) if len(parts) == 1 else max(1, len(parts) - 1)
        parts[:ends] = [_as_float(part) for part in parts[:ends]]
        return _cast(tuple(parts), dtype, name)
    array = data if isinstance(data, list) else as_array(data, name)  # a list may be one of anything
    if isinstance(array, Tensor):
        return _cast(_as_float(array) if array is not data else array, dtype, name)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and _has_dict_items(data):
        return Columns(data, x1="x1")
    return data


def _as_float(part: Any) -> Any:
    """Whole numbers of a table or an image as numbers: in float64, which the network's dtype then replaces."""
    whole = isinstance(part, Tensor) and not part.is_floating_point() and not part.is_complex() and part.dim() > 1
    return part.double() if whole else part


def _cast(data: Any, dtype: torch.dtype | None, name: str) -> Any:
    """Floating-point tensors in the network's dtype."""
    found: set[torch.dtype] = set()

    def cast(part: Tensor) -> Tensor:
        if dtype is None or not part.is_floating_point() or part.dtype == dtype:
            return part
        found.add(part.dtype)
        return part.to(dtype)

    converted = tuple(map_condition(cast, part) for part in data) if isinstance(data, tuple) else cast(data)
    if found:
        was = ", ".join(sorted(str(one) for one in found))
        warnings.warn(f"{name}: converted from {was} to {dtype}, the dtype of the network", stacklevel=4)
    return converted


def as_array(value: Any, name: str) -> Any:
    """A tensor from a NumPy array, a DataFrame or a Series; anything else unchanged.

    Example:
        >>> as_array(np.zeros(2), "x1"), as_array("mnist", "x1")
        (tensor([0., 0.], dtype=torch.float64), 'mnist')
    """
    if _is_table(value):
        value = _numbers_of(value, name)
    if isinstance(value, list) and _of_numbers(value):
        value = np.asarray(value)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask; leave the masked rows out: x[~x.mask.any(1)]")
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == object or value.dtype.kind in "USO":
        raise TypeError(f"{name}: expected an array of numbers; got dtype {value.dtype}")
    return torch.from_numpy(np.ascontiguousarray(value))


def _as_condition(value: Any, name: str) -> Any:
    """A condition: arrays as tensors, also in dicts and tuples, and a list of numbers."""
    if isinstance(value, Mapping):
        return {key: _as_condition(part, f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, list) and value and all(validate.is_number(part) for part in value):
        return torch.tensor(value)
    if isinstance(value, list) and not all(isinstance(part, (Tensor, np.ndarray, Mapping)) for part in value):
        raise TypeError(
            f"{name}: expected numbers, one for each sample; got a list with {validate.described(value[0])}"
        )
    if isinstance(value, np.ndarray) and value.dtype.kind == "u" and value.dtype != np.uint8:
        value = value.astype(np.int64)  # torch can do little with the others
    if isinstance(value, (tuple, list)):
        return tuple(_as_condition(part, f"{name}[{k}]") for k, part in enumerate(value))
    return as_array(value, name)


def _of_numbers(value: Any) -> bool:
    """Whether a list holds numbers, or lists of them."""
    while isinstance(value, list) and value:
        value = value[0]
    return validate.is_number(value)


def _is_table(value: Any) -> bool:
    """A DataFrame or a Series, of pandas or of a package that follows it."""
    return hasattr(value, "to_numpy") and hasattr(value, "shape") and not isinstance(value, (Tensor, np.ndarray))


def _numbers_of(table: Any, name: str) -> np.ndarray[Any, Any]:
    columns = list(table.columns) if hasattr(table, "columns") else None
    if columns is not None:
        wrong = [str(column) for column in columns if table[column].to_numpy().dtype.kind not in "biuf"]
        if wrong:
            raise TypeError(
                f"{name}: expected columns of numbers; got other values in {', '.join(wrong)}: leave them out, or give "
                "them as a condition, in codes"
            )
        values = np.stack([table[column].to_numpy() for column in columns], axis=1)
        return values if values.dtype.kind == "f" else values.astype(np.float64)
    values = np.asarray(table.to_numpy())
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers; got dtype {values.dtype}")
    return values


def _from_dict(data: Mapping[str, Any], name: str) -> Any:
    if "x1" not in data or any(key not in PARTS for key in data):
        raise TypeError(
            f"{name}: expected a dict with x1, and x0 and y where there are any; got {', '.join(map(str, data))}"
        )
    x1, y = data["x1"], data.get("y")
    return (data["x0"], x1, y) if "x0" in data else x1 if y is None else (x1, y)


def _dataset_of(loader: DataLoader[Any], name: str) -> Any:
    """What a DataLoader reads; ``fit`` makes the batches itself, since a step's batch depends on seed and step."""
    if loader.collate_fn is not default_collate:
        raise TypeError(
            f"{name}: fit puts batches together itself, so that a run can be resumed, and cannot use the loader's "
            "collate_fn; give it a Dataset whose items are x1, (x1, y) or (x0, x1, y)"
        )
    if not isinstance(loader.sampler, (SequentialSampler, RandomSampler)) or loader.batch_sampler is None:
        kind = type(loader.sampler).__name__
        raise TypeError(
            f"{name}: fit draws every item once in an epoch, and cannot use the loader's {kind}; give it a Dataset, "
            "such as torch.utils.data.Subset"
        )
    if type(loader.batch_sampler) is not BatchSampler:
        raise TypeError(
            f"{name}: fit makes the batches itself, and cannot use the loader's batch_sampler; give a Dataset"
        )
    warnings.warn(
        f"{name}: fit reads the loader's Dataset; batch size, order and workers are those of TrainConfig", stacklevel=4
    )
    return loader.dataset


def first_item(data: Any) -> Any:
    """The first item of a data set, read without a trace in the global generators, from which an item may draw.

    Example:
        >>> first_item([3, 4])
        3
    """
    with seeded(0):
        return data[0]


def _has_dict_items(data: Dataset[Any]) -> bool:
    return hasattr(data, "__len__") and len(data) > 0 and isinstance(first_item(data), Mapping)


class Columns(Dataset[Any]):
    """A Dataset whose items are dicts, such as one of Hugging Face, as one of x1, (x1, y) or (x0, x1, y).

    Args:
        data: the Dataset.
        x1: the key of the data.
        y: the key of the condition, or the keys of its parts; None for data without.
        x0: the key of the source, for pairs.

    Raises:
        TypeError: for a key that the first item does not have.

    Example:
        >>> items = [{"pixels": torch.zeros(1, 2, 2), "label": 3}]
        >>> Columns(items, x1="pixels", y="label")[0][1]
        3
    """

    def __init__(self, data: Any, x1: str = "x1", y: str | list[str] | None = None, x0: str | None = None):
        self.data = data
        first = first_item(data)
        if not isinstance(first, Mapping):
            raise TypeError(f"data: expected items that are dicts; got a {type(first).__name__}")
        if set(first) <= set(PARTS) and y is None and x0 is None:  # named as here
            y, x0 = ("y" if "y" in first else None), ("x0" if "x0" in first else None)
        self.x1, self.y, self.x0 = x1, y, x0
        wanted = [x1, *([y] if isinstance(y, str) else y or []), *([x0] if x0 else [])]
        if missing := [key for key in wanted if key not in first]:
            raise TypeError(
                f"data: expected items with {', '.join(missing)}; got {', '.join(map(str, first))}: name them, such as "
                'data.Columns(dataset, x1="image", y="label")'
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        item = self.data[index]
        y = None if self.y is None else item[self.y] if isinstance(self.y, str) else {key: item[key] for key in self.y}
        x1 = item[self.x1]
        return (item[self.x0], x1, y) if self.x0 is not None else x1 if y is None else (x1, y)


class Paired(Dataset[Any]):
    """A Dataset whose items are pairs (x0, x1), such as an image and its counterpart, or (x0, x1, y).

    Two tensors in an item mean data and condition otherwise.

    Args:
        data: the Dataset.

    Example:
        >>> pairs = Paired(torch.utils.data.TensorDataset(torch.zeros(3, 2), torch.ones(3, 2)))
        >>> pairs[0]
        (tensor([0., 0.]), tensor([1., 1.]), None)
    """

    def __init__(self, data: Any):
        validate.instance("data", data, Dataset, "TensorDataset(x0, x1)")
        first = first_item(data)
        if not isinstance(first, (tuple, list)) or len(first) not in (2, 3):
            raise TypeError(f"data: expected items (x0, x1) or (x0, x1, y); got {validate.described(first)}")
        if getattr(first[0], "shape", None) != getattr(first[1], "shape", None):
            raise ValueError(
                f"data: expected pairs of the same shape; got {tuple(first[0].shape)} and {tuple(first[1].shape)}"
            )
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        x0, x1, *rest = self.data[index]
        return x0, x1, rest[0] if rest else None


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple)
