"""What nbval lacks: numbers that a notebook prints are compared within a tolerance.

A cell's new text agrees with the stored one when the words are equal and each number is close. Numbers with a point or
an exponent may differ by 1%, or by one unit of their last printed digit; whole numbers (counts, labels) must be equal.
A cell tag such as ``rtol-0.05`` sets another tolerance for all numbers of its cell.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
RTOL = 1e-2
ATOL = 1e-12
TAG = re.compile(r"rtol-(0?\.\d+)")


def texts_agree(new: str, stored: str, rtol: float | None = None) -> bool:
    """True when the words of both texts are equal and their numbers close; ``rtol`` None is the default tolerance."""
    words = [[part.split() for part in NUMBER.split(text)] for text in (new, stored)]
    if words[0] != words[1]:
        return False
    return all(map(lambda a, b: _close(a, b, rtol), NUMBER.findall(new), NUMBER.findall(stored)))


def _close(new: str, stored: str, rtol: float | None) -> bool:
    whole = not re.search(r"[.eE]", new + stored)
    difference = abs(float(new) - float(stored))
    if whole and rtol is None:
        return difference == 0
    allowed = (RTOL if rtol is None else rtol) * abs(float(stored))
    if not whole:
        allowed = max(allowed, ATOL, 1.001 * _last_digit(stored))
    return difference <= allowed


def _last_digit(number: str) -> float:
    """The value of one unit in the last printed digit: 0.01 for 3.14, 1e-05 for 2.1e-04."""
    mantissa, _, exponent = number.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    return float(10.0 ** (int(exponent or 0) - decimals))


def rtol_of(cell: Any) -> float | None:
    """The tolerance that the cell's tags ask for, or None."""
    for tag in cell.metadata.get("tags", []):
        if match := TAG.fullmatch(tag):
            return float(match.group(1))
    return None


def adopt_close_texts(new: list[Any], stored: list[Any], rtol: float | None) -> None:
    """Put the stored text in the place of a new one that agrees with it; nbval then compares as ever.

    Of a picture only the kind must be the same: its bytes change with the version of what draws it.
    """
    for output, reference in zip(new, stored, strict=False):
        if output.get("output_type") != reference.get("output_type"):
            continue
        mine, theirs = output.get("data", output), reference.get("data", reference)
        for key in mine.keys() & theirs.keys():
            if key.startswith("image/") or (key.startswith("text") and texts_agree(mine[key], theirs[key], rtol)):
                mine[key] = theirs[key]


@pytest.fixture(autouse=True, scope="session")
def _names_of_examples(doctest_namespace: dict[str, Any]) -> None:
    """What the examples in docstrings take for granted."""
    import torch

    doctest_namespace["torch"] = torch


# What takes a worker longest, first: a long file that is begun last keeps the other worker waiting. The notebooks are
# sixty to a hundred seconds each, then come these; the order of the rest does not matter.
LONG = [
    "tests/book/test_pages.py",
    "flowbook/models/compiled.py",
    "tests/solvers",
    "tests/cnf",
    "tests/test_divergence.py",
    "tests/book/test_colab.py",
    "tests/reflow",
    "tests/training",
    "tests/diffusion",
    "tests/test_devices.py",
]


def length(item: pytest.Item) -> int:
    """A rank that is small for long files."""
    if item.nodeid.startswith("book/"):
        return -1
    return next((rank for rank, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=length)
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            _compare_with_tolerance(item)


def _compare_with_tolerance(item: Any) -> None:
    exactly = item.compare_outputs

    def compare(test: list[Any], ref: list[Any], skip_compare: Any = None) -> bool:
        adopt_close_texts(test, ref, rtol_of(item.cell))
        return bool(exactly(test, ref, skip_compare))

    item.compare_outputs = compare
