"""The standard paths: the straight line, the quarter circle, and those of the three SDEs of Song et al. (2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.times import tensor_of
from flowbook.paths.path import SINGULAR_MARGIN, Path


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
        validate.number("sigma_min", self.sigma_min, 0, 1, high_open=True)

    @property
    def t_range(self) -> tuple[float, float]:
        return SINGULAR_MARGIN, 1.0 if self.sigma_min > 0 else 1.0 - SINGULAR_MARGIN

    def interpolate_and_velocity(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # The path is straight, so x_t = x_0 + t v takes two operations; a small training step would notice more.
        velocity = torch.sub(x1, x0, alpha=1.0 - self.sigma_min)
        return torch.addcmul(x0, t.reshape(-1, *[1] * (x1.dim() - 1)), velocity), velocity

    def alpha(self, t: Tensor | float) -> Tensor:
        return tensor_of(t) * 1.0

    def sigma(self, t: Tensor | float) -> Tensor:
        t = tensor_of(t)
        return (1.0 - t) + self.sigma_min * t  # exact at both ends, also in float32

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(tensor_of(t))

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        return torch.full_like(tensor_of(t), self.sigma_min - 1.0)

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
        return torch.sin(0.5 * math.pi * tensor_of(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sin(0.5 * math.pi * (1.0 - tensor_of(t)))

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        return 0.5 * math.pi * self.sigma(t)

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        return -0.5 * math.pi * self.alpha(t)


@dataclass(frozen=True)
class VPPath(Path):
    r"""The variance-preserving SDE of Song et al. (2021, equation 33) with their time :math:`s = 1 - t`.

    .. math:: \log\alpha = -\tfrac14 (\beta_{\max} - \beta_{\min}) s^2 - \tfrac12 \beta_{\min} s,
              \qquad \sigma^2 = 1 - \alpha^2.

    At t = 0 alpha is 0.0066, not 0: a small trace of the data remains. At t = 1 sigma_dot is infinite, and so is the
    conditional velocity: training on the velocity draws t up to ``1 - 1e-5``.

    Example:
        >>> round(float(VPPath().alpha(0.0)), 4)
        0.0066
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        validate.number("beta_min", self.beta_min, 0, math.inf, low_open=True, high_open=True)
        validate.number("beta_max", self.beta_max, self.beta_min, math.inf, high_open=True)

    @property
    def t_range(self) -> tuple[float, float]:
        return 0.0, self.last_velocity_time

    @property
    def last_velocity_time(self) -> float:
        return 1.0 - 1e-5

    def _log_alpha(self, t: Tensor | float) -> Tensor:
        s = 1.0 - tensor_of(t)
        return -0.25 * (self.beta_max - self.beta_min) * s**2 - 0.5 * self.beta_min * s

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        # expm1 keeps the digits of 1 - alpha^2 near t = 1; rounding may put t slightly above 1, hence the clamp.
        return torch.sqrt((-torch.expm1(2.0 * self._log_alpha(t))).clamp_min(0.0))

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        half_beta = 0.5 * ((self.beta_max - self.beta_min) * (1.0 - tensor_of(t)) + self.beta_min)
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


@dataclass(frozen=True)
class SubVPPath(Path):
    r"""The sub-VP SDE of Song et al. (2021, equation 29), with their time :math:`s = 1 - t`.

    Its alpha is that of :class:`VPPath`, and :math:`\sigma = 1 - \alpha^2`, the square of VPPath's: less noise than
    there, and a velocity that is finite up to t = 1.

    Example:
        >>> path = SubVPPath()
        >>> round(float(path.alpha(0.5) ** 2 + path.sigma(0.5)), 6)
        1.0
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        VPPath(self.beta_min, self.beta_max)  # raises for invalid values

    @property
    def t_range(self) -> tuple[float, float]:
        return 0.0, 1.0 - SINGULAR_MARGIN

    @property
    def _vp(self) -> VPPath:
        return VPPath(self.beta_min, self.beta_max)

    def alpha(self, t: Tensor | float) -> Tensor:
        return self._vp.alpha(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        return self._vp.sigma(t) ** 2

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        return self._vp.alpha_dot(t)

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        return -2.0 * self.alpha(t) * self.alpha_dot(t)


@dataclass(frozen=True)
class VEPath(Path):
    r"""Noise added to unchanged data: :math:`\alpha = 1`, and sigma falls from ``sigma_max`` to ``sigma_min``.

    .. math:: \sigma = \big((1 - t)\, \sigma_{\max}^{1/\rho} + t\, \sigma_{\min}^{1/\rho}\big)^\rho

    The path of EDM and of the VE SDE. Its state at t = 0 is noise of standard deviation ``sigma_max``, from which
    sampling starts: ``path.source(shape)``. At t = 1 the small noise ``sigma_min`` is left.

    Args:
        sigma_min, sigma_max: the noise levels at t = 1 and t = 0; EDM's by default (Karras et al. 2022, table 1).
        rho: equal steps of t are EDM's steps for 7 (their equation 5), and equal steps of sigma for 1; for ``math.inf``
            sigma is geometric, as in the VE SDE (Song et al. 2021, equation 30 in continuous time).

    Example:
        >>> [round(sigma, 3) for sigma in VEPath().sigma(torch.tensor([0.0, 0.5, 1.0])).tolist()]
        [80.0, 2.515, 0.002]
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        validate.number("sigma_max", self.sigma_max, 0, math.inf, low_open=True, high_open=True)
        validate.number("sigma_min", self.sigma_min, 0, self.sigma_max, high_open=True)
        validate.number("rho", self.rho, 0, math.inf, low_open=True)
        if self.sigma_min == 0 and self.rho == math.inf:
            raise ValueError("sigma_min: expected a positive number with rho=inf, where sigma is geometric; got 0")

    @property
    def t_range(self) -> tuple[float, float]:
        return 0.0, 1.0 if self.sigma_min > 0 else 1.0 - SINGULAR_MARGIN

    @property
    def source_std(self) -> float:
        return float(self.sigma_max)

    @property
    def _slope(self) -> float:
        """The derivative of sigma^(1 / rho), or of log sigma."""
        if self.rho == math.inf:
            return math.log(self.sigma_min / self.sigma_max)
        return self.sigma_min ** (1 / self.rho) - self.sigma_max ** (1 / self.rho)

    def _root(self, t: Tensor | float) -> Tensor:
        """sigma^(1 / rho)."""
        t = tensor_of(t)
        return (1.0 - t) * self.sigma_max ** (1 / self.rho) + t * self.sigma_min ** (1 / self.rho)

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(tensor_of(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        if self.rho == math.inf:
            return self.sigma_max * torch.exp(self._slope * tensor_of(t))
        return self._root(t) ** self.rho

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(tensor_of(t))

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        if self.rho == math.inf:
            return self._slope * self.sigma(t)
        return self.rho * self._slope * self._root(t) ** (self.rho - 1)
