"""Long work shows that it is alive where a person watches, and nothing elsewhere."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from flowbook._core import progress
from flowbook.cnf import log_prob
from flowbook.solvers import Solver, solve


def slow(x: Tensor, t: Any, y: Tensor | None = None) -> Tensor:
    time.sleep(0.003)
    return torch.sin(5 * x)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "watched", lambda: True)
    monkeypatch.setattr(progress, "PATIENCE", 0.02)


X = torch.ones(2, 2, dtype=torch.float64)
SOLVERS = [Solver("euler", steps=60), Solver("dopri5", rtol=1e-9, atol=1e-9)]


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_long_solve_shows_a_bar_in_a_terminal(solver: Solver, capsys: pytest.CaptureFixture[str]) -> None:
    shown = solve(slow, X, solver=solver)
    assert "%" in capsys.readouterr().err
    assert torch.equal(shown.x, solve(slow, X, solver=solver).x)


@pytest.mark.usefixtures("watched")
def test_so_does_a_likelihood_on_its_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    log_prob(slow, X, steps=2, nodes=30)
    assert "node" in capsys.readouterr().err


@pytest.mark.usefixtures("watched")
def test_a_short_solve_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    solve(lambda x, t: -x, X, method="euler", steps=3)
    assert "%" not in capsys.readouterr().err


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_where_nobody_watches_nothing_is_shown(solver: Solver, capsys: pytest.CaptureFixture[str]) -> None:
    solve(slow, X, solver=solver)
    assert capsys.readouterr().err == ""
