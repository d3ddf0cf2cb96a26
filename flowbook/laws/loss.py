"""Is a training loss the one that it is meant to be?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.seeding import seeded
from flowbook.diffusion import SchedulePath
from flowbook.laws.convention import Convention, ConventionOptions, StandIn, mistaken, mixed
from flowbook.laws.diagnosis import Violation
from flowbook.laws.noise import DIMS_TO_TELL_ROWS, EXACT, check_noise, is_even, is_normal, rms
from flowbook.paths import CosinePath, LinearPath, Path, VPPath

BATCH = 256
NUMBERS = 1024
"""Least number of entries in a batch, for data of few dimensions."""
LARGEST_EXTRA_NOISE = 0.3


def check_loss(
    loss: Callable[..., Tensor], *, shape: Sequence[int] = (64,), seed: int = 0, **convention: Unpack[ConventionOptions]
) -> str:
    r"""Hold a loss against the regression that it is meant to be, and say what is wrong with it.

    The loss is called with a model that records what it is given. As a squared error is a parabola in the model's
    output, its gradient at two outputs tells the target of every sample, and the recorded input and time tell the rest:
    which noise was drawn, where on which path the input lies, and whether the target belongs to it.

    Args:
        loss: ``loss(model, x1) -> scalar``, where it calls ``model(x, t)`` once and draws noise and times from the
            global generator of torch, NumPy or ``random``. A loss of this package is one.
        shape: of one sample of the data, such as (1, 28, 28).
        seed: of the data and draws.
        convention: how the loss calls its model and what it teaches it: ``order``, ``time_scale``, ``reverse``,
            ``sign``, ``output`` and ``path``, as in :func:`~flowbook.adapters.from_callable`. ``path`` may be a
            :class:`~flowbook.diffusion.NoiseSchedule`, for a loss that draws its steps.

    Returns:
        A sentence that says what the loss is.

    Raises:
        Violation: for a loss that is something else, with the mistake that explains it.

    Example:
        >>> def mine(model, x1):
        ...     x0, t = torch.randn_like(x1), torch.rand(len(x1))
        ...     xt = (1 - t[:, None]) * x0 + t[:, None] * x1
        ...     return (model(xt, t) - (x1 - x0)).square().mean()
        >>> check_loss(mine)
        'right: a regression on the velocity along LinearPath(sigma_min=0.0), averaged over batch and dimensions'
    """
    validate.function("loss", loss, "loss(model, x1)")
    agreed = Convention.of(convention)
    shape = sample_shape(shape)
    for axis, size in enumerate(shape, start=1):  # only in a batch of its length, a wrong broadcast goes unnoticed
        if size > 4:
            _check_broadcasting(_observe(loss, _data(size, shape, seed), agreed, seed), agreed, axis)
    batch = max(BATCH, NUMBERS // math.prod(shape))
    seen = _observe(loss, _data(batch, shape, seed), agreed, seed).in_order()
    _check_times(seen, agreed)
    noise, extra = _check_target(seen, agreed)
    check_noise(noise)
    if torch.equal(seen.x, _observe(loss, _data(batch, shape, seed), agreed, seed + 1).in_order().x):
        raise Violation("same draws", "loss: it draws the same noise and times in every call: is it seeded inside?")
    averaging = _averaging(seen, _observe(loss, _data(batch // 4, shape, seed), agreed, seed))
    return f"right: a regression on the {agreed.output} along {agreed.path!r}, {averaging}{extra}"


def sample_shape(shape: Sequence[int] | int) -> tuple[int, ...]:
    """The shape of one sample, checked.

    Example:
        >>> sample_shape(64), sample_shape([1, 28, 28])
        ((64,), (1, 28, 28))
    """
    sides = (shape,) if isinstance(shape, int) else tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if not sides:
        raise ValueError(f"shape: expected that of one sample, such as (1, 28, 28); got {shape!r}")
    for size in sides:
        validate.positive_int("shape", size)
    return sides


@dataclass(frozen=True)
class Seen:
    """What a loss did with a batch: data, inputs, times, targets and weights of its rows."""

    x1: Tensor
    x: Tensor
    theirs: Tensor
    target: Tensor
    weight: Tensor

    def in_order(self) -> Seen:
        """The rows in the order of time."""
        order = self.theirs.argsort()
        return Seen(*(part[order] for part in (self.x1, self.x, self.theirs, self.target, self.weight)))


class Recorder(StandIn):
    """A model that records its input, and returns what it was told."""

    def __init__(self, output: Tensor, agreed: Convention):
        super().__init__()
        self.output, self.agreed = output.clone().requires_grad_(), agreed
        self.calls: list[tuple[Tensor, Tensor]] = []

    def answer(self, *given: Any, **named: Any) -> Tensor:
        x, t = self.agreed.called(self.output.shape, *given, **named)
        self.calls.append((x.detach().clone(), t.detach().expand(len(x)).clone()))
        return self.output.view_as(self.output)


def _data(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Data that are no noise: their mean is 2 and their standard deviation 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return 2 + 0.5 * torch.randn(batch, *shape, generator=generator)


def _observe(loss: Callable[..., Tensor], x1: Tensor, agreed: Convention, seed: int) -> Seen:
    """The loss at three outputs of the model, with the same draws."""
    generator = torch.Generator().manual_seed(seed + 1)
    step = torch.randn(x1.shape, generator=generator)
    step = step + step.sign()  # away from 0, as it divides
    outputs = [torch.zeros_like(x1), step, 2 * step]
    runs = [_gradient(loss, x1, output, agreed, seed) for output in outputs]
    (x, t, g0), (again, t_again, g1), (_, _, g2) = runs
    if not (torch.equal(x, again) and torch.equal(t, t_again)):
        raise Violation(
            "not repeatable", "loss: with the same seeds of torch, NumPy and random it draws other noise or times"
        )
    weight = (g1 - g0) / step
    if bool(((g2 - g1) - (g1 - g0)).abs().max() > EXACT * (g1 - g0).abs().max()):
        raise Violation(
            "no squared error", "loss: expected a squared error in the model's output, whose target can be read"
        )
    rows = weight.flatten(1)
    counted = (rows != 0).any(1)  # a weight of 0 leaves samples out
    if int(counted.sum()) < max(4, len(x1) // 8):
        raise Violation("samples left out", f"loss: only {int(counted.sum())} of {len(x1)} samples count")
    x1, x, t, g0, weight, rows = (part[counted] for part in (x1, x, t, g0, weight, rows))
    each = rows.mean(0) / rows.mean()  # weights of the entries, the same in each sample
    uneven = (rows - rows.mean(1, keepdim=True) * each).abs().max() > 10 * EXACT * rows.abs().max()
    if bool(uneven) or bool((rows == 0).any()):
        raise Violation(
            "samples mixed", "loss: the error of one entry depends on others, or has the weight 0: are shapes (B,) and "
            "(B, 1) broadcast?",
        )  # fmt: skip
    return Seen(*(part.double() for part in (x1, x, t, -g0 / weight, rows.mean(1))))


def _gradient(
    loss: Callable[..., Tensor], x1: Tensor, output: Tensor, agreed: Convention, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    model, kept = Recorder(output, agreed), x1.clone()
    with seeded(seed), torch.enable_grad():
        value = loss(model, x1)
    if not torch.equal(x1, kept):
        x1.copy_(kept)
        raise Violation("data changed", "x1: the loss changes the data that it is given; work on a copy")
    if len(model.calls) != 1:
        raise Violation("calls", f"model: expected one call in a loss; got {len(model.calls)}")
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Violation("no scalar", f"loss: expected a scalar; got {shape}: average over batch and dimensions")
    detached = "loss: it does not depend on the model's output: is it detached, or computed without gradients?"
    if not value.requires_grad:
        raise Violation("detached", detached)
    (gradient,) = torch.autograd.grad(value.reshape(()), model.output, allow_unused=True)
    if gradient is None or not bool(gradient.any()):
        raise Violation("detached", detached)
    return (*model.calls[0], gradient)


def _check_times(seen: Seen, agreed: Convention) -> None:
    theirs, scale = seen.theirs, agreed.time_scale
    low, high = float(theirs.min()), float(theirs.max())
    if len(theirs.unique()) == 1:
        raise Violation("one time for all", f"t: all {len(theirs)} samples have the time {low:g}; draw one for each")
    if scale > 1.5 and high <= 1 + 1e-6:
        raise Violation(
            "time not scaled", f"t: the model expects times from 0 to {scale:g}; it is given {low:.3g} to {high:.3g}"
        )
    if high > 1.5 * scale:
        twice, by = scale > 1.5, f" (else say time_scale={round(high, -2):g})" if high > 60 else ""
        why = "they are scaled twice" if twice else f"they are scaled{by}"
        said = f"t: expected times from 0 to {scale:g}; got {low:.3g} to {high:.3g}: {why}"
        raise Violation("time scaled twice" if twice else "time scaled", said)
    if low < -1e-6 or high > scale * (1 + 1e-6):
        raise Violation("time outside", f"t: expected times from 0 to {scale:g}; got {low:.6g} to {high:.6g}")
    spread_out = isinstance(agreed.path, (LinearPath, CosinePath)) or agreed.in_steps
    if spread_out and (low > 0.25 * scale or high < 0.75 * scale):
        raise Violation("few times", f"t: only times from {low:.3g} to {high:.3g} are drawn, of 0 to {scale:g}")


def _fits(seen: Seen, convention: Convention, steps: int = 0) -> tuple[Tensor, Tensor, str] | None:
    """Noise and data behind input and target, and what is to be said besides, if the convention holds.

    It is also tried whether it holds some steps of a schedule further than the model is told.
    """
    low, high = convention.path.t_range
    t = convention.time(seen.theirs + steps)
    inside = (t > low + 0.02) & (t < high - 0.02)
    x, t, target = seen.x[inside], t[inside], convention.sign * seen.target[inside]
    parts = [convention.path.convert(target, x, t, source=convention.output, target=part) for part in ("noise", "data")]  # type: ignore[arg-type]
    noise, data = parts
    own = seen.x1[inside]
    if len(own) == 0:
        raise Violation("few times", "t: all times are at the ends, where nothing is to be learned")
    if rms(data - own) < EXACT * rms(own):
        return noise, own, ""
    gain = float(((data - data.mean()) * (own - own.mean())).mean() / own.var(correction=0))
    offset = float(data.mean() - gain * own.mean())
    if (
        abs(gain) > 0.01 and is_normal(noise) and rms(data - gain * own - offset) < EXACT * rms(data)
    ):  # it scales its data first
        return noise, own, f", for {gain:.4g} x1 {offset:+.3g} in place of x1"
    partner = torch.cdist(data.flatten(1), seen.x1.flatten(1)).argmin(1)  # a coupling may have permuted them
    paired = seen.x1[partner]
    many = own[0].numel() >= DIMS_TO_TELL_ROWS  # in few dimensions some row is always near
    if rms(data - paired) < (EXACT if many else 0.02 * EXACT) * rms(own):
        return noise, paired, ""
    # torchcfm adds noise to the input, not to the target.
    if convention.output == "velocity" and isinstance(convention.path, LinearPath):
        own = paired if many else own
        noise = (own - target) / (1 - convention.path.sigma_min)
        rest = x - convention.path.interpolate(noise, own, t)
        spread = rms(rest)
        related = float((rest * noise).mean()) / spread if spread > 0 else 1.0
        if EXACT < spread < LARGEST_EXTRA_NOISE and is_normal(noise) and abs(related) < 0.05 and is_even(rest / spread):
            return noise, own, f", with noise of {spread:.2g} added to its input"
    return None


def _check_target(seen: Seen, agreed: Convention) -> tuple[Tensor, str]:
    """The noise that was drawn, and what is to be said besides."""
    if (found := _fits(seen, agreed)) is not None:
        return found[0], found[2]
    if rms(seen.target - seen.target[:1]) < EXACT * rms(seen.target):
        raise Violation("targets averaged", "target: the same for all samples: a (B,) and a (B, 1) were broadcast")
    for steps in (1, -1) if agreed.in_steps else ():
        if _fits(seen, agreed, steps) is not None:
            said = f"xt: the input has the noise of step i {'+' if steps > 0 else '-'} 1, and the model is told i"
            raise Violation("step off by one", said)
    for mistake in mistaken(agreed):
        if (found := _fits(seen, mistake.convention)) is not None and is_normal(found[0]):
            raise Violation(mistake.fault, f"target: {mistake.sentence}")
    for path in _other_paths(agreed):
        if (found := _fits(seen, agreed.but(path=path))) is not None and is_normal(found[0]):
            raise Violation("another path", f"path: input and target belong to {path!r}; expected {agreed.path!r}")
    _explain_input(seen, agreed)
    _explain_target(seen, agreed)
    raise Violation(
        "unknown", f"target: it is not the {agreed.output} on {agreed.path!r}; no known mistake explains it"
    )


def _explain_input(seen: Seen, agreed: Convention) -> None:
    """Raise for an input that does not lie on the path: roots forgotten, a step too far, nothing mixed."""
    t, path = agreed.time(seen.theirs), agreed.path
    alpha, sigma = path.alpha(t), path.sigma(t)
    candidates = {
        ("roots missing", "alpha and sigma are squared: the roots of the variances are missing"): (alpha**2, sigma**2),
        ("roots missing", "sigma is squared: the root of its variance is missing"): (alpha, sigma**2),
        ("roots missing", "alpha is squared: the root of its variance is missing"): (alpha**2, sigma),
        ("weights exchanged", "noise and data are mixed with each other's weights"): (sigma, alpha),
        ("no noise", "the input is the data themselves: no noise was mixed in"): (torch.ones_like(t), 0 * t),
    }
    if isinstance(path, SchedulePath):
        single = (1 - path.schedule.betas)[seen.theirs.round().long().clamp(0, path.schedule.steps - 1)]
        words = "these are the alphas of single steps: their products, alphas_cumprod, belong here"
        candidates["alphas not multiplied", words] = (single.sqrt(), (1 - single).sqrt())
    inside = (t > 0.05) & (t < 0.95)
    for (fault, words), (a, s) in candidates.items():
        spread = (seen.x - mixed(seen.x, a) * seen.x1)[inside]
        if float(s[inside].max()) == 0:
            if rms(spread) < EXACT:
                raise Violation(fault, f"xt: {words}")
            continue
        if is_even(spread / mixed(spread, s[inside])) and not _on_path(seen, agreed):
            raise Violation(fault, f"xt: {words}")


def _on_path(seen: Seen, agreed: Convention) -> bool:
    return is_even(_noise_in(seen, agreed, agreed.path))


def _noise_in(seen: Seen, agreed: Convention, path: Path) -> Tensor:
    t = agreed.time(seen.theirs)
    inside = (t > path.t_range[0] + 0.05) & (t < path.t_range[1] - 0.05)
    x, x1, t = seen.x[inside], seen.x1[inside], t[inside]
    return (x - mixed(x, path.alpha(t)) * x1) / mixed(x, path.sigma(t))


def _explain_target(seen: Seen, agreed: Convention) -> None:
    """Raise for a target that does not belong to an input that is right."""
    if not _on_path(seen, agreed):
        for path in _other_paths(agreed):
            if is_even(_noise_in(seen, agreed, path)):
                raise Violation("another path", f"xt: the input lies on {path!r}; expected {agreed.path!r}")
        return
    path = agreed.path
    t = agreed.time(seen.theirs)
    inside = (t > path.t_range[0] + 0.05) & (t < path.t_range[1] - 0.05)
    noise = _noise_in(seen, agreed, path)
    x, x1, t, target = seen.x[inside], seen.x1[inside], t[inside], agreed.sign * seen.target[inside]
    right = path.convert(noise, x, t, source="noise", target=agreed.output)  # type: ignore[arg-type]
    for other in _other_paths(agreed):
        if other.t_range[0] <= float(t.min()) and _same(
            target, other.velocity(noise, x1, t.clamp(max=other.last_velocity_time))
        ):
            raise Violation(
                "target of another path", f"target: it is the velocity of {other!r}, and the input lies on {path!r}"
            )
    if _same(target, x1 - x):
        raise Violation("not divided", "target: this is x1 - xt, which still has to be divided by the remaining time")
    ratio = float((target * right).sum() / right.square().sum())
    if _same(target, ratio * right):
        raise Violation("scaled", f"target: it is {ratio:.4g} times the {agreed.output}")
    rest = target - right
    ours = (rest * noise).mean() / noise.square().mean()  # the input's noise, in place of which another was drawn
    drawn = rest - ours * noise
    if is_normal(drawn / float(drawn.std())) and abs(float(drawn.std()) - abs(float(ours))) < 0.1 * abs(float(ours)):
        raise Violation("noise redrawn", "target: its noise is not the input's: draw it once, and use it in both")


def _other_paths(agreed: Convention) -> list[Path]:
    paths: list[Path] = [LinearPath(), CosinePath(), VPPath(), LinearPath(1e-1), LinearPath(1e-2)]
    return [path for path in paths if path != agreed.path]


def _check_broadcasting(seen: Seen, agreed: Convention, axis: int) -> None:
    """Raise for times that run along another axis than the batch, which is as long as that one here."""
    path, t = agreed.path, agreed.time(seen.theirs)
    inside = (t > 0.05) & (t < 0.95)
    if (
        len(t) != seen.x.shape[axis]
        or len(t.unique()) == 1
        or not bool(inside.any())
        or not bool(((t >= 0) & (t <= 1)).all())
    ):
        return
    along = t.reshape(-1, *[1] * (seen.x.dim() - 1 - axis))
    noise = (seen.x - path.alpha(along) * seen.x1) / path.sigma(along)
    if is_normal(noise.index_select(axis, inside.nonzero().flatten())) and not _on_path(seen, agreed):
        shape = ", ".join(["B", *["1"] * (seen.x.dim() - 1)])
        raise Violation("time broadcast", f"t: it is broadcast over axis {axis} of x1: give it the shape ({shape})")


def _averaging(seen: Seen, fewer: Seen) -> str:
    """How the errors are averaged; raises where that depends on the batch, compared with a batch of a quarter."""
    weight = seen.weight
    if bool((weight < 0).any()):
        raise Violation("loss negated", "loss: its sign is flipped: the error is maximized")
    nearest = (fewer.theirs[:, None] - seen.theirs).abs().argmin(1)  # a weight may depend on the time
    ratio = float((fewer.weight / weight[nearest]).median())
    power = round(math.log(ratio, len(seen.x) / len(fewer.x)))
    if power < 1:
        raise Violation("summed over the batch", "loss: a sum over the batch where a mean belongs")
    if power > 1:
        raise Violation("averaged twice", "loss: divided by the batch size twice")
    each = weight * len(weight)
    if float(each.std()) > EXACT * float(each.mean()):
        return "with a weight that depends on the time"
    for count, how in ((1, "summed over dimensions, averaged over the batch"),
                       (seen.x[0].numel(), "averaged over batch and dimensions")):  # fmt: skip
        for factor, words in ((2.0, ""), (1.0, "half of the squares, ")):
            if math.isclose(float(each.mean()) * count, factor, rel_tol=10 * EXACT):
                return words + how
    return f"times {float(each.mean()) * seen.x[0].numel() / 2:.3g}"


def _same(a: Tensor, b: Tensor) -> bool:
    return rms(a - b) < 10 * EXACT * max(rms(b), 1e-12)
