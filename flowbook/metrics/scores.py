"""Scores of generated images: do samples show the requested class, and are they distributed like the data?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.guidance import guided
from flowbook.metrics.images import Moments, frechet_from_moments, moments
from flowbook.models import Classifier, features_and_labels
from flowbook.solvers import Solver, SolverOptions, as_solver, sample
from flowbook.velocity import Velocity, device_of, dtype_of


@dataclass(frozen=True)
class ImageScores:
    """What :func:`score_images` returns."""

    class_accuracy: float
    """Fraction of the images that the judge assigns to the requested label."""
    frechet: float
    """Squared Frechet distance to the reference, in the judge's features; compare equal numbers of images only."""


@dataclass(frozen=True)
class Scores(ImageScores):
    """What :func:`score_velocity` returns: the scores of its samples, with what they depend on."""

    samples: int
    """The number of images."""
    nfe: float
    """Model calls for each sample, where a guided evaluation counts two; an adaptive method's batches are averaged."""
    guidance: float
    """Scale of classifier-free guidance."""
    solver: str
    """The :class:`~flowbook.solvers.Solver` as a string."""
    seed: int
    """The seed of the noise."""


@torch.no_grad()
def score_images(images: Tensor, labels: Tensor, judge: Classifier, reference: Moments) -> ImageScores:
    """Class accuracy and Frechet distance of given images.

    Args:
        images: (n, C, H, W) in [-1, 1]; clipped to this range, as a viewer would.
        labels: (n,), the requested labels.
        judge: a trained classifier.
        reference: mean and covariance of real images' features, see :func:`flowbook.models.load_moments`.

    Example:
        >>> from flowbook import models
        >>> judge, reference = models.load_classifier("mnist"), models.load_moments("mnist")["test"]
        >>> scores = score_images(torch.zeros(100, 1, 28, 28), torch.arange(100) % 10, judge, reference)
        >>> round(scores.class_accuracy, 3), scores.frechet > 10
        (0.1, True)
    """
    validate.labels("labels", labels, len(images), classes=judge.num_classes)
    features, seen = features_and_labels(judge, images.clamp(-1, 1))
    accuracy = float((seen == labels).float().mean())
    return ImageScores(accuracy, frechet_from_moments(moments(features), reference))


def labels_like(class_counts: Sequence[int], n: int) -> Tensor:
    """n labels in the proportions of ``class_counts``, up to rounding, in an order that mixes the classes.

    Example:
        >>> labels_like([1, 1, 2], 8).bincount()
        tensor([2, 2, 4])
    """
    validate.positive_int("n", n)
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device="cpu")
    if counts.dim() != 1 or not bool((counts >= 0).all()) or not float(counts.sum()) > 0:
        raise ValueError(f"class_counts: expected the count of each class, not all 0; got {class_counts}")
    # The j-th sample of label k is placed at (j + 1/2) / n_k: sorted, every stretch has all classes in proportion.
    share = counts / counts.sum() * n
    order = torch.arange(n, dtype=torch.float64, device="cpu")
    places = [(order + 0.5) / part if part > 0 else torch.full_like(order, 2.0 * n) for part in share]
    return torch.stack(places, dim=1).flatten().argsort(stable=True)[:n] % len(counts)


def score_velocity(
    velocity: Velocity,
    judge: Classifier,
    reference: Moments,
    *,
    n: int = 10_000,
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 500,
    class_counts: Sequence[int] | None = None,
    **solver: Unpack[SolverOptions],
) -> Scores:
    """Generate n images and score them.

    Args:
        velocity: a class-conditional velocity on images, called on its own device; its null label is
            ``judge.num_classes``.
        judge, reference: as in :func:`score_images`.
        n: number of images.
        guidance: scale of classifier-free guidance; 1 is none.
        seed: the seed of the noise.
        batch_size: images solved at once; it does not change the noise.
        class_counts: how often each class occurs in the training data; the requested labels have the same frequencies.
            None requests every class equally often, which the Frechet distance counts as an error where the data are
            not balanced.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields; by default 12 steps of midpoint.

    Returns:
        The :class:`Scores`.

    Raises:
        ValueError, TypeError: for invalid arguments.
    """
    validate.positive_int("n", n)
    validate.positive_int("batch_size", batch_size)
    chosen = as_solver(solver, default=Solver("midpoint", steps=12))
    generator = torch.Generator().manual_seed(seed)
    field = velocity if guidance == 1.0 else guided(velocity, guidance, judge.num_classes)
    labels = labels_like([1] * judge.num_classes if class_counts is None else class_counts, n)
    images, calls, device = [], 0, device_of(velocity)
    for part in labels.split(batch_size):
        x0 = torch.randn(len(part), judge.channels, judge.size, judge.size, generator=generator, device="cpu")
        solution = sample(field, x0.to(device=device, dtype=dtype_of(velocity)), y=part.to(device), solver=chosen)
        images.append(solution.x.cpu())
        calls += len(part) * solution.nfe
    found = score_images(torch.cat(images), labels, judge, reference)
    return Scores(found.class_accuracy, found.frechet, n, calls / n, guidance, str(chosen), seed)
