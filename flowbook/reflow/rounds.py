"""Rounds of Reflow, distillation to a few steps, and a one-step encoder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from torch import Tensor, nn

from flowbook._core import keyed, validate
from flowbook.condition import Condition
from flowbook.data import GenerationOptions, Source
from flowbook.paths import LinearPath, change_path, path_of
from flowbook.reflow.loss import Distance, Perceptual, Reflow, Times
from flowbook.reflow.pairs import generate_pairs
from flowbook.solvers import solve
from flowbook.training import TrainConfig, fit
from flowbook.velocity import Velocity, unwrapped


class RoundOptions(GenerationOptions, total=False):
    """The options for the pairs of a round, as in :func:`~flowbook.reflow.generate_pairs`."""

    n: int
    y: Condition
    seed: int


def rectify(
    velocity: Velocity,
    source: Source | Sequence[int],
    rounds: int,
    config: TrainConfig | None = None,
    *,
    student: nn.Module | None = None,
    loss: Reflow = Reflow(),  # noqa: B008 (frozen)
    out: str | Path | None = None,
    **pairs: Unpack[RoundOptions],
) -> list[nn.Module]:
    """Rounds of Reflow: generate pairs with the last velocity, and train a copy of it on them (Liu et al. 2023).

    Args:
        velocity: the flow to straighten; it is not changed. A diffusion model is first taken to the straight path, by
            :func:`~flowbook.paths.change_path`.
        source: the source of its noise, as in :func:`~flowbook.reflow.generate_pairs`.
        rounds: number of rounds.
        config: the settings of each round's training; None is ``TrainConfig()``.
        student: the module of which the first round trains a copy, if not ``velocity``, such as the one inside
            guidance.
        loss: the loss, with its options.
        out: a folder, with ``round_1/pairs`` and ``round_1/run`` and so on, which a second call resumes; None keeps
            nothing.
        pairs: options for the pairs of a round, as in :func:`~flowbook.reflow.generate_pairs`: their number ``n``
            (10,000; with too few, every later flow overfits to them), a label ``y`` for each, the ``seed`` of their
            noise (each round draws new noise; the seed of the training is in ``config``), a solver, ``name``, which
            identifies ``velocity`` where it is a function without parameters, and ``progress``, also for the training.

    Returns:
        The velocity after each round, with averaged parameters (EMA).

    Example:
        >>> from flowbook import models
        >>> from flowbook.training import TrainConfig
        >>> first = models.MLP(2, hidden=16)
        >>> flows = rectify(first, (2,), 2, TrainConfig(steps=5), n=100, method="euler", steps=4)
        >>> len(flows), flows[0] is first
        (2, False)
    """
    validate.positive_int("rounds", rounds)
    options: dict[str, Any] = {"n": 10_000, **pairs}
    progress, seed = options.get("progress"), options.pop("seed", 0)
    validate.instance("loss", loss, Reflow, "Reflow()")
    config = TrainConfig() if config is None else config
    velocity = on_straight_path(velocity)
    start = velocity if student is None else on_straight_path(student)
    if not isinstance(start, nn.Module):
        raise TypeError(
            f"{'velocity' if student is None else 'student'}: expected a torch.nn.Module to train a copy of; got "
            f"{validate.described(start)}"
        )
    flows: list[nn.Module] = []
    with TemporaryDirectory() as nowhere:
        for k in range(1, rounds + 1):
            folder = Path(nowhere if out is None else out) / f"round_{k}"
            drawn = generate_pairs(velocity, source, out=folder / "pairs", seed=keyed.mix(seed, k), **options)
            run = None if out is None else folder / "run"
            velocity = start = fit(_trainable(start), loss, drawn, config, out=run, progress=progress).velocity
            flows.append(start)
            options.pop("name", None)  # it was the first teacher's
    return flows


def distill(
    velocity: nn.Module,
    pairs: Any,
    config: TrainConfig | None = None,
    *,
    steps: int = 1,
    distance: Distance = "l2",
    perceptual: Perceptual | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """A student that does in a few Euler steps what the teacher of the pairs did in many.

    It is trained only at the times 0, 1/k, ... of its k steps, and is meaningless between them. Sample from it with
    ``sample(student, x0, method="euler", steps=k)``.

    Args:
        velocity: the initial student, the teacher or a straightened flow; it is not changed. A diffusion model is first
            taken to the straight path, by :func:`~flowbook.paths.change_path`: there its first step leads to the mean
            of the data, on its own path nowhere. Its pairs are the same on both paths, where the noise is N(0, I).
        pairs: a :class:`~flowbook.reflow.PairDataset`, :class:`~flowbook.reflow.OnlinePairs`, or tensors (x0, x1, y).
        config: the settings of the training; None is ``TrainConfig()``.
        steps: k.
        distance, perceptual: as in :func:`reflow_loss`; distances other than "l2" need ``steps=1``.
        out: a folder for checkpoints and log.
        progress: as in ``fit``.

    Returns:
        The student, with averaged parameters (EMA).

    Example:
        >>> from flowbook import models
        >>> from flowbook.training import TrainConfig
        >>> pairs = torch.zeros(100, 2), torch.ones(100, 2), None
        >>> student = distill(models.MLP(2, hidden=16), pairs, TrainConfig(steps=5))
        >>> student(torch.zeros(1, 2), torch.tensor(0.0)).shape
        torch.Size([1, 2])
    """
    validate.instance("velocity", velocity, nn.Module, "MLP(2)")
    validate.positive_int("steps", steps)
    if (std := path_of(velocity).source_std) != 1.0:
        raise ValueError(
            f"velocity: its noise has standard deviation {std:g}, so pairs from it are not those of the straight path; "
            "expected change_path(velocity), and pairs generated with that"
        )
    start = on_straight_path(velocity)
    times: Times | int = "t0" if steps == 1 else steps
    loss = Reflow(times=times, distance=distance, perceptual=perceptual, eps=0.0)  # the solver starts at 0
    config = TrainConfig() if config is None else config
    return fit(_trainable(start), loss, pairs, config, out=out, progress=progress).velocity


def _trainable(velocity: nn.Module) -> nn.Module:
    return copy.deepcopy(velocity).requires_grad_(True)


def on_straight_path(velocity: Velocity) -> Any:
    """The same velocity if its path is straight, and otherwise that of its model on LinearPath().

    Example:
        >>> from flowbook.paths import CosinePath, as_velocity, path_of
        >>> path_of(on_straight_path(as_velocity(lambda x, t: x, CosinePath())))
        LinearPath(sigma_min=0.0)
    """
    path = path_of(velocity)
    if isinstance(path, LinearPath):
        return velocity
    prediction, alpha = getattr(unwrapped(velocity), "prediction", None), float(path.alpha(0.0))
    if prediction in ("noise", "score") and alpha < 0.1:
        warnings.warn(
            f"velocity: its model predicts the {prediction}, which at t = 0 tells the data only after a division by "
            f"alpha = {alpha:.2g}, so that a student that starts from it hardly learns there; start from a model of v, "
            "of the data or of the velocity",
            stacklevel=3,
        )
    return change_path(velocity)


def encode(velocity: Velocity, x1: Tensor, *, y: Condition = None) -> Tensor:
    """Map data to noise in one evaluation, ``x1 - v(x1, 1)``: for a velocity trained with ``times="t1"``.

    Args:
        velocity: ``v(x, t, y=None)``.
        x1: data, shape (B, ...).
        y: the condition, or None.

    Example:
        >>> encode(lambda x, t: torch.ones_like(x), torch.zeros(1, 2))
        tensor([[-1., -1.]])
    """
    return solve(velocity, x1, 1.0, 0.0, y=y, method="euler", steps=1).x
