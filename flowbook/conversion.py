"""Velocities made of others: of a model that predicts noise, data or the score, and the same flow in another time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowbook import _validate
from flowbook._model import Velocity, Wrapper, call, unwrapped
from flowbook.paths import QUANTITIES, SINGULAR_MARGIN, LinearPath, Path


class ConvertedVelocity(Wrapper):
    """A model that predicts noise, data or the score, seen as a velocity; made by :func:`as_velocity`."""

    _inner = "model"

    def __init__(self, model: Velocity, path: Path, prediction: str):
        super().__init__()
        self.model, self.path, self.prediction = model, path, prediction

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """What the model predicts at the state x of time t."""
        return call(self.model, x, t, y)

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        _validate.time("t", t, len(x))
        low, high = self.path.t_range
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).clamp(low, high)
        return self.path.convert(self.predict(x, t, y), x, t, source=self.prediction, target="velocity")


def as_velocity(model: Callable[..., Tensor], path: Path, prediction: str = "noise") -> ConvertedVelocity:
    """Turn a model ``(x, t, y=None) -> noise | data | score`` into a velocity for :func:`flowbook.solvers.solve`.

    Times are clamped to ``path.t_range``, where the conversion is regular, so that a solve may run from 0 to 1.

    Args:
        model: any callable ``(x, t, y=None)`` that returns a tensor like x.
        path: the path it was trained on.
        prediction: what it returns, "noise", "data", "score" or "velocity".

    Example:
        >>> always_two = as_velocity(lambda x, t, y=None: torch.full_like(x, 2.0), LinearPath(), prediction="data")
        >>> always_two(torch.zeros(1, 1), 0.5)
        tensor([[4.]])
    """
    _validate.instance("path", path, Path, "LinearPath()")
    _validate.one_of("prediction", prediction, QUANTITIES)
    return ConvertedVelocity(model, path, prediction)


def path_of(velocity: Velocity) -> Path:
    """The path of a velocity made by conversion, also behind guidance, retiming or torch's wrappers.

    Of every other velocity it is LinearPath().

    Example:
        >>> from flowbook.paths import CosinePath
        >>> path_of(as_velocity(lambda x, t, y=None: x, CosinePath())), path_of(lambda x, t, y=None: x)
        (CosinePath(), LinearPath(sigma_min=0.0))
    """
    while not isinstance(velocity := unwrapped(velocity), ConvertedVelocity):
        if isinstance(velocity, Retimed):
            return RetimedPath(path_of(velocity.velocity), velocity.power)
        if getattr(velocity, "velocity", None) is None:
            return LinearPath()
        velocity = velocity.velocity  # guidance keeps it there
    return velocity.path


@dataclass(frozen=True)
class RetimedPath(Path):
    """A path in the time of :func:`retimed`.

    Example:
        >>> RetimedPath(LinearPath(), power=3.0).alpha(torch.tensor(0.5))
        tensor(0.8750)
    """

    path: Path
    """The path in the time t."""
    power: float
    """As in :func:`retimed`."""

    @property
    def t_range(self) -> tuple[float, float]:
        first, last = (1 - (1 - t) ** (1 / self.power) for t in self.path.t_range)
        return first, min(last, 1 - SINGULAR_MARGIN)  # at u = 1 the flow stands still

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
        left = 1 - (u if isinstance(u, Tensor) else torch.tensor(u, dtype=torch.float64))
        return 1 - left**self.power, self.power * left ** (self.power - 1)


class Retimed(Wrapper):
    """A velocity in another time; made by :func:`retimed`."""

    def __init__(self, velocity: Velocity, power: float):
        super().__init__()
        self.velocity, self.power = velocity, power

    def forward(self, x: Tensor, u: Tensor | float, y: Tensor | None = None) -> Tensor:
        _validate.time("u", u, len(x))
        left = 1 - torch.as_tensor(u, dtype=x.dtype, device=x.device).clamp(0, 1)
        v = call(self.velocity, x, 1 - left**self.power, y)
        speed = self.power * left ** (self.power - 1)
        return speed.reshape(-1, *[1] * (x.dim() - 1)) * v


def retimed(velocity: Velocity, power: float = 3.0) -> Retimed:
    r"""The same flow in the time u, where :math:`t = 1 - (1 - u)^p`: equal steps of u become fine steps near the data.

    .. math:: \frac{dx}{du} = p\, (1 - u)^{p - 1}\, v\big(x,\, 1 - (1 - u)^p\big)

    Ends, latents and densities are the same; only the errors of fixed steps differ. Images with an empty background
    need it for likelihoods: there the flow closes in on single grey levels, at a rate that grows like 1 / (1 - t).

    Args:
        velocity: ``v(x, t, y=None)``, finite at t = 1.
        power: p, at least 1; 1 changes nothing.

    Example:
        >>> from flowbook.solvers import sample
        >>> sample(retimed(lambda x, t: torch.ones_like(x)), torch.zeros(1, 1), method="rk4", steps=1).x
        tensor([[1.]])
    """
    _validate.function("velocity", velocity, "a network")
    _validate.number("power", power, 1, float("inf"), high_open=True)
    return Retimed(velocity, float(power))
