r"""Anomaly scores (chapter 5): how unlike the training data a sample is, by four scores from one velocity.

No score is right for every anomaly. A high likelihood does not prove that a sample belongs to the data: smooth or empty
images have higher likelihoods than the training data (Nalisnick et al. 2019a). Compare the scores of two sets with
``sklearn.metrics.roc_auc_score``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.draws import normal_like
from flowbook.cnf import log_prob
from flowbook.condition import Condition
from flowbook.inversion.denoising import denoise
from flowbook.inversion.latents import invert
from flowbook.paths import Path
from flowbook.solvers import Solver, SolverOptions, as_solver
from flowbook.velocity import Velocity

Score = Literal["likelihood", "typicality", "latent_norm", "reconstruction"]
SCORES: tuple[Score, ...] = get_args(Score)
_SOLVER = tuple(SolverOptions.__annotations__)
_DENSITY = (*_SOLVER, "trace", "probes", "generator", "source", "nodes", "mode")
OPTIONS: dict[Score, tuple[str, ...]] = {
    "likelihood": _DENSITY,
    "typicality": _DENSITY,
    "latent_norm": _SOLVER,
    "reconstruction": ("noise_std", "draws", "path", "generator"),
}
"""The options of each kind of score."""


def anomaly_score(
    velocity: Velocity,
    x: Tensor,
    kind: Score = "likelihood",
    *,
    y: Condition = None,
    reference: Tensor | float | None = None,
    **options: Any,
) -> Tensor:
    r"""How unlike the training data each sample is, shape (B,); larger is more anomalous.

    * "likelihood": :math:`-\log p(x)`, in nats.
    * "typicality": :math:`|\log p(x) - m|`, in nats. A sample much likelier than the data is as suspicious as one much
      less likely (Nalisnick et al. 2019b, for single samples).
    * "latent_norm": :math:`|\|x_0\|^2 - m| / D`, with the latent :math:`x_0`.
    * "reconstruction": :math:`\|d(x + s\epsilon) - x\|^2 / D`. Noise is added and removed again by the posterior mean
      d: the model can restore only what it has seen (Graham et al. 2023).

    m is the mean of the same quantity over the reference: data like the training data, preferably held out. Latents
    from N(0, I) have m = D, the default without a reference; where the data fill no volume, such as images with a black
    margin, or where steps are coarse, latents have a different length, which only a reference reveals.

    Args:
        velocity: ``v(x, t, y=None)``, trained on data without anomalies.
        x: samples, shape (B, ...).
        kind: "likelihood", "typicality", "latent_norm" or "reconstruction".
        y: the condition; a conditional model of this package reads None as its null.
        reference: for "typicality" and "latent_norm", data (N, ...), scored without labels; or m itself, a number, if
            it is known already.
        options: as in :func:`~flowbook.cnf.log_prob` for "likelihood" and "typicality", as in
            :func:`~flowbook.inversion.invert` for "latent_norm", by default rk4 with 50 steps: with fixed steps a score
            does not depend on the rest of the batch. For "reconstruction" ``noise_std`` (1), the number of ``draws``
            averaged (1), ``generator``, and ``path`` as in :func:`~flowbook.inversion.denoise`.

    Raises:
        ValueError, TypeError: for invalid arguments, and for options and references that the kind does not take.

    Example:
        >>> still = lambda x, t: torch.zeros_like(x)  # the data are the noise
        >>> anomaly_score(still, torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), "latent_norm")
        tensor([1., 0., 3.])
    """
    _check(x, kind, y, reference, options)
    if kind == "reconstruction":
        return _reconstruction(velocity, x, y, **options)
    measure = _squared_norm if kind == "latent_norm" else _log_density
    value = measure(velocity, x, y, options)
    if kind == "likelihood":
        return -value
    dims = x[0].numel() if len(x) else 1
    if isinstance(reference, Tensor):
        reference = float(measure(velocity, reference, None, options).mean())
    gap = (value - (dims if reference is None else reference)).abs()  # _check requires one for typicality
    return gap / dims if kind == "latent_norm" else gap


def _log_density(velocity: Velocity, x: Tensor, y: Condition, options: dict[str, Any]) -> Tensor:
    return log_prob(velocity, x, y=y, **options).log_prob


def _squared_norm(velocity: Velocity, x: Tensor, y: Condition, options: dict[str, Any]) -> Tensor:
    solver = as_solver(options, default=Solver("rk4", steps=50))  # type: ignore[arg-type]  # as log_prob's
    return invert(velocity, x, y=y, solver=solver).x.flatten(1).square().sum(1)


def _reconstruction(
    velocity: Velocity,
    x: Tensor,
    y: Condition,
    *,
    noise_std: float = 1.0,
    draws: int = 1,
    path: Path | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    validate.number("noise_std", noise_std, 0, math.inf, low_open=True, high_open=True)
    validate.positive_int("draws", draws)
    validate.generator(generator)
    error = x.new_zeros(len(x))
    for _ in range(draws):
        seen = denoise(velocity, x + noise_std * normal_like(x, generator), noise_std=noise_std, path=path, y=y).x
        error = error + (seen - x).flatten(1).square().mean(1) / draws
    return error


def _check(x: Tensor, kind: Score, y: Condition, reference: Tensor | float | None, options: dict[str, Any]) -> None:
    validate.one_of("kind", kind, SCORES)
    for name in options:
        if name not in OPTIONS[kind]:
            raise TypeError(f"{name}: not an option of the score {kind!r}; expected {', '.join(OPTIONS[kind])}")
    validate.float_tensor("x", x, min_dim=2, finite=True)
    if kind in ("likelihood", "reconstruction"):
        if reference is not None:
            raise ValueError(f"reference: expected None for the score {kind!r}; got {validate.described(reference)}")
    elif reference is None:
        if kind == "typicality":
            raise ValueError("reference: expected data to compare the likelihood with, or their mean log p; got None")
    elif isinstance(reference, Tensor):
        validate.float_tensor("reference", reference, min_dim=2, finite=True)
        if reference.shape[1:] != x.shape[1:] or len(reference) == 0:
            raise ValueError(f"reference: expected data like x, {tuple(x.shape)}; got {tuple(reference.shape)}")
        if y is not None:
            raise ValueError("reference: expected the mean, a number, where x has labels; got data without labels")
    else:
        validate.finite("reference", reference)
