"""The diffusion transformer (Peebles and Xie 2023): patches of an image as a sequence, time and label in every norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.models.embedding import LabelEmbedding, TimeNetwork, batch_of_times, check_dtype


def positions(side: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column of each patch, shape (side^2, dim).

    Example:
        >>> positions(2, 8).shape
        torch.Size([4, 8])
    """
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * frequencies
    place = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([place.repeat_interleave(side, 0), place.repeat(side, 1)], dim=1)


class Block(nn.Module):
    """Attention, then a two-layer perceptron; the embedding scales, shifts and gates both, with gates starting at 0."""

    def __init__(self, width: int, heads: int, expansion: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"), nn.Linear(expansion * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def attend(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class DiT(nn.Module):
    """A velocity (or any other prediction) on images, by a transformer.

    The paper's sizes are (width, depth, heads): S (384, 12, 6), B (768, 12, 12), L (1024, 24, 16), XL (1152, 28, 16).

    Args:
        channels: color channels C of the images.
        size: height and width of the images.
        patch: side of a patch, a divisor of ``size``.
        width: embedding dimension of a patch, a multiple of ``heads`` and of 4.
        depth: number of blocks.
        heads: number of attention heads.
        expansion: hidden width of each block's perceptron, in units of ``width``.
        num_classes: number of classes; None makes an unconditional model.

    Shapes: x (B, C, size, size) in [-1, 1], t () or (B,), y (B,) or None -> (B, C, size, size).

    Example:
        >>> DiT(channels=1, size=8, width=32, depth=2, heads=2)(torch.zeros(2, 1, 8, 8), 0.5).shape
        torch.Size([2, 1, 8, 8])
    """

    positions: Tensor

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        *,
        heads: int = 6,
        expansion: int = 4,
        num_classes: int | None = None,
    ):
        super().__init__()
        self.arguments = {
            "channels": channels, "size": size, "patch": patch, "width": width, "depth": depth, "heads": heads,
            "expansion": expansion, "num_classes": num_classes,
        }  # fmt: skip
        for name, value in self.arguments.items():
            if name != "num_classes":
                validate.positive_int(name, value)
        if size % patch:
            raise ValueError(f"size: expected a multiple of patch = {patch}; got {size}")
        if width % heads or width % 4:
            raise ValueError(f"width: expected a multiple of heads = {heads} and of 4; got {width}")
        self.patch = patch
        self.channels, self.size, self.num_classes, self.null_label = channels, size, num_classes, num_classes

        self.inputs = nn.Linear(channels * patch**2, width)
        self.register_buffer("positions", positions(size // patch, width), persistent=False)
        self.time = TimeNetwork(256, width)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, width)
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.outputs = nn.Linear(width, channels * patch**2)
        for layer in (self.modulation, self.outputs):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        if x.dim() != 4 or x.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(f"x: expected shape (B, {self.channels}, {self.size}, {self.size}); got {tuple(x.shape)}")
        check_dtype(x, self.inputs.weight)
        embedding = self.time(batch_of_times(t, x), x.dtype)
        if self.label is not None:
            embedding = embedding + self.label(y, x.shape[0])
        elif y is not None:
            raise ValueError("y: expected None, since this model was built without num_classes; got labels")
        embedding = F.silu(embedding)

        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        h = self.inputs(patches) + self.positions.to(patches.dtype)
        for block in self.blocks:
            h = block(h, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        h = self.outputs(self.norm(h) * (1 + scale) + shift)
        side = self.size // self.patch
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (side, side)), self.patch)
