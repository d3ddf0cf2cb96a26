r"""The noise level of a path, :math:`\\sigma(t) / \\alpha(t)`, and the times at which it has given values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.times import in_float64, tensor_of
from flowbook.paths.path import Path
from flowbook.paths.standard import VEPath


def time_of_noise(path: Path, noise_std: Tensor | float) -> Tensor:
    """The time at which the path has the noise level sigma(t) / alpha(t) = noise_std, in float64.

    Args:
        path: any path; its noise level decreases with t.
        noise_std: one number, or a tensor of any shape.

    Raises:
        ValueError: for a noise level that the path does not reach.

    Example:
        >>> from flowbook.paths import LinearPath
        >>> time_of_noise(LinearPath(), 3.0)
        tensor(0.2500, dtype=torch.float64)
    """
    validate.instance("path", path, Path, "LinearPath()")
    s = in_float64(noise_std) if isinstance(noise_std, Tensor) else tensor_of(noise_std)
    low, high = torch.zeros_like(s), torch.ones_like(s)
    # A path's noise level at t = 1 is often given with a few digits: 0.01 for the 0.010001 of a schedule.
    above, below = (path.sigma(t) * slack / (1 + s) for t, slack in ((low, 1e-6), (high, 1e-3)))
    if not bool(((_excess(path, low, s) >= -above) & (_excess(path, high, s) <= below)).all()):
        first, last = (float(path.sigma(end) / path.alpha(end)) for end in (0.0, 1.0))
        raise ValueError(
            f"noise_std: {path!r} has noise levels from {last:.4g} to {first:.4g}; got "
            f"{float(s.min()):.4g} to {float(s.max()):.4g}"
        )
    return crossing(path, s)


def crossing(path: Path, noise_std: Tensor) -> Tensor:
    """As :func:`time_of_noise`, but 0 above the path's noise levels and 1 below; without a look at the values.

    Args:
        path: any path.
        noise_std: float64, or float32 on a device without it; may be infinite.

    Example:
        >>> from flowbook.paths import LinearPath
        >>> crossing(LinearPath(), torch.tensor([float("inf"), 1.0, 0.0])).round(decimals=6)
        tensor([0.0000, 0.5000, 1.0000])
    """
    low, high = torch.zeros_like(noise_std), torch.ones_like(noise_std)
    for _ in range(54 if noise_std.dtype == torch.float64 else 25):  # the bits of the number
        middle = 0.5 * (low + high)
        above = _excess(path, middle, noise_std) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


def _excess(path: Path, t: Tensor, noise_std: Tensor) -> Tensor:
    """Of the path's noise over the wanted one, without a division by alpha(0) = 0."""
    return path.sigma(t) / (1 + noise_std) - path.alpha(t) * (noise_std / (1 + noise_std)).nan_to_num(1.0)


def karras_grid(
    n: int,
    rho: float = 7.0,
    *,
    path: Path = VEPath(),  # noqa: B008 (frozen)
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> tuple[float, ...]:
    r"""The times of n steps whose noise levels are spaced as EDM's (Karras et al. 2022, equation 5).

    .. math:: \sigma_i = \Big(\sigma_{\max}^{1/\rho}
              + \tfrac{i}{n} \big(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho}\big)\Big)^\rho,
              \qquad i = 0, \dots, n

    Args:
        n: the number of steps. EDM counts the levels, n + 1, and adds a last step from the smallest one to 0.
        rho: 7 makes the steps near the data much shorter; 1 spaces the levels evenly.
        path: the path of the velocity, :func:`path_of` it; its noise level is sigma(t) / alpha(t). On VEPath(), which
            is spaced in this way, the times are equally spaced.
        sigma_min, sigma_max: the smallest and the largest level; None are those of the path. A path whose levels reach
            from infinity to 0, such as LinearPath, needs both; the grid then has two more steps, from t = 0 and to 1.

    Returns:
        n + 1 times (or n + 3) from 0 to 1, for ``grid``.

    Raises:
        ValueError: for levels that the path does not have, or that are not finite and positive.

    Example:
        >>> [round(t, 3) for t in karras_grid(4)], [round(t, 3) for t in karras_grid(4, path=VEPath(rho=1.0))]
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.781, 0.969, 0.998, 1.0])
    """
    validate.positive_int("n", n)
    validate.number("rho", rho, 0, math.inf, low_open=True, high_open=True)
    validate.instance("path", path, Path, "VEPath()")
    levels = []
    for name, given, end in (("sigma_max", sigma_max, 0.0), ("sigma_min", sigma_min, 1.0)):
        alpha, sigma = float(path.alpha(end)), float(path.sigma(end))
        level = given if given is not None else (sigma / alpha if alpha > 0 else math.inf)
        validate.number(name, level, 0, math.inf, low_open=True, high_open=True)
        levels.append(float(level))
    first, last = (level ** (1 / rho) for level in levels)
    spaced = torch.linspace(0, 1, n + 1, dtype=torch.float64, device="cpu") * (last - first) + first
    times = time_of_noise(path, (spaced**rho).clamp(levels[1], levels[0])).tolist()
    return (0.0, *(t for t in times if 1e-9 < t < 1 - 1e-9), 1.0)
