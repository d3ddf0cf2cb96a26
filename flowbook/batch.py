"""What a batch is: ``x1``, ``(x1, y)`` or ``(x0, x1, y)``, where y may be None."""

from __future__ import annotations

import torch
from torch import Tensor

Batch = Tensor | tuple[Tensor, ...] | tuple[Tensor, Tensor, None]


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


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Without waiting for the GPU: a copy from ordinary memory would wait until all earlier work is done.

    Example:
        >>> to_device(torch.ones(2), torch.device("meta")).device
        device(type='meta')
    """
    if device.type == "cuda" and x.device.type == "cpu":
        with torch.cuda.device(device):  # a thread begins with the first GPU, and would pin the memory for that one
            return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
