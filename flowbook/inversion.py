r"""Inversion (chapter 5): the same velocity, solved from data to noise, and what that is good for.

.. math:: x_0 = x_1 + \int_1^0 v(x_t, t)\, dt

An ODE has one way back; a sampler that draws noise at every step has many. The latent has as many numbers as the data.
Labels and solver are those of :func:`flowbook.solvers.solve`. Images go in and come out in [-1, 1]: nothing here
normalises them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowbook import _validate
from flowbook._model import Velocity, null_label_of, unwrapped
from flowbook.flow_matching import Guided, guided
from flowbook.solvers import FIXED, Solution, sample, solve

# There and back -------------------------------------------------------------------------------------------------------


def invert(velocity: Velocity, x1: Tensor, *, y: Tensor | None = None, **options: Any) -> Solution:
    """Data to noise: :func:`~flowbook.solvers.solve` from 1 to 0.

    A latent wants finer steps than a sample does. Near t = 1 the flow draws its states together into data, so backward
    it spreads them, and what a coarse step gets wrong there grows. Where data fill no volume, as images with a black
    margin, the latent even moves on with every doubling of the steps.

    Args:
        velocity: ``v(x, t, y=None)``, the one that samples: no sign is turned and no time reversed.
        x1: data, shape (B, ...).
        y: labels, shape (B,).
        options: of ``solve``, without times. ``save_at`` runs from 1 to 0. A tolerance bounds the root mean square over
            the whole batch: with B samples in D dimensions one number alone may be off by sqrt(B D)
            times as much.

    Returns:
        A :class:`~flowbook.solvers.Solution`; its ``x`` is the latent, shape (B, ...).

    Raises:
        ValueError, TypeError: for arguments that do not fit, before the velocity is called.

    Example:
        >>> invert(lambda x, t: torch.ones_like(x), torch.ones(1, 2), method="euler", steps=1).x
        tensor([[0., 0.]])
    """
    _refuse(options, ("t0", "t1"), "invert runs from 1 to 0; use solve for other times")
    _validate.float_tensor("x1", x1, min_dim=1, finite=True)
    return solve(velocity, x1, 1.0, 0.0, y=y, **options)


@dataclass(frozen=True)
class RoundTrip:
    """What :func:`round_trip` returns."""

    latent: Tensor
    """The state at t = 0, shape (B, ...)."""
    reconstruction: Tensor
    """The data made of it, shape (B, ...)."""
    error: Tensor
    """The mean absolute error of each sample over its dimensions, in units of the data, shape (B,)."""
    nfe: int
    """The number of model calls, both ways together."""


def round_trip(velocity: Velocity, x1: Tensor, *, y: Tensor | None = None, **options: Any) -> RoundTrip:
    """Data to noise and back again, by the same method with the same steps.

    A small error says that the two ways agree, not that the latent is right. With equal steps the leading errors of
    midpoint, heun and rk4 cancel: there and back they are of third, third and fifth order, while the latent is of
    second, second and fourth. To know the latent's own error, compare it with that of twice the steps.

    Args:
        velocity, x1, y: as of :func:`invert`.
        options: of :func:`~flowbook.solvers.solve`, without times.

    Example:
        >>> trip = round_trip(lambda x, t: x, torch.ones(1, 2), method="rk4", steps=10)
        >>> bool(trip.error < 1e-6), trip.nfe
        (True, 80)
    """
    _refuse(options, ("save_at",), "a round trip keeps its ends only; use invert for the states between")
    there = invert(velocity, x1, y=y, **options)
    back = sample(velocity, there.x, y=y, **options)
    error = (back.x - x1).abs().reshape(len(x1), -1).mean(1)
    return RoundTrip(there.x, back.x, error, there.nfe + back.nfe)


@dataclass(frozen=True)
class StepChoice:
    """What :func:`choose_steps` returns."""

    steps: int
    """The number of steps, each way, that meets the wanted error."""
    trip: RoundTrip
    """The round trip with these steps."""
    tried: dict[int, float]
    """The largest error of a sample for each number of steps that was tried."""
    nfe: int
    """The model calls of all trials together."""


def choose_steps(
    velocity: Velocity, x1: Tensor, wanted: float, *, y: Tensor | None = None, method: str = "heun", first: int = 4,
    limit: int = 1024,
) -> StepChoice:  # fmt: skip
    """Double the steps until the round trip of every sample is as good as wanted.

    Choose on a few samples and keep the number for the rest.

    Args:
        velocity: ``v(x, t, y=None)``.
        x1: data, shape (B, ...), B at least 1.
        wanted: the largest mean absolute error of a sample, in units of the data.
        y: labels, shape (B,).
        method: a fixed-step method, "euler", "midpoint", "heun", "rk4" or "ab3".
        first: the number of steps to begin with.
        limit: the largest number of steps to try.

    Raises:
        ValueError: for arguments that do not fit, and for an error below what the dtype of x1 resolves.
        RuntimeError: when the limit is reached, or two doublings in a row have not lowered the error: rounding, not
            the steps, then makes it.

    Example:
        >>> choice = choose_steps(lambda x, t: x, torch.ones(1, 1, dtype=torch.float64), 1e-4)
        >>> choice.steps, {steps: round(error, 5) for steps, error in choice.tried.items()}
        (16, {4: 0.00391, 8: 0.00049, 16: 6e-05})
    """
    _validate.float_tensor("x1", x1, min_dim=1, finite=True)
    if x1.numel() == 0:
        raise ValueError(f"x1: expected at least one sample; got shape {tuple(x1.shape)}")
    _validate.number("wanted", wanted, 0, math.inf, low_open=True, high_open=True)
    resolved = torch.finfo(x1.dtype).eps * float(x1.abs().mean())
    if wanted < resolved:
        raise ValueError(f"wanted: {x1.dtype} resolves {resolved:.1e} at the size of x1; got {wanted:g}")
    _validate.one_of("method", method, tuple(FIXED))
    _validate.positive_int("first", first)
    _validate.positive_int("limit", limit, at_least=first)
    steps, nfe, tried = first, 0, {}
    while steps <= limit:
        trip = round_trip(velocity, x1, y=y, method=method, steps=steps)
        nfe += trip.nfe
        tried[steps] = float(trip.error.max())
        if tried[steps] <= wanted:
            return StepChoice(steps, trip, tried, nfe)
        last = list(tried.values())[-3:]
        if len(last) == 3 and last[0] <= last[1] <= last[2]:
            raise RuntimeError(
                f"wanted: doubling the steps no longer lowers the error, {_listed(tried)}; {x1.dtype} allows no less "
                f"for this velocity, or the velocity is not smooth. Expected more than {wanted:g}, or a wider dtype"
            )
        steps *= 2
    raise RuntimeError(
        f"wanted: {method} does not reach {wanted:g} within limit={limit} steps, {_listed(tried)}. Raise the limit or "
        "take a method of higher order"
    )


def _listed(tried: dict[int, float]) -> str:
    return ", ".join(f"{error:.1e} with {steps}" for steps, error in tried.items())


# Between two latents --------------------------------------------------------------------------------------------------


def slerp(a: Tensor, b: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    r"""From a to b at equal angles, along the arc between them (Shoemake 1985), one arc for each sample.

    .. math:: \frac{\sin((1 - w)\,\Omega)}{\sin\Omega}\, \frac{a}{\|a\|}
              + \frac{\sin(w\,\Omega)}{\sin\Omega}\, \frac{b}{\|b\|}

    times the length :math:`(1 - w)\|a\| + w\|b\|`. Noise of D dimensions lies close to a sphere of radius
    :math:`\sqrt D`; the straight line between two such points leaves it, by a factor of 0.71 in the middle.

    Args:
        a, b: shape (B, ...), not zero and not opposite to each other.
        weights: n numbers in [0, 1]; 0 is a and 1 is b, exactly.

    Returns:
        Shape (n, B, ...).

    Raises:
        ValueError: for a zero vector, which has no direction, and opposite ones, which have no one arc.

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), [0.0, 0.5])
        tensor([[[1.0000, 0.0000]],
                [[0.7071, 0.7071]]])
    """
    _check_pair(a, b)
    w = _weights(weights, a)
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    length_a, length_b = flat_a.norm(dim=1), flat_b.norm(dim=1)
    if bool((length_a == 0).any()) or bool((length_b == 0).any()):
        raise ValueError("a, b: expected vectors with a direction; got one that is zero")
    unit_a, unit_b = flat_a / length_a[:, None], flat_b / length_b[:, None]
    # Exact also for small angles, which the arc cosine of the product is not (Kahan).
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    if bool((angle > math.pi - 1e-3).any()):
        raise ValueError("a, b: expected vectors that are not opposite; between those no arc is the shortest")
    length = (1 - w) * length_a + w * length_b  # (n, B)

    def share(w: Tensor) -> Tensor:  # sin(w angle) / sin(angle), with its limit w where the two are parallel
        return w * torch.sinc(w * angle / math.pi) / torch.sinc(angle / math.pi)

    column = (*w.shape[:1], len(a), *[1] * (a.dim() - 1))
    return (share(1 - w) * length / length_a).reshape(column) * a + (share(w) * length / length_b).reshape(column) * b


def lerp(a: Tensor, b: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """From a to b along the straight line; arguments and shape as of :func:`slerp`, without its restrictions.

    Example:
        >>> lerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), [0.5])
        tensor([[[0.5000, 0.5000]]])
    """
    _check_pair(a, b)
    w = _weights(weights, a).reshape(-1, *[1] * a.dim())
    return (1 - w) * a + w * b


@dataclass(frozen=True)
class Interpolation:
    """What :func:`interpolate` returns."""

    x: Tensor
    """The way from a to b, shape (n, B, ...). Its ends are the reconstructions of a and b."""
    latents: Tensor
    """The latents it was made of, shape (n, B, ...)."""
    nfe: int
    """The number of model calls. Both ends are inverted in one batch, and the whole way is generated in another."""


def interpolate(
    velocity: Velocity, a: Tensor, b: Tensor, n: int, *, y: Tensor | None = None, spherical: bool = True, **options: Any
) -> Interpolation:
    """A way from one data point to another, through the latents.

    Args:
        velocity: ``v(x, t, y=None)``.
        a, b: data, shape (B, ...); the k-th point of the one is led to the k-th of the other.
        n: how many points each way has, its two ends included.
        y: labels, shape (B,), one for each pair: both are inverted, and the way is generated, under it. Two classes
            need None, the null label of a class-conditional model.
        spherical: along the arc (:func:`slerp`); False takes the straight line.
        options: of :func:`~flowbook.solvers.solve`, without times.

    Example:
        >>> way = interpolate(lambda x, t: torch.zeros_like(x), torch.ones(1, 2), 3 * torch.ones(1, 2), 3)
        >>> way.x[:, 0, 0].round(decimals=4)
        tensor([1., 2., 3.])
    """
    _refuse(options, ("save_at",), "interpolate returns the ends of its solves only")
    _check_pair(a, b)
    _validate.positive_int("n", n, at_least=2)
    _validate.boolean("spherical", spherical)
    if y is not None:
        _validate.labels("y", y, len(a))
    there = invert(velocity, torch.cat([a, b]), y=None if y is None else y.repeat(2), **options)
    weights = torch.linspace(0, 1, n, dtype=torch.float64)
    of_a, of_b = there.x.split(len(a))
    latents = slerp(of_a, of_b, weights) if spherical else lerp(of_a, of_b, weights)
    back = sample(velocity, latents.flatten(0, 1), y=None if y is None else y.repeat(n), **options)
    return Interpolation(back.x.unflatten(0, latents.shape[:2]), latents, there.nfe + back.nfe)


# Another label --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """What :func:`edit` returns."""

    x: Tensor
    """The data under the new label, shape (B, ...)."""
    state: Tensor
    """The state in which the label was changed, at t = 1 - strength; the latent for strength 1. Shape (B, ...)."""
    nfe: int
    """The number of model calls, both ways together; a guided evaluation counts two."""


def edit(
    velocity: Velocity, x1: Tensor, y: Tensor, new_y: Tensor, *, guidance: float = 1.0, null_label: int | None = None,
    strength: float = 1.0, **options: Any,
) -> Edit:  # fmt: skip
    """Invert under one label, generate under another: what the label does not say stays.

    The way back to the noise goes without guidance, which is not the flow whose source is the noise: a guided velocity
    leads data to latents that are no sample of N(0, I).

    Args:
        velocity: a class-conditional velocity, without guidance.
        x1: data, shape (B, ...).
        y: its labels, shape (B,).
        new_y: the labels wanted, shape (B,).
        guidance: scale of classifier-free guidance towards the new label; 1 is none.
        null_label: the label that means "none", for guidance; by default the model's own.
        strength: how much of the way to the noise is gone, in (0, 1]. The label is changed at t = 1 - strength, and
            what the state there already shows is kept.
        options: of :func:`~flowbook.solvers.solve`, without times. A fixed-step method takes its ``steps`` each way.

    Example:
        >>> towards = lambda x, t, y: y[:, None].to(x).expand_as(x)  # label k moves by k
        >>> edit(towards, torch.ones(1, 2), torch.tensor([1]), torch.tensor([5]), method="euler", steps=1).x
        tensor([[5., 5.]])
    """
    _refuse(options, ("t0", "t1"), "edit turns round at t = 1 - strength")
    _refuse(options, ("save_at",), "edit returns the ends of its solves only")
    _validate.float_tensor("x1", x1, min_dim=1, finite=True)
    for name, labels in (("y", y), ("new_y", new_y)):
        _validate.labels(name, labels, len(x1))
    _validate.number("strength", strength, 0, 1, low_open=True)
    _validate.number("guidance", guidance, -math.inf, math.inf)
    if isinstance(unwrapped(velocity), Guided):
        raise TypeError("velocity: expected one without guidance, which is for the way forward; pass guidance instead")
    towards = velocity if guidance == 1.0 else _guide(velocity, guidance, null_label)
    turn = 1.0 - strength
    there = solve(velocity, x1, 1.0, turn, y=y, **options)
    back = solve(towards, there.x, turn, 1.0, y=new_y, **options)
    return Edit(back.x, there.x, there.nfe + back.nfe)


def _guide(velocity: Velocity, guidance: float, null_label: int | None) -> Guided:
    null_label = null_label_of(velocity) if null_label is None else null_label
    if null_label is None:
        raise ValueError("null_label: guidance needs the label that means 'none', and the model does not name it")
    return guided(velocity, guidance, null_label)


def _refuse(options: dict[str, Any], names: Sequence[str], reason: str) -> None:
    for name in names:
        if name in options:
            raise TypeError(f"{name}: {reason}")


def _check_pair(a: Tensor, b: Tensor) -> None:
    _validate.float_tensor("a", a, min_dim=2, finite=True)
    _validate.float_tensor("b", b, min_dim=2, finite=True)
    _validate.same_shape("b", b, "a", a)
    if b.dtype != a.dtype:
        raise TypeError(f"b: expected the dtype of a, {a.dtype}; got {b.dtype}")


def _weights(weights: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """(n, 1), in the dtype of ``like``."""
    w = torch.as_tensor(weights, dtype=like.dtype, device=like.device)
    if w.dim() != 1 or not bool(((w >= 0) & (w <= 1)).all()):
        raise ValueError(f"weights: expected a sequence of numbers in [0, 1]; got {weights}")
    return w[:, None]
