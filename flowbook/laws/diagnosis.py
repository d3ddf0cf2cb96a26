"""A diagnosis: the known mistake that explains a result."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Violation(AssertionError):  # noqa: N818 (a finding about the code that is checked)
    """What is wrong with an implementation, in a sentence.

    Attributes:
        fault: the same in a few words, such as "sign flipped".
    """

    def __init__(self, fault: str, message: str):
        super().__init__(message)
        self.fault = fault


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for rounding in float32.

    Example:
        >>> close(torch.ones(2), torch.ones(2) + 1e-6), close(torch.ones(2), torch.ones(3))
        (True, False)
    """
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5))


def diagnose(got: Tensor, expected: Tensor, mistakes: Mapping[str, Tensor], what: str) -> None:
    """Raise :class:`Violation` with the first known mistake that gives the result.

    Args:
        got: the result.
        expected: what it should be.
        mistakes: a sentence for each known mistake, with what it would give.
        what: the name of the result.

    Example:
        >>> right, doubled = torch.ones(2), {"counted twice": 2 * torch.ones(2)}
        >>> diagnose(torch.ones(2), right, doubled, "v")
        >>> diagnose(2 * torch.ones(2), right, doubled, "v")
        Traceback (most recent call last):
        flowbook.laws.diagnosis.Violation: v: counted twice
    """
    if close(got, expected):
        return
    if got.shape != expected.shape:
        raise Violation("shape", f"{what}: expected shape {tuple(expected.shape)}; got {tuple(got.shape)}")
    for diagnosis, result in mistakes.items():
        if close(got, result):
            raise Violation(diagnosis, f"{what}: {diagnosis}")
    off = float((got - expected).abs().max())
    raise Violation("unknown", f"{what}: off by up to {off:.3g}, no known mistake explains it")


def diagnose_number(
    value: float,
    expected: float,
    mistakes: Mapping[str, float],
    hint: str,
    *,
    tolerance: float,
    what: str = "value",
) -> None:
    """The same for one number, which may be off by the tolerance; the hint is for an unknown mistake.

    Example:
        >>> diagnose_number(0.5, 1.0, {"halved": 0.5}, "think of the other half", tolerance=0.01)
        Traceback (most recent call last):
        flowbook.laws.diagnosis.Violation: value: halved
    """
    if math.isclose(value, expected, abs_tol=tolerance):
        return
    for diagnosis, result in mistakes.items():
        if math.isclose(value, result, abs_tol=tolerance):
            raise Violation(diagnosis, f"{what}: {diagnosis}")
    raise Violation("unknown", f"{what}: got {value:.4g}; {hint}")
