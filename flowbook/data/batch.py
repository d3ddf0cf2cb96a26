"""What a batch is: ``x1``, ``(x1, y)`` or ``(x0, x1, y)``, where y is any condition or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowbook._core.tree import leaves, map_condition
from flowbook.condition import Condition

Batch = Tensor | tuple[Tensor] | tuple[Tensor, Condition] | tuple[Tensor, Tensor, Condition]


def unpack(batch: Any) -> tuple[Tensor | None, Tensor, Any]:
    """x1, (x1, y) or (x0, x1, y) -> (x0, x1, y), with None for what is missing.

    Example:
        >>> x0, x1, y = unpack((torch.zeros(1, 2), torch.tensor([3])))
        >>> x0 is None, y
        (True, tensor([3]))
    """
    if isinstance(batch, Tensor):
        return None, batch, None
    if not isinstance(batch, (tuple, list)):
        raise TypeError(f"batch: expected x1, (x1, y) or (x0, x1, y); got a {type(batch).__name__}")
    if len(batch) == 1:
        return None, batch[0], None
    if len(batch) == 2:
        return None, batch[0], batch[1]
    if len(batch) == 3:
        return batch[0], batch[1], batch[2]
    raise ValueError(f"batch: expected x1, (x1, y) or (x0, x1, y); got {len(batch)} parts")


def is_tensors(data: Any) -> bool:
    """True for a whole data set given as tensors: x1, (x1, y) or (x0, x1, y).

    Example:
        >>> is_tensors((torch.zeros(3, 2), torch.zeros(3))), is_tensors((torch.zeros(3, 2), None)), is_tensors("mnist")
        (True, True, False)
    """
    if isinstance(data, Tensor):
        return True
    if not isinstance(data, tuple) or not 1 <= len(data) <= 3:
        return False
    return all(isinstance(part, Tensor) for part in data[: max(1, len(data) - 1)])


def labels_of(data: Any) -> Any:
    """The conditions of all samples of a data set given as tensors; None for any other data set.

    Example:
        >>> labels_of((torch.zeros(2, 1), torch.tensor([3, 4])))
        tensor([3, 4])
    """
    return unpack(data)[2] if is_tensors(data) else None


def map_batch(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply a function to each tensor of a batch, those of its condition included; a missing part stays None.

    Example:
        >>> map_batch(lambda x: x + 1, (torch.zeros(1), torch.ones(1), None))
        (tensor([1.]), tensor([2.]), None)
    """
    return function(batch) if isinstance(batch, Tensor) else tuple(map_condition(function, part) for part in batch)


def parts_of(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch by their names.

    Example:
        >>> list(parts_of((torch.zeros(1, 2), {"text": torch.zeros(1, 8)})))
        ['x1', 'y.text']
    """
    x0, x1, y = unpack(batch)
    noise = {} if x0 is None else {"x0": x0}
    return {**noise, "x1": x1, **dict(leaves(y))}


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for the GPU: a copy from pageable memory would wait for all earlier work.

    Example:
        >>> to_device(torch.ones(2), torch.device("meta")).device
        device(type='meta')
    """
    if device.type == "cuda" and x.device.type == "cpu":
        with torch.cuda.device(device):  # a new thread starts on the first GPU, and would pin the memory for it
            return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
