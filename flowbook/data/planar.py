"""Distributions in the plane, with their density where it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowbook._core import validate
from flowbook._core.digest import digest
from flowbook._core.draws import indices, origin
from flowbook.data.conversion import as_array


@dataclass(frozen=True)
class Planar:
    """A distribution in the plane, defined by how to sample it.

    Args:
        name: for titles and messages.
        draw: ``draw(n, generator) -> (n, 2)``.
        density: ``density(x) -> (n,)``, the log-density in nats, where it is known.
    """

    name: str
    draw: Callable[[int, torch.Generator | None], Tensor]
    density: Callable[[Tensor], Tensor] | None = None
    dim: int = 2
    settings: str = ""
    """The arguments it was made with, by which a run knows its data."""

    def identity(self) -> str:
        """The name with the arguments."""
        return f"{self.name}({self.settings})"

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, shape (n, 2)."""
        validate.positive_int("n", n)
        validate.generator(generator)
        return self.draw(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density in nats, shape (n,); raises ValueError where it has no closed form."""
        if self.density is None:
            raise ValueError(f"log_prob: the density of {self.name} has no closed form")
        validate.float_tensor("x", x)
        if x.dim() != 2 or x.shape[1] != 2:
            raise ValueError(f"x: expected shape (n, 2); got {tuple(x.shape)}")
        return self.density(x)


class Source(Protocol):
    """Anything that can be sampled, such as planar data or a GaussianMixture."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Unpaired:
    """Two independent distributions, for a flow from one to the other: the source need not be noise.

    Either may be a set of samples (N, ...), of which rows are drawn with replacement; their numbers may differ.

    Args:
        source: where the flow starts, at t = 0.
        target: where it ends, at t = 1. Both have ``.sample(n, generator=None) -> (n, D)``.

    Example:
        >>> from flowbook.analytic import eight_gaussians
        >>> x0, x1, y = Unpaired(eight_gaussians(), moons()).sample(5)
        >>> x0.shape, x1.shape, y
        (torch.Size([5, 2]), torch.Size([5, 2]), None)
    """

    source: Source | Tensor | Any
    target: Source | Tensor | Any

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            side = as_array(getattr(self, name), name)
            if isinstance(side, Tensor):
                side = Rows(side)
            elif isinstance(side, Dataset) and hasattr(side, "__len__"):
                side = Items(side)
            object.__setattr__(self, name, side)
            if isinstance(side, type) or not callable(getattr(side, "sample", None)):
                raise TypeError(
                    f"{name}: expected an object with sample(n, generator=None), such as moons(); got "
                    f"{validate.described(side)}"
                )

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, None]:
        """A batch (x0, x1, y) of n independent pairs, x0 and x1 of shape (n, D), without labels."""
        source: Any = self.source
        target: Any = self.target
        return source.sample(n, generator=generator), target.sample(n, generator=generator), None

    def identity(self) -> str:
        """The identities of both sides."""
        return " to ".join(identity_of(side) for side in (self.source, self.target))


class Rows:
    """Samples (N, ...) as a distribution: rows drawn uniformly, with replacement.

    Example:
        >>> Rows(torch.ones(3, 2)).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(self, samples: Tensor):
        validate.float_tensor("samples", samples, min_dim=2, finite=True)
        if len(samples) == 0:
            raise ValueError("samples: expected at least one; got none")
        self.samples = samples

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n rows, shape (n, ...)."""
        validate.positive_int("n", n)
        return self.samples[indices(len(self.samples), n, generator)]

    def identity(self) -> str:
        """The digest of the samples."""
        return f"{tuple(self.samples.shape)} {digest(self.samples)[:16]}"


class Items:
    """The items of a Dataset as a distribution: drawn uniformly, with replacement, and without their labels.

    Example:
        >>> Items(torch.utils.data.TensorDataset(torch.ones(3, 2), torch.zeros(3))).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(self, data: Any):
        self.data = data

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n items, shape (n, ...)."""
        validate.positive_int("n", n)
        drawn = [self.data[int(k)] for k in indices(len(self.data), n, generator)]
        return torch.stack([item if isinstance(item, Tensor) else item[0] for item in drawn])

    def identity(self) -> str:
        """That of the Dataset."""
        return f"{len(self.data)} of {identity_of(self.data)}"


def identity_of(data: Any) -> str:
    """What determines a data set, as far as it says: its ``identity()``, or else its kind and name.

    Example:
        >>> identity_of(moons(noise=0.1))
        'moons(noise=0.1, scale=3.0, shift=-1.0)'
    """
    tell = getattr(data, "identity", None)
    if callable(tell):
        return str(tell())
    name = getattr(data, "name", None)
    return type(data).__name__ + (f" {name}" if isinstance(name, str) else "")


def moons(noise: float = 0.2, scale: float = 3.0, shift: float = -1.0) -> Planar:
    """Two interleaved half circles with Gaussian noise, then ``scale * x + shift`` (defaults from torchcfm's tutorial).

    Example:
        >>> moons().sample(3).shape
        torch.Size([3, 2])
    """

    validate.number("noise", noise, 0, math.inf, high_open=True)
    _finite(scale=scale, shift=shift)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        angle = math.pi * torch.rand(n, generator=generator, device=origin(generator))
        upper = torch.rand(n, generator=generator, device=origin(generator)) < 0.5
        x = torch.where(upper, angle.cos(), 1.0 - angle.cos())
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
        points = torch.stack([x, y], dim=1) + noise * torch.randn(n, 2, generator=generator, device=origin(generator))
        return scale * points + shift

    return Planar("moons", draw, settings=f"noise={noise}, scale={scale}, shift={shift}")


def checkerboard(half_width: float = 4.0, squares: int = 4) -> Planar:
    """The dark squares of a board of ``squares`` by ``squares`` on [-half_width, half_width]^2, uniform.

    Example:
        >>> board = checkerboard()
        >>> board.log_prob(torch.tensor([[1.0, 1.0], [3.0, 1.0]]))
        tensor([-3.4657,    -inf])
    """
    validate.number("half_width", half_width, 0, math.inf, low_open=True, high_open=True)
    validate.positive_int("squares", squares, at_least=2)
    if squares % 2:
        raise ValueError(f"squares: expected an even number; got {squares}")
    side = 2.0 * half_width / squares

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        row = torch.randint(squares, (n,), generator=generator, device=origin(generator))
        column = 2 * torch.randint(squares // 2, (n,), generator=generator, device=origin(generator)) + row % 2
        corner = torch.stack([column, row], dim=1)
        return side * (corner + torch.rand(n, 2, generator=generator, device=origin(generator))) - half_width

    def density(x: Tensor) -> Tensor:
        cell = torch.floor((x + half_width) / side)
        inside = (x.abs() <= half_width).all(1) & ((cell[:, 0] + cell[:, 1]) % 2 == 0)
        log_area = math.log(2.0 * half_width**2)
        return torch.where(inside, -log_area, -torch.inf).to(x.dtype)

    return Planar("checkerboard", draw, density, settings=f"half_width={half_width}, squares={squares}")


def spirals(noise: float = 0.1, turns: float = 1.5, scale: float = 1.0) -> Planar:
    """Two spiral arms, half a turn apart, with Gaussian noise.

    Example:
        >>> spirals().sample(3).shape
        torch.Size([3, 2])
    """

    validate.number("noise", noise, 0, math.inf, high_open=True)
    _finite(turns=turns, scale=scale)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        angle = 2 * math.pi * turns * torch.sqrt(torch.rand(n, generator=generator, device=origin(generator)))
        sign = 1.0 - 2.0 * torch.randint(2, (n, 1), generator=generator, device=origin(generator))
        arm = torch.stack([-angle.cos() * angle, angle.sin() * angle], dim=1) / 3.0
        return scale * (sign * arm + noise * torch.randn(n, 2, generator=generator, device=origin(generator)))

    return Planar("spirals", draw, settings=f"noise={noise}, turns={turns}, scale={scale}")


def pinwheel(
    blades: int = 5, radial_std: float = 0.3, tangential_std: float = 0.1, rate: float = 0.25, scale: float = 2.0
) -> Planar:
    """Gaussian blades around a center, twisted more with increasing radius (Johnson et al. 2016).

    Example:
        >>> pinwheel().sample(3).shape
        torch.Size([3, 2])
    """
    validate.positive_int("blades", blades)
    for name, value in (("radial_std", radial_std), ("tangential_std", tangential_std), ("scale", scale)):
        validate.number(name, value, 0, math.inf, low_open=True, high_open=True)
    _finite(rate=rate)
    scales, outward = (torch.tensor(pair, device="cpu") for pair in ([radial_std, tangential_std], [1.0, 0.0]))

    # Untwisting rotates by an angle that depends only on the radius: it preserves areas, so the density is that of the
    # blades before the twist.
    def rotate(x: Tensor, angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)

    def twist(radius: Tensor) -> Tensor:
        return rate * torch.exp(radius)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        blade = torch.randint(blades, (n,), generator=generator, device=origin(generator))
        x = torch.randn(n, 2, generator=generator, device=origin(generator))
        x = x * scales.to(x) + outward.to(x)
        return scale * rotate(x, 2 * math.pi * blade / blades + twist(x.norm(dim=1)))

    def density(x: Tensor) -> Tensor:
        x = x / scale
        untwisted = rotate(x, -twist(x.norm(dim=1)))
        std = scales.to(x)
        terms = []
        for blade in range(blades):
            angle = torch.full_like(x[:, 0], -2 * math.pi * blade / blades)
            z = (rotate(untwisted, angle) - outward.to(x)) / std
            terms.append(-0.5 * z.square().sum(1) - std.log().sum() - math.log(2 * math.pi))
        return torch.logsumexp(torch.stack(terms), dim=0) - math.log(blades) - 2 * math.log(scale)

    numbers = f"{blades}, {radial_std}, {tangential_std}, {rate}, {scale}"
    return Planar("pinwheel", draw, density, settings=numbers)


def _finite(**numbers: float) -> None:
    for name, value in numbers.items():
        validate.finite(name, value)
