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
from flowbook.models.embedding import LabelEmbedding, TimeNetwork, batch_of_times, check_dtype


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels, 32 groups at most."""
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-5)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialize a layer to zero: its block starts as the identity, and the network's output as 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice; the embedding scales and shifts the second norm."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual connection."""

    def __init__(self, channels: int, head_dim: int = 32):
        super().__init__()
        self.heads = max(1, channels // head_dim)
        if channels % self.heads:
            raise ValueError(f"attention: {channels} channels cannot be split into {self.heads} heads")
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # Channels last, whatever the layout of x: the fused kernels need the channels of a pixel to be contiguous.
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).contiguous()
        qkv = qkv.reshape(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, heads, pixels, channels of a head) each
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2))


class UNet(nn.Module):
    """A velocity (or any other prediction) on images.

    Args:
        channels: color channels C of the images.
        size: height and width of the images, for a check of the input and for ``attention``.
        width: channels of the first level.
        multipliers: the width of each level in units of ``width``; every level after the first halves the resolution.
        blocks: residual blocks per level.
        patch: side of the squares of pixels that the first level sees as one pixel with patch^2 C channels: 4 times
            less work for patch=2, and enough detail for strokes (Hoogeboom et al. 2023).
        attention: the resolutions (in pixels) at which attention is used.
        num_classes: number of classes; None makes an unconditional model.
        dropout: dropout probability in the residual blocks.

    Shapes: x (B, C, size, size) in [-1, 1], t () or (B,), y (B,) or None -> (B, C, size, size).

    Example:
        >>> UNet(channels=1, size=8, width=16, multipliers=(1, 2))(torch.zeros(2, 1, 8, 8), 0.5).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        *,
        patch: int = 1,
        attention: Sequence[int] = (),
        num_classes: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.arguments: dict[str, Any] = {
            "channels": channels, "size": size, "width": width, "multipliers": multipliers, "blocks": blocks,
            "patch": patch, "attention": attention, "num_classes": num_classes, "dropout": dropout,
        }  # fmt: skip
        resolutions = _resolutions(**self.arguments)
        self.arguments |= {"multipliers": list(multipliers), "attention": list(attention)}
        self.channels, self.size, self.patch = channels, size, patch
        self.num_classes, self.null_label = num_classes, num_classes

        embedding = 4 * width
        self.time = TimeNetwork(width - width % 2, embedding)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, embedding)
        self.inputs = nn.Conv2d(channels * patch**2, width, 3, padding=1)

        def block(inputs: int, outputs: int, resolution: int) -> nn.ModuleList:
            attend = Attention(outputs) if resolution in attention else nn.Identity()
            return nn.ModuleList([ResidualBlock(inputs, outputs, embedding, dropout), attend])

        levels = [
            (width * multiplier, resolution) for multiplier, resolution in zip(multipliers, resolutions, strict=True)
        ]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = width, [width]
        for level, (outputs, resolution) in enumerate(levels):
            if level > 0:
                self.down.append(nn.ModuleList([nn.Conv2d(current, current, 3, stride=2, padding=1), nn.Identity()]))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(block(current, outputs, resolution))
                current = outputs
                skips.append(current)
        self.middle = block(current, current, resolutions[-1])
        for level, (outputs, resolution) in reversed(list(enumerate(levels))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), outputs, resolution))
                current = outputs
            if level > 0:
                upsample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(current, current, 3, padding=1))
                self.up[-1].append(upsample)  # type: ignore[operator]
        last = zero(nn.Conv2d(current, channels * patch**2, 3, padding=1))
        self.outputs = nn.Sequential(group_norm(current), nn.SiLU(), last)

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

        h = self.inputs(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        layer: nn.Module
        attend: nn.Module
        upsample: list[nn.Module]
        for layer, attend in self.down:  # type: ignore[misc]
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
            h = attend(h)
            skips.append(h)
        layer, attend = self.middle
        h = attend(layer(h, embedding))
        for layer, attend, *upsample in self.up:  # type: ignore[misc]
            h = attend(layer(torch.cat([h, skips.pop()], dim=1), embedding))
            for module in upsample:
                h = module(h)
        return F.pixel_shuffle(self.outputs(h), self.patch)


def _resolutions(
    *, size: int, patch: int, multipliers: Sequence[int], attention: Sequence[int], dropout: float, **counts: int | None
) -> list[int]:
    """The resolution of each level, after validation of the architecture."""
    for name, value in (("size", size), ("patch", patch), *counts.items()):
        if name != "num_classes":
            validate.positive_int(name, value)
    for name, values in (("multipliers", multipliers), ("attention", attention)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TypeError(f"{name}: expected a sequence of integers; got {values!r}")
        for value in values:
            validate.positive_int(name, value)
    if not multipliers:
        raise ValueError("multipliers: expected one for each level, at least one; got none")
    validate.number("dropout", dropout, 0, 1)
    reduction = patch * 2 ** (len(multipliers) - 1)
    if size % reduction:
        raise ValueError(
            f"size: expected a multiple of {reduction}, for {len(multipliers)} levels and patch={patch}; got {size}"
        )
    resolutions = [size // patch >> level for level in range(len(multipliers))]
    if unknown := set(attention) - set(resolutions):
        raise ValueError(f"attention: expected resolutions of the levels, {resolutions}; got {sorted(unknown)}")
    return resolutions
