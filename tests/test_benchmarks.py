"""What the benchmarks' page and the chapters say of them is what the stored results say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPORT = Path(__file__).parent.parent / "benchmarks" / "report.py"


def test_tables_and_picture_of_the_page_are_written_from_the_stored_results() -> None:
    checked = subprocess.run([sys.executable, str(REPORT), "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_picture_shows_every_library_that_its_rows_name() -> None:
    sys.path.insert(0, str(REPORT.parent))
    try:
        import report
    finally:
        sys.path.remove(str(REPORT.parent))
    dots = sum(len(peers) for _, peers in report.bars())
    picture = report.PICTURE.read_text()
    area = re.search(r'<clipPath id="\w+">\s*<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)
    assert area is not None
    left, right = float(area[1]), float(area[1]) + float(area[2])
    drawn = [float(x) for x in re.findall(r'<g clip-path="[^"]*">\s*<use xlink:href="[^"]*" x="([\d.]+)"', picture)]
    assert len(drawn) == dots and all(left < x < right for x in drawn)


def test_chapter_3_quotes_the_thirty_draws_as_they_were_measured() -> None:
    root = REPORT.parent.parent
    result = json.loads((root / "benchmarks" / "results" / "two_dimensions.json").read_text())["result"]
    kinds = ("independent, dopri5", "optimal transport, dopri5", "optimal transport, one Euler step")
    medians = [f"{result[kind]['median_over_floor']:.2f}" for kind in kinds]
    chapter = (root / "book" / "03_flow_matching.ipynb").read_text()
    assert f"finds medians of {medians[0]}, {medians[1]} and {medians[2]} floors" in chapter
    fives = [ratio for kind in kinds for ratio in result[kind]["median_over_floor_of_fives"]]
    assert f"anything from {min(fives):.1f} to {max(fives):.1f}" in chapter


def measured(name: str, task: str) -> dict[str, Any]:
    return json.loads((REPORT.parent / "results" / f"{name}.json").read_text())["result"][task]


def ratios(name: str, task: str) -> dict[str, float]:
    """The times of the other libraries, divided by flowbook's."""
    times = measured(name, task)["over_flowbook"].items()
    return {peer: ratio["wall_ratio"] for peer, ratio in times if "flowbook" not in peer}


EQUAL = 0.95  # a quotient within 5% counts as equal


@pytest.mark.parametrize(
    ("name", "task", "least"),
    [
        ("training_step", "mlp", EQUAL), ("training_step", "unet", EQUAL), ("sampling", "mlp, fixed", EQUAL),
        ("sampling", "unet, fixed", EQUAL), ("sampling", "mlp, equal error", EQUAL),
        ("sampling", "unet, equal error", 1.5), ("divergence", "exact divergence, D=2", EQUAL),
        ("divergence", "exact divergence, D=64", EQUAL), ("divergence", "exact divergence, D=784", EQUAL),
        ("log_prob", "D=2", 2.0), ("log_prob", "D=64", 2.0), ("likelihood_training", "D=2", 2.0),
        ("likelihood_training", "D=64", 2.0), ("transport", "D=64, batch 512", 2.0),
        ("transport", "D=64, batch 2048", 2.0),
    ],
)  # fmt: skip
def test_the_page_says_who_is_faster_as_it_was_measured(name: str, task: str, least: float) -> None:
    assert min(ratios(name, task).values()) > least


def test_the_page_says_where_others_are_faster() -> None:
    slower = {task: ratios("divergence", task)["zuko"] for task in ("one probe, D=64", "one probe, D=784")}
    assert 0.9 < min(slower.values()) < max(slower.values()) < 1
    spent = measured("divergence", "one probe, D=784")["ms"]
    assert spent["flowbook"] - spent["zuko"] == pytest.approx(0.05, abs=0.01) and slower["one probe, D=64"] > EQUAL
    spent = measured("transport", "D=2, batch 128")["ms"]
    assert spent["flowbook"] - spent["denoising-diffusion-pytorch"] == pytest.approx(0.25, abs=0.03)


def test_twelve_steps_that_remember_are_as_good_as_ten_of_rk4_on_images_only() -> None:
    ways = measured("sampling", "unet, equal error")["chosen"]
    assert (ways["flowbook"]["method"], ways["flowbook"]["calls"]) == ("ab3 on a grid", 12 + 1)
    assert (ways["flow_matching"]["method"], ways["flow_matching"]["calls"]) == ("rk4", 4 * 10)
    assert min(ratios("sampling", "unet, equal error").values()) > 3
    assert measured("sampling", "mlp, equal error")["chosen"]["flowbook"]["method"] == "rk4"


def test_nodes_take_a_third_of_the_traces_or_fewer() -> None:
    result = json.loads((REPORT.parent / "results" / "log_prob.json").read_text())["result"]
    for numbers in result.values():
        ways = numbers["chosen"]
        assert 3 * ways["flowbook"]["products"] <= ways["flowbook, beside the state"]["products"]


def test_the_model_of_a_step_is_as_good_as_the_page_on_clusters_says() -> None:
    rows = json.loads((REPORT.parent / "results" / "scaling.json").read_text())["result"]["rows"]
    for row in rows:
        if row["processes"] == 2 and row["batch"] >= 128:
            assert 0.9 < row["predicted_s"] / row["measured_s"] < 1
        assert 1.5 < row["measured_bytes"] / row["predicted_bytes"] < 2.15


def test_the_coupling_of_a_batch_of_digits_is_lost_beside_a_step() -> None:
    result = json.loads((REPORT.parent / "results" / "coupling.json").read_text())["result"]
    assert result["coupling_alone_ms"] == pytest.approx(2, abs=0.5)
    assert result["ms_per_step"]["none"] == pytest.approx(380, abs=5)
    for way in ("background_over_none", "foreground_over_none"):
        low, high = result[way]["wall_ratio_quartiles"]
        assert low < 1 < high
