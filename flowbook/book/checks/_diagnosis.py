"""What all checks share: finding the known mistake that gives the reader's result."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5))


def diagnose(got: Tensor, expected: Tensor, mistakes: dict[str, Tensor], what: str) -> None:
    """Raise with the first known mistake that gives the reader's result."""
    if _close(got, expected):
        return
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: expected shape {tuple(expected.shape)}; got {tuple(got.shape)}")
    for diagnosis, result in mistakes.items():
        if _close(got, result):
            raise AssertionError(f"{what}: {diagnosis}")
    raise AssertionError(
        f"{what}: off by up to {float((got - expected).abs().max()):.3g}, no known mistake explains it"
    )


def diagnose_number(
    value: float, expected: float, mistakes: dict[str, float], hint: str, *, tolerance: float, what: str = "value"
) -> None:
    """The same for one number, which may be off by the tolerance; the hint is for an unknown mistake."""
    if math.isclose(value, expected, abs_tol=tolerance):
        return
    for diagnosis, result in mistakes.items():
        if math.isclose(value, result, abs_tol=tolerance):
            raise AssertionError(f"{what}: {diagnosis}")
    raise AssertionError(f"{what}: got {value:.4g}; {hint}")
