"""The conditions of this package's networks: a label, a vector and a sequence, alone or together, each may be missing.

A network with one of them takes it as ``y`` itself; with several, ``y`` is a dict with the keys "label", "vector" and
"context", of which any may be absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.condition import Condition

KINDS = {"num_classes": "label", "condition_dim": "vector", "context_dim": "context"}
"""The key of the condition that each argument of a network stands for."""


class Conditioning(nn.Module):
    """The base class of networks that take conditions.

    Args:
        num_classes: for labels, shape (B,), from 0 to num_classes - 1, and -1 where there is none; the null is
            num_classes.
        condition_dim: for vectors, shape (B, condition_dim). A NaN is a missing number; the null is all NaN.
        context_dim: for sequences, shape (B, L, context_dim), of any length. A token with a NaN is not there, such as
            those that fill up a shorter sequence; the null is all NaN.
    """

    null: Any
    """What stands for "no condition"."""
    missing = -1
    """The label of a sample that has none; it is read as the null."""

    def __init__(self, num_classes: int | None, condition_dim: int | None, context_dim: int | None = None):
        super().__init__()
        given = {"num_classes": num_classes, "condition_dim": condition_dim, "context_dim": context_dim}
        for name, value in given.items():
            if value is not None:
                validate.positive_int(name, value)
        self.num_classes, self.condition_dim, self.context_dim = num_classes, condition_dim, context_dim
        self.kinds = tuple(KINDS[name] for name, value in given.items() if value is not None)
        nulls = {"label": num_classes, "vector": math.nan, "context": math.nan}
        self.null = None
        if self.kinds:
            self.null = nulls[self.kinds[0]] if len(self.kinds) == 1 else {kind: nulls[kind] for kind in self.kinds}

    def parts(self, y: Condition) -> dict[str, Tensor]:
        """The conditions that were given, by kind."""
        if y is None:
            return {}
        if not self.kinds:
            raise ValueError(
                "y: expected None, since this model was built without num_classes, condition_dim and context_dim; got "
                "a condition"
            )
        if len(self.kinds) == 1 and isinstance(y, Tensor):
            return {self.kinds[0]: y}
        if not isinstance(y, Mapping):
            wanted = "a tensor" if len(self.kinds) == 1 else f"a dict with {', '.join(self.kinds)}"
            raise TypeError(f"y: expected {wanted}; got {validate.described(y)}")
        for key in y:
            validate.one_of("key of y", key, self.kinds)
        return {key: part for key, part in y.items() if part is not None}


class VectorEmbedding(nn.Module):
    """Two linear layers on the numbers of a vector and on which of them are missing.

    Example:
        >>> VectorEmbedding(3, 8)(torch.tensor([[1.0, float("nan"), 2.0]]), torch.zeros(1, 5)).shape
        torch.Size([1, 8])
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.dim, self.layers = dim, nn.Sequential(nn.Linear(2 * dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, y: Tensor | None, x: Tensor) -> Tensor:
        """y: (B, dim), or None for vectors of which everything is missing; x: the state -> (B, width)."""
        if y is None:
            y = x.new_full((x.shape[0], self.dim), math.nan)
        validate.float_tensor("y", y)
        if y.shape != (x.shape[0], self.dim):
            raise ValueError(f"y: expected vectors of shape ({len(x)}, {self.dim}); got {tuple(y.shape)}")
        y = y.to(x.dtype)
        return self.layers(torch.cat([y.nan_to_num(nan=0.0), y.isnan().to(x.dtype)], dim=1))


class CrossAttention(nn.Module):
    """Attention from positions to the tokens of a context and to one learned token, which is always there.

    Example:
        >>> attend = CrossAttention(8, context_dim=4, heads=2)
        >>> attend(torch.zeros(1, 6, 8), torch.zeros(1, 3, 4)).shape, attend(torch.zeros(1, 6, 8), None).shape
        (torch.Size([1, 6, 8]), torch.Size([1, 6, 8]))
    """

    def __init__(self, width: int, context_dim: int, heads: int):
        super().__init__()
        self.heads, self.context_dim = heads, context_dim
        self.query = nn.Linear(width, width)
        self.keys_values = nn.Linear(context_dim, 2 * width)
        self.nothing = nn.Parameter(torch.randn(2 * width) / math.sqrt(width))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x: (B, N, width); context: (B, L, context_dim) or None -> (B, N, width)."""
        b, n, width = x.shape
        tokens = self.nothing.to(x.dtype).expand(b, 1, -1)
        mask = None
        if context is not None:
            validate.float_tensor("y", context)
            if context.dim() != 3 or context.shape[0] != b or context.shape[2] != self.context_dim:
                raise ValueError(
                    f"y: expected a context of shape ({b}, L, {self.context_dim}); got {tuple(context.shape)}"
                )
            context = context.to(x.dtype)
            there = ~context.isnan().any(2)
            tokens = torch.cat([tokens, self.keys_values(context.nan_to_num(nan=0.0))], dim=1)
            mask = F.pad(there, (1, 0), value=True)[:, None, None]
        k, v = tokens.reshape(b, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q = self.query(x).reshape(b, n, self.heads, width // self.heads).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).reshape(b, n, width))
