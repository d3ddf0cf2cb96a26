"""Is noise what it is meant to be: normal, and drawn for each entry?"""

from __future__ import annotations

from torch import Tensor

from flowbook.laws.diagnosis import Violation

EXACT = 1e-3
"""Largest relative error of what is the same but for rounding in float32."""
DIMS_TO_TELL_ROWS = 16


def check_noise(noise: Tensor) -> None:
    """Raise for noise that is not normal, or that samples or entries share."""
    if not is_normal(noise):
        raise Violation(
            "noise not normal",
            f"x0: expected noise from N(0, 1); got mean {float(noise.mean()):.3g} and standard deviation "
            f"{float(noise.std()):.3g}",
        )
    fourth, margin = float(noise.pow(4).mean()), 8 * (96 / noise.numel()) ** 0.5
    if abs(fourth - 3) > max(0.5, margin):
        raise Violation(
            "noise not normal", f"x0: expected normal noise; got one whose fourth moment is {fourth:.3g}, not 3"
        )
    rows = noise.flatten(1)
    for part, words in ((rows.T, "the entries of a sample"), (rows, "the samples of a batch")):
        if len(part) > 1 and part.shape[1] >= DIMS_TO_TELL_ROWS:
            related = (part @ part.T / part.shape[1]).fill_diagonal_(0.0).abs() > 8 / part.shape[1] ** 0.5
            # Draws of a coupling with replacement repeat single rows; one noise for all repeats them all.
            if bool(related.any() if part is not rows else related.double().mean() > 0.5):
                raise Violation("noise shared", f"x0: {words} share their noise: draw it in the shape of x1")


def is_normal(noise: Tensor) -> bool:
    """Whether numbers have the mean 0 and the deviation 1, up to chance."""
    margin = 6 / noise.numel() ** 0.5 + EXACT
    return abs(float(noise.mean())) < margin and abs(float(noise.std()) - 1) < margin


def is_even(noise: Tensor) -> bool:
    """Whether noise, in the order of time, has the right spread in each quarter: their mean would hide a wrong path."""
    return all(abs(rms(part) ** 2 - 1) < 6 * (2 / part.numel()) ** 0.5 + EXACT for part in noise.chunk(4))


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return float(x.square().mean().sqrt())
