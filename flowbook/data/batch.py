"""What a batch is: ``x1``, ``(x1, y)`` or ``(x0, x1, y)``, where y may be None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Batch = Tensor | tuple[Tensor, ...] | tuple[Tensor, None] | tuple[Tensor, Tensor, None]


def unpack(batch: Batch) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """x1, (x1, y) or (x0, x1, y) -> (x0, x1, y), with None for what is missing.

    Example:
        >>> x0, x1, y = unpack((torch.zeros(1, 2), torch.tensor([3])))
        >>> x0 is None, y
        (True, tensor([3]))
    """
    if isinstance(batch, Tensor):
        return None, batch, None
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
    if not isinstance(data, tuple) or not data or not isinstance(data[0], Tensor):
        return False
    return len(data) == 1 or isinstance(data[1], Tensor) or (len(data) == 2 and data[1] is None)


def labels_of(data: Any) -> Tensor | None:
    """All labels of a data set given as tensors; None for any other data set.

    Example:
        >>> labels_of((torch.zeros(2, 1), torch.tensor([3, 4])))
        tensor([3, 4])
    """
    return unpack(data)[2] if is_tensors(data) else None


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Apply a function to each tensor of a batch; a missing part stays None.

    Example:
        >>> map_batch(lambda x: x + 1, (torch.zeros(1), torch.ones(1), None))
        (tensor([1.]), tensor([2.]), None)
    """
    if isinstance(batch, Tensor):
        return function(batch)
    return tuple(part if part is None else function(part) for part in batch)  # type: ignore[misc]


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
