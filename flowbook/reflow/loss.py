"""The loss of Reflow, with every option of the original: times, distances, reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from flowbook._core import keyed, validate
from flowbook.condition import Condition, check_condition
from flowbook.data import labels_of, unpack
from flowbook.velocity import Velocity, call

Times = Literal["uniform", "t0", "t1"]
"""The times at which a batch is trained; an integer k means k evenly spaced times."""
Distance = Literal["l2", "lpips", "lpips+l2"]
TIMES: tuple[Times, ...] = get_args(Times)
DISTANCES: tuple[Distance, ...] = get_args(Distance)


class Perceptual(Protocol):
    """Any callable ``perceptual(a, b) -> (B,)``: how different two images look."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


def reflow_times(
    times: Times | int,
    batch: int,
    *,
    eps: float = 1e-3,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """The times at which a batch is trained, shape (batch,).

    Args:
        times: "uniform" on [eps, 1], to straighten; "t0", all eps, to distill to one step; "t1", all 1, for a one-step
            encoder; or an integer k, ``eps + j (1 - eps) / k`` for j < k, equally likely, to distill to k steps.
        batch: B.
        eps: the first time.
        generator: for the times; None draws them as the losses do, keyed to the sample inside ``fit``.
        like: a tensor with the dtype and device of the result.

    Raises:
        ValueError, TypeError: for unknown times, or eps outside [0, 1).

    Example:
        >>> reflow_times("t0", 2), reflow_times("t1", 2)
        (tensor([0.0010, 0.0010]), tensor([1., 1.]))
        >>> sorted(set(reflow_times(2, 100, eps=0.0).tolist()))
        [0.0, 0.5]
    """
    _check_times(times, eps)
    validate.positive_int("batch", batch, at_least=0)
    validate.generator(generator)
    like = torch.empty(0) if like is None else like
    if times in ("t0", "t1"):
        return torch.full((batch,), eps if times == "t0" else 1.0, dtype=like.dtype, device=like.device)
    if generator is None:
        u = keyed.rand(batch, like=like)
    else:
        u = torch.rand(batch, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
    if not isinstance(times, str):
        u = (u * times).floor() / times
    return eps + (1 - eps) * u


def reflow_loss(
    velocity: Velocity,
    x0: Tensor | None,
    x1: Tensor,
    *,
    y: Condition = None,
    times: Times | int = "uniform",
    distance: Distance = "l2",
    reduce_mean: bool = True,
    perceptual: Perceptual | None = None,
    eps: float = 1e-3,
) -> Tensor:
    """The distance of the velocity from the straight line between the ends of each pair, averaged over the batch.

    Args:
        velocity: the student, ``v(x, t, y=None)``.
        x0: noise, shape (B, ...); from row n of it the teacher generated row n of x1; None draws fresh noise,
            which is flow matching (Reflow off).
        x1: data, shape (B, ...).
        y: the condition that the pairs were generated with.
        times: as in :func:`reflow_times`.
        distance: "l2", of the velocity from x1 - x0; "lpips", the perceptual distance of x0 + v, the student's single
            step, from x1; or "lpips+l2", their sum.
        reduce_mean: for l2, the mean over dimensions; False is half the sum, whose gradient is the difference itself.
        perceptual: ``perceptual(a, b) -> (B,)`` for "lpips" and "lpips+l2", such as :class:`~flowbook.reflow.LPIPS`.
        eps: the first time.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError, TypeError: for invalid shapes, and for incompatible options.

    Example:
        >>> x0, x1 = torch.zeros(4, 2), torch.ones(4, 2)
        >>> reflow_loss(lambda x, t, y=None: torch.zeros_like(x), x0, x1, reduce_mean=False)
        tensor(1.)
    """
    check_options(times, distance, reduce_mean, perceptual, eps)
    validate.float_tensor("x1", x1, min_dim=2)
    if x0 is None:
        x0 = keyed.randn_like(x1)
    validate.same_shape("x0", x0, "x1", x1)
    check_condition("y", y, len(x1), velocity)
    t = reflow_times(times, len(x1), eps=eps, like=x1)
    column = t.reshape(-1, *[1] * (x1.dim() - 1))
    v = call(velocity, column * x1 + (1 - column) * x0, t, y)
    validate.same_shape("velocity(xt, t, y)", v, "x1", x1)

    loss = x1.new_zeros(len(x1))
    if "l2" in distance:
        squares = (v - (x1 - x0)).square().flatten(1)
        loss = loss + (squares.mean(1) if reduce_mean else 0.5 * squares.sum(1))
    if perceptual is not None:
        seen = perceptual(x0 + v, x1)
        validate.same_shape("perceptual(x0 + v, x1)", seen, "a number for each sample", loss)
        loss = loss + seen
    return loss.mean()


def _check_times(times: Any, eps: float) -> None:
    validate.number("eps", eps, 0, 1, high_open=True)
    if validate.is_integer(times):
        validate.positive_int("times", times)
    elif times not in TIMES:
        raise ValueError(f"times: expected 'uniform', 't0', 't1' or a number of times, such as 4; got {times!r}")


def check_options(times: Any, distance: Distance, reduce_mean: bool, perceptual: Any, eps: float) -> None:
    """Raise for options of :func:`reflow_loss` that are invalid or incompatible."""
    _check_times(times, eps)
    validate.one_of("distance", distance, DISTANCES)
    validate.boolean("reduce_mean", reduce_mean)
    if distance == "l2":
        if perceptual is not None:
            raise ValueError("perceptual: distance='l2' does not use it; expected distance='lpips' or 'lpips+l2'")
        return
    if times != "t0":
        raise ValueError(
            f"times: distance={distance!r} compares images, and x0 + v is an image only at times='t0', where it is the "
            f"student's whole step; got times={times!r}"
        )
    if perceptual is None:
        raise ValueError(
            f"perceptual: distance={distance!r} needs a function (a, b) -> (B,), such as flowbook.reflow.LPIPS(); "
            "got None"
        )
    validate.function("perceptual", perceptual, "LPIPS()")


@dataclass(frozen=True)
class Reflow:
    """:func:`reflow_loss` with its options chosen, as the ``loss(velocity, batch)`` that ``fit`` expects.

    A batch is (x0, x1, y): from a :class:`~flowbook.reflow.PairDataset` or :class:`~flowbook.reflow.OnlinePairs`.

    Example:
        >>> batch = torch.zeros(4, 2), torch.ones(4, 2), None
        >>> Reflow(times="t0")(lambda x, t, y=None: torch.ones_like(x), batch)
        tensor(0.)
    """

    condition_dropout: ClassVar[float] = 0.0
    learns_from_pairs: ClassVar[bool] = True

    times: Times | int = "uniform"
    distance: Distance = "l2"
    reduce_mean: bool = True
    perceptual: Perceptual | None = None
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_options(self.times, self.distance, self.reduce_mean, self.perceptual, self.eps)

    def check(self, network: nn.Module, data: Any) -> None:
        """Raise for labels of pairs that the network does not have; its null, which a teacher may use, it has."""
        y = getattr(data, "labels", labels_of(data))
        if isinstance(y, Tensor):
            check_condition("y", y, len(y), network)

    def __call__(self, velocity: Velocity, batch: Any) -> Tensor:
        x0, x1, y = unpack(batch)
        if x0 is None:
            raise ValueError("batch: Reflow learns from pairs (x0, x1, y); got no x0. Without pairs use FlowMatching()")
        return reflow_loss(
            velocity, x0, x1, y=y, times=self.times, distance=self.distance, reduce_mean=self.reduce_mean,
            perceptual=self.perceptual, eps=self.eps,
        )  # fmt: skip
