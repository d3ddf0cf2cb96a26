"""Times as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def tensor_of(t: Tensor | float) -> Tensor:
    """A tensor unchanged; a number as a float64 tensor."""
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")


def per_sample(t: Tensor | float, x: Tensor) -> Tensor:
    """t with the dtype and device of x, shape () or (B, 1, ..., 1): it broadcasts over the batch, not the last axis."""
    # A time that rounding has put outside [0, 1] would make sigma or alpha a tiny negative number to divide by.
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device).clamp(0, 1)
    return t if t.dim() == 0 else t.reshape(-1, *[1] * (x.dim() - 1))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that accumulates states and times: float32 at least, as half precision would round small steps away."""
    return torch.promote_types(dtype, torch.float32)


WITHOUT_FLOAT64 = {"mps"}
"""The types of devices that have no float64, which is Apple's GPUs."""


def in_float64(x: Tensor) -> Tensor:
    """x in float64, on the CPU where its own device has none."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without it."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
