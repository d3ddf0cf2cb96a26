"""What a reader's code is held against: data whose velocity, samples and densities are known in closed form."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.analytic import GaussianMixture
from flowbook.paths import Path


def mixture() -> GaussianMixture:
    """The data of the checks: two Gaussians of different weight and width in the plane, unlike their mirror images.

    Example:
        >>> mixture().sample(5).shape
        torch.Size([5, 2])
    """
    return GaussianMixture([[2.0, 0.5], [-0.5, 1.5]], [0.4, 0.7], [0.35, 0.65])


class Exact:
    """The velocity of data in closed form, for samples of any shape.

    Args:
        data: a mixture; or a tensor of data (N, ...), each with a little noise, so that their velocity is known.
        path: the path.
    """

    def __init__(self, data: GaussianMixture | Tensor, path: Path):
        self.path = path
        if isinstance(data, Tensor):
            validate.float_tensor("data", data, min_dim=2, finite=True)
            self.shape, self.empirical = tuple(data.shape[1:]), True
            self.mixture = GaussianMixture(data.flatten(1), 1e-3)
        else:
            validate.instance("data", data, GaussianMixture, "flowbook.laws.mixture(), or a tensor of data")
            self.shape, self.empirical, self.mixture = (data.dim,), False, data

    def along(self, path: Path) -> Exact:
        """The velocity of the same data along another path."""
        other = copy.copy(self)
        other.path = path
        return other

    def __call__(self, x: Tensor, t: Tensor | float, y: None = None) -> Tensor:
        return self.mixture.velocity(x.flatten(1), t, self.path).reshape(x.shape)

    def states(self, t: Tensor, generator: torch.Generator) -> Tensor:
        """A state of the path at each time (B,), shape (B, ...), in float32."""
        x1 = self.mixture.sample(len(t), generator).float()
        x0 = self.path.source_std * torch.randn(x1.shape, generator=generator)
        return self.path.interpolate(x0, x1, t.float()).reshape(len(t), *self.shape)


def in_pairs(mixture: GaussianMixture, path: Path, shape: tuple[int, ...]) -> Callable[..., Tensor]:
    """The velocity of samples of any shape with an even number of entries, each two of which are drawn from a mixture.

    Example:
        >>> from flowbook.paths import LinearPath
        >>> in_pairs(mixture(), LinearPath(), (1, 4, 4))(torch.zeros(2, 1, 4, 4), torch.tensor(0.5)).shape
        torch.Size([2, 1, 4, 4])
    """
    entries = math.prod(shape)
    if entries % 2:
        raise ValueError(f"shape: expected an even number of entries; got {shape}")

    def velocity(x: Tensor, t: Tensor | float, y: None = None) -> Tensor:
        t = torch.as_tensor(t)
        each = t if t.dim() == 0 else t.reshape(-1, 1).expand(len(x), entries // 2).reshape(-1)
        return mixture.velocity(x.reshape(-1, 2), each, path).reshape(x.shape)

    velocity.path = path  # type: ignore[attr-defined]
    return velocity
