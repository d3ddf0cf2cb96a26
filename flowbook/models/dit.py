"""The diffusion transformer (Peebles and Xie 2023): patches as a sequence, time and condition in every norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.condition import Condition
from flowbook.models.conditioning import Conditioning, CrossAttention, VectorEmbedding
from flowbook.models.embedding import LabelEmbedding, TimeNetwork, batch_of_times, check_dtype
from flowbook.models.grid import check_grid, patches, sides_of, unpatched


def positions(sides: Sequence[int], dim: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the place of each patch along each side, shape (number of patches, dim).

    Example:
        >>> positions((2, 3), 8).shape
        torch.Size([6, 8])
    """
    count = dim // (2 * len(sides))  # frequencies for each side; what is left of dim stays 0
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(count, device=device) / count)
    axes = torch.meshgrid(*(torch.arange(side, device=device) for side in sides), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in axes]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(waves, (0, dim - waves.shape[1]))


class Block(nn.Module):
    """Attention, then a two-layer perceptron; the embedding scales, shifts and gates both, with gates starting at 0.

    In between comes attention to a context, if there is one (Chen et al. 2024, PixArt).
    """

    def __init__(self, width: int, heads: int, expansion: int, context_dim: int | None = None):
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
        self.cross = None if context_dim is None else CrossAttention(width, context_dim, heads)

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1)
        if self.cross is not None:
            x = x + self.cross(x, context)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def attend(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class DiT(Conditioning):
    """A velocity (or any other prediction) on images, sequences or volumes, by a transformer.

    The paper's sizes are (width, depth, heads): S (384, 12, 6), B (768, 12, 12), L (1024, 24, 16), XL (1152, 28, 16).

    Args:
        channels: channels C of a sample, such as the colors of an image.
        size: the side of a square image; or its sides, (height, width), or those of a sequence (length,) or a volume
            (depth, height, width). Samples may have other sides later, multiples of ``patch``.
        patch: side of a patch, a divisor of ``size``.
        width: embedding dimension of a patch, a multiple of ``heads`` and of 4.
        depth: number of blocks.
        heads: number of attention heads.
        expansion: hidden width of each block's perceptron, in units of ``width``.
        num_classes: number of classes, for labels y of shape (B,).
        condition_dim: length of vectors y, shape (B, condition_dim), where a NaN is a missing number.
        context_dim: width of sequences y, shape (B, L, context_dim), such as the embeddings of a text's tokens, to
            attend to; a token with a NaN is not there. With several kinds of conditions y is a dict with the keys
            "label", "vector" and "context".

    Shapes: x (B, C, ...) in [-1, 1], t () or (B,), y -> (B, C, ...). None is the null: the network's own value
    for "no condition".

    Example:
        >>> DiT(channels=1, size=8, width=32, depth=2, heads=2)(torch.zeros(2, 1, 8, 8), 0.5).shape
        torch.Size([2, 1, 8, 8])
    """

    positions: Tensor

    def __init__(
        self,
        channels: int = 3,
        size: int | Sequence[int] = 32,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        *,
        heads: int = 6,
        expansion: int = 4,
        num_classes: int | None = None,
        condition_dim: int | None = None,
        context_dim: int | None = None,
    ):
        super().__init__(num_classes, condition_dim, context_dim)
        counts = {
            "channels": channels, "patch": patch, "width": width, "depth": depth, "heads": heads,
            "expansion": expansion,
        }  # fmt: skip
        for name, value in counts.items():
            validate.positive_int(name, value)
        sides = sides_of(size)
        self.arguments = {
            **counts, "size": size if isinstance(size, int) else list(sides), "num_classes": num_classes,
            "condition_dim": condition_dim, "context_dim": context_dim,
        }  # fmt: skip
        if any(side % patch for side in sides):
            raise ValueError(f"size: expected a multiple of patch = {patch}; got {size}")
        if width % heads or width % 4:
            raise ValueError(f"width: expected a multiple of heads = {heads} and of 4; got {width}")
        self.channels, self.size, self.sides, self.patch = channels, size, sides, patch

        self.inputs = nn.Linear(channels * patch ** len(sides), width)
        self.register_buffer("positions", positions([side // patch for side in sides], width), persistent=False)
        self.time = TimeNetwork(256, width)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, width)
        self.vector = None if condition_dim is None else VectorEmbedding(condition_dim, width)
        self.blocks = nn.ModuleList(Block(width, heads, expansion, context_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.outputs = nn.Linear(width, channels * patch ** len(sides))
        for layer in (self.modulation, self.outputs):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample that it was built for."""
        return (self.channels, *self.sides)

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        check_grid(x, self.channels, self.sides, self.patch)
        check_dtype(x, self.inputs.weight)
        embedding, given = self.time(batch_of_times(t, x), x.dtype), self.parts(y)
        if self.label is not None:
            embedding = embedding + self.label(given.get("label"), x.shape[0])
        if self.vector is not None:
            embedding = embedding + self.vector(given.get("vector"), x)
        embedding, context = F.silu(embedding), given.get("context")

        squares = patches(x, self.patch)
        sequence = squares.flatten(2).transpose(1, 2)
        h = self.inputs(sequence) + self._places(squares).to(sequence.dtype)
        for block in self.blocks:
            h = block(h, embedding, context)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        h = self.outputs(self.norm(h) * (1 + scale) + shift)
        return unpatched(h.transpose(1, 2).unflatten(2, squares.shape[2:]), self.patch)

    def _places(self, squares: Tensor) -> Tensor:
        """The positions of the patches, also for samples of other sides than the network was built for."""
        sides = squares.shape[2:]
        if sides == tuple(side // self.patch for side in self.sides):
            return self.positions
        return positions(sides, self.positions.shape[1], squares.device)
