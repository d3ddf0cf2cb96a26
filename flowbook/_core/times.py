"""Times as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def tensor_of(t: Tensor | float) -> Tensor:
    """A tensor as it is; a number in float64."""
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


def per_sample(t: Tensor | float, x: Tensor) -> Tensor:
    """t with the dtype and device of x and the shape (), or (B, 1, ..., 1): it must not meet the last axis of x."""
    # A time that rounding has put outside [0, 1] would make sigma or alpha a tiny negative number to divide by.
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device).clamp(0, 1)
    return t if t.dim() == 0 else t.reshape(-1, *[1] * (x.dim() - 1))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what states and times are accumulated: float32 at least, where a step of a half would be lost in rounding."""
    return torch.promote_types(dtype, torch.float32)
