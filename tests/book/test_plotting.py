"""Figures are looked at by people; what a program can check of them is here."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageSequence

from flowbook.book import plotting


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
