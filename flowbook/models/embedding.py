"""How a network is told the time and the label."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowbook import _validate


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, of frequencies from ``scale`` towards ``scale / 10000`` (Vaswani et al. 2017).

    The transformer's table was made for positions 0 to 1000. Fed with a raw t in [0, 1], all but its first few
    components are constant; ``scale`` stretches the time before the sines see it.

    Args:
        dim: the number of components, even.
        scale: the highest frequency, in radians per unit of time.

    Example:
        >>> TimeEmbedding(4, scale=1.0)(torch.tensor([0.0])).tolist()
        [[0.0, 0.0, 1.0, 1.0]]
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 1000.0):
        super().__init__()
        _validate.positive_int("dim", dim, at_least=2)
        if dim % 2:
            raise ValueError(f"dim: expected an even number; got {dim}")
        exponents = torch.arange(dim // 2, dtype=torch.float64) / (dim // 2)
        frequencies = scale * torch.exp(-math.log(10000.0) * exponents)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """t: (B,) in [0, 1] -> (B, dim)."""
        angles = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class LabelEmbedding(nn.Embedding):
    """A learned vector for each label and one more, the last, for "no label" (classifier-free guidance).

    Example:
        >>> LabelEmbedding(10, 4)(None, batch=2).shape
        torch.Size([2, 4])
    """

    def __init__(self, num_classes: int, dim: int):
        _validate.positive_int("num_classes", num_classes)
        super().__init__(num_classes + 1, dim)
        self.null_label = num_classes

    def forward(self, y: Tensor | None, batch: int) -> Tensor:  # type: ignore[override]
        """y: (B,) labels, or None for the null label everywhere -> (B, dim)."""
        if y is None:
            return self.weight[self.null_label].expand(batch, -1)
        if y.dtype in (torch.uint8, torch.int8, torch.int16):  # MNIST's are uint8, which embeddings do not take
            y = y.long()
        _validate.labels("y", y, batch, classes=self.null_label + 1)
        return super().forward(y)


def check_dtype(x: Tensor, weight: Tensor) -> None:
    """x is floating point, of the weights' own dtype unless autocast takes care of it."""
    _validate.float_tensor("x", x)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: expected the dtype of the model's weights, {weight.dtype}; got {x.dtype}")


def batch_of_times(t: Tensor | float, x: Tensor) -> Tensor:
    """A scalar time or one per sample -> shape (B,), with the dtype and device of x."""
    # With gradients on this is a training step, of which looking at the values would take 2 to 3%.
    _validate.time("t", t, len(x), values=not torch.is_grad_enabled())
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return t.expand(x.shape[0])
