"""Random numbers from a caller's generator, which may live on another device than the data."""

from __future__ import annotations

import torch
from torch import Tensor


def drawing_device(like: Tensor, generator: torch.Generator | None) -> torch.device:
    """Where to draw: on the generator's device, so that its numbers are the same wherever the data are."""
    return like.device if generator is None else generator.device


def origin(generator: torch.Generator | None) -> torch.device:
    """Where to make what no tensor says: on the generator's device, or else on torch's default device.

    Example:
        >>> origin(torch.Generator())
        device(type='cpu')
    """
    return default_device() if generator is None else generator.device


def default_device() -> torch.device:
    """Where torch makes a tensor; ``torch.get_default_device`` of torch 2.6 fails once the default was taken back.

    Example:
        >>> default_device()
        device(type='cpu')
    """
    return torch.empty(0).device


def indices(below: int, n: int, generator: torch.Generator | None) -> Tensor:
    """n indices from 0 to ``below - 1``, equally likely, on the CPU.

    Example:
        >>> indices(3, 100, None).unique()
        tensor([0, 1, 2])
    """
    device = "cpu" if generator is None else generator.device
    return torch.randint(below, (n,), generator=generator, device=device).cpu()


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of x.

    Example:
        >>> normal_like(torch.empty(2, 3), None).shape
        torch.Size([2, 3])
    """
    device = drawing_device(x, generator)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
