r"""Noise schedules: how much noise each step of diffusion adds.

.. math:: x_i = \sqrt{\bar\alpha_i}\, x_1 + \sqrt{1 - \bar\alpha_i}\, \epsilon

with :math:`\bar\alpha_i` the product of :math:`1 - \beta_j` over the steps j up to i, and i from 0 to T - 1. Step 0 is
the least noisy one and T - 1 the noisiest (Ho et al. 2020, whose steps are numbered 1 to T).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.times import WITHOUT_FLOAT64

Prediction = Literal["noise", "data", "v"]

"""What a diffusion model predicts; "v" is the v of Salimans and Ho (2022), not dx/dt."""
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
LARGEST_BETA = 0.999
LARGEST_SIGNAL = 0.1
"""A schedule whose last step keeps more than this of the data's amplitude does not reach pure noise."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How much noise each step adds.

    Args:
        betas: the variance added by each step, shape (T,), in (0, 1); kept in float64. The last may be 1: then the last
            step keeps nothing of the data (a signal-to-noise ratio of 0; Lin et al. 2024), and a model must predict v
            or the data.

    Warns:
        UserWarning: when the last step keeps more than a tenth of the data's amplitude: sampling starts from pure
            noise, which is then the wrong distribution.

    Example:
        >>> schedule = NoiseSchedule.linear(1000)
        >>> schedule.steps, round(float(schedule.alphas_cumprod[-1].sqrt()), 4)
        (1000, 0.0064)
    """

    betas: Tensor
    ends_in_pure_noise: bool = field(init=False, repr=False)
    """Whether the last step keeps nothing of the data."""

    def __post_init__(self) -> None:
        validate.float_tensor("betas", self.betas, finite=True)
        if self.betas.dim() != 1 or len(self.betas) == 0:
            raise ValueError(f"betas: expected one variance per step, shape (T,); got {tuple(self.betas.shape)}")
        low, high = (float(beta) for beta in self.betas.aminmax())
        if not 0 < low <= high <= 1 or bool((self.betas[:-1] == 1).any()):
            raise ValueError(
                f"betas: expected variances in (0, 1), or 1 for the last one alone; got {low:g} to {high:g}"
            )
        object.__setattr__(self, "betas", self.betas.double().clone())
        object.__setattr__(self, "_copies", {})
        object.__setattr__(self, "ends_in_pure_noise", high == 1)
        signal = float(self.alphas_cumprod[-1].sqrt())
        if signal > LARGEST_SIGNAL:
            warnings.warn(
                f"the schedule's last step keeps {signal:.2f} of the data's amplitude, and sampling starts from pure "
                "noise: use more steps or larger betas (NoiseSchedule.linear(steps, rescale=True))",
                stacklevel=3,
            )

    @classmethod
    def linear(
        cls, steps: int, beta_start: float = 1e-4, beta_end: float = 0.02, rescale: bool = False
    ) -> NoiseSchedule:
        """Betas that grow linearly (Ho et al. 2020, section 4), designed for 1,000 steps.

        Args:
            steps: T.
            beta_start, beta_end: the first and last beta.
            rescale: multiply both by 1000 / steps, so that another number of steps adds the same noise in total; what
                would then exceed 0.999, with 20 steps or fewer, is 0.999.

        Example:
            >>> NoiseSchedule.linear(1000).betas[0]
            tensor(0.0001, dtype=torch.float64)
        """
        validate.positive_int("steps", steps)
        factor = 1000 / steps if rescale else 1.0
        betas = torch.linspace(factor * beta_start, factor * beta_end, steps, dtype=torch.float64, device="cpu")
        return cls(betas.clamp_max(LARGEST_BETA) if rescale else betas)

    @classmethod
    def cosine(cls, steps: int, offset: float = 0.008, largest: float = LARGEST_BETA) -> NoiseSchedule:
        r"""Betas that make :math:`\bar\alpha` a squared cosine (Nichol and Dhariwal 2021, equation 17).

        Args:
            steps: T.
            offset: their s, which keeps the first betas from being too small.
            largest: the last betas are clipped to this.

        Near pure noise the data's amplitude changes hundreds of times faster than on the linear schedule. Sample its
        probability flow with DDIM, or with "midpoint", which gives the slope at t = 0 no weight; and let a network
        predict v, since the conversion of noise to data divides by that amplitude.

        Example:
            >>> NoiseSchedule.cosine(100).betas[-1]
            tensor(0.9990, dtype=torch.float64)
        """
        validate.positive_int("steps", steps)
        s = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
        signal = torch.cos(0.5 * math.pi * (s + offset) / (1 + offset)).square()
        return cls((1 - signal[1:] / signal[:-1]).clamp_max(largest))

    def __repr__(self) -> str:
        return f"NoiseSchedule(steps={self.steps}, betas {self.betas[0]:.3g} to {self.betas[-1]:.3g})"

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    @property
    def alphas(self) -> Tensor:
        """1 - beta, shape (T,)."""
        return 1.0 - self.betas

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar, the running product of the alphas, shape (T,), which is the squared amplitude of the data in x_i."""
        return self.alphas.cumprod(0)

    @property
    def log_snr(self) -> Tensor:
        """The logarithm of abar / (1 - abar), the signal-to-noise ratio, shape (T,)."""
        return torch.log(self.alphas_cumprod) - torch.log1p(-self.alphas_cumprod)

    def on(self, device: torch.device) -> NoiseSchedule:
        """The same schedule with its tensors on a device. It is cached: moving them at every use would wait for a GPU.

        For a device without float64 it stays where it is, since float32 would lose digits of the products.

        Example:
            >>> schedule = NoiseSchedule.linear(1000)
            >>> schedule.on(torch.device("cpu")) is schedule
            True
        """
        copies: dict[torch.device, NoiseSchedule] = self._copies  # type: ignore[attr-defined]
        if device == self.betas.device or device.type in WITHOUT_FLOAT64:
            return self
        if device not in copies:
            copies[device] = moved = copy.copy(self)
            object.__setattr__(moved, "betas", self.betas.to(device))
        return copies[device]

    def add_noise(self, x1: Tensor, i: Tensor | int, noise: Tensor) -> Tensor:
        """x_i directly from the data (Ho et al. 2020, equation 4).

        Args:
            x1: data, shape (B, ...).
            i: step, an integer or long (B,).
            noise: from N(0, I), the shape of x1.

        Example:
            >>> NoiseSchedule.cosine(10).add_noise(torch.ones(1, 2), 0, torch.zeros(1, 2))
            tensor([[0.9859, 0.9859]])
        """
        validate.float_tensor("x1", x1, min_dim=1)
        validate.same_shape("noise", noise, "x1", x1)
        signal, spread = self.amplitudes(i, x1)
        return signal * x1 + spread * noise

    def predict_data(self, x: Tensor, i: Tensor | int, noise: Tensor) -> Tensor:
        """The data, given x_i and the noise in it: the inverse of :meth:`add_noise`, shape (B, ...).

        Example:
            >>> schedule = NoiseSchedule.cosine(10)
            >>> x = schedule.add_noise(torch.ones(1, 1), 9, torch.full((1, 1), 2.0))
            >>> round(float(schedule.predict_data(x, 9, torch.full((1, 1), 2.0))), 3)
            1.0
        """
        return self.convert(noise, x, i, source="noise", target="data")

    def convert(
        self, value: Tensor, x: Tensor, i: Tensor | int, source: Prediction = "noise", target: Prediction = "data"
    ) -> Tensor:
        r"""Convert a prediction of noise, data or v at (x_i, i) into another.

        v is the v of Salimans and Ho (2022), :math:`\sqrt{\bar\alpha}\,\epsilon - \sqrt{1-\bar\alpha}\,x_1`: the
        derivative along the arc from data to noise. It is not dx/dt, the velocity of this book, which is
        :func:`~flowbook.diffusion.probability_flow`.

        Args:
            value: the prediction, shape (B, ...).
            x: x_i, shape (B, ...).
            i: step, an integer or long (B,).
            source, target: "noise", "data" or "v".
        """
        validate.one_of("source", source, PREDICTIONS)
        validate.one_of("target", target, PREDICTIONS)
        validate.float_tensor("x", x, min_dim=1)
        validate.same_shape("value", value, "x", x)
        if source == target:
            return value
        signal, spread = self.amplitudes(i, x)
        if source == "v":
            data, noise = signal * x - spread * value, spread * x + signal * value
        elif source == "noise":
            data, noise = (x - spread * value) / signal, value
        else:
            data, noise = value, (x - signal * value) / spread
        return {"data": data, "noise": noise, "v": signal * noise - spread * data}[target]

    def posterior(self, x: Tensor, x1: Tensor, i: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_{i-1}, given x_i and the data (Ho et al. 2020, equations 6 and 7).

        At i = 0 the previous state is the data itself: the mean is x1, exactly, and the variance 0.

        Args:
            x: x_i, shape (B, ...).
            x1: data, shape (B, ...).
            i: step, an integer or long (B,).

        Returns:
            The mean, shape (B, ...), and the variance, shape (B, 1, ..., 1) or ().

        Example:
            >>> schedule = NoiseSchedule.linear(1000)
            >>> schedule.posterior(torch.zeros(1, 1), torch.ones(1, 1), 0)
            (tensor([[1.]]), tensor(0.))
        """
        validate.float_tensor("x", x, min_dim=1)
        validate.same_shape("x1", x1, "x", x)
        of_data, of_state, variance = self.on(x.device).posterior_coefficients()
        at = self._look_up(i, x)
        return at(of_data) * x1 + at(of_state) * x, at(variance)

    def posterior_coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """The factors of the data and of x_i in :meth:`posterior`, and its variance, each of shape (T,).

        At i = 0 they are exactly 1, 0 and 0, without rounding.
        """
        abar = self.alphas_cumprod
        before = torch.cat([abar.new_ones(1), abar[:-1]])
        of_data = before.sqrt() * self.betas / (1 - abar)
        of_state = self.alphas.sqrt() * (1 - before) / (1 - abar)
        of_data[0] = 1.0
        return of_data, of_state, self.betas * (1 - before) / (1 - abar)

    def amplitudes(self, i: Tensor | int, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_i) and sqrt(1 - abar_i), in a shape that multiplies x."""
        at, abar = self._look_up(i, x), self.on(x.device).alphas_cumprod
        return at(abar.sqrt()), at((1 - abar).sqrt())

    def _look_up(self, i: Tensor | int, x: Tensor) -> Callable[[Tensor], Tensor]:
        index = self.check_step(i, len(x))
        if index.dim() == 0:
            return lambda table: table[index].to(x)
        index = index.to(self.on(x.device).betas.device)
        return lambda table: table[index].to(x).reshape(-1, *[1] * (x.dim() - 1))

    def check_step(self, i: Tensor | int, batch: int) -> Tensor:
        """``i`` as a tensor, () or (batch,); raises for negative steps, which as indices would count from the end."""
        if isinstance(i, int) and not isinstance(i, bool):
            i = torch.tensor(i, device="cpu")
        if not isinstance(i, Tensor) or i.is_floating_point() or i.dtype == torch.bool:
            got = f"dtype {i.dtype}" if isinstance(i, Tensor) else type(i).__name__
            raise TypeError(f"i: expected an integer step or a long tensor; got {got}")
        if i.shape not in ((), (batch,)):
            raise ValueError(f"i: expected one step per sample, shape () or ({batch},); got {tuple(i.shape)}")
        if i.numel() and validate.values_are_readable(i):
            low, high = (int(v) for v in i.aminmax())
            if low < 0 or high >= self.steps:
                raise ValueError(f"i: expected steps from 0 to {self.steps - 1}; got {low} to {high}")
        return i
