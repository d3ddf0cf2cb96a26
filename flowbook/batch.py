"""What a batch is: ``x1``, ``(x1, y)`` or ``(x0, x1, y)``, where y may be None."""

from __future__ import annotations

from torch import Tensor

Batch = Tensor | tuple[Tensor, ...] | tuple[Tensor, Tensor, None]


def unpack(batch: Batch) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """x1, (x1, y) or (x0, x1, y) -> (x0, x1, y), with None for what is missing.

    Example:
        >>> import torch
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
