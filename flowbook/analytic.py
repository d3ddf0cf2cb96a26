r"""The ground truth of the book: Gaussian mixtures, in closed form along any path.

With data from :math:`\sum_k w_k N(\mu_k, s_k^2 I)` and noise from N(0, I), the state
:math:`x_t = \alpha x_1 + \sigma x_0` is again a mixture, with means :math:`\alpha\mu_k` and variances
:math:`\alpha^2 s_k^2 + \sigma^2`. Its density, score, velocity and denoiser follow by conditioning Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.draws import origin
from flowbook._core.times import in_float64
from flowbook.paths import Path


class GaussianMixture:
    """A mixture of isotropic Gaussians.

    Args:
        means: (K, D).
        stds: (K,) or one number for all, positive.
        weights: (K,), positive; they are normalized. Equal when None.

    Parameters are kept in float64 and cast to the dtype of the argument. Labels ``y`` (B,), where a method takes them,
    are component indices: the result is conditioned on the data coming from component y.

    Example:
        >>> mixture = GaussianMixture([[0.0, 0.0]], [1.0], [1.0])
        >>> round(float(mixture.log_prob(torch.zeros(1, 2))), 4)
        -1.8379
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        stds: Tensor | Sequence[float] | float,
        weights: Tensor | Sequence[float] | None = None,
    ):
        self.means = _in_float64(means).clone()
        if self.means.dim() != 2:
            raise ValueError(f"means: expected shape (K, D); got {tuple(self.means.shape)}")
        components = len(self.means)
        self.stds = _in_float64(stds)
        if self.stds.shape not in ((), (components,)):
            raise ValueError(f"stds: expected one for each of {components} means; got {tuple(self.stds.shape)}")
        self.stds = self.stds.expand(components).clone()
        self.weights = torch.ones_like(self.stds) if weights is None else _in_float64(weights)
        if self.weights.shape != (components,):
            raise ValueError(f"weights: expected one for each of {components} means; got {tuple(self.weights.shape)}")
        for name in ("means", "stds", "weights"):
            validate.float_tensor(name, getattr(self, name), finite=True)
        for name in ("stds", "weights"):
            if not bool((getattr(self, name) > 0).all()):
                raise ValueError(f"{name}: expected positive numbers; got {getattr(self, name).tolist()}")
        self.weights = self.weights / self.weights.sum()

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, shape (n, D), in torch's default dtype."""
        return self.sample_labeled(n, generator)[0]

    def sample_labeled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n points and the component each came from, shapes (n, D) and (n,)."""
        validate.positive_int("n", n)
        validate.generator(generator)
        device = origin(generator)
        y = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, device=device)
        x = self.means.to(noise)[y] + self.stds.to(noise)[y, None] * noise
        return x, y

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density in nats, shape (B,)."""
        self._check(x)
        return _log_mixture(x, self.means.to(x), self.stds.to(x) ** 2, self.weights.to(x))

    def entropy(self, n: int = 1_000_000, generator: torch.Generator | None = None) -> float:
        """The entropy in nats: in closed form for one Gaussian, else the mean of -log p over n draws.

        The standard error is about sqrt(D / (2 n)) nats in D dimensions: 0.001 for the default in two.
        """
        if len(self.means) == 1:
            return self.dim * (0.5 * math.log(2 * math.pi * math.e) + math.log(float(self.stds[0])))
        x = self.sample(n, generator).double()
        return -float(self.log_prob(x).mean())

    def marginal_log_prob(self, x: Tensor, t: Tensor | float, path: Path, y: Tensor | None = None) -> Tensor:
        """The log-density of xt in nats, shape (B,)."""
        means, variances, log_weights = self._marginal(x, t, path, y)
        return torch.logsumexp(_log_components(x, means, variances) + log_weights, dim=1)

    def score(self, x: Tensor, t: Tensor | float, path: Path, y: Tensor | None = None) -> Tensor:
        """The gradient of the marginal log-density, shape (B, D)."""
        means, variances, log_weights = self._marginal(x, t, path, y)
        posterior = torch.softmax(_log_components(x, means, variances) + log_weights, dim=1)
        pulls = (means - x[:, None]) / variances[..., None]
        return (posterior[..., None] * pulls).sum(1)

    def denoised(self, x: Tensor, t: Tensor | float, path: Path, y: Tensor | None = None) -> Tensor:
        r"""The posterior mean of the data, :math:`E[x_1 \mid x_t = x]`, shape (B, D)."""
        alpha = _column(path.alpha, t, x)
        gain = alpha * self.stds.to(x) ** 2
        return self._posterior_average(x, t, path, y, lambda pulled: self.means.to(x) + gain[..., None] * pulled)

    def velocity(self, x: Tensor, t: Tensor | float, path: Path, y: Tensor | None = None) -> Tensor:
        r"""The marginal velocity :math:`E[\dot\alpha x_1 + \dot\sigma x_0 \mid x_t = x]`, shape (B, D).

        Finite for all t in [0, 1], including VPPath at t = 1: sigma_dot enters only as sigma * sigma_dot.
        """
        alpha, alpha_dot = _column(path.alpha, t, x), _column(path.alpha_dot, t, x)
        gain = alpha * alpha_dot * self.stds.to(x) ** 2 + _column(path.sigma_sigma_dot, t, x)
        drift = alpha_dot[..., None] * self.means.to(x)
        return self._posterior_average(x, t, path, y, lambda pulled: drift + gain[..., None] * pulled)

    def as_velocity(self, path: Path) -> Callable[..., Tensor]:
        """The marginal velocity as ``v(x, t, y=None)``, for every function that takes a velocity.

        Example:
            >>> from flowbook.paths import LinearPath
            >>> two_gaussians().as_velocity(LinearPath())(torch.zeros(1, 2), 0.5).abs().sum() < 1e-6
            tensor(True)
        """

        validate.instance("path", path, Path, "LinearPath()")

        def velocity(x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
            return self.velocity(x, t, path, y)

        velocity.path = path  # type: ignore[attr-defined]  # known to what needs it
        return velocity

    def _posterior_average(
        self, x: Tensor, t: Tensor | float, path: Path, y: Tensor | None, value: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The posterior average over components of a value that is linear in (x - mean) / variance, (B, K, D)."""
        means, variances, log_weights = self._marginal(x, t, path, y)
        posterior = torch.softmax(_log_components(x, means, variances) + log_weights, dim=1)
        return (posterior[..., None] * value((x[:, None] - means) / variances[..., None])).sum(1)

    def _marginal(self, x: Tensor, t: Tensor | float, path: Path, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Means (B or 1, K, D), variances (B or 1, K) and log-weights (B or 1, K) of xt."""
        self._check(x)
        validate.time("t", t, len(x))
        alpha, sigma = _column(path.alpha, t, x), _column(path.sigma, t, x)
        log_weights = self.weights.to(x).log()[None]
        if y is not None:
            validate.labels("y", y, len(x), classes=len(self.means))
            own = torch.nn.functional.one_hot(y, len(self.means)).bool()
            log_weights = torch.where(own, 0.0, -torch.inf).to(x)
        return alpha[..., None] * self.means.to(x), alpha**2 * self.stds.to(x) ** 2 + sigma**2, log_weights

    def _check(self, x: Tensor) -> None:
        validate.float_tensor("x", x)
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x: expected shape (B, {self.dim}); got {tuple(x.shape)}")


def two_gaussians(distance: float = 4.0, std: float = 1.0) -> GaussianMixture:
    """Two equal Gaussians at (-distance, 0) and (distance, 0)."""
    validate.finite("distance", distance)
    validate.number("std", std, 0, math.inf, low_open=True)
    return GaussianMixture([[-distance, 0.0], [distance, 0.0]], std)


def eight_gaussians(radius: float = 5.0, std: float = math.sqrt(0.1)) -> GaussianMixture:
    """Eight equal Gaussians on a circle (the default radius and variance are from torchcfm's tutorial)."""
    validate.finite("radius", radius)
    validate.number("std", std, 0, math.inf, low_open=True)
    angles = [2 * math.pi * k / 8 for k in range(8)]
    return GaussianMixture([[radius * math.cos(a), radius * math.sin(a)] for a in angles], std)


def _in_float64(values: Any) -> Tensor:
    """Numbers on the CPU; a tensor stays where it is, if float64 is possible there."""
    if isinstance(values, Tensor):
        return in_float64(values)
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def _column(function: Callable[[Tensor], Tensor], t: Tensor | float, x: Tensor) -> Tensor:
    """A coefficient of the path at t, shape (1, 1) or (B, 1)."""
    value = function(torch.as_tensor(t, dtype=x.dtype, device=x.device))
    return value.reshape(-1, 1)


def _log_components(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """log N(x; mean_k, variance_k I), shape (B, K)."""
    squared = (x[:, None] - means).square().sum(-1)
    return -0.5 * (squared / variances + x.shape[1] * torch.log(2 * math.pi * variances))


def _log_mixture(x: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    return torch.logsumexp(_log_components(x, means[None], variances[None]) + weights.log(), dim=1)
