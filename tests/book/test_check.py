"""The page "Check your own code": its blocks run, and print what the page says."""

from __future__ import annotations

import inspect
import re
from typing import Any

from book.pages import blocks, compare, page, printed_by

from flowbook import laws

PAGE = page("check")
BLOCKS = blocks(PAGE, "python", "text")


def test_the_blocks_run_one_after_the_other_and_print_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    printed, compared = "", 0
    for kind, text in BLOCKS:
        if kind == "python":
            printed = printed_by(text, names)
        else:
            compare(printed, text, r"\d+\.\d+", rel=0.05, at_least=0.02)
            compared += 1
    assert compared >= 8
    names["test_my_loss"]()


def test_the_tolerance_that_the_page_names_is_the_default() -> None:
    (said,) = re.findall(r"up to (0\.\d+) passes", PAGE)
    assert inspect.signature(laws.check_velocity).parameters["tolerance"].default == float(said)


def test_the_table_names_every_check() -> None:
    named = set(re.findall(r"`(check_\w+)\(", PAGE))
    assert named == {name for name in laws.__all__ if name.startswith("check_")}


def test_the_lines_fit_the_page() -> None:
    assert [line for kind, text in BLOCKS for line in text.splitlines() if len(line) > 79 and kind == "python"] == []
