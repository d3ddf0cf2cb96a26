"""The page "Bring your own model": its lines run, and print what the page says."""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from adapters.exact import MIXTURE
from adapters.test_diffusers import SHORT, conditional, unet
from book.pages import blocks, compare, page, printed_by, rows
from torch import Tensor, nn

import flowbook
from flowbook import adapters, models, paths
from flowbook.couplings import OptimalTransport
from flowbook.diffusion import NoiseSchedule, probability_flow
from flowbook.flow_matching import FlowMatching
from flowbook.metrics import frechet_distance
from flowbook.solvers import sample

PAGE = page("own_model")
ROWS = rows(PAGE)
BLOCKS = blocks(PAGE, "python", "text")
NUMBER = re.compile(r"\d+\.?\d*")


def test_the_blocks_run_one_after_the_other_and_print_what_the_page_says(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    printed, compared = "", 0
    with contextlib.chdir(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, text in BLOCKS:
            if kind == "python":
                printed = printed_by(text, names)
            else:
                compared += compare(printed, text, NUMBER.pattern, rel=0.3, at_least=0.02)
    assert compared > 10


def test_the_amplitude_that_the_page_names_is_that_of_the_scheduler() -> None:
    ((amplitude, factor),) = re.findall(r"holds (0\.\d+) of the data's amplitude.*?multiplied by (\d+)", PAGE, re.S)
    alpha = float(paths.path_of(adapters.from_diffusers(unet(), diffusers.DDPMScheduler())).alpha(0.0))
    assert round(alpha, 3) == float(amplitude) and round(1 / alpha) == int(factor)


def test_the_claims_of_the_page_s_prose(tmp_path: Path) -> None:
    numbers = [float(n) for _, text in BLOCKS if _ == "text" for n in NUMBER.findall(text)]
    plain, evaluations, steered, twice = numbers[:4]
    assert steered > plain and twice == 2 * evaluations
    outputs = " ".join(text for kind, text in BLOCKS if kind == "text")
    own, straight = (float(n) for n in re.findall(r"path: (\d+)", outputs))
    teacher, student = (float(n) for n in re.findall(r"distance (\d\.\d+)", outputs))
    assert own > 5 * straight and student < 0.7 * teacher


class ByName(nn.Module):
    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return x if class_labels is None else x + class_labels[:, None]


class WantsOneTimeEach(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * t[:, None]


def the_reader_s_names() -> dict[str, Any]:
    """What the lines of the tables refer to: small stand-ins with the signatures of the real ones."""
    scheduler = diffusers.DDIMScheduler(**SHORT)
    torch.manual_seed(0)
    network2d = models.MLP(2, hidden=16)
    x = torch.linspace(-1, 1, 16).reshape(8, 2)
    return {
        **{name: getattr(flowbook, name) for name in flowbook.__all__},
        **{name: getattr(adapters, name) for name in adapters.__all__},
        **{name: getattr(paths, name) for name in paths.__all__},
        "torch": torch, "DiT": models.DiT, "OptimalTransport": OptimalTransport, "FlowMatching": FlowMatching,
        "frechet_distance": frechet_distance, "NoiseSchedule": NoiseSchedule, "probability_flow": probability_flow,
        "scheduler": scheduler, "unet": unet(), "text_unet": conditional(), "empty_prompt": torch.zeros(3, 6),
        "pipeline": diffusers.DDIMPipeline(unet=unet(), scheduler=scheduler),
        "net": lambda x, sigma: 0.5 * x,
        "score": lambda x, s: -x, "f": lambda x, t: -x, "by_name": ByName(), "network": WantsOneTimeEach(),
        "masked": lambda x, t, mask: x * mask, "mask": torch.ones(2),
        "ddpm": SimpleNamespace(model=lambda x, i: x, betas=scheduler.betas),
        "velocity": MIXTURE.as_velocity(paths.LinearPath()), "network2d": network2d, "x0": x.flip(0), "x1": x,
        "t": torch.linspace(0, 1, 8), "y": torch.arange(8) % 2, "batch": torch.export.Dim("batch"),
        "features": torch.randn(64, 8),
    }  # fmt: skip


@pytest.mark.parametrize(("what", "line"), ROWS, ids=[what for what, _ in ROWS])
@pytest.mark.filterwarnings("ignore")
def test_a_row_of_the_tables_is_one_line_that_works(what: str, line: str) -> None:
    names = the_reader_s_names()
    names["model"] = (lambda t, x: x * t) if "torchcfm" in what else (lambda x, t: x * t)
    if "pandas" in what:
        pandas = pytest.importorskip("pandas", reason="needs pandas, for a table of it")
        names["table"] = pandas.DataFrame(names["x1"].numpy(), columns=["a", "b"])
    exec(line, names)
    result = names[line.partition(" = ")[0].split(",")[0]]
    if line.startswith(("velocity", "straight")):
        latent = "diffusers" in what or "text" in what
        x = torch.randn(2, 4 if "text" in what else 1, 8, 8) if latent else names["x0"]
        y = torch.zeros(2, 3, 6) if "text" in what else torch.ones(8) if "labels by name" in what else None
        assert bool(torch.isfinite(sample(result, x, y=y, steps=2).x).all())
    elif line.startswith("network"):
        x = torch.zeros(2, *result.shape)
        assert sample(result, x, steps=2).x.shape == x.shape
    elif line.startswith("denoiser"):
        assert result(names["x0"], torch.tensor(0.5)).shape == names["x0"].shape
    elif line.startswith("model"):
        assert result(names["x0"], torch.tensor(10)).sample.shape == names["x0"].shape
    elif line.startswith("program"):
        assert result.module()(torch.zeros(3, 2), torch.rand(3)).shape == (3, 2)
    else:
        assert result is not None


def test_the_lines_fit_the_page() -> None:
    assert [line for kind, text in BLOCKS for line in text.splitlines() if len(line) > 79] == []


def test_there_is_a_row_for_each_of_the_common_uses() -> None:
    assert len(ROWS) >= 25 and all(len(line.splitlines()) == 1 for _, line in ROWS)
