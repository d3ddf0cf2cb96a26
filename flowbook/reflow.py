r"""Reflow (chapter 4): learn a velocity from pairs that a flow has made, so that its paths become straight.

.. math:: L(v) = \mathbb{E}_{t,\, (x_0, x_1)} \big\| v(x_t, t) - (x_1 - x_0) \big\|^2,
          \qquad x_t = t\, x_1 + (1 - t)\, x_0

is the loss of flow matching, but the data x1 of a pair is what the last flow makes of its noise x0 (Liu et al. 2023,
algorithm 1). The paths of such pairs cross less, so their average, the velocity, is straighter; at a single time it is
distillation, to as many steps as there are times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowbook import _validate, keyed
from flowbook._model import Velocity, call
from flowbook.batch import unpack
from flowbook.data import Source
from flowbook.metrics import curvature as curvature
from flowbook.metrics import straightness as straightness
from flowbook.metrics import transport_cost as transport_cost
from flowbook.pairs import OnlinePairs as OnlinePairs
from flowbook.pairs import PairDataset as PairDataset
from flowbook.pairs import generate_pairs as generate_pairs
from flowbook.solvers import solve

if TYPE_CHECKING:
    from flowbook.training import TrainConfig

SCHEDULES = ("uniform", "t0", "t1")
DISTANCES = ("l2", "lpips", "lpips+l2")

Perceptual = Callable[[Tensor, Tensor], Tensor]


def reflow_times(
    schedule: str | int,
    batch: int,
    *,
    eps: float = 1e-3,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """The times at which a batch is trained, shape (batch,).

    Args:
        schedule: "uniform" on [eps, 1], to straighten; "t0", all eps, to distil to one step; "t1", all 1, for an
            encoder of one step; or an integer k, ``eps + j (1 - eps) / k`` for j < k alike often, to distil to k steps.
        batch: B.
        eps: the first time.
        generator: where the times come from; None draws them as the losses do, see :mod:`flowbook.keyed`.
        like: a tensor with the dtype and device that they shall have.

    Raises:
        ValueError, TypeError: for an unknown schedule, or eps outside [0, 1).

    Example:
        >>> reflow_times("t0", 2), reflow_times("t1", 2)
        (tensor([0.0010, 0.0010]), tensor([1., 1.]))
        >>> sorted(set(reflow_times(2, 100, eps=0.0).tolist()))
        [0.0, 0.5]
    """
    _check_times(schedule, eps)
    _validate.positive_int("batch", batch, at_least=0)
    _validate.generator(generator)
    like = torch.empty(0) if like is None else like
    if schedule in ("t0", "t1"):
        return torch.full((batch,), eps if schedule == "t0" else 1.0, dtype=like.dtype, device=like.device)
    if generator is None:
        u = keyed.rand(batch, like=like)
    else:
        u = torch.rand(batch, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
    if not isinstance(schedule, str):
        u = (u * schedule).floor() / schedule
    return eps + (1 - eps) * u


def reflow_loss(
    velocity: Velocity,
    x0: Tensor | None,
    x1: Tensor,
    *,
    y: Tensor | None = None,
    times: str | int = "uniform",
    distance: str = "l2",
    reduce_mean: bool = True,
    perceptual: Perceptual | None = None,
    eps: float = 1e-3,
) -> Tensor:
    """The distance of the velocity from the straight line between the ends of each pair, averaged over the batch.

    Args:
        velocity: the student, ``v(x, t, y=None)``.
        x0: noise, shape (B, ...), each row with the data that the teacher made of it; None draws it afresh, which is
            flow matching (Reflow off).
        x1: data, shape (B, ...).
        y: the labels that the pairs were made with, shape (B,).
        times: as in :func:`reflow_times`.
        distance: "l2", of the velocity from x1 - x0; "lpips", the perceptual distance of x0 + v, the student's one
            step, from x1; or the two added.
        reduce_mean: of l2, the mean over dimensions; False is half the sum, whose gradient is the difference itself.
        perceptual: ``perceptual(a, b) -> (B,)`` for the last two distances: :class:`~flowbook.perceptual.LPIPS`, say.
        eps: the first time.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError, TypeError: for shapes that do not fit, and options that do not go together.

    Example:
        >>> x0, x1 = torch.zeros(4, 2), torch.ones(4, 2)
        >>> reflow_loss(lambda x, t, y=None: torch.zeros_like(x), x0, x1, reduce_mean=False)
        tensor(1.)
    """
    check_options(times, distance, reduce_mean, perceptual, eps)
    _validate.float_tensor("x1", x1, min_dim=2)
    if x0 is None:
        x0 = keyed.randn_like(x1)
    _validate.same_shape("x0", x0, "x1", x1)
    if y is not None:
        _validate.labels("y", y, len(x1))
    t = reflow_times(times, len(x1), eps=eps, like=x1)
    column = t.reshape(-1, *[1] * (x1.dim() - 1))
    v = call(velocity, column * x1 + (1 - column) * x0, t, y)
    _validate.same_shape("velocity(xt, t, y)", v, "x1", x1)

    loss = x1.new_zeros(len(x1))
    if "l2" in distance:
        squares = (v - (x1 - x0)).square().flatten(1)
        loss = loss + (squares.mean(1) if reduce_mean else 0.5 * squares.sum(1))
    if perceptual is not None:
        seen = perceptual(x0 + v, x1)
        _validate.same_shape("perceptual(x0 + v, x1)", seen, "a number for each sample", loss)
        loss = loss + seen
    return loss.mean()


def _check_times(times: Any, eps: float) -> None:
    _validate.number("eps", eps, 0, 1, high_open=True)
    if _validate.is_integer(times):
        _validate.positive_int("times", times)
    elif times not in SCHEDULES:
        raise ValueError(f"times: expected 'uniform', 't0', 't1' or how many times, such as 4; got {times!r}")


def check_options(times: Any, distance: str, reduce_mean: bool, perceptual: Any, eps: float) -> None:
    """Raise for options of :func:`reflow_loss` that are none or do not go together."""
    _check_times(times, eps)
    _validate.one_of("distance", distance, DISTANCES)
    _validate.boolean("reduce_mean", reduce_mean)
    if distance == "l2":
        if perceptual is not None:
            raise ValueError("perceptual: distance='l2' does not use it; expected distance='lpips' or 'lpips+l2'")
        return
    if times != "t0":
        raise ValueError(
            f"times: distance={distance!r} compares images, and x0 + v is one only at times='t0', where it is the "
            f"student's whole step; got times={times!r}"
        )
    if perceptual is None:
        raise ValueError(
            f"perceptual: distance={distance!r} needs a function (a, b) -> (B,), such as flowbook.perceptual.LPIPS(); "
            "got None"
        )
    _validate.function("perceptual", perceptual, "LPIPS()")


@dataclass(frozen=True)
class Reflow:
    """:func:`reflow_loss` with its options chosen, as the ``loss(velocity, batch)`` that ``fit`` asks for.

    A batch is (x0, x1, y): from a :class:`~flowbook.pairs.PairDataset` or :class:`~flowbook.pairs.OnlinePairs`.

    Example:
        >>> batch = torch.zeros(4, 2), torch.ones(4, 2), None
        >>> Reflow(times="t0")(lambda x, t, y=None: torch.ones_like(x), batch)
        tensor(0.)
    """

    times: str | int = "uniform"
    distance: str = "l2"
    reduce_mean: bool = True
    perceptual: Perceptual | None = None
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_options(self.times, self.distance, self.reduce_mean, self.perceptual, self.eps)

    def __call__(self, velocity: Velocity, batch: Any) -> Tensor:
        x0, x1, y = unpack(batch)
        if x0 is None:
            raise ValueError(
                "batch: Reflow learns from pairs (x0, x1, y); got no x0. Without pairs take FlowMatching()"
            )
        return reflow_loss(
            velocity, x0, x1, y=y, times=self.times, distance=self.distance, reduce_mean=self.reduce_mean,
            perceptual=self.perceptual, eps=self.eps,
        )  # fmt: skip


# The method ----------------------------------------------------------------------------------------------------------


def rectify(
    velocity: Velocity,
    source: Source | Sequence[int],
    rounds: int,
    config: TrainConfig | None = None,
    *,
    n: int = 10_000,
    student: nn.Module | None = None,
    y: Tensor | None = None,
    loss: Reflow = Reflow(),
    seed: int = 0,
    name: str | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    **generation: Any,
) -> list[nn.Module]:
    """Reflow, some rounds of it: draw pairs from the last velocity, train a copy of it on them (Liu et al. 2023).

    Args:
        velocity: the flow to straighten; it is not changed.
        source: where its noise comes from, as in :func:`~flowbook.pairs.generate_pairs`.
        rounds: how often.
        config: of the training of each round; None is ``TrainConfig()``.
        n: pairs of a round, drawn with new noise each time. Too few pull every later flow to themselves.
        student: what the first round trains a copy of, where that is not ``velocity``: behind guidance, say.
        y: a label for each pair, shape (n,).
        loss: with its options.
        seed: of the pairs' noise; that of the training is in ``config``.
        name: what ``velocity`` is, where it is a function without weights.
        out: a folder, with ``round_1/pairs`` and ``round_1/run`` and so on, which a second call continues; None keeps
            nothing.
        progress: show progress bars; None shows them where a person watches (a terminal).
        generation: the solver and the rest of :func:`~flowbook.pairs.generate_pairs`.

    Returns:
        The velocity after each round, with averaged weights.

    Example:
        >>> from flowbook import models
        >>> from flowbook.training import TrainConfig
        >>> first = models.MLP(2, hidden=16)
        >>> flows = rectify(first, (2,), 2, TrainConfig(steps=5), n=100, method="euler", steps=4)
        >>> len(flows), flows[0] is first
        (2, False)
    """
    # The loop is imported here, and only here and below: Reflow is the method that trains as a part of itself, and
    # `import flowbook.reflow` shall not bring the training code along.
    from flowbook.training import TrainConfig, fit

    _validate.positive_int("rounds", rounds)
    _validate.instance("loss", loss, Reflow, "Reflow()")
    config = TrainConfig() if config is None else config
    start = velocity if student is None else student
    if not isinstance(start, nn.Module):
        raise TypeError(
            f"{'velocity' if student is None else 'student'}: expected a torch.nn.Module to train a copy of; got "
            f"{_validate.described(start)}"
        )
    flows: list[nn.Module] = []
    with TemporaryDirectory() as nowhere:
        for k in range(1, rounds + 1):
            folder = Path(nowhere if out is None else out) / f"round_{k}"
            pairs = generate_pairs(
                velocity, source, n, folder / "pairs", y=y, seed=keyed.mix(seed, k), name=name, progress=progress,
                **generation,
            )  # fmt: skip
            run = None if out is None else folder / "run"
            velocity = start = fit(_trainable(start), loss, pairs, config, out=run, progress=progress).velocity
            flows.append(start)
            name = None  # it was the first teacher's
    return flows


def distill(
    velocity: nn.Module,
    pairs: Any,
    config: TrainConfig | None = None,
    *,
    steps: int = 1,
    distance: str = "l2",
    perceptual: Perceptual | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """A student that does in a few Euler steps what the teacher of the pairs did in many.

    It learns at the times 0, 1/k, ... of its k steps alone, and is nothing between them. To sample from it is
    ``sample(student, x0, method="euler", steps=k)``.

    Args:
        velocity: where the student starts, the teacher or a straightened flow; it is not changed.
        pairs: a :class:`~flowbook.pairs.PairDataset`, :class:`~flowbook.pairs.OnlinePairs`, or tensors (x0, x1, y).
        config: of the training; None is ``TrainConfig()``.
        steps: k.
        distance, perceptual: as in :func:`reflow_loss`; other distances than "l2" take one step.
        out: a folder for checkpoints and log.
        progress: as in ``fit``.

    Returns:
        The student, with averaged weights.

    Example:
        >>> from flowbook import models
        >>> from flowbook.training import TrainConfig
        >>> pairs = torch.zeros(100, 2), torch.ones(100, 2), None
        >>> student = distill(models.MLP(2, hidden=16), pairs, TrainConfig(steps=5))
        >>> student(torch.zeros(1, 2), torch.tensor(0.0)).shape
        torch.Size([1, 2])
    """
    from flowbook.training import TrainConfig, fit

    _validate.instance("velocity", velocity, nn.Module, "MLP(2)")
    _validate.positive_int("steps", steps)
    times: str | int = "t0" if steps == 1 else steps
    loss = Reflow(times=times, distance=distance, perceptual=perceptual, eps=0.0)  # the solver starts at 0
    config = TrainConfig() if config is None else config
    return fit(_trainable(velocity), loss, pairs, config, out=out, progress=progress).velocity


def _trainable(velocity: nn.Module) -> nn.Module:
    return copy.deepcopy(velocity).requires_grad_(True)


def encode(velocity: Velocity, x1: Tensor, *, y: Tensor | None = None) -> Tensor:
    """The noise of data in one evaluation, ``x1 - v(x1, 1)``: for a velocity trained with ``times="t1"``.

    Args:
        velocity: ``v(x, t, y=None)``.
        x1: data, shape (B, ...).
        y: labels, shape (B,).

    Example:
        >>> encode(lambda x, t: torch.ones_like(x), torch.zeros(1, 2))
        tensor([[-1., -1.]])
    """
    return solve(velocity, x1, 1.0, 0.0, y=y, method="euler", steps=1).x
