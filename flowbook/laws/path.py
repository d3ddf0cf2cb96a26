"""Is a path what it is meant to be: from noise to data, with the velocity as its derivative?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.laws.diagnosis import Violation, close, diagnose
from flowbook.paths import Path

ROWS, DIMS = 6, 5
STEP = 1e-2
"""Of the central differences that stand for the derivative, also of a path in float32 or from a table."""


def check_path(path: Path | Callable[..., Any], *, reverse: bool = False, expected: Path | None = None) -> str:
    """Hold a path against its laws: noise at one end, data at the other, and the velocity as its derivative.

    Args:
        path: a :class:`~flowbook.paths.Path`, or a function ``(x0, x1, t) -> (xt, velocity)`` of noise and data (B, D)
            and times (B,).
        reverse: data are at time 0, noise at time 1.
        expected: a path that it is to agree with at every time; None asks for the laws alone.

    Returns:
        A sentence that says how close to data and noise the ends are.

    Raises:
        Violation: with the mistake that explains it.

    Example:
        >>> check_path(lambda x0, x1, t: ((1 - t[:, None]) * x0 + t[:, None] * x1, x1 - x0))
        'right: from noise to data, with the velocity as its derivative; at its end 0 of the noise is left'
    """
    validate.boolean("reverse", reverse)
    if expected is not None:
        validate.instance("expected", expected, Path, "LinearPath()")
    function = _as_function(path)
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randn(ROWS, DIMS, generator=generator, dtype=torch.float64) for _ in range(2))
    _check_rows(function, x0, x1)
    left = _check_ends(function, x0, x1, reverse)
    _check_slope(function, x0, x1)
    if expected is not None:
        _check_agreement(function, x0, x1, expected, reverse)
    return f"right: from noise to data, with the velocity as its derivative; at its end {left:.2g} of the noise is left"


def _as_function(path: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    if isinstance(path, Path):
        path = path.interpolate_and_velocity
    validate.function("path", path, "a Path, or a function of (x0, x1, t)")

    def function(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        result = path(x0, x1, t)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            got = f"{len(result)} parts" if isinstance(result, (tuple, list)) else validate.described(result)
            raise TypeError(f"path: expected (xt, velocity) from (x0, x1, t); got {got}")
        for name, part in zip(("xt", "velocity"), result, strict=True):
            if not isinstance(part, Tensor) or part.shape != x1.shape:
                raise Violation(
                    "shape", f"{name}: expected shape {tuple(x1.shape)} like x1; got {validate.described(part)}"
                )
        return result[0].double(), result[1].double()

    return function


def _check_rows(function: Callable[..., Any], x0: Tensor, x1: Tensor) -> None:
    """Raise where a row depends on the others' times: broadcast along the last axis, in a batch as long as it is."""
    t = torch.linspace(0.1, 0.9, DIMS, dtype=torch.float64)
    x0, x1 = x0[:DIMS], x1[:DIMS]
    if not close(function(x0, x1, t)[0], function(x0, x1, t)[0]):
        raise Violation("no mixture", "xt: it differs from call to call: is something drawn inside?")
    alone = [function(x0[:1], x1[:1], torch.full((1,), float(time), dtype=torch.float64))[0] for time in t]
    spread = torch.stack([row[0, k] for k, row in enumerate(alone)])
    together = function(x0, x1, t)[0][0]
    if not close(together, alone[0][0]):
        broadcast = close(together, spread)
        how = "it is broadcast over the last axis: give it the shape (B, 1)" if broadcast else "rows share their times"
        raise Violation("time broadcast", f"t: {how}")


def _weights(function: Callable[..., Any], x0: Tensor, x1: Tensor, t: float) -> tuple[float, float]:
    """The weights of noise and data in xt, by least squares."""
    xt = function(x0, x1, torch.full((len(x0),), t, dtype=x0.dtype))[0]
    parts = torch.stack([x0.flatten(), x1.flatten()], dim=1)
    found = torch.linalg.lstsq(parts, xt.flatten()[:, None]).solution.flatten()
    if not close(parts @ found, xt.flatten()):
        raise Violation("no mixture", f"xt: at t = {t:g} it is no mixture of x0 and x1")
    return float(found[0]), float(found[1])


def _check_ends(function: Callable[..., Any], x0: Tensor, x1: Tensor, reverse: bool) -> float:
    """Noise and data in their places; returns how much noise is left in the data."""
    noise, data = (1.0, 0.0) if reverse else (0.0, 1.0)
    at_noise, at_data = _weights(function, x0, x1, noise), _weights(function, x0, x1, data)
    if at_noise[0] < at_noise[1] and at_data[1] < at_data[0]:
        raise Violation(
            "noise and data exchanged",
            f"xt: at t = {noise:g} it is the data, at t = {data:g} the noise (else say reverse={not reverse})",
        )
    if abs(at_noise[1]) > 0.2 * abs(at_noise[0]) or at_noise[0] < 0.5:
        raise Violation(
            "wrong ends", f"xt: expected noise at t = {noise:g}; got {at_noise[0]:.3g} x0 + {at_noise[1]:.3g} x1"
        )
    if abs(at_data[0]) > 0.2 or abs(at_data[1] - 1) > 0.05:
        raise Violation(
            "wrong ends", f"xt: expected data at t = {data:g}; got {at_data[0]:.3g} x0 + {at_data[1]:.3g} x1"
        )
    return abs(round(at_data[0], 9))


def _check_slope(function: Callable[..., Any], x0: Tensor, x1: Tensor) -> None:
    """Raise where the velocity is not the derivative of xt with respect to t, at times away from the ends."""
    for time in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        t = torch.full((len(x0),), time, dtype=x0.dtype)
        wide, narrow = (_difference(function, x0, x1, t, step) for step in (2 * STEP, STEP))
        slope, (xt, velocity) = (4 * narrow - wide) / 3, function(x0, x1, t)  # of fourth order
        if _near(velocity, slope):
            continue
        said = f"velocity: at t = {time:g} "
        if _near(velocity, -slope):
            raise Violation("sign flipped", said + "the sign is flipped: it is minus d xt / dt")
        if _near(velocity, x1 - xt, 1e-3):
            raise Violation(
                "not divided", said + "this is x1 - xt, which still has to be divided by the remaining time"
            )
        if _near(velocity, x1 - x0, 1e-3):
            raise Violation(
                "target of another path", said + "x1 - x0 is the velocity of the straight path, not of this"
            )
        ratio = float((velocity * slope).sum() / slope.square().sum())
        if _near(velocity, ratio * slope):
            raise Violation("scaled", said + f"it is {ratio:.4g} times d xt / dt: is the time scaled?")
        for name, part in (("x0", x0), ("x1", x1), ("xt", xt)):
            if _near(velocity, part):
                raise Violation("no derivative", said + f"this is {name}, not d xt / dt")
        off = float((velocity - slope).abs().max())
        raise Violation("no derivative", said + f"it differs from d xt / dt by up to {off:.3g}")


def _difference(function: Callable[..., Any], x0: Tensor, x1: Tensor, t: Tensor, step: float) -> Tensor:
    ahead, behind = function(x0, x1, t + step)[0], function(x0, x1, t - step)[0]
    return (ahead - behind) / (2 * step)


def _near(a: Tensor, b: Tensor, tolerance: float = 5e-3) -> bool:
    return float((a - b).abs().max()) < tolerance * float(b.abs().max())


def _check_agreement(function: Callable[..., Any], x0: Tensor, x1: Tensor, expected: Path, reverse: bool) -> None:
    t = torch.linspace(0.1, 0.9, len(x0), dtype=x0.dtype)
    sign = -1 if reverse else 1
    xt, velocity = function(x0, x1, 1 - t if reverse else t)
    column = t[:, None]
    alpha, sigma = expected.alpha(column), expected.sigma(column)
    diagnose(
        xt, alpha * x1 + sigma * x0,
        {
            "the roots are missing: these are the variances": alpha**2 * x1 + sigma**2 * x0,
            "without its noise at the end: sigma_min is missing": alpha * x1 + (1 - alpha) * x0,
        },
        "xt",
    )  # fmt: skip
    diagnose(sign * velocity, expected.velocity(x0, x1, t), {}, "velocity")
