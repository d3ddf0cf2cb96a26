"""The pages of text: their blocks run one after the other, and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
Block = tuple[str, str]


def page(name: str) -> str:
    """The text of a page."""
    return (BOOK / f"{name}.md").read_text(encoding="utf-8")


def blocks(text: str, *kinds: str) -> list[Block]:
    """The blocks of these kinds, such as ("python", the code)."""
    return re.findall(rf"```({'|'.join(kinds)})\n(.*?)```", text, re.S)


def rows(text: str) -> list[Block]:
    """The rows of the tables whose second column is one line of code."""
    return re.findall(r"^\| (.+?) \| `(.+)` \|$", text, re.M)


def printed_by(code: str, names: dict[str, Any]) -> str:
    """What a block of Python prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "page", "exec"), names)
    return out.getvalue()


def compare(printed: str, said: str, number: str, *, rel: float, at_least: float = 0.0) -> int:
    """Hold what was printed against what the page says: words strictly, numbers up to a tolerance; returns how many."""
    assert re.sub(number, "#", printed) == re.sub(number, "#", said)
    found, told = re.findall(number, printed), re.findall(number, said)
    for one, other in zip(found, told, strict=True):
        assert float(one) == pytest.approx(float(other), rel=rel, abs=at_least), printed
    return len(found)
