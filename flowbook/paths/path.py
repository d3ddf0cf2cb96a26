"""The base class of paths: mixing noise and data, and converting one prediction into another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.times import per_sample
from flowbook.paths.source import Normal

Quantity = Literal["noise", "data", "score", "velocity", "v"]
"""What a model predicts. "velocity" is dx/dt, and "v" the combination of noise and data of Salimans and Ho (2022)."""
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
SINGULAR_MARGIN = 1e-4
"""How far converted velocities stay away from a time at which the conversion divides by zero."""


class Path(ABC):
    """The base class of paths; a subclass only defines alpha, sigma and their derivatives."""

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
        """The time interval on which every conversion is regular."""

    @property
    def source_std(self) -> float:
        """The standard deviation of the noise from which sampling starts, the state at t = 0."""
        return 1.0

    def source(self, shape: Sequence[int]) -> Normal:
        """The distribution from which sampling starts, for samples of a shape.

        Example:
            >>> from flowbook.paths import VEPath
            >>> VEPath().source((3, 8, 8))
            Normal(shape=(3, 8, 8), std=80.0)
        """
        return Normal(tuple(shape), self.source_std)

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
            >>> from flowbook.paths import LinearPath
            >>> LinearPath().interpolate(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
            tensor([[0.2500, 0.2500]])
        """
        _check_pair(x0, x1, t)
        t = per_sample(t, x1)
        return self.alpha(t) * x1 + self.sigma(t) * x0

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """The conditional velocity, ``d xt / dt = alpha_dot(t) * x1 + sigma_dot(t) * x0``.

        Args and returns as in :meth:`Path.interpolate`. Raises ValueError where sigma_dot is infinite.

        Example:
            >>> from flowbook.paths import LinearPath
            >>> LinearPath().velocity(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
            tensor([[1., 1.]])
        """
        _check_pair(x0, x1, t)
        t = per_sample(t, x1)
        sigma_dot = self.sigma_dot(t)
        if validate.values_are_readable(sigma_dot) and not bool(torch.isfinite(sigma_dot).all()):
            raise ValueError(
                f"t: the conditional velocity of {self!r} is infinite at t = 1; draw t up to {self.last_velocity_time}"
            )
        return self.alpha_dot(t) * x1 + sigma_dot * x0

    def interpolate_and_velocity(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`Path.interpolate` and :meth:`Path.velocity` in one call, without validation, for a training step.

        Args:
            x0, x1: noise and data, shape (B, ...).
            t: times in [0, ``last_velocity_time``], shape (B,).

        Returns:
            xt and its velocity, each of shape (B, ...).

        Example:
            >>> from flowbook.paths import LinearPath
            >>> LinearPath().interpolate_and_velocity(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
            (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
        """
        t = per_sample(t, x1)
        return self.alpha(t) * x1 + self.sigma(t) * x0, self.alpha_dot(t) * x1 + self.sigma_dot(t) * x0

    def convert(
        self, value: Tensor, xt: Tensor, t: Tensor | float, source: Quantity = "noise", target: Quantity = "velocity"
    ) -> Tensor:
        r"""Convert one of noise, data, score, velocity and v at (xt, t) into another.

        All five are linear in each other once ``xt`` is known: with the expected noise :math:`\epsilon` and data
        :math:`d`, :math:`x_t = \alpha d + \sigma\epsilon`, the velocity is :math:`\dot\alpha d + \dot\sigma\epsilon`
        and the score :math:`-\epsilon / \sigma` (Lipman et al. 2024, section 4.8). The fifth is
        :math:`v = \alpha\epsilon - \sigma d` (Salimans and Ho 2022, section 4), which is not a velocity: where
        :math:`\alpha^2 + \sigma^2 = 1`, dx/dt is v times a negative function of t, on the quarter circle
        :math:`-\tfrac{\pi}{2} v`; on other paths it is not a multiple of v.

        Args:
            value: the prediction, shape (B, ...).
            xt: the state it was made at, shape (B, ...).
            t: time in [0, 1], a scalar or shape (B,).
            source, target: "noise", "data", "score", "velocity" (dx/dt) or "v".

        Returns:
            The same prediction as ``target``, shape (B, ...).

        Raises:
            ValueError: for an unknown quantity, for shapes that differ, and at a time where the conversion divides
                by zero (``alpha = 0`` or ``sigma = 0``; within ``t_range`` none does). On a GPU the times are not
                checked, and the result at such a time is infinite or NaN.

        Example:
            >>> from flowbook.paths import LinearPath
            >>> x0, x1 = torch.ones(1, 2), torch.tensor([[3.0, 5.0]])
            >>> xt = LinearPath().interpolate(x0, x1, 0.5)
            >>> LinearPath().convert(x0, xt, 0.5, source="noise", target="velocity")
            tensor([[2., 4.]])
        """
        validate.one_of("source", source, QUANTITIES)
        validate.one_of("target", target, QUANTITIES)
        validate.float_tensor("value", value)
        validate.float_tensor("xt", xt)
        validate.same_shape("value", value, "xt", xt)
        validate.time("t", t, xt.shape[0] if xt.dim() else None)
        if source == target:
            return value
        return getattr(self, f"_{source}_to_{target}")(value, xt, per_sample(t, xt))

    # `_nonzero` raises where a conversion would divide by 0.

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

    # (v, xt) is a rotation of (noise, data), scaled where alpha^2 + sigma^2 is not 1: always invertible.

    def _v_to_noise(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha(t), self.sigma(t)
        return (sigma * xt + alpha * v) / (alpha**2 + sigma**2)

    def _v_to_data(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha(t), self.sigma(t)
        return (alpha * xt - sigma * v) / (alpha**2 + sigma**2)

    def _v_to_score(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return -self._v_to_noise(v, xt, t) / self._nonzero("sigma", t, "v", "score")

    def _v_to_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        self._finite_sigma_dot(t, "v", "velocity")
        return self.alpha_dot(t) * self._v_to_data(v, xt, t) + self.sigma_dot(t) * self._v_to_noise(v, xt, t)

    def _noise_to_v(self, noise: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        data = (xt - self.sigma(t) * noise) / self._nonzero("alpha", t, "noise", "v")
        return self.alpha(t) * noise - self.sigma(t) * data

    def _data_to_v(self, data: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        noise = (xt - self.alpha(t) * data) / self._nonzero("sigma", t, "data", "v")
        return self.alpha(t) * noise - self.sigma(t) * data

    def _score_to_v(self, score: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        data = (xt + self.sigma(t) ** 2 * score) / self._nonzero("alpha", t, "score", "v")
        return -self.sigma(t) * (self.alpha(t) * score + data)

    def _velocity_to_v(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self.alpha(t) * self._velocity_to_noise(v, xt, t) - self.sigma(t) * self._velocity_to_data(v, xt, t)

    def _nonzero(self, name: str, t: Tensor, source: str, target: str) -> Tensor:
        value: Tensor = getattr(self, name)(t)
        if validate.values_are_readable(value) and bool((value == 0).any()):
            raise ValueError(
                f"t: {source} -> {target} divides by {name}, which is 0 at t = {float(t[value == 0].flatten()[0]):g} "
                f"on {self!r}; keep t within its t_range, {self.t_range}"
            )
        return value

    def _finite_sigma_dot(self, t: Tensor, source: str, target: str) -> None:
        sigma_dot = self.sigma_dot(t)
        if validate.values_are_readable(sigma_dot) and not bool(torch.isfinite(sigma_dot).all()):
            raise ValueError(
                f"t: {source} -> {target} needs sigma_dot, which is infinite at t = 1 on {self!r}; "
                f"keep t within its t_range, {self.t_range}"
            )


def _check_pair(x0: Any, x1: Any, t: Any) -> None:
    validate.float_tensor("x0", x0)
    validate.float_tensor("x1", x1)
    validate.same_shape("x0", x0, "x1", x1)
    validate.time("t", t, x1.shape[0] if x1.dim() else None)
