"""Embeddings of the time and of the label."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook._core.draws import default_device
from flowbook._core.times import working_dtype


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, with frequencies from ``scale`` toward ``scale / 10000`` (Vaswani et al. 2017).

    The transformer's table was made for positions 0 to 1000. For a raw t in [0, 1] all but its first few components
    would be nearly constant; ``scale`` stretches the time first. Angles are computed in float32 at least, whatever the
    dtype of the network: half precision rounds times near 1 to multiples of 1 / 2,048.

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
        validate.positive_int("dim", dim, at_least=2)
        if dim % 2:
            raise ValueError(f"dim: expected an even number; got {dim}")
        self._dim, self._scale = dim, scale
        self.register_buffer("frequencies", self._table().to(default_device()), persistent=False)

    def _table(self) -> Tensor:
        exponents = torch.arange(self._dim // 2, dtype=torch.float64, device="cpu") / (self._dim // 2)
        return (self._scale * torch.exp(-math.log(10000.0) * exponents)).float()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frequencies.dtype in (torch.float16, torch.bfloat16):  # which would round them
            self.frequencies = self._table().to(self.frequencies.device)
        return self

    def forward(self, t: Tensor) -> Tensor:
        """t: (B,) in [0, 1] -> (B, dim), in the dtype of t."""
        angles = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeNetwork(nn.Sequential):
    """The sines and cosines of the time, then two linear layers.

    Args:
        dim: components of the embedding, even.
        width: width of the layers.

    Example:
        >>> TimeNetwork(4, 8)(torch.tensor([0.0, 0.5]), torch.float32).shape
        torch.Size([2, 8])
    """

    def __init__(self, dim: int, width: int):
        super().__init__(TimeEmbedding(dim), nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        """t: (B,) in [0, 1] -> (B, width), in ``dtype``, the dtype of the network."""
        embedding, *layers = self
        h = embedding(t).to(dtype)
        for layer in layers:
            h = layer(h)
        return h


class LabelEmbedding(nn.Embedding):
    """A learned vector for each label, and a last one for the null label (classifier-free guidance).

    Example:
        >>> LabelEmbedding(10, 4)(None, batch=2).shape
        torch.Size([2, 4])
    """

    def __init__(self, num_classes: int, dim: int):
        validate.positive_int("num_classes", num_classes)
        super().__init__(num_classes + 1, dim)
        self.null = num_classes

    def forward(self, y: Tensor | None, batch: int) -> Tensor:  # type: ignore[override]
        """y: (B,) labels, -1 where there is none; or None, where there are none at all -> (B, dim)."""
        if y is None:
            return self.weight[self.null].expand(batch, -1)
        if y.dtype in (
            torch.uint8,
            torch.int8,
            torch.int16,
            torch.uint16,
        ):  # MNIST's are uint8, which embeddings reject
            y = y.long()
        validate.labels("y", y, batch, classes=self.null + 1, missing=-1)
        return super().forward(torch.where(y < 0, self.null, y))


def check_dtype(x: Tensor, weight: Tensor) -> None:
    """``x`` is floating point and has the dtype of the parameters, unless autocast converts it."""
    validate.float_tensor("x", x)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: expected the dtype of the model's parameters, {weight.dtype}; got {x.dtype}")


def batch_of_times(t: Tensor | float, x: Tensor) -> Tensor:
    """A scalar time or one per sample -> shape (B,), on the device of x and in float32 at least."""
    # With gradients on this is a training step, of which reading the values would take 2 to 3%.
    validate.time("t", t, x.shape[0], values=not torch.is_grad_enabled())
    t = torch.as_tensor(t, dtype=working_dtype(x.dtype), device=x.device)
    return t.expand(x.shape[0])
