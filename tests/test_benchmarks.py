"""What the benchmarks' page and the chapters say of them is what the stored results say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPORT = Path(__file__).parent.parent / "benchmarks" / "report.py"


def test_tables_and_picture_of_the_page_are_written_from_the_stored_results() -> None:
    checked = subprocess.run([sys.executable, str(REPORT), "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_chapter_3_quotes_the_thirty_draws_as_they_were_measured() -> None:
    root = REPORT.parent.parent
    result = json.loads((root / "benchmarks" / "results" / "two_dimensions.json").read_text())["result"]
    kinds = ("independent, dopri5", "optimal transport, dopri5", "optimal transport, one Euler step")
    medians = [f"{result[kind]['median_over_floor']:.2f}" for kind in kinds]
    chapter = (root / "book" / "03_flow_matching.ipynb").read_text()
    assert f"finds medians of {medians[0]}, {medians[1]} and {medians[2]} floors" in chapter
    fives = [ratio for kind in kinds for ratio in result[kind]["median_over_floor_of_fives"]]
    assert f"anything from {min(fives):.1f} to {max(fives):.1f}" in chapter
