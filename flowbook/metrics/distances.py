"""Distances between two sets of samples."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.assignment import assign
from flowbook._core.draws import origin


def wasserstein2(a: Tensor, b: Tensor) -> float:
    """The exact 2-Wasserstein distance between two samples of equal size, by assignment.

    The distance itself, not its square, in the units of the data. Two samples of one
    distribution are a positive distance apart: compare with that floor. O(n^3): seconds for n = 4,096.

    Args:
        a, b: shape (n, ...).

    Example:
        >>> wasserstein2(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]]))
        2.0
    """
    a, b = samples_as_rows("a", a), samples_as_rows("b", b)
    validate.same_shape("b", b, "a", a)
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return math.sqrt(float(cost.gather(1, assign(cost)[:, None]).mean()))


def median_wasserstein2(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The median of :func:`wasserstein2` over several pairs of samples, computed in parallel threads.

    Args:
        first, second: sequences of equal length, of samples of shape (n, ...).

    Example:
        >>> x = torch.zeros(4, 1)
        >>> median_wasserstein2([x, x, x], [x + 1.0, x + 2.0, x + 9.0])
        2.0
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"second: expected as many samples as first, at least 1; got {len(first)} and {len(second)}")
    # SciPy's assignment releases the GIL; each thread uses one core, and torch's thread count is restored afterwards.
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return statistics.median(pool.map(wasserstein2, first, second))
    finally:
        torch.set_num_threads(threads)


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, generator: torch.Generator | None = None) -> float:
    """The sliced 2-Wasserstein distance: root mean square over random directions (Bonneel et al. 2015).

    O(n log n) for each direction, for samples where :func:`wasserstein2` is too slow. It never exceeds W2.

    Args:
        a, b: shape (n, ...), equal sizes.
        projections: number of directions.

    Example:
        >>> x = torch.zeros(4, 1)
        >>> sliced_wasserstein(x, x + 2.0)
        2.0
    """
    a, b = samples_as_rows("a", a), samples_as_rows("b", b)
    validate.same_shape("b", b, "a", a)
    validate.positive_int("projections", projections)
    validate.generator(generator)
    directions = torch.randn(
        a.shape[1], projections, generator=generator, dtype=torch.float64, device=origin(generator)
    ).cpu()
    directions = directions / directions.norm(dim=0)
    gaps = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    return math.sqrt(float(gaps.square().mean()))


def mmd(a: Tensor, b: Tensor, bandwidth: float | None = None) -> float:
    """The squared maximum mean discrepancy with a Gaussian kernel, unbiased (Gretton et al. 2012, equation 3).

    Zero in expectation for two draws of one distribution, so single values may be negative.

    Args:
        a, b: shape (n, ...) and (m, ...).
        bandwidth: the kernel's standard deviation; None takes the median distance of the pooled samples.

    Example:
        >>> x = torch.linspace(0, 1, 100)[:, None]
        >>> mmd(x, x + 5.0) > 0.5
        True
    """
    a, b = samples_as_rows("a", a), samples_as_rows("b", b)
    same_dimension("b", b, "a", a)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a, b: expected at least 2 samples each; got {len(a)} and {len(b)}")
    if bandwidth is None:
        pooled = torch.cat([a, b])
        bandwidth = float(
            torch.pdist(pooled[torch.randperm(len(pooled), generator=_fixed(), device="cpu")[:1000]]).median()
        )
        if bandwidth == 0:
            raise ValueError(
                "bandwidth: the median distance of a and b is 0, since most of their samples are equal; expected "
                "samples that differ, or an explicit bandwidth"
            )
    validate.number("bandwidth", bandwidth, 0, math.inf, low_open=True)

    middle = torch.cat([a, b]).mean(0)  # distances by matrix products lose their digits far from the origin
    a, b = a - middle, b - middle

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(u, v).square() / (2 * bandwidth**2))

    within_a = (kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))
    within_b = (kernel(b, b).sum() - len(b)) / (len(b) * (len(b) - 1))
    return float(within_a + within_b - 2 * kernel(a, b).mean())


def nearest_neighbors(x: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean distance of each sample to its nearest data point, and that point's index, both (n,).

    Example:
        >>> distance, index = nearest_neighbors(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]))
        >>> int(index)
        1
    """
    x, data = samples_as_rows("x", x), samples_as_rows("data", data)
    same_dimension("data", data, "x", x)
    middle = data.mean(0)  # distances by matrix products lose their digits far from the origin
    distances = torch.cdist(x - middle, data - middle)
    nearest = distances.min(dim=1)
    return nearest.values, nearest.indices


def samples_as_rows(name: str, x: Tensor) -> Tensor:
    """(n, ...) -> (n, D) in float64 on the CPU."""
    validate.float_tensor(name, x, min_dim=2, finite=True)
    if x.numel() == 0:
        raise ValueError(f"{name}: expected at least one sample; got shape {tuple(x.shape)}")
    return x.detach().flatten(1).cpu().double()


def same_dimension(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name}: expected samples of the dimension of {other_name}, {other.shape[1]}; got {x.shape[1]}"
        )


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)
