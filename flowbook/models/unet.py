"""The U-Net of diffusion models, small enough to read and large enough to use.

Residual blocks with group norm, modulated by time and label through a scale and a shift (Dhariwal and Nichol 2021),
self-attention at chosen resolutions, skip connections from the downsampling to the upsampling path (Ronneberger et al.
2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.condition import Condition
from flowbook.models.conditioning import Conditioning, CrossAttention, VectorEmbedding
from flowbook.models.embedding import LabelEmbedding, TimeNetwork, batch_of_times, check_dtype
from flowbook.models.grid import check_grid, patches, sides_of, unpatched

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""By the number of sides of a sample."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels, 32 groups at most."""
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-5)


def zero(layer: Any) -> Any:
    """Initialize a layer to zero: its block starts as the identity, and the network's output as 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice; the embedding scales and shifts the second norm."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, dims: int = 2):
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.norm1 = group_norm(inputs)
        self.conv1 = convolution(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(convolution(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        modulation = self.modulation(embedding)
        scale, shift = modulation.reshape(*modulation.shape, *[1] * (x.dim() - 2)).chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Self-attention over the pixels, then attention to a context if there is one, each with a residual connection."""

    def __init__(self, channels: int, head_dim: int = 32, dims: int = 2, context_dim: int | None = None):
        super().__init__()
        self.heads = max(1, channels // head_dim)
        if channels % self.heads:
            raise ValueError(f"attention: {channels} channels cannot be split into {self.heads} heads")
        self.norm = group_norm(channels)
        self.qkv = CONVOLUTIONS[dims](channels, 3 * channels, 1)
        self.out = zero(CONVOLUTIONS[dims](channels, channels, 1))
        self.cross = None if context_dim is None else CrossAttention(channels, context_dim, self.heads)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        b, c, *sides = x.shape
        # Channels last, whatever the layout of x: the fused kernels need the channels of a pixel to be contiguous.
        qkv = self.qkv(self.norm(x)).movedim(1, -1).contiguous()
        qkv = qkv.reshape(b, -1, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, heads, pixels, channels of a head) each
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(b, *sides, c).movedim(-1, 1))
        if self.cross is None:
            return x
        pixels = x.flatten(2).transpose(1, 2)
        return x + self.cross(pixels, context).transpose(1, 2).reshape(x.shape)


class UNet(Conditioning):
    """A velocity (or any other prediction) on images, sequences or volumes.

    Args:
        channels: channels C of a sample, such as the colors of an image.
        size: the side of a square image; or its sides, (height, width), or those of a sequence (length,) or a volume
            (depth, height, width). Samples may have other sides later, multiples of the same number.
        width: channels of the first level.
        multipliers: the width of each level in units of ``width``; every level after the first halves the resolution.
        blocks: residual blocks per level.
        patch: side of the squares of pixels that the first level sees as one pixel with patch^2 C channels: 4 times
            less work for patch=2, and enough detail for strokes (Hoogeboom et al. 2023).
        attention: the resolutions at which attention is used, in pixels along the first side of ``size``.
        num_classes: number of classes, for labels y of shape (B,).
        dropout: dropout probability in the residual blocks.
        condition_dim: length of vectors y, shape (B, condition_dim), where a NaN is a missing number.
        context_dim: width of sequences y, shape (B, L, context_dim), such as the embeddings of a text's tokens, to
            attend to wherever there is attention; a token with a NaN is not there. With several kinds of conditions y
            is a dict with the keys "label", "vector" and "context".

    Shapes: x (B, C, ...) in [-1, 1], t () or (B,), y -> (B, C, ...). None is the null: the network's own value
    for "no condition".

    Example:
        >>> UNet(channels=1, size=8, width=16, multipliers=(1, 2))(torch.zeros(2, 1, 8, 8), 0.5).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        size: int | Sequence[int] = 32,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        *,
        patch: int = 1,
        attention: Sequence[int] = (),
        num_classes: int | None = None,
        dropout: float = 0.0,
        condition_dim: int | None = None,
        context_dim: int | None = None,
    ):
        super().__init__(num_classes, condition_dim, context_dim)
        self.arguments: dict[str, Any] = {
            "channels": channels, "size": size, "width": width, "multipliers": multipliers, "blocks": blocks,
            "patch": patch, "attention": attention, "num_classes": num_classes, "dropout": dropout,
            "condition_dim": condition_dim, "context_dim": context_dim,
        }  # fmt: skip
        sides = sides_of(size)
        resolutions = _resolutions(self.arguments)
        self.arguments |= {"multipliers": list(multipliers), "attention": list(attention)}
        if not isinstance(size, int):
            self.arguments["size"] = list(sides)
        self.channels, self.size, self.sides, self.patch = channels, size, sides, patch
        self.reduction = patch * 2 ** (len(multipliers) - 1)
        dims = len(sides)
        convolution = CONVOLUTIONS[dims]

        embedding = 4 * width
        self.time = TimeNetwork(width - width % 2, embedding)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, embedding)
        self.vector = None if condition_dim is None else VectorEmbedding(condition_dim, embedding)
        self.inputs = convolution(channels * patch**dims, width, 3, padding=1)

        attended = [resolution in attention for resolution in resolutions]
        levels = [(width * multiplier, here) for multiplier, here in zip(multipliers, attended, strict=True)]
        last = self._add_levels(levels, blocks, dropout)
        outputs = zero(convolution(last, channels * patch**dims, 3, padding=1))
        self.outputs = nn.Sequential(group_norm(last), nn.SiLU(), outputs)

    def _add_levels(self, levels: list[tuple[int, bool]], blocks: int, dropout: float) -> int:
        """The blocks from the first level down to the last and up again; returns the channels at the end."""
        dims, current = len(self.sides), self.arguments["width"]
        convolution = CONVOLUTIONS[dims]

        def block(inputs: int, outputs: int, attended: bool) -> nn.ModuleList:
            residual = ResidualBlock(inputs, outputs, 4 * self.arguments["width"], dropout, dims)
            attend = Attention(outputs, dims=dims, context_dim=self.context_dim) if attended else nn.Identity()
            return nn.ModuleList([residual, attend])

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [current]
        for level, (outputs, attended) in enumerate(levels):
            if level > 0:
                self.down.append(nn.ModuleList([convolution(current, current, 3, stride=2, padding=1), nn.Identity()]))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(block(current, outputs, attended))
                current = outputs
                skips.append(current)
        self.middle = block(current, current, levels[-1][1])
        for level, (outputs, attended) in reversed(list(enumerate(levels))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), outputs, attended))
                current = outputs
            if level > 0:
                upsample = nn.Sequential(nn.Upsample(scale_factor=2), convolution(current, current, 3, padding=1))
                self.up[-1].append(upsample)  # type: ignore[operator]
        return current

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample that it was built for."""
        return (self.channels, *self.sides)

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        check_grid(x, self.channels, self.sides, self.reduction)
        check_dtype(x, self.inputs.weight)
        embedding, given = self.time(batch_of_times(t, x), x.dtype), self.parts(y)
        if self.label is not None:
            embedding = embedding + self.label(given.get("label"), x.shape[0])
        if self.vector is not None:
            embedding = embedding + self.vector(given.get("vector"), x)
        embedding, context = F.silu(embedding), given.get("context")

        h = self.inputs(patches(x, self.patch))
        skips = [h]
        layer: nn.Module
        attend: nn.Module
        upsample: list[nn.Module]
        for layer, attend in self.down:  # type: ignore[misc]
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
            h = attend(h, context) if isinstance(attend, Attention) else h
            skips.append(h)
        layer, attend = self.middle
        h = layer(h, embedding)
        h = attend(h, context) if isinstance(attend, Attention) else h
        for layer, attend, *upsample in self.up:  # type: ignore[misc]
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            h = attend(h, context) if isinstance(attend, Attention) else h
            for module in upsample:
                h = module(h)
        return unpatched(self.outputs(h), self.patch)


def _resolutions(arguments: dict[str, Any]) -> list[int]:
    """The resolution of each level along the first side, after validation of the architecture."""
    size, patch, context_dim = (arguments[name] for name in ("size", "patch", "context_dim"))
    multipliers, attention = arguments["multipliers"], arguments["attention"]
    for name in ("channels", "width", "blocks", "patch"):
        validate.positive_int(name, arguments[name])
    for name, values in (("multipliers", multipliers), ("attention", attention)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TypeError(f"{name}: expected a sequence of integers; got {values!r}")
        for value in values:
            validate.positive_int(name, value)
    if not multipliers:
        raise ValueError("multipliers: expected one for each level, at least one; got none")
    validate.number("dropout", arguments["dropout"], 0, 1)
    reduction = patch * 2 ** (len(multipliers) - 1)
    sides = sides_of(size)
    if any(side % reduction for side in sides):
        raise ValueError(
            f"size: expected a multiple of {reduction}, for {len(multipliers)} levels and patch={patch}; got {size}"
        )
    resolutions = [sides[0] // patch >> level for level in range(len(multipliers))]
    if unknown := set(attention) - set(resolutions):
        raise ValueError(f"attention: expected resolutions of the levels, {resolutions}; got {sorted(unknown)}")
    if context_dim is not None and not attention:
        raise ValueError(f"attention: expected some of {resolutions} with context_dim={context_dim}; got none")
    return resolutions
