r"""Paths between noise and data.

A path mixes a noise sample :math:`x_0` and a data sample :math:`x_1`,

.. math:: x_t = \alpha(t)\, x_1 + \sigma(t)\, x_0, \qquad t = 0 \text{ noise}, \quad t = 1 \text{ data},

and its time derivative is what flow matching regresses on. The same four numbers
:math:`\alpha, \sigma, \dot\alpha, \dot\sigma` turn a prediction of the noise, the data, the score or the velocity
into each of the others: :meth:`Path.convert`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowbook import _validate

QUANTITIES = ("noise", "data", "score", "velocity")
SINGULAR_MARGIN = 1e-4
"""How far the velocities made by conversion stay away from a time where the conversion divides by zero."""


class Path(ABC):
    """What every path can do; a path itself says only what alpha and sigma are."""

    @abstractmethod
    def alpha(self, t: Tensor | float) -> Tensor:
        """The weight of the data, same shape as ``t``."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """The weight of the noise, same shape as ``t``."""

    @abstractmethod
    def alpha_dot(self, t: Tensor | float) -> Tensor:
        """The time derivative of alpha, same shape as ``t``."""

    @abstractmethod
    def sigma_dot(self, t: Tensor | float) -> Tensor:
        """The time derivative of sigma, same shape as ``t``."""

    @property
    @abstractmethod
    def t_range(self) -> tuple[float, float]:
        """The times between which every conversion is regular."""

    @property
    def last_velocity_time(self) -> float:
        """The last time at which the conditional velocity is finite; training draws t up to here."""
        return 1.0

    def sigma_sigma_dot(self, t: Tensor | float) -> Tensor:
        """sigma times its derivative, which stays finite where sigma_dot alone does not."""
        return self.sigma(t) * self.sigma_dot(t)

    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """The point of the path at time t, ``alpha(t) * x1 + sigma(t) * x0``.

        Args:
            x0: noise, shape (B, ...).
            x1: data, shape (B, ...).
            t: time in [0, 1], a scalar or shape (B,).

        Returns:
            xt, shape (B, ...).

        Example:
            >>> LinearPath().interpolate(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
            tensor([[0.2500, 0.2500]])
        """
        _check_pair(x0, x1, t)
        t = _per_sample(t, x1)
        return self.alpha(t) * x1 + self.sigma(t) * x0

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """The conditional velocity, ``d xt / dt = alpha_dot(t) * x1 + sigma_dot(t) * x0``.

        Args and returns as in :meth:`Path.interpolate`. Raises ValueError where sigma_dot is infinite.

        Example:
            >>> LinearPath().velocity(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
            tensor([[1., 1.]])
        """
        _check_pair(x0, x1, t)
        t = _per_sample(t, x1)
        sigma_dot = self.sigma_dot(t)
        if _validate.values_are_readable(sigma_dot) and not bool(torch.isfinite(sigma_dot).all()):
            raise ValueError(
                f"t: the conditional velocity of {self!r} is infinite at t = 1; draw t up to {self.last_velocity_time}"
            )
        return self.alpha_dot(t) * x1 + sigma_dot * x0

    def interpolate_and_velocity(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`Path.interpolate` and :meth:`Path.velocity` at once, for a training step: nothing is checked.

        Args:
            x0, x1: noise and data, shape (B, ...).
            t: times in [0, ``last_velocity_time``], shape (B,).

        Returns:
            xt and its velocity, each of shape (B, ...).

        Example:
            >>> LinearPath().interpolate_and_velocity(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
            (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
        """
        t = _per_sample(t, x1)
        return self.alpha(t) * x1 + self.sigma(t) * x0, self.alpha_dot(t) * x1 + self.sigma_dot(t) * x0

    def convert(
        self, value: Tensor, xt: Tensor, t: Tensor | float, source: str = "noise", target: str = "velocity"
    ) -> Tensor:
        r"""Turn one of noise, data, score, velocity at (xt, t) into another.

        All four are linear in each other once ``xt`` is known: with the expected noise :math:`\epsilon` and data
        :math:`d`, :math:`x_t = \alpha d + \sigma\epsilon`, the velocity is :math:`\dot\alpha d + \dot\sigma\epsilon`
        and the score :math:`-\epsilon / \sigma` (Song et al. 2021, appendix B; Lipman et al. 2024, section 4.8).

        Args:
            value: the prediction, shape (B, ...).
            xt: the state it was made at, shape (B, ...).
            t: time in [0, 1], a scalar or shape (B,).
            source, target: "noise", "data", "score" or "velocity".

        Returns:
            The same prediction as ``target``, shape (B, ...).

        Raises:
            ValueError: for an unknown quantity, for shapes that differ, and at a time where the conversion divides
                by zero (``alpha = 0`` or ``sigma = 0``; ``t_range`` says where none does). On a GPU the times are
                not looked at, and the result there is infinite or NaN.

        Example:
            >>> x0, x1 = torch.ones(1, 2), torch.tensor([[3.0, 5.0]])
            >>> xt = LinearPath().interpolate(x0, x1, 0.5)
            >>> LinearPath().convert(x0, xt, 0.5, source="noise", target="velocity")
            tensor([[2., 4.]])
        """
        _validate.one_of("source", source, QUANTITIES)
        _validate.one_of("target", target, QUANTITIES)
        _validate.float_tensor("value", value)
        _validate.float_tensor("xt", xt)
        _validate.same_shape("value", value, "xt", xt)
        _validate.time("t", t, xt.shape[0] if xt.dim() else None)
        if source == target:
            return value
        return getattr(self, f"_{source}_to_{target}")(value, xt, _per_sample(t, xt))

    # One line each. a, s: alpha and sigma; a dot is written _dot. `_nonzero` raises where the line would divide by 0.

    def _noise_to_data(self, noise: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return (xt - self.sigma(t) * noise) / self._nonzero("alpha", t, "noise", "data")

    def _noise_to_score(self, noise: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return -noise / self._nonzero("sigma", t, "noise", "score")

    def _noise_to_velocity(self, noise: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        self._finite_sigma_dot(t, "noise", "velocity")
        data = (xt - self.sigma(t) * noise) / self._nonzero("alpha", t, "noise", "velocity")
        return self.alpha_dot(t) * data + self.sigma_dot(t) * noise

    def _data_to_noise(self, data: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return (xt - self.alpha(t) * data) / self._nonzero("sigma", t, "data", "noise")

    def _data_to_score(self, data: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return (self.alpha(t) * data - xt) / self._nonzero("sigma", t, "data", "score") ** 2

    def _data_to_velocity(self, data: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        noise = (xt - self.alpha(t) * data) / self._nonzero("sigma", t, "data", "velocity")
        return self.alpha_dot(t) * data + self.sigma_dot(t) * noise

    def _score_to_noise(self, score: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return -self.sigma(t) * score

    def _score_to_data(self, score: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return (xt + self.sigma(t) ** 2 * score) / self._nonzero("alpha", t, "score", "data")

    def _score_to_velocity(self, score: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        alpha = self._nonzero("alpha", t, "score", "velocity")
        data = (xt + self.sigma(t) ** 2 * score) / alpha
        return self.alpha_dot(t) * data - self.sigma_sigma_dot(t) * score

    def _velocity_to_noise(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        determinant = self.alpha(t) * self.sigma_dot(t) - self.sigma(t) * self.alpha_dot(t)
        return (self.alpha(t) * v - self.alpha_dot(t) * xt) / determinant

    def _velocity_to_data(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        determinant = self.alpha(t) * self.sigma_dot(t) - self.sigma(t) * self.alpha_dot(t)
        return (self.sigma_dot(t) * xt - self.sigma(t) * v) / determinant

    def _velocity_to_score(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        sigma = self._nonzero("sigma", t, "velocity", "score")
        return -self._velocity_to_noise(v, xt, t) / sigma

    def _nonzero(self, name: str, t: Tensor, source: str, target: str) -> Tensor:
        value: Tensor = getattr(self, name)(t)
        if _validate.values_are_readable(value) and bool((value == 0).any()):
            raise ValueError(
                f"t: {source} -> {target} divides by {name}, which is 0 at t = {float(t[value == 0].flatten()[0]):g} "
                f"on {self!r}; keep t within its t_range, {self.t_range}"
            )
        return value

    def _finite_sigma_dot(self, t: Tensor, source: str, target: str) -> None:
        sigma_dot = self.sigma_dot(t)
        if _validate.values_are_readable(sigma_dot) and not bool(torch.isfinite(sigma_dot).all()):
            raise ValueError(
                f"t: {source} -> {target} needs sigma_dot, which is infinite at t = 1 on {self!r}; "
                f"keep t within its t_range, {self.t_range}"
            )


@dataclass(frozen=True)
class LinearPath(Path):
    r"""The straight path: :math:`\alpha = t`, :math:`\sigma = 1 - (1 - \sigma_{\min})\, t`.

    With ``sigma_min = 0`` it is the path of rectified flow (Liu et al. 2023); with a small positive value it is the
    conditional optimal-transport path of flow matching (Lipman et al. 2023, equation 22).

    Example:
        >>> LinearPath().velocity(torch.tensor([[1.0]]), torch.tensor([[3.0]]), 0.5)
        tensor([[2.]])
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        _validate.number("sigma_min", self.sigma_min, 0, 1, high_open=True)

    @property
    def t_range(self) -> tuple[float, float]:
        return SINGULAR_MARGIN, 1.0 if self.sigma_min > 0 else 1.0 - SINGULAR_MARGIN

    def interpolate_and_velocity(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # The path is straight, so x_t = x_0 + t v: two operations, and a small training step notices the rest.
        velocity = torch.sub(x1, x0, alpha=1.0 - self.sigma_min)
        return torch.addcmul(x0, t.reshape(-1, *[1] * (x1.dim() - 1)), velocity), velocity

    def alpha(self, t: Tensor | float) -> Tensor:
        return _tensor(t) * 1.0

    def sigma(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        return (1.0 - t) + self.sigma_min * t  # exact at both ends, also in float32

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_tensor(t))

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        return torch.full_like(_tensor(t), self.sigma_min - 1.0)

    # The determinant of (data, noise) -> (xt, velocity) is -1 for every sigma_min: alpha * sigma_dot - sigma = -1.

    def _velocity_to_noise(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return xt - self.alpha(t) * v

    def _velocity_to_data(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self.sigma(t) * v - self.sigma_dot(t) * xt


@dataclass(frozen=True)
class CosinePath(Path):
    r"""A variance-preserving path, a quarter circle: :math:`\alpha = \sin(\pi t/2)`, :math:`\sigma = \cos(\pi t/2)`.

    The trigonometric interpolant of Albergo and Vanden-Eijnden (2023) and, in continuous time, the cosine schedule of
    Nichol and Dhariwal (2021).

    Example:
        >>> CosinePath().alpha(torch.tensor(1.0))
        tensor(1.)
    """

    @property
    def t_range(self) -> tuple[float, float]:
        return SINGULAR_MARGIN, 1.0 - SINGULAR_MARGIN

    # The sine of the complement, not the cosine: cos(pi / 2) is 6e-17 in floating point, not 0.

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.sin(0.5 * math.pi * _tensor(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sin(0.5 * math.pi * (1.0 - _tensor(t)))

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        return 0.5 * math.pi * self.sigma(t)

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        return -0.5 * math.pi * self.alpha(t)


@dataclass(frozen=True)
class VPPath(Path):
    r"""The variance-preserving SDE of Song et al. (2021, equation 33) with their time :math:`s = 1 - t`.

    .. math:: \log\alpha = -\tfrac14 (\beta_{\max} - \beta_{\min}) s^2 - \tfrac12 \beta_{\min} s,
              \qquad \sigma^2 = 1 - \alpha^2.

    At t = 0 alpha is 0.0066, not 0: a small trace of the data is left. At t = 1 sigma_dot is infinite, so that the
    conditional velocity is: training on the velocity draws t up to ``1 - 1e-5``.

    Example:
        >>> round(float(VPPath().alpha(0.0)), 4)
        0.0066
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _validate.number("beta_min", self.beta_min, 0, math.inf, low_open=True, high_open=True)
        _validate.number("beta_max", self.beta_max, self.beta_min, math.inf, high_open=True)

    @property
    def t_range(self) -> tuple[float, float]:
        return 0.0, self.last_velocity_time

    @property
    def last_velocity_time(self) -> float:
        return 1.0 - 1e-5

    def _log_alpha(self, t: Tensor | float) -> Tensor:
        s = 1.0 - _tensor(t)
        return -0.25 * (self.beta_max - self.beta_min) * s**2 - 0.5 * self.beta_min * s

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        # expm1 keeps the digits of 1 - alpha^2 near t = 1; rounding may put t a hair beyond 1, hence the clamp.
        return torch.sqrt((-torch.expm1(2.0 * self._log_alpha(t))).clamp_min(0.0))

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        half_beta = 0.5 * ((self.beta_max - self.beta_min) * (1.0 - _tensor(t)) + self.beta_min)
        return half_beta * self.alpha(t)

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        return self.sigma_sigma_dot(t) / self.sigma(t)

    def sigma_sigma_dot(self, t: Tensor | float) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t)

    # With sigma * sigma_dot = -alpha * alpha_dot the determinant is -alpha_dot / sigma; multiplied out, no 0 / 0.

    def _velocity_to_noise(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self.sigma(t) * (xt - self.alpha(t) * v / self.alpha_dot(t))

    def _velocity_to_data(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self.alpha(t) * xt + self.sigma(t) ** 2 * v / self.alpha_dot(t)

    def _velocity_to_score(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self.alpha(t) * v / self.alpha_dot(t) - xt


def _tensor(t: Tensor | float) -> Tensor:
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


def _per_sample(t: Tensor | float, x: Tensor) -> Tensor:
    """t with the dtype and device of x and the shape (), or (B, 1, ..., 1): it must not meet the last axis of x."""
    # A time that rounding has put outside [0, 1] would make sigma or alpha a tiny negative number to divide by.
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device).clamp(0, 1)
    return t if t.dim() == 0 else t.reshape(-1, *[1] * (x.dim() - 1))


def _check_pair(x0: Any, x1: Any, t: Any) -> None:
    _validate.float_tensor("x0", x0)
    _validate.float_tensor("x1", x1)
    _validate.same_shape("x0", x0, "x1", x1)
    _validate.time("t", t, x1.shape[0] if x1.dim() else None)
