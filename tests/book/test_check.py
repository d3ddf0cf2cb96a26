"""The page "Check your implementation": its blocks run, and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from flowbook import laws

PAGE = (Path(__file__).resolve().parents[2] / "book" / "check.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", PAGE, re.S)
NUMBER = re.compile(r"\d+\.\d+")


def test_the_blocks_run_one_after_the_other_and_print_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    printed, compared = "", 0
    for kind, text in BLOCKS:
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, "check.md", "exec"), names)
            printed = out.getvalue()
            continue
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", text)  # the words, strictly
        for found, said in zip(NUMBER.findall(printed), NUMBER.findall(text), strict=True):
            assert float(found) == pytest.approx(float(said), rel=0.05, abs=0.02), printed
        compared += 1
    assert compared >= 8
    names["test_my_loss"]()


def test_the_table_names_every_check() -> None:
    named = set(re.findall(r"`(check_\w+)\(", PAGE))
    assert named == {name for name in laws.__all__ if name.startswith("check_")}


def test_the_lines_fit_the_page() -> None:
    assert [line for kind, text in BLOCKS for line in text.splitlines() if len(line) > 79 and kind == "python"] == []
