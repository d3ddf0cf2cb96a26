"""Denoisers of EDM and of k-diffusion: functions of a state and its noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.adapters.functions import tensor_in
from flowbook.condition import Condition, Null
from flowbook.paths import ConvertedVelocity, VEPath
from flowbook.velocity import said_by


def from_edm(
    net: Callable[..., Any],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float | None = None,
    *,
    rho: float = 7.0,
    null: Null = None,
    **fixed: Any,
) -> ConvertedVelocity:
    r"""A denoiser of EDM or k-diffusion as a velocity on :class:`~flowbook.paths.VEPath`.

    Sampling starts from noise of standard deviation ``sigma_max``: ``velocity.path.source(shape).sample(n)``. Inside
    EDM's preconditioning (Karras et al. 2022, equation 7 and table 1) is another network, F:

    .. math:: D(x, \sigma) = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}\, x
              + \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}\,
              F\Big(\frac{x}{\sqrt{\sigma^2 + \sigma_d^2}},\, \tfrac14 \ln \sigma\Big)

    Args:
        net: ``net(x, sigma, y)``, the expected data in x = data + sigma noise, with sigma of shape (B,): EDM's
            networks, and k-diffusion's denoisers. A dict y becomes keyword arguments.
        sigma_min, sigma_max: the range of noise levels; at t = 1 the noise ``sigma_min`` is left.
        sigma_data: :math:`\sigma_d`, the standard deviation of the data (0.5 in EDM), if net is the network F inside;
            None takes net for the denoiser itself.
        rho: the spacing of noise levels in t. With 7 equal steps have the noise levels of EDM's sampler, and any solver
            will do. With 1 the time is linear in the noise level, so that Heun's method on
            ``karras_grid(n, path=velocity.path)`` is EDM's own to rounding, but for its last step to a noise level of
            0, with about a third of the error; equal steps are useless there.
        null: what stands for "no condition", for guidance; None asks net for its ``null``.
        fixed: further arguments of net.

    Returns:
        A velocity ``v(x, t, y=None)``.

    Raises:
        ValueError, TypeError: for invalid arguments.

    Example:
        >>> from flowbook.solvers import sample
        >>> v = from_edm(lambda x, sigma: torch.full_like(x, 3.0))  # a data set of one point
        >>> x0 = v.path.source((1,)).sample(5)
        >>> (sample(v, x0, method="heun", steps=18).x - 3).abs().max() < 0.1
        tensor(True)
    """
    path = VEPath(sigma_min, sigma_max, rho)
    return ConvertedVelocity(Denoiser(net, path, sigma_data, null, fixed), path, "data")


class Denoiser(nn.Module):
    """A function of state and noise level as one of state and time; made by :func:`from_edm`."""

    def __init__(
        self, net: Callable[..., Any], path: VEPath, sigma_data: float | None, null: Null, fixed: Mapping[str, Any]
    ):
        super().__init__()
        validate.function("net", net, "a denoiser")
        if sigma_data is not None:
            validate.number("sigma_data", sigma_data, 0, math.inf, low_open=True, high_open=True)
        self.net, self.path, self.sigma_data, self.fixed = net, path, sigma_data, dict(fixed)
        self.null = said_by(net, "null") if null is None else null
        self.num_classes, self.missing = said_by(net, "num_classes"), said_by(net, "missing")

    def forward(self, x: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        sigma = self.path.sigma(t).expand(len(x))
        if self.sigma_data is None:
            return self._net(x, sigma, y).to(x.dtype)
        s = sigma.reshape(-1, *[1] * (x.dim() - 1))
        total = torch.sqrt(s**2 + self.sigma_data**2)
        inner = self._net(x / total, torch.log(sigma) / 4, y).to(x.dtype)
        return (self.sigma_data / total) ** 2 * x + s * self.sigma_data / total * inner

    def _net(self, x: Tensor, sigma: Tensor, y: Condition) -> Tensor:
        if y is None:
            return tensor_in(self.net(x, sigma, **self.fixed))
        if isinstance(y, Mapping):
            return tensor_in(self.net(x, sigma, **y, **self.fixed))
        return tensor_in(self.net(x, sigma, y, **self.fixed))
