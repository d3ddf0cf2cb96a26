"""Figures are looked at by people; what a program can check of them is here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from flowbook.book import plotting
from flowbook.couplings import OptimalTransport
from flowbook.flow_matching import flow_matching_loss
from flowbook.solvers import solve, solve_fixed
from flowbook.training import train_step


def test_an_animation_has_its_frames_in_order_and_holds_the_last() -> None:
    figure, ax = plotting.panels(1, width=2.0)
    bar = ax.bar([0], [0])[0]
    ax.set_ylim(0, 3)
    shown = plotting.animation(figure, lambda n: bar.set_height(n), frames=4, seconds=2.0, hold=1.0)
    picture = Image.open(io.BytesIO(shown.data))
    frames = [frame.convert("L") for frame in ImageSequence.Iterator(picture)]
    dark = [sum(frame.histogram()[:200]) for frame in frames]
    assert len(frames) == 4 and dark == sorted(dark) and dark[0] < dark[-1]
    durations = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
    assert durations == [500, 500, 500, 1500] and picture.info["loop"] == 0


def test_an_animation_without_frames_is_refused() -> None:
    figure, _ = plotting.panels(1)
    with pytest.raises(ValueError, match="frames: expected"):
        plotting.animation(figure, lambda n: None, frames=0)


SCREEN, COLUMNS = 50, 79


@pytest.mark.parametrize(
    "shown", [train_step, solve_fixed, OptimalTransport, solve, flow_matching_loss], ids=lambda f: f.__name__
)
def test_what_the_chapters_show_of_the_package_fits_a_screen(shown: Any) -> None:
    assert len(plotting.source_lines(shown).splitlines()) <= SCREEN


@pytest.mark.parametrize("shown", [train_step, solve_fixed, OptimalTransport, flow_matching_loss])
def test_what_chapter_3_shows_is_not_cut_at_the_right(shown: Any) -> None:
    assert max(map(len, plotting.source_lines(shown).splitlines())) <= COLUMNS


def test_the_chapters_show_the_step_the_solver_s_loop_and_the_coupling() -> None:
    book = Path(__file__).resolve().parents[2] / "book"
    text = "".join(path.read_text(encoding="utf-8") for path in book.glob("*.ipynb"))
    for name in ("train_step", "solve_fixed", "OptimalTransport"):
        assert f"plotting.source({name})" in text
