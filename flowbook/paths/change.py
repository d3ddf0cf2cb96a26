"""The same model on another path: its states differ by a factor and by the time at which they are reached."""

from __future__ import annotations

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.times import widest_dtype
from flowbook.condition import Condition
from flowbook.paths.conversion import ConvertedVelocity, path_of
from flowbook.paths.noise_level import crossing
from flowbook.paths.path import Path
from flowbook.paths.standard import LinearPath
from flowbook.velocity import Velocity, Wrapper, call, check_order


def expected_parts(
    velocity: Velocity, x: Tensor, alpha: Tensor, sigma: Tensor, y: Condition = None
) -> tuple[Tensor, Tensor]:
    """The expected data and noise in ``x = alpha * data + sigma * noise``, by a velocity on any path.

    Two paths pass through the same noise levels. Where they are equal, their states differ by a factor alone. A noise
    level that the velocity's own path does not have is replaced by the nearest one that it has.

    Args:
        velocity: any velocity; its path is :func:`path_of` it.
        x: the state, shape (B, ...).
        alpha, sigma: its coefficients, () or (B,), float64 where the device has it.
        y: the condition.

    Returns:
        Two tensors like x.

    Example:
        >>> still = lambda x, t: torch.zeros_like(x)  # on the linear path: data = noise = x
        >>> expected_parts(still, torch.ones(1, 1), torch.tensor(2.0), torch.tensor(1.0))
        (tensor([[0.3333]]), tensor([[0.3333]]))
    """
    own = path_of(velocity)
    t = crossing(own, sigma / alpha).clamp(*own.t_range)
    # Of the two equal ratios that of the larger numbers, which stays right where t is clamped.
    factor = torch.where(sigma > alpha, own.sigma(t) / sigma, own.alpha(t) / alpha)
    x, t = _column(factor, x) * x, t.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(velocity, ConvertedVelocity):
        value, source = velocity.predict(x, t, y), velocity.prediction
    else:
        value, source = call(velocity, x, t, y), "velocity"
    data, noise = (own.convert(value, x, t, source=source, target=part) for part in ("data", "noise"))
    return data, noise


class ChangedPath(Wrapper):
    """A velocity on another path than its own; made by :func:`change_path`."""

    def __init__(self, velocity: Velocity, path: Path):
        super().__init__()
        self.velocity, self.path = velocity, path

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        validate.time("t", t, len(x))
        exact = widest_dtype(x.device)
        t = torch.as_tensor(t, device=x.device).to(exact).clamp(0, self.path.last_velocity_time)
        data, noise = expected_parts(self.velocity, x, self.path.alpha(t), self.path.sigma(t), y)
        return _column(self.path.alpha_dot(t), x) * data + _column(self.path.sigma_dot(t), x) * noise


def change_path(velocity: Velocity, to: Path = LinearPath()) -> ChangedPath:  # noqa: B008 (frozen)
    r"""The velocity of the same model on another path, with the same data and, as source, the other path's noise.

    Two paths pass through the same noise levels :math:`\sigma / \alpha`. Where they are equal,
    :math:`\sigma(u) / \alpha(u) = \sigma'(t) / \alpha'(t)`, the state of one is a multiple of the other's, and the
    expected data d and noise :math:`\epsilon` are the same, so that

    .. math:: v'(x, t) = \dot\alpha'(t)\, d + \dot\sigma'(t)\, \epsilon
              \quad\text{at}\quad \frac{\alpha(u)}{\alpha'(t)}\, x

    (Lipman et al. 2024, section 4.6). Latents differ by a factor alone. Reflow and distillation are for the straight
    path, onto which they change the velocity of a diffusion model first: its own velocity, near noise, points nowhere
    near the data.

    Args:
        velocity: any velocity; its path is :func:`path_of` it.
        to: the new path.

    Returns:
        A module ``v(x, t, y=None)``. Noise levels that the old path does not have are replaced by its nearest ones:
        what it leaves as noise at t = 1, it also leaves here.

    Raises:
        TypeError: for a velocity that cannot be called, and for something else than a path.

    Example:
        >>> from flowbook.analytic import GaussianMixture
        >>> from flowbook.paths import CosinePath, as_velocity
        >>> mixture = GaussianMixture([[2.0]], [0.5])
        >>> model = as_velocity(lambda x, t: mixture.denoised(x, t, CosinePath()), CosinePath(), prediction="data")
        >>> x, t = torch.ones(1, 1), torch.tensor(0.3)
        >>> torch.allclose(change_path(model)(x, t), mixture.velocity(x, t, LinearPath()), atol=1e-5)
        True
    """
    validate.function("velocity", velocity, "a network")
    check_order(velocity)
    validate.instance("to", to, Path, "LinearPath()")
    return ChangedPath(velocity, to)


def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
