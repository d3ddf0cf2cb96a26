"""Does a sampler carry noise to data?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.seeding import seeded
from flowbook.analytic import GaussianMixture
from flowbook.diffusion import NoiseSchedule, SchedulePath
from flowbook.laws.convention import Convention, ConventionOptions, StandIn
from flowbook.laws.diagnosis import Violation, close
from flowbook.laws.loss import sample_shape
from flowbook.laws.steps import MEAN, STD, ddim_walk, right_moments, wrong_moments
from flowbook.laws.target import in_pairs, mixture
from flowbook.solvers import sample
from flowbook.velocity import Velocity

POINTS, DRAWS = 256, 4096
PUSH = torch.tensor([1.0, -2.0])


def check_sampler(
    sampler: Callable[..., Tensor],
    *,
    shape: Sequence[int] | int = (2,),
    tolerance: float = 0.1,
    seed: int = 0,
    **convention: Unpack[ConventionOptions],
) -> str:
    """Hold a sampler against the flows that it is to follow, and say what is wrong with it.

    A constant velocity tells how far its steps go in all, the times at which it calls the model tell where it looks,
    and the exact velocity of a mixture tells where it arrives. A sampler that draws noise is judged by the mean and the
    standard deviation of what it draws, for Gaussian data; where it goes through all steps of a schedule, they are
    known exactly, and so is the result of DDIM over the steps that it visits.

    Args:
        sampler: ``sampler(model, x0) -> x1``, where it calls ``model(x, t)``; ``lambda model, x0: mine(model, x0, 50)``
            gives one its number of steps, which should be 20 or more.
        shape: of one sample, with an even number of entries, such as (1, 8, 8); each two of them are a mixture. The
            data go beyond [-1, 1]: a sampler that clips has to be told not to.
        tolerance: the root mean square of the error that is allowed, as a fraction of the standard deviation of the
            data. Euler's method in 50 steps stays below 0.05.
        seed: of the noise.
        convention: how the sampler calls its model and what that returns: ``order``, ``time_scale``, ``reverse``,
            ``sign``, ``output``, ``path``, as in :func:`~flowbook.adapters.from_callable`. ``path`` may be a
            :class:`~flowbook.diffusion.NoiseSchedule`, for a sampler that goes through its steps.

    Returns:
        A sentence with the number of calls and the error.

    Raises:
        Violation: with the mistake that explains it.

    Example:
        >>> def mine(model, x, steps=50):
        ...     for k in range(steps):
        ...         x = x + model(x, torch.tensor(k / steps)) / steps
        ...     return x
        >>> check_sampler(mine)
        'right: from noise to data in 50 calls, with a relative error of 0.0207'
    """
    validate.function("sampler", sampler, "sampler(model, x0)")
    validate.number("tolerance", tolerance, 0, 1, low_open=True)
    agreed = Convention.of(convention)
    sides = sample_shape(shape)
    x0 = agreed.path.source_std * torch.randn(POINTS, *sides, generator=torch.Generator().manual_seed(seed))
    exact = in_pairs(mixture(), agreed.path, sides)
    run = Run(sampler, agreed, exact, x0, seed)
    if not torch.equal(run.x, Run(sampler, agreed, exact, x0, seed + 1).x):
        return _check_draws(sampler, agreed, sides, tolerance, seed)
    run.check_times()
    if agreed.output == "velocity":
        _check_distance(sampler, agreed, x0, seed)
    _check_rows(sampler, exact, run, x0=x0, seed=seed)
    if agreed.in_steps and _check_ddim(run, exact, x0):
        return f"right: DDIM over {len(run.times)} of {schedule_in(agreed).steps} steps"
    right = sample(exact, x0.double(), rtol=1e-8, atol=1e-8).x.to(x0)
    off = _relative(run.x, right)
    if off <= tolerance:
        return f"right: from noise to data in {len(run.times)} calls, with a relative error of {off:.4f}"
    raise Violation(
        "unknown",
        f"x1: its relative error is {off:.3g}, more than {tolerance:g}, and no known mistake explains it: are there "
        "enough steps? Does it clip? (The data of the check go beyond [-1, 1])",
    )


def _check_rows(sampler: Callable[..., Tensor], exact: Velocity, run: Run, *, x0: Tensor, seed: int) -> None:
    """Raise where a sample does not come from its own noise."""
    turned = Run(sampler, run.agreed, exact, x0.flip(0), seed).x
    if torch.equal(turned, run.x):
        raise Violation(
            "noise ignored", "x1: the same samples for other noise: x0 is not used, or drawn again with a seed"
        )
    if _relative(turned.flip(0), run.x) > 0.01:
        raise Violation("batch mates matter", "x1: a sample depends on the others of its batch")


class Run:
    """One use of a sampler: where it arrived, and the times at which it called the model."""

    def __init__(self, sampler: Callable[..., Tensor], agreed: Convention, velocity: Velocity, x0: Tensor, seed: int):
        self.agreed, self.theirs = agreed, list[float]()

        class Model(StandIn):
            def answer(model, *given: Any, **named: Any) -> Tensor:  # noqa: N805 (self is the run)
                x, t = agreed.called(x0.shape, *given, **named)
                self.theirs.append(float(t[0]))
                self._check_scale(self.theirs[-1])
                return agreed.spoken(velocity, x, t.expand(len(x)))

        kept = x0.clone()
        with seeded(seed), torch.no_grad():
            x = sampler(Model(), kept)
        if not isinstance(x, Tensor) or x.shape != x0.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else validate.described(x)
            raise Violation("shape", f"x1: expected shape {tuple(x0.shape)} like x0; got {got}")
        if not self.theirs:
            raise Violation("no calls", "model: the sampler never calls it")
        if not bool(torch.isfinite(x).all()):
            raise Violation("not finite", "x1: some values are infinite or not a number")
        self.x = x.detach()
        self.times = [float(agreed.time(torch.tensor(one, dtype=torch.float64))) for one in self.theirs]

    def _check_scale(self, theirs: float) -> None:
        """Adaptive solvers look beyond the end and interpolate; nothing but a mistake lies beyond the start."""
        scale = self.agreed.time_scale
        beyond = theirs < -1e-3 * scale if self.theirs[0] < 0.5 * scale else theirs > scale * (1 + 1e-3)
        if beyond and theirs <= 1.5 * scale:
            raise Violation("time outside", f"t: expected times from 0 to {scale:g}; got {theirs:g}")

    def check_times(self) -> None:
        """Raise for times that are not scaled, run backward, or lie a step too far."""
        scale, times, n = self.agreed.time_scale, self.times, len(self.times)
        far = [one for one in self.theirs if not -0.5 * scale <= one <= 1.5 * scale]
        if len(far) > 0.3 * n:
            raise Violation(
                "time scaled", f"t: expected times from 0 to {scale:g}; got {far[-1]:g} (else say time_scale)"
            )
        if scale > 1.5 and max(self.theirs) <= 1 + 1e-6:
            raise Violation(
                "time not scaled", f"t: expected times from 0 to {scale:g}; got at most {max(self.theirs):g}"
            )
        if n < 2:
            return None
        if times[-1] < times[0]:
            raise Violation(
                "time reversed", f"t: the calls run from {self.theirs[0]:g} to {self.theirs[-1]:g}: noise is at "
                f"{float(self.agreed.their_time(torch.zeros(()))):g} (else say reverse={not self.agreed.reverse})",
            )  # fmt: skip
        if self.agreed.in_steps:
            return self._check_steps()
        if len(set(times)) == n > 4 and abs(times[0]) < 1e-6 and abs(times[-1] - 1) < 1e-6 and _is_even(times):
            raise Violation(
                "step off by one", f"t: {n} calls at times from 0 to 1, both included: the last step starts before 1",
            )  # fmt: skip
        if len(set(times)) == n and times[0] > 0.9 / n and times[-1] > 1 - 0.1 / n:
            raise Violation(
                "step off by one", f"t: the first call is at {times[0]:.3g} of the way, the last at {times[-1]:.3g}: "
                "each step looks at its end, not at its start",
            )  # fmt: skip
        if len(set(times)) == 1:
            raise Violation("time constant", f"t: all {n} calls are at {self.theirs[0]:g}")
        return None

    def _check_steps(self) -> None:
        """Raise for steps of a schedule that are left out at its noisy end, or visited twice."""
        steps, n = schedule_in(self.agreed).steps, len(self.theirs)
        if n == steps and len(set(self.theirs)) == n - 1:
            raise Violation(
                "step off by one", f"i: in {n} calls the model sees only {n - 1} of {steps} steps, from "
                f"{max(self.theirs):g} to {min(self.theirs):g}",
            )  # fmt: skip
        if max(self.theirs) < steps - 1 - 2 * steps / n:
            raise Violation(
                "starts too late", f"i: the first call is at step {max(self.theirs):g} of {steps - 1}, though the "
                "state is pure noise",
            )  # fmt: skip


def _is_even(times: list[float]) -> bool:
    steps = [b - a for a, b in itertools.pairwise(times)]
    return max(steps) - min(steps) < 1e-3


def _check_distance(sampler: Callable[..., Tensor], agreed: Convention, x0: Tensor, seed: int) -> None:
    """Raise where the steps do not add up to 1, by a velocity that is the same everywhere."""
    push = PUSH.repeat(x0[0].numel() // 2).reshape(x0.shape[1:])
    run = Run(sampler, agreed, lambda x, t: push.to(x).expand_as(x), x0, seed)
    gone = (run.x - x0) / push
    way, n = float(gone.mean()), len(run.times)
    if float((gone - way).abs().max()) > 1e-3:
        raise Violation(
            "not straight",
            "x1: under a constant velocity the points do not all move by the same: is x scaled or clipped?",
        )
    if abs(way - 1) < 2e-3:
        return
    if abs(way + 1) < 2e-3:
        raise Violation("sign flipped", "x1: the sign is flipped: it moves against the velocity")
    if abs(way) < 2e-3:
        raise Violation("no motion", "x1: it does not move at all: is the result of a step thrown away?")
    steps = round(1 / abs(way - 1)) if abs(way - 1) > 1e-6 else 0
    if 2 <= steps <= 2 * n + 2 and abs(abs(way - 1) * steps - 1) < 0.02:
        raise Violation(
            "a step missing" if way < 1 else "a step too many",
            f"x1: the steps add up to {way:.4g} instead of 1: one of {steps} is {'missing' if way < 1 else 'too many'}",
        )
    raise Violation("wrong step", f"x1: the steps add up to {way:.4g} instead of 1: are they in the units of the time?")


def schedule_in(agreed: Convention) -> NoiseSchedule:
    """The schedule of a convention of steps."""
    path = agreed.path
    assert isinstance(path, SchedulePath)
    return path.schedule


def _check_ddim(run: Run, exact: Velocity, x0: Tensor) -> bool:
    """Whether the result is DDIM's over the steps at which the model was called; raises for a mistake in it."""
    agreed, schedule = run.agreed, schedule_in(run.agreed)
    visited = [round(one) for one in run.theirs]
    if agreed.output != "noise" or any(abs(a - b) > 1e-3 for a, b in zip(visited, run.theirs, strict=True)):
        return False

    def predict(x: Tensor, i: int) -> Tensor:
        return agreed.spoken(exact, x, torch.full((len(x),), float(i), dtype=torch.float64))

    abar = schedule.alphas_cumprod.tolist()

    def walk(last: float = 1.0, root: bool = True) -> Tensor:
        return ddim_walk(predict, x0, schedule, visited, last=last, root=root)

    if close(run.x, walk()):
        return True
    for (fault, words), x in {
        ("noise left", "the last jump ends at step 0, whose noise remains; end in the data"): walk(abar[0]),
        ("noise left", "the last jump goes to abar[-1], which is the noisiest step; after the last there is no noise"):
            walk(abar[-1]),
        ("roots missing", "the noise is multiplied by 1 - abar in place of its square root"): walk(root=False),
    }.items():  # fmt: skip
        if close(run.x, x):
            raise Violation(fault, f"x1: {words}")
    return False


def _check_draws(
    sampler: Callable[..., Tensor], agreed: Convention, sides: tuple[int, ...], tolerance: float, seed: int
) -> str:
    """Judge a sampler that draws noise by the mean and the standard deviation of its samples of a Gaussian."""
    data = GaussianMixture([[MEAN, MEAN]], STD)
    draws = max(64, 2 * DRAWS // math.prod(sides))
    x0 = agreed.path.source_std * torch.randn(draws, *sides, generator=torch.Generator().manual_seed(seed))
    run = Run(sampler, agreed, in_pairs(data, agreed.path, sides), x0, seed)
    run.check_times()
    mean, std = float(run.x.mean()), float(run.x.std())
    found = f"mean {mean:.3f} and standard deviation {std:.3f}, for data N({MEAN}, {STD}^2)"
    calls = len(run.times)

    def drawn(expected: tuple[float, float]) -> bool:
        margin = 4 * expected[1] / x0.numel() ** 0.5
        return abs(mean - expected[0]) < margin and abs(std - expected[1]) < margin

    if agreed.in_steps and calls == schedule_in(agreed).steps:
        _check_end(sampler, agreed, x0, seed)
        if any(drawn(expected) for expected in right_moments(schedule_in(agreed))):
            return f"right: DDPM in {calls} calls, with {found}"
        for (fault, words), expected in wrong_moments(schedule_in(agreed)).items():
            if drawn(expected):
                raise Violation(fault, f"x1: {words}; {found}")
    if abs(mean - MEAN) <= tolerance * STD and abs(std - STD) <= tolerance * STD:
        return f"right: it draws from the data in {calls} calls, with {found}"
    if abs(mean - MEAN) <= tolerance * STD:
        fault, words = ("noise left", "too wide: is noise left?") if std > STD else ("too narrow", "too narrow")
        raise Violation(fault, f"x1: {words}; {found}")
    raise Violation(
        "unknown", f"x1: no known mistake explains {found}. Does it clip? (The data of the check go beyond [-1, 1])"
    )


def _check_end(sampler: Callable[..., Tensor], agreed: Convention, x0: Tensor, seed: int) -> None:
    """Raise where noise is added in the last step, by data that are a point: the prediction there is the point."""
    point = in_pairs(GaussianMixture([[MEAN, MEAN]], 1e-3), agreed.path, tuple(x0.shape[1:]))
    spread = float(Run(sampler, agreed, point, x0[:POINTS], seed).x.std())
    if 1 > spread > 0.5 * float(schedule_in(agreed).betas[0]) ** 0.5:
        raise Violation("noise left", f"x1: noise of {spread:.2g} is left: the last step, i = 0, ends in the data")


def _relative(x: Tensor, right: Tensor) -> float:
    spread = right.std(0).square().mean().sqrt()
    return float((x - right).square().mean().sqrt() / spread)
