"""What the benchmarks' page says is what the stored results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPORT = Path(__file__).parent.parent / "benchmarks" / "report.py"


def test_the_table_of_results_is_written_from_the_stored_ones() -> None:
    checked = subprocess.run([sys.executable, str(REPORT), "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
