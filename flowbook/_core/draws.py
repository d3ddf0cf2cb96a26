"""Random numbers from a caller's generator, which may live on another device than the data."""

from __future__ import annotations

import torch
from torch import Tensor


def drawing_device(like: Tensor, generator: torch.Generator | None) -> torch.device:
    """Where to draw: on the generator's device, so that its numbers are the same wherever the data are."""
    return like.device if generator is None else generator.device


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of x.

    Example:
        >>> normal_like(torch.empty(2, 3), None).shape
        torch.Size([2, 3])
    """
    device = drawing_device(x, generator)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
