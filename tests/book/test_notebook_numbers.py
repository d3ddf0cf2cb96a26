"""The comparison of printed numbers in conftest, alone and through nbval."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import adopt_close_texts, texts_agree

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("new", "stored"),
    [
        ("loss 0.501", "loss 0.500"),
        ("loss  0.501\n", "loss 0.500"),  # the width of a column follows its numbers
        ("1.00e-05", "1.01e-05"),
        ("0.02", "0.01"),  # 0.0151 and 0.0149, rounded
        ("tensor([1.000, -2.001])", "tensor([1.0, -2.0])"),
        ("nfe 50", "nfe 50"),
        ("3e-17 from zero", "9e-16 from zero"),
    ],
)
def test_close_numbers_agree(new: str, stored: str) -> None:
    assert texts_agree(new, stored)


@pytest.mark.parametrize(
    ("new", "stored"),
    [
        ("loss 0.520", "loss 0.500"),
        ("loss 0.501", "cost 0.501"),
        ("nfe 51", "nfe 50"),  # a count is exact
        ("1.0", "-1.0"),
        ("0.03", "0.01"),
        ("1.5 2.5", "1.5"),
        ("1.5", "1.5 2.5"),
        ("1.00e-05", "1.00e-06"),
        ("nan", "0.5"),
        ("True", "False"),
    ],
)
def test_other_numbers_or_words_differ(new: str, stored: str) -> None:
    assert not texts_agree(new, stored)


def test_a_tag_sets_the_tolerance_of_its_cell_for_whole_numbers_too() -> None:
    assert texts_agree("nfe 104, 0.52", "nfe 100, 0.50", rtol=0.05)
    assert not texts_agree("nfe 106, 0.50", "nfe 100, 0.50", rtol=0.05)


def test_outputs_of_another_kind_are_left_to_nbval() -> None:
    new = [{"output_type": "stream", "text": "1.0"}]
    adopt_close_texts(new, [{"output_type": "display_data", "data": {"text/plain": "1.001"}}], None)
    assert new == [{"output_type": "stream", "text": "1.0"}]


def test_tables_are_compared_like_text_and_pictures_by_their_kind() -> None:
    new = [{"output_type": "display_data", "data": {"text/markdown": "| 0.501 |", "image/svg+xml": "<svg id='1'>"}}]
    stored = [{"output_type": "display_data", "data": {"text/markdown": "| 0.500 |", "image/svg+xml": "<svg id='2'>"}}]
    adopt_close_texts(new, stored, None)
    assert new == stored
    wrong = [{"output_type": "display_data", "data": {"text/markdown": "| 0.600 |", "image/png": "a"}}]
    adopt_close_texts(wrong, stored, None)
    assert wrong == [{"output_type": "display_data", "data": {"text/markdown": "| 0.600 |", "image/png": "a"}}]


@pytest.mark.parametrize(
    ("stored", "tags", "passes"),
    [
        ("value 0.502\n", [], True),
        ("value 0.520\n", [], False),
        ("value 0.520\n", ["rtol-0.05"], True),
        ("number 0.500\n", [], False),
    ],
)
def test_nbval_passes_close_numbers_and_fails_wrong_ones(
    tmp_path: Path, stored: str, tags: list[str], passes: bool
) -> None:
    cell = nbformat.v4.new_code_cell("print('value', 0.5)", execution_count=1, metadata={"tags": tags})
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ["--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-q", "one.ipynb"]
    run = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == (0 if passes else 1), run.stdout + run.stderr
    assert ("1 passed" if passes else "1 failed") in run.stdout
