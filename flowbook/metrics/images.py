"""The quality of images, by the statistics of their features."""

from __future__ import annotations

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.metrics.distances import samples_as_rows

Moments = tuple[Tensor, Tensor]
"""Mean (F,) and covariance (F, F) of features."""


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""The squared Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

    .. math:: \|\mu_a - \mu_b\|^2 + \operatorname{tr}\big(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2}\big)

    Biased upward for small sets, so compare sets of equal size only. Squared, like the FID of the literature.

    Args:
        a, b: features, shapes (n, F) and (m, F), with n, m > F.

    Example:
        >>> x = torch.randn(1000, 4)
        >>> abs(frechet_distance(x, x + 1.0) - 4.0) < 1e-3
        True
    """
    return frechet_from_moments(moments(a), moments(b))


def moments(features: Tensor) -> Moments:
    """Mean (F,) and covariance (F, F) of features (n, F), in float64.

    Example:
        >>> mean, covariance = moments(torch.randn(10, 3))
        >>> mean.shape, covariance.shape
        (torch.Size([3]), torch.Size([3, 3]))
    """
    features = samples_as_rows("features", features)
    if len(features) <= features.shape[1]:
        raise ValueError(f"features: expected more samples than the {features.shape[1]} features; got {len(features)}")
    return features.mean(0), torch.cov(features.T)


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """:func:`frechet_distance` from stored means and covariances."""
    (mean_a, cov_a), (mean_b, cov_b) = ((m.cpu().double(), c.cpu().double().reshape(len(m), len(m))) for m, c in (a, b))
    validate.same_shape("b", mean_b, "a", mean_a)
    for name, parts in (("a", (mean_a, cov_a)), ("b", (mean_b, cov_b))):
        for part in parts:
            validate.float_tensor(name, part, finite=True)
    # tr (A B)^(1/2) = the sum of the square roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    products = torch.linalg.eigvalsh(root @ cov_b @ root)
    products = products * (products > len(products) * torch.finfo(products.dtype).eps * products.max())  # no rounding
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * products.sqrt().sum()
    return float(distance.clamp_min(0.0))


def inception_fid(feature: int | torch.nn.Module = 2048) -> torch.nn.Module:
    """torchmetrics' FrechetInceptionDistance, for images in [0, 1]; it downloads its own weights.

    Args:
        feature: the layer of Inception, or a module that maps images to features.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric: torch.nn.Module = FrechetInceptionDistance(feature=feature, normalize=True)
    return metric
