"""Scores of generated images: does a sample show what was asked for, and are samples spread as the data are?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowbook import _validate, keyed, metrics
from flowbook._model import Velocity, device_of
from flowbook.cnf import log_prob
from flowbook.dequantization import bits_per_dim, dequantize
from flowbook.flow_matching import guided
from flowbook.models.classifier import Classifier, features_and_labels
from flowbook.solvers import sample

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scores:
    """The scores of one set of samples, with what they depend on."""

    class_accuracy: float
    """Share of samples in which the judge sees the label that was asked for."""
    frechet: float
    """Squared Frechet distance to the reference, in the judge's features; compare equal ``samples`` only."""
    samples: int
    nfe: int
    """Model calls for each sample; a guided evaluation counts two."""
    guidance: float
    method: str
    steps: int | None
    seed: int


@torch.no_grad()
def score_images(images: Tensor, labels: Tensor, judge: Classifier, reference: Moments) -> tuple[float, float]:
    """Class accuracy and Frechet distance of given images.

    Args:
        images: (n, C, H, W) in [-1, 1]; clipped to it, as a viewer would.
        labels: (n,), what was asked for.
        judge: a trained classifier.
        reference: mean and covariance of real images' features, see :func:`flowbook.models.load_moments`.

    Example:
        >>> from flowbook import models
        >>> judge, reference = models.load_classifier("mnist"), models.load_moments("mnist")["test"]
        >>> accuracy, frechet = score_images(torch.zeros(100, 1, 28, 28), torch.arange(100) % 10, judge, reference)
        >>> accuracy, frechet > 10
        (0.10000000149011612, True)
    """
    _validate.labels("labels", labels, len(images), classes=judge.num_classes)
    features, seen = features_and_labels(judge, images.clamp(-1, 1))
    return float((seen == labels).float().mean()), metrics.frechet_from_moments(metrics.moments(features), reference)


def labels_like(class_counts: Sequence[int], n: int) -> Tensor:
    """n labels in the proportions of ``class_counts``, to the nearest label, in an order that mixes the classes.

    Example:
        >>> labels_like([1, 1, 2], 8).bincount()
        tensor([2, 2, 4])
    """
    _validate.positive_int("n", n)
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if counts.dim() != 1 or not bool((counts >= 0).all()) or not float(counts.sum()) > 0:
        raise ValueError(f"class_counts: expected how often each class occurs; got {class_counts}")
    # Label k's j-th sample stands at (j + 1/2) / n_k of the way: sorted, every stretch holds all classes in proportion.
    share = counts / counts.sum() * n
    places = [
        (torch.arange(n, dtype=torch.float64) + 0.5) / part if part > 0 else torch.full((n,), 2.0 * n) for part in share
    ]
    return torch.stack(places, dim=1).flatten().argsort(stable=True)[:n] % len(counts)


def score_velocity(
    velocity: Velocity, judge: Classifier, reference: Moments, *, n: int = 10_000, guidance: float = 1.0,
    method: str = "midpoint", steps: int | None = 12, seed: int = 0, batch_size: int = 500,
    class_counts: Sequence[int] | None = None,
) -> Scores:  # fmt: skip
    """Draw n images and score them.

    Args:
        velocity: a class-conditional velocity on images, called on its own device; its null label is
            ``judge.num_classes``.
        judge, reference: as in :func:`score_images`.
        guidance: scale of classifier-free guidance; 1 is none.
        method, steps: the solver.
        seed: of the noise.
        batch_size: images solved at once; it does not change the noise.
        class_counts: how often each class occurs in the training data; the labels asked for are as frequent. None asks
            for every class equally often, which the Frechet distance counts as an error where the data are not so.
    """
    _validate.positive_int("n", n)
    generator = torch.Generator().manual_seed(seed)
    field = velocity if guidance == 1.0 else guided(velocity, guidance, judge.num_classes)
    labels = labels_like([1] * judge.num_classes if class_counts is None else class_counts, n)
    images, nfe, device = [], 0, device_of(velocity)
    for part in labels.split(batch_size):
        x0 = torch.randn(len(part), judge.channels, judge.size, judge.size, generator=generator)
        solution = sample(field, x0.to(device), y=part.to(device), method=method, steps=steps)
        images.append(solution.x.cpu())
        nfe = solution.nfe
    accuracy, frechet = score_images(torch.cat(images), labels, judge, reference)
    return Scores(accuracy, frechet, n, nfe, guidance, method, steps, seed)


@torch.no_grad()
def bits_of_images(
    velocity: Velocity, images: Tensor, levels: int = 256, *, y: Tensor | None = None, method: str = "rk4",
    steps: int = 20, seed: int = 0, batch_size: int = 100,
) -> Tensor:  # fmt: skip
    """Bits per dimension of each image: one uniform dequantisation and one Hutchinson probe, drawn for the image.

    The mean is unbiased in the probe, and an upper bound of the bits of the grey levels in the dequantisation. Both
    draws depend on the seed and the image's place alone, not on ``batch_size``.

    Args:
        velocity: a velocity on images, trained on dequantised ones.
        images: (n, C, H, W), discrete values as :func:`~flowbook.dequantization.dequantize` takes them.
        levels: number of grey levels.
        y: labels, shape (n,); None scores a class-conditional model under its null label.
        method, steps: the solver.
        seed: of noise and probes.
        batch_size: images solved at once.

    Returns:
        Shape (n,). Their standard error counts images, dequantisation and probes alike.

    Example:
        >>> still = lambda x, t: torch.zeros_like(x)  # the density is that of N(0, I)
        >>> bits_of_images(still, torch.zeros(1, 1, 28, 28), levels=3, steps=1).round(decimals=1)
        tensor([1.9000])
    """
    _validate.positive_int("batch_size", batch_size)
    if y is not None:
        _validate.labels("y", y, len(images))
    bits = []
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        with keyed.keyed(seed, step=0, first=first):
            x = dequantize(images[part], levels)
            label = None if y is None else y[part]
            result = log_prob(velocity, x, y=label, trace="hutchinson", method=method, steps=steps)
        bits.append(bits_per_dim(result.log_prob, x[0].numel(), levels))
    return torch.cat(bits) if bits else images.new_zeros(0)
