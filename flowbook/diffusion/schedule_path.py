"""A noise schedule as a path in continuous time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowbook._core.times import WITHOUT_FLOAT64, tensor_of
from flowbook.diffusion.schedule import NoiseSchedule
from flowbook.paths import Path


class SchedulePath(Path):
    r"""A schedule as a path in continuous time: t = 1 - i / (T - 1), so t = 0 is the noisiest step and t = 1 step 0.

    Between the steps the logarithm of the signal-to-noise ratio, :math:`\lambda`, is interpolated by monotone cubics
    (Fritsch and Butland 1984), so that the velocity is continuous, and :math:`\alpha^2 = 1/(1 + e^{-\lambda})`,
    :math:`\sigma^2 = 1 - \alpha^2`. At t = 1 the small noise of step 0 remains, and at t = 0 the small signal of step
    T - 1.

    Example:
        >>> path = SchedulePath(NoiseSchedule.linear(1000))
        >>> round(float(path.sigma(1.0)), 4), round(float(path.alpha(0.0)), 4)
        (0.01, 0.0064)
    """

    def __init__(self, schedule: NoiseSchedule):
        if schedule.steps < 2:
            raise ValueError("schedule: expected at least 2 steps for a path; got 1")
        from scipy.interpolate import PchipInterpolator

        self.schedule = schedule
        levels = schedule.log_snr.flip(0)  # in the order of t
        if schedule.ends_in_pure_noise:  # minus infinity: alpha is taken as a tenth of the next one instead of 0
            levels[0] = levels[1] - 2 * math.log(10.0)
        cubics = PchipInterpolator(range(schedule.steps), levels.numpy()).c
        cubics = torch.from_numpy(cubics.copy())  # (4, T - 1), the highest power first
        self._cubics = {cubics.device: cubics}

    def __repr__(self) -> str:
        return f"SchedulePath(steps={self.schedule.steps})"

    @property
    def t_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(alpha^2 / sigma^2), the shape of t."""
        (a, b, c, d), s = self._cubic(t)
        return ((a * s + b) * s + c) * s + d

    def log_snr_dot(self, t: Tensor | float) -> Tensor:
        """The derivative of :meth:`log_snr` with respect to t."""
        (a, b, c, _), s = self._cubic(t)
        return ((3 * a * s + 2 * b) * s + c) * (self.schedule.steps - 1)

    def _cubic(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """The coefficients between the two steps around t, and the position of t between them, from 0 to 1."""
        t = tensor_of(t)
        place = t * (self.schedule.steps - 1)
        left = place.floor().clamp(0, self.schedule.steps - 2).long()
        if t.device not in self._cubics:  # only once, since it waits for a GPU
            exact = self._cubics[self.schedule.betas.device]
            self._cubics[t.device] = (exact.float() if t.device.type in WITHOUT_FLOAT64 else exact).to(t.device)
        cubics = self._cubics[t.device].index_select(1, left.flatten())  # [:, left] would read a scalar's value
        return cubics.reshape(4, *left.shape).to(t.dtype), place - left

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    def alpha_dot(self, t: Tensor | float) -> Tensor:
        return 0.5 * self.alpha(t) * self.sigma(t) ** 2 * self.log_snr_dot(t)

    def sigma_dot(self, t: Tensor | float) -> Tensor:
        return -0.5 * self.sigma(t) * self.alpha(t) ** 2 * self.log_snr_dot(t)
