"""The page "Your own images": its commands run, and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from book.pages import blocks, compare, page, printed_by, rows
from torch.utils.data import TensorDataset

from flowbook import data, recipes
from flowbook.cli import main
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP
from flowbook.training import TrainConfig, fit

PAGE = page("own_images")
BLOCKS = blocks(PAGE, "python", "bash", "text")
ROWS = rows(PAGE)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.startswith("flowbook ")]


def test_the_commands_run_one_after_the_other_and_print_what_the_page_says(tmp_path: Path) -> None:
    printed, scores = "", []
    with contextlib.chdir(tmp_path):
        for kind, text in BLOCKS:
            if kind == "python":
                printed_by(text, {})
            elif kind == "bash":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    for words in commands(text):
                        assert main(words[1:]) == 0, words
                # How much memory there is depends on the machine.
                printed = "".join(line for line in out.getvalue().splitlines(True) if not line.startswith("memory"))
            else:
                compare(printed, text, r"\d+\.\d+", rel=0.4)
                scores += [float(value) for value in re.findall(r'"frechet": ([\d.]+)', printed)]
    teacher, student, one_step = scores
    assert student < 1.6 * teacher and one_step > 5 * student


@pytest.mark.parametrize(("what", "line"), ROWS, ids=[what for what, _ in ROWS])
@pytest.mark.filterwarnings("ignore:data.* converted")
def test_a_row_of_the_table_is_data_for_fit(what: str, line: str, tmp_path: Path) -> None:
    x, labels = torch.randn(16, 2), torch.arange(16) % 2
    names: dict[str, Any] = {
        "data": data, "fit": fit, "loss": FlowMatching(), "config": TrainConfig(steps=1, batch_size=4),
        "labels": labels,
        "table": (300 + 20 * x).numpy(), "items": [{"image": row, "label": 1} for row in x], "x1": x, "first": x[:5],
        "pairs": TensorDataset(x, x + 1), "second": x, "before": MLP(2, hidden=8), "network": MLP(2, hidden=8),
    }  # fmt: skip
    if "folder" in what:
        from torchvision.utils import save_image

        (tmp_path / "digits").mkdir()
        for k in range(4):
            save_image(torch.rand(3, 8, 8), tmp_path / "digits" / f"{k}.png")
    with contextlib.chdir(tmp_path):
        exec(line, names)
        if "folder" in what:
            assert names["source"][0].shape == (3, 8, 8)
    if line.startswith("run"):
        assert names["run"].step == 1
    elif "folder" not in what:
        classes = 2 if "condition" in what or "dicts" in what else None
        assert fit(MLP(2, hidden=8, num_classes=classes), FlowMatching(), names["source"], names["config"]).step == 1


def test_the_defaults_that_the_page_names(tmp_path: Path) -> None:
    from torchvision.utils import save_image

    save_image(torch.rand(3, 64, 64), tmp_path / "a.png")
    recipe = recipes.own_data(tmp_path, 64)
    assert "50,000 steps, a width of 64" in PAGE
    assert (recipe["train"]["steps"], recipe["model"]["width"]) == (50_000, 64)


def test_the_lines_fit_the_page() -> None:
    assert [line for kind, text in BLOCKS for line in text.splitlines() if len(line) > 83] == []
