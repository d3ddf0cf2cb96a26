"""How far samples are from the data, how straight a flow is, and how good images are."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from flowbook import _validate
from flowbook._assignment import assign
from flowbook._model import Velocity, call, evaluating
from flowbook.solvers import solve

# Samples against samples ----------------------------------------------------------------------------------------------


def wasserstein2(a: Tensor, b: Tensor) -> float:
    """The 2-Wasserstein distance between two samples of equal size, exactly, by assignment.

    The distance itself, not its square, in the units of the data. Two draws of one distribution are not at distance 0:
    compare with that floor. O(n^3): seconds for n = 4,096.

    Args:
        a, b: shape (n, ...).

    Example:
        >>> wasserstein2(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]]))
        2.0
    """
    a, b = _samples("a", a), _samples("b", b)
    _validate.same_shape("b", b, "a", a)
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return math.sqrt(float(cost.gather(1, assign(cost)[:, None]).mean()))


def median_wasserstein2(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The median of :func:`wasserstein2` over several pairs of samples, computed side by side in threads.

    Args:
        first, second: as many samples each, shapes (n, ...).

    Example:
        >>> x = torch.zeros(4, 1)
        >>> median_wasserstein2([x, x, x], [x + 1.0, x + 2.0, x + 9.0])
        2.0
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"second: expected as many samples as first, at least 1; got {len(first)} and {len(second)}")
    # SciPy's assignment lets other threads run; each keeps to one core, and torch gets its threads back afterwards.
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return statistics.median(pool.map(wasserstein2, first, second))
    finally:
        torch.set_num_threads(threads)


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, generator: torch.Generator | None = None) -> float:
    """The sliced 2-Wasserstein distance: root mean square over random directions (Bonneel et al. 2015).

    O(n log n) for each direction, so it serves where :func:`wasserstein2` is too slow. Never larger than it.

    Args:
        a, b: shape (n, ...), equal sizes.
        projections: number of directions.

    Example:
        >>> x = torch.zeros(4, 1)
        >>> sliced_wasserstein(x, x + 2.0)
        2.0
    """
    a, b = _samples("a", a), _samples("b", b)
    _validate.same_shape("b", b, "a", a)
    _validate.positive_int("projections", projections)
    _validate.generator(generator)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    gaps = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    return math.sqrt(float(gaps.square().mean()))


def mmd(a: Tensor, b: Tensor, bandwidth: float | None = None) -> float:
    """The squared maximum mean discrepancy with a Gaussian kernel, unbiased (Gretton et al. 2012, equation 3).

    Zero in the mean for two draws of one distribution, so single values may be negative.

    Args:
        a, b: shape (n, ...) and (m, ...).
        bandwidth: the kernel's standard deviation; None takes the median distance of the pooled samples.

    Example:
        >>> x = torch.linspace(0, 1, 100)[:, None]
        >>> mmd(x, x + 5.0) > 0.5
        True
    """
    a, b = _samples("a", a), _samples("b", b)
    _same_dimension("b", b, "a", a)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a, b: expected at least 2 samples each; got {len(a)} and {len(b)}")
    if bandwidth is None:
        pooled = torch.cat([a, b])
        bandwidth = float(torch.pdist(pooled[torch.randperm(len(pooled), generator=_fixed())[:1000]]).median())
        if bandwidth == 0:
            raise ValueError(
                "bandwidth: the median distance of a and b is 0, since most of their samples are equal; expected "
                "samples that differ, or a bandwidth of your own"
            )
    _validate.number("bandwidth", bandwidth, 0, math.inf, low_open=True)

    middle = torch.cat([a, b]).mean(0)  # far from the origin distances by matrix products lose their digits
    a, b = a - middle, b - middle

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(u, v).square() / (2 * bandwidth**2))

    within_a = (kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))
    within_b = (kernel(b, b).sum() - len(b)) / (len(b) * (len(b) - 1))
    return float(within_a + within_b - 2 * kernel(a, b).mean())


# Flows ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def path_energy(velocity: Velocity, x0: Tensor, *, steps: int = 100, y: Tensor | None = None) -> float:
    r"""The kinetic energy of the flow, :math:`\int_0^1 E\|v(x_t, t)\|^2 dt`, summed over dimensions.

    Along Euler's own trajectory with ``steps`` steps. It is at least the squared 2-Wasserstein distance between its two
    ends, with equality for optimal transport (Benamou and Brenier 2000).

    Example:
        >>> path_energy(lambda x, t: torch.ones_like(x), torch.zeros(8, 2), steps=4)
        2.0
    """
    speeds = [v.flatten(1).square().sum(1).mean() for v, _ in _walk(velocity, x0, steps, y)[0]]
    return float(torch.stack(speeds).mean())


def normalised_path_energy(
    velocity: Velocity, x0: Tensor, x1: Tensor, *, steps: int = 100, y: Tensor | None = None
) -> float:
    r"""How much more than necessary the flow moves, :math:`|\text{energy} - W_2^2| / W_2^2`; 0 for optimal transport.

    The normalised path energy of Tong et al. 2024. :math:`W_2` is that of the two samples, which is larger than that
    of their distributions: from 256 independent samples of each side of an optimal flow, a shift by 2, it is up to 0.2
    in 2 dimensions, 0.5 in 8 and nearly 1 in 64. So it is for few dimensions, and for comparisons at one n.

    Args:
        x0: noise, shape (n, ...).
        x1: as many data samples, shape (n, ...), not the same as x0.

    Example:
        >>> x0 = torch.randn(64, 2)
        >>> normalised_path_energy(lambda x, t: torch.ones_like(x), x0, x0 + 1.0, steps=4) < 1e-6
        True
    """
    squared = wasserstein2(x0, x1) ** 2
    if squared == 0:
        raise ValueError("x1: expected samples at some distance from x0; got the same ones, and the energy is over 0")
    return abs(path_energy(velocity, x0, steps=steps, y=y) - squared) / squared


@torch.no_grad()
def straightness(velocity: Velocity, x0: Tensor, *, steps: int, y: Tensor | None = None) -> float:
    r"""How far trajectories are from straight, :math:`\int_0^1 E\|(X_1 - X_0) - v(X_t, t)\|^2 dt`; 0 if they are.

    Summed over dimensions, along Euler's trajectory with ``steps`` steps (Liu et al. 2023, equation 3).

    Example:
        >>> straightness(lambda x, t: torch.ones_like(x), torch.zeros(8, 2), steps=4)
        0.0
    """
    walked, end = _walk(velocity, x0, steps, y)
    gaps = [(end - x0 - v).flatten(1).square().sum(1).mean() for v, _ in walked]
    return float(torch.stack(gaps).mean())


def transport_cost(x0: Tensor, x1: Tensor, *, power: float = 2.0) -> float:
    r"""What it costs to carry the noise of each pair to its data, :math:`E\|x_1 - x_0\|^p`.

    The norm is over all dimensions. An exact round of Reflow raises it for no p >= 1, the same round for all of them
    (Liu et al. 2023).

    Args:
        x0, x1: the two ends of pairs, shape (n, ...).
        power: p.

    Example:
        >>> transport_cost(torch.zeros(3, 2), torch.ones(3, 2))
        2.0
    """
    _validate.float_tensor("x0", x0, min_dim=2, finite=True)
    _validate.float_tensor("x1", x1, min_dim=2, finite=True)
    _validate.same_shape("x1", x1, "x0", x0)
    _validate.number("power", power, 0, float("inf"), low_open=True, high_open=True)
    squares = (x1.double() - x0.double()).flatten(1).square().sum(1)
    return float((squares ** (power / 2)).mean())


@torch.no_grad()
def curvature(velocity: Velocity, x0: Tensor, *, steps: int, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Where on their way trajectories bend or change speed, :math:`E\|\frac{d}{dt} v(X_t, t)\|^2` over t.

    Summed over dimensions, by differences along rk4's trajectory. It is 0 where paths are straight and even.

    Args:
        velocity: ``v(x, t, y=None)``.
        x0: noise, shape (B, ...).
        steps: intervals of [0, 1], of which each has a value.
        y: labels, shape (B,).

    Returns:
        The middle of each interval and the value there, both (steps,).

    Example:
        >>> curvature(lambda x, t: 3 * t * torch.ones_like(x), torch.zeros(8, 2), steps=2)
        (tensor([0.2500, 0.7500]), tensor([18., 18.]))
    """
    _validate.positive_int("steps", steps)
    grid = [n / steps for n in range(steps + 1)]
    solution = solve(velocity, x0, y=y, method="rk4", steps=steps, save_at=grid)
    assert solution.trajectory is not None
    with evaluating(velocity):
        v = [call(velocity, x, t, y) for x, t in zip(solution.trajectory, solution.times, strict=True)]
    changes = [(after - before).flatten(1).mul(steps).square().sum(1).mean() for before, after in itertools.pairwise(v)]
    return (solution.times[1:] + solution.times[:-1]) / 2, torch.stack(changes)


def _walk(velocity: Velocity, x0: Tensor, steps: int, y: Tensor | None) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Euler's velocities and states, and the end."""
    _validate.float_tensor("x0", x0, min_dim=1, finite=True)
    _validate.positive_int("steps", steps)
    if y is not None:
        _validate.labels("y", y, len(x0))
    walked, x = [], x0
    with evaluating(velocity):
        for n in range(steps):
            v = call(velocity, x, torch.tensor(n / steps, dtype=x.dtype, device=x.device), y)
            _validate.velocity_like(v, x)
            walked.append((v, x))
            x = x + v / steps
    return walked, x


# Images ---------------------------------------------------------------------------------------------------------------


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""The squared Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

    .. math:: \|\mu_a - \mu_b\|^2 + \operatorname{tr}\big(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2}\big)

    Biased upward for small sets, so compare equal numbers only. Squared, as the literature's FID is.

    Args:
        a, b: features, shapes (n, F) and (m, F), with n, m > F.

    Example:
        >>> x = torch.randn(1000, 4)
        >>> abs(frechet_distance(x, x + 1.0) - 4.0) < 1e-3
        True
    """
    return frechet_from_moments(moments(a), moments(b))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and covariance (F, F) of features (n, F), in float64.

    Example:
        >>> mean, covariance = moments(torch.randn(10, 3))
        >>> mean.shape, covariance.shape
        (torch.Size([3]), torch.Size([3, 3]))
    """
    features = _samples("features", features)
    if len(features) <= features.shape[1]:
        raise ValueError(f"features: expected more samples than the {features.shape[1]} features; got {len(features)}")
    return features.mean(0), torch.cov(features.T)


def frechet_from_moments(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """:func:`frechet_distance` from stored means and covariances."""
    (mean_a, cov_a), (mean_b, cov_b) = ((m.double(), c.double().reshape(len(m), len(m))) for m, c in (a, b))
    _validate.same_shape("b", mean_b, "a", mean_a)
    for name, moments in (("a", (mean_a, cov_a)), ("b", (mean_b, cov_b))):
        for part in moments:
            _validate.float_tensor(name, part, finite=True)
    # tr (A B)^(1/2) = the sum of the square roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    products = torch.linalg.eigvalsh(root @ cov_b @ root)
    products = products * (products > len(products) * torch.finfo(products.dtype).eps * products.max())  # not rounding
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * products.sqrt().sum()
    return float(distance.clamp_min(0.0))


def nearest_neighbours(x: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean distance of each sample to its nearest data point, and that point's index, both (n,).

    Example:
        >>> distance, index = nearest_neighbours(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]))
        >>> int(index)
        1
    """
    x, data = _samples("x", x), _samples("data", data)
    _same_dimension("data", data, "x", x)
    middle = data.mean(0)  # far from the origin distances by matrix products lose their digits
    distances = torch.cdist(x - middle, data - middle)
    nearest = distances.min(dim=1)
    return nearest.values, nearest.indices


def inception_fid(feature: int | torch.nn.Module = 2048) -> torch.nn.Module:
    """torchmetrics' FrechetInceptionDistance, for images in [0, 1]; its weights come from a download of its own.

    Args:
        feature: the layer of Inception, or a module that maps images to features.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric: torch.nn.Module = FrechetInceptionDistance(feature=feature, normalize=True)
    return metric


def _samples(name: str, x: Tensor) -> Tensor:
    """(n, ...) -> (n, D) in float64 on the CPU."""
    _validate.float_tensor(name, x, min_dim=2, finite=True)
    if x.numel() == 0:
        raise ValueError(f"{name}: expected at least one sample; got shape {tuple(x.shape)}")
    return x.detach().flatten(1).double().cpu()


def _same_dimension(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name}: expected samples of the dimension of {other_name}, {other.shape[1]}; got {x.shape[1]}"
        )


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)
