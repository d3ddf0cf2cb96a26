"""Is a velocity, trained or written down, the one of its data?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.adapters.functions import tensor_in
from flowbook.analytic import GaussianMixture
from flowbook.laws.convention import Convention, ConventionOptions, Mistake, mistaken
from flowbook.laws.diagnosis import Violation
from flowbook.laws.target import Exact, mixture
from flowbook.paths import CosinePath, LinearPath, Path, VPPath
from flowbook.velocity import dtype_of

STATES = 256
SAME = 1e-4
"""Largest relative difference of what is to be the same, in float32."""


def check_velocity(
    velocity: Callable[..., Any],
    data: GaussianMixture | Tensor | None = None,
    *,
    tolerance: float = 0.15,
    seed: int = 0,
    **convention: Unpack[ConventionOptions],
) -> str:
    """Hold a velocity against the exact one of its data, and say what is wrong with it.

    First its manners: a tensor like x, the same for the same input, a row that does not depend on the others, one time
    for all or one for each. Then its values, at states of the path; where they are off, each known mistake is tried in
    turn, and the one is named that brings them close.

    Args:
        velocity: a network or function, called as the convention says, with times of shape (B,), or else with one time
            for all. Of a network a copy is used, in the mode that it is in: put it in eval mode.
        data: what it was trained on: a :class:`~flowbook.analytic.GaussianMixture`, or samples (N, ...), whose own
            velocity is exact for them and close where t is below 0.6; up to there they are compared. None is
            :func:`mixture`.
        tolerance: the mean square of the error, as a fraction of the mean square of the exact velocity, that is
            allowed; in each quarter of the times twice as much. A short training in the plane reaches 0.05, a formula
            1e-6.
        seed: of the states.
        convention: ``order``, ``time_scale``, ``reverse``, ``sign``, ``output``, ``path``, as in
            :func:`~flowbook.adapters.from_callable`.

    Returns:
        A sentence with the error.

    Raises:
        Violation: with the mistake that explains it.

    Example:
        >>> exact = mixture().as_velocity(LinearPath())
        >>> check_velocity(lambda x, t: exact(x, t))
        'right: the velocity of its data, with a relative error of 0.0000'
        >>> check_velocity(lambda x, t: -exact(x, 1 - t))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        flowbook.laws.diagnosis.Violation: velocity: noise and data are exchanged, so that ...
    """
    validate.function("velocity", velocity, "a network")
    validate.number("tolerance", tolerance, 0, 1, low_open=True)
    agreed = Convention.of(convention)
    velocity = Called(velocity, agreed)
    exact = Exact(mixture() if data is None else data, agreed.path)
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0.02, 0.6 if exact.empirical else 0.98, STATES)
    x = exact.states(t, generator)
    with torch.no_grad():
        _check_shape(velocity(*agreed.arguments(x, agreed.their_time(t))), x)
        _check_manners(agreed.velocity(velocity), x, t)
        compared = Compared(velocity, exact, x, t)
        off, worst = compared.error(agreed), compared.worst_quarter(agreed)
        if off <= tolerance and worst <= 2 * tolerance:
            _check_factor(compared.factor(agreed), off)
            return f"right: the velocity of its data, with a relative error of {off:.4f}"
        tried = [(compared.error(one.convention), one) for one in _mistakes(agreed)]
    least, best = min(tried, key=lambda one: one[0])
    if least <= max(tolerance, 0.3 * off) and least < 0.5 * off:
        raise Violation(
            best.fault, f"velocity: {best.sentence}; the relative error is {off:.3g}, with this {least:.3g}"
        )
    _check_factor(compared.factor(agreed), compared.error_with_factor(agreed))
    _check_time_matters(agreed.velocity(velocity), x, t)
    raise Violation(
        "unknown",
        f"velocity: its relative error is {off:.3g}, more than {tolerance:g}, and no known mistake explains it: is it "
        "trained enough, and on these data?",
    )


class Called:
    """A copy of a reader's velocity, in the dtype of its parameters, with times in whichever form it takes."""

    def __init__(self, velocity: Callable[..., Any], agreed: Convention):
        self.velocity = copy.deepcopy(velocity) if isinstance(velocity, nn.Module) else velocity
        self.agreed, self.one_by_one = agreed, False

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        x, t = self.agreed.arguments(first, second)
        own = dtype_of(self.velocity) or x.dtype
        x, t = x.to(own), t.to(own)
        if not self.one_by_one or t.dim() == 0:
            try:
                return tensor_in(self.velocity(*self.agreed.arguments(x, t)))
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                if t.dim() == 0 or not self._takes_one_time(x, t):
                    what = f"x of shape {tuple(x.shape)} and t of shape {tuple(t.shape)}"
                    said = f"velocity: with {what} it raises {type(error).__name__}: {error}"
                    raise Violation("call failed", f"{said} (is their order {self.agreed.order}?)") from error
                self.one_by_one = True
        rows = [tensor_in(self.velocity(*self.agreed.arguments(x[k : k + 1], time))) for k, time in enumerate(t)]
        return torch.cat(rows)

    def _takes_one_time(self, x: Tensor, t: Tensor) -> bool:
        try:
            return tensor_in(self.velocity(*self.agreed.arguments(x[:1], t[0]))).shape == x[:1].shape
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False


def _check_factor(factor: float, off: float) -> None:
    if off < 0.2 and abs(factor - 1) > 0.15:
        raise Violation("scaled", f"velocity: it is about {1 / factor:.3g} times the exact one")


@torch.no_grad()
def _check_time_matters(velocity: Callable[..., Any], x: Tensor, t: Tensor) -> None:
    if not _differ(velocity(x, t), velocity(x, t.flip(0))):
        raise Violation("time ignored", "velocity: it is the same at every time: is t used, and is it trained?")


class Compared:
    """A velocity beside the exact one, at given states and times."""

    def __init__(self, velocity: Callable[..., Any], exact: Exact, x: Tensor, t: Tensor):
        self.velocity, self.exact, self.x, self.t = velocity, exact, x, t
        self._expected: dict[Path, Tensor] = {}

    def expected(self, path: Path) -> Tensor:
        """The exact velocity along a path."""
        if path not in self._expected:
            exact = self.exact.along(path)
            self._expected[path] = exact(self.x.double(), self.t.double()).to(self.x)
        return self._expected[path]

    def worst_quarter(self, convention: Convention) -> float:
        """The largest error in a quarter of the times."""
        got, expected = (
            convention.velocity(self.velocity)(self.x, self._times(convention)),
            self.expected(convention.path),
        )
        parts = zip(got.chunk(4), expected.chunk(4), strict=True)
        return max(float((a - b).square().mean() / b.square().mean()) for a, b in parts)

    @torch.no_grad()
    def factor(self, convention: Convention) -> float:
        """By what the velocity is to be multiplied to come closest to the exact one."""
        got, expected = (
            convention.velocity(self.velocity)(self.x, self._times(convention)),
            self.expected(convention.path),
        )
        return float((got * expected).sum() / got.square().sum().clamp_min(1e-12))

    @torch.no_grad()
    def error_with_factor(self, convention: Convention) -> float:
        """The error after that."""
        got, expected = (
            convention.velocity(self.velocity)(self.x, self._times(convention)),
            self.expected(convention.path),
        )
        return float((self.factor(convention) * got - expected).square().mean() / expected.square().mean())

    def _times(self, convention: Convention) -> Tensor:
        return self.t.clamp(*convention.path.t_range)

    def error(self, convention: Convention) -> float:
        """The mean square of the error, as a fraction of that of the exact velocity, under a convention."""
        low, high = convention.path.t_range
        expected = self.expected(convention.path)
        try:
            got = convention.velocity(self.velocity)(self.x, self.t.clamp(low, high))
        except (
            ValueError,
            RuntimeError,
            IndexError,
            Violation,
        ):  # a convention that is tried may ask for what it cannot do
            return math.inf
        error = (got - expected).square().mean() / expected.square().mean()
        return float(error) if bool(torch.isfinite(error)) else math.inf


def _mistakes(agreed: Convention) -> list[Mistake]:
    """Those of the convention, and those that only show in values: another scale of time, another path."""
    found = mistaken(agreed)
    for factor in (1000.0, 999.0):
        scale = agreed.time_scale * factor
        found.append(Mistake("time not scaled", f"the time is not scaled: it wants 0 to {scale:g} (else say "
                             f"time_scale={scale:g})", agreed.but(time_scale=scale)))  # fmt: skip
        scale = agreed.time_scale / factor
        found.append(Mistake("time scaled twice", "the time is scaled once more inside: it wants 0 to "
                             f"{scale:g} (else say time_scale={scale:g})", agreed.but(time_scale=scale)))  # fmt: skip
    for path in (LinearPath(), CosinePath(), VPPath()):
        if path != agreed.path:
            found.append(Mistake("another path", f"it is the velocity along {path!r}", agreed.but(path=path)))
    return found


def _check_shape(output: Any, x: Tensor) -> None:
    shape = tuple(tensor_in(output).shape)
    if shape != tuple(x.shape):
        raise Violation("shape", f"velocity: expected shape {tuple(x.shape)} like x; got {shape}")


def _check_manners(velocity: Callable[..., Any], x: Tensor, t: Tensor) -> None:
    v = velocity(x, t)
    ends = torch.linspace(0, 1, 2, dtype=t.dtype).repeat_interleave(2)
    for part, where in ((v, ""), (velocity(x[: len(ends)], ends), " at t = 0 or 1")):
        if not bool(torch.isfinite(part).all()):
            raise Violation("not finite", f"velocity: some values{where} are infinite or not a number")
    if _differ(velocity(x, t), v):
        raise Violation("not deterministic", "velocity: it differs from call to call: is a network not in eval mode?")
    few = slice(0, len(x), 16)
    if _differ(velocity(x[few], t[few]), v[few]):
        raise Violation(
            "batch mates matter", "velocity: a row depends on the others of its batch: is a network not in eval mode, "
            "or something averaged over the batch?",
        )  # fmt: skip
    middle = t[len(t) // 2]
    try:
        alone = velocity(x, middle)
    except Violation:  # it takes one time for each only, as many networks do
        return
    if _differ(alone, velocity(x, middle.expand(len(x)))):
        raise Violation("time broadcast", "t: one time for all and the same time for each give different velocities")


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or float((a - b).abs().max()) > SAME * float(b.abs().max()) + 1e-6
