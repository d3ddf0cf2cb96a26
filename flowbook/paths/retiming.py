"""The same flow in a new time variable, whose equal steps are fine steps near the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.condition import Condition
from flowbook.paths.path import SINGULAR_MARGIN, Path
from flowbook.velocity import Velocity, Wrapper, call


@dataclass(frozen=True)
class RetimedPath(Path):
    """A path in the time variable of :func:`retimed`.

    Example:
        >>> from flowbook.paths import LinearPath
        >>> RetimedPath(LinearPath(), power=3.0).alpha(torch.tensor(0.5))
        tensor(0.8750)
    """

    path: Path
    """The path in its original time t."""
    power: float
    """As in :func:`retimed`."""

    @property
    def t_range(self) -> tuple[float, float]:
        first, last = (1 - (1 - t) ** (1 / self.power) for t in self.path.t_range)
        return first, min(last, 1 - SINGULAR_MARGIN)  # at u = 1 the flow stands still

    @property
    def last_velocity_time(self) -> float:
        last = self.path.last_velocity_time
        return 1.0 if last == 1 else 1 - (1 - last) ** (1 / self.power)

    @property
    def source_std(self) -> float:
        return self.path.source_std

    def alpha(self, t: Tensor | float) -> Tensor:
        return self.path.alpha(self._inner(t)[0])

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.path.sigma(self._inner(t)[0])

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        inner, speed = self._inner(t)
        return speed * self.path.alpha_dot(inner)

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        inner, speed = self._inner(t)
        return speed * self.path.sigma_dot(inner)

    def _inner(self, u: Tensor | float) -> tuple[Tensor, Tensor]:
        left = 1 - (u if isinstance(u, Tensor) else torch.tensor(u, dtype=torch.float64, device="cpu"))
        return 1 - left**self.power, self.power * left ** (self.power - 1)


class Retimed(Wrapper):
    """A velocity in the time u of :func:`retimed`, which its argument ``t`` then is."""

    def __init__(self, velocity: Velocity, power: float):
        super().__init__()
        self.velocity, self.power = velocity, power

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        validate.time("t", t, len(x))
        left = 1 - torch.as_tensor(t, dtype=x.dtype, device=x.device).clamp(0, 1)
        v = call(self.velocity, x, 1 - left**self.power, y)
        speed = self.power * left ** (self.power - 1)
        return speed.reshape(-1, *[1] * (x.dim() - 1)) * v


def retimed(velocity: Velocity, power: float = 3.0) -> Retimed:
    r"""The same flow in the time u, where :math:`t = 1 - (1 - u)^p`: equal steps of u become fine steps near the data.

    .. math:: \frac{dx}{du} = p\, (1 - u)^{p - 1}\, v\big(x,\, 1 - (1 - u)^p\big)

    Endpoints, latents and densities are the same; only the errors of fixed-step methods differ. Likelihoods of images
    with an empty background need it: there the flow contracts onto single gray levels, at a rate that grows like
    1 / (1 - t).

    Args:
        velocity: ``v(x, t, y=None)``, finite at t = 1.
        power: p, at least 1; 1 leaves the time unchanged.

    Example:
        >>> from flowbook.solvers import sample
        >>> sample(retimed(lambda x, t: torch.ones_like(x)), torch.zeros(1, 1), method="rk4", steps=1).x
        tensor([[1.]])
    """
    validate.function("velocity", velocity, "a network")
    validate.number("power", power, 1, float("inf"), high_open=True)
    return Retimed(velocity, float(power))
