"""Runs that go on with other settings, start from other runs, and pairs that grow."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowbook import data
from flowbook.couplings import OptimalTransport
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP, export
from flowbook.reflow import Reflow, generate_pairs
from flowbook.training import TrainConfig, fit, load

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
CONFIG = TrainConfig(steps=4, batch_size=8, warmup_steps=2)


def network(**options: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(2, **{"hidden": 8, "depth": 1, **options})


def run(out: Path, stop: int = 2, source: Any = X, loss: Any = None, extend: Any = (), **options: Any) -> Any:
    coupling = options.pop("coupling", None)
    config = dataclasses.replace(CONFIG, **options)
    loss = FlowMatching() if loss is None else loss
    return fit(network(), loss, source, config, out=out, stop_after=stop, extend=extend, coupling=coupling)


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("steps", {"steps": 9}),
    ("learning_rate", {"learning_rate": 1e-4}),
    ("schedule", {"schedule": "constant"}),
    ("gradient_clip", {"gradient_clip": 1.0}),
    ("ema_half_life", {"ema_half_life": 100.0}),
    ("device", {"device": "auto"}),
    ("data", {"source": data.moons()}),
    ("loss", {"loss": FlowMatching(condition_dropout=0.0, coupling=OptimalTransport())}),
    ("coupling", {"coupling": OptimalTransport()}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_what_may_change_changes_when_it_is_named(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(
        ValueError, match=rf"{name} was .*, is .*; extend=\['{name}'\] goes on with the new ones; or choose"
    ):
        run(tmp_path, 3, **change)
    assert run(tmp_path, 3, extend=[name], **change).step == 3
    assert run(tmp_path, 4, **change).step == 4  # it is the run's own now


@pytest.mark.parametrize(("name", "change"), [("seed", {"seed": 1}), ("batch_size", {"batch_size": 4})])
def test_what_the_order_of_the_data_depends_on_never_changes(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match=f"out: .*{name} was .*choose another folder") as refused:
        run(tmp_path, 3, **change)
    assert "extend=" not in str(refused.value)
    with pytest.raises(ValueError, match=f"extend: {name} cannot change within a run"):
        run(tmp_path, 3, extend=[name], **change)


def test_several_changes_are_named_together(tmp_path: Path) -> None:
    run(tmp_path)
    change = {"learning_rate": 1e-4, "steps": 9}
    with pytest.raises(ValueError, match=r"extend=\['steps', 'learning_rate'\] goes on"):
        run(tmp_path, 3, **change)
    with pytest.raises(ValueError, match=r"\(learning_rate was 0.001, is 0.0001\)"):
        run(tmp_path, 3, extend=["steps"], **change)
    with pytest.raises(TypeError, match=r"extend: expected names of settings, such as \['steps'\]; got 'steps'"):
        run(tmp_path, 3, extend="steps", **change)


def test_a_longer_schedule_is_that_of_a_run_so_long_from_there_on(tmp_path: Path) -> None:
    run(tmp_path, 4)
    rates: list[float] = []
    fit(
        network(), FlowMatching(), X, dataclasses.replace(CONFIG, steps=8, log_every=1), out=tmp_path, extend=["steps"],
        callbacks=[lambda step, velocity, logs: rates.append(logs["learning_rate"])],
    )  # fmt: skip
    assert len(rates) == 4 and rates[0] > 4e-4 > rates[-1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (data.moons(), data.moons(noise=1.0, scale=9.0)),
        (data.checkerboard(), data.checkerboard(squares=6)),
        (data.Unpaired(data.moons(), data.spirals()), data.Unpaired(data.moons(noise=0.0), data.spirals())),
        (data.Unpaired(X, X + 1), data.Unpaired(X, X + 2)),
    ],
)
def test_data_of_the_same_kind_with_other_arguments_are_other_data(first: Any, second: Any, tmp_path: Path) -> None:
    run(tmp_path, source=first)
    assert run(tmp_path, 3, source=first).step == 3
    with pytest.raises(ValueError, match=r"out: .*data was .*, is "):
        run(tmp_path, 4, source=second)


class Doubled:
    """A loss of one's own, with a setting."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, model: Any, batch: Any) -> Tensor:
        return self.factor * FlowMatching()(model, batch)


def mine(model: Any, batch: Any) -> Tensor:
    return FlowMatching()(model, batch)


def test_an_own_loss_and_an_own_coupling_are_compared(tmp_path: Path) -> None:
    run(tmp_path / "a", loss=Doubled(2.0))
    assert run(tmp_path / "a", 3, loss=Doubled(2.0)).step == 3
    with pytest.raises(ValueError, match=r"loss was .*Doubled\({'factor': 2.0}\).*, is .*Doubled\({'factor': 3.0}\)"):
        run(tmp_path / "a", 4, loss=Doubled(3.0))
    run(tmp_path / "b", loss=mine)
    assert run(tmp_path / "b", 3, loss=mine).step == 3
    run(tmp_path / "c", coupling=lambda x0, x1, y=None: (x0.flip(0), x1, y))
    with pytest.raises(ValueError, match=r"coupling was .*lambda.*, is 'none'"):
        run(tmp_path / "c", 3)


# Starting from another run --------------------------------------------------------------------------------------------


def test_a_run_starts_from_another_one_however_it_is_stored(tmp_path: Path) -> None:
    first = run(tmp_path / "first", 4)
    export(first.velocity, tmp_path / "small.safetensors")
    for init in (tmp_path / "first", str(tmp_path / "small.safetensors"), first.velocity):
        second = fit(network(), FlowMatching(), X, dataclasses.replace(CONFIG, learning_rate=1e-12), init=init)
        for a, b in zip(second.velocity.parameters(), first.velocity.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_what_does_not_fit_is_refused_or_left_new(tmp_path: Path) -> None:
    first = run(tmp_path / "first", 4).velocity
    with pytest.raises(ValueError, match=r"init: expected the parameters of MLP; .* do not fit .* \(strict=False"):
        fit(network(num_classes=3), FlowMatching(), X, CONFIG, init=first)
    with pytest.warns(UserWarning, match=r"init: \d+ of \d+ parameters are copied; the others are new"):
        fit(network(num_classes=3), FlowMatching(), X, CONFIG, init=first, strict=False)
    with pytest.raises(ValueError, match="init: none of the parameters fits"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(network(), FlowMatching(), X, CONFIG, init=nn.Linear(1, 1), strict=False)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fit(network(), FlowMatching(), X, CONFIG, init=tmp_path / "none")


def test_a_network_of_one_s_own_starts_from_its_checkpoint_too(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(x)

    first = fit(Own(), FlowMatching(), X, CONFIG, out=tmp_path)
    second = fit(Own(), FlowMatching(), X, dataclasses.replace(CONFIG, learning_rate=1e-12), init=tmp_path)
    pairs = zip(second.velocity.parameters(), first.velocity.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_a_run_in_float64_is_loaded_in_float64(tmp_path: Path) -> None:
    fit(network().double(), FlowMatching(), X.double(), CONFIG, out=tmp_path)
    assert next(load(tmp_path).parameters()).dtype == torch.float64
    export(load(tmp_path), tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"model: expected None, since .* is an exported file"):
        load(tmp_path / "small.safetensors", model=network())


def test_a_resumed_run_does_not_start_again(tmp_path: Path) -> None:
    run(tmp_path / "first", 4)
    for stop in (2, 4):
        result = fit(
            network(), FlowMatching(), X, CONFIG, out=tmp_path / "second", init=tmp_path / "first", stop_after=stop
        )
    whole = fit(network(), FlowMatching(), X, CONFIG, init=tmp_path / "first")
    assert all(torch.equal(a, b) for a, b in zip(result.live.parameters(), whole.live.parameters(), strict=True))


# Pairs that grow ------------------------------------------------------------------------------------------------------

HOW: dict[str, Any] = {"name": "ones", "method": "euler", "steps": 1, "shard_size": 8, "batch_size": 4}
Y = torch.arange(30) % 3


def ones(x: Tensor, t: Any, y: Any = None) -> Tensor:
    return torch.ones_like(x)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("n", [16, 20])
def test_a_folder_of_pairs_grows_and_is_as_if_made_at_once(n: int, labels: bool, tmp_path: Path) -> None:
    def made(folder: str, count: int) -> Any:
        return generate_pairs(ones, (2,), count, tmp_path / folder, y=Y[:count] if labels else None, **HOW)

    few = made("a", n)
    kept = (tmp_path / "a" / "shard_000000" / "x1.npy").stat().st_mtime_ns
    grown, whole = made("a", 30), made("b", 30)
    for a, b in zip(grown.batch(torch.arange(30)), whole.batch(torch.arange(30)), strict=True):
        assert a is b is None or torch.equal(a, b)
    assert len(few) == n and len(grown) == 30 and grown.identity() == few.identity()
    assert (tmp_path / "a" / "shard_000000" / "x1.npy").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="n was 30, is 20"):
        made("a", 20)


def test_other_conditions_of_the_first_rows_are_other_pairs(tmp_path: Path) -> None:
    generate_pairs(ones, (2,), 16, tmp_path, y=Y[:16], **HOW)
    with pytest.raises(ValueError, match="n was 16, is 30; values was"):
        generate_pairs(ones, (2,), 30, tmp_path, y=Y.flip(0), **HOW)


def test_a_run_on_pairs_goes_on_when_they_have_grown(tmp_path: Path) -> None:
    def student(stop: int, n: int) -> int:
        pairs = generate_pairs(ones, (2,), n, tmp_path / "pairs", **HOW)
        return fit(network(), Reflow(), pairs, CONFIG, out=tmp_path / "run", stop_after=stop).step

    assert student(2, 16) == 2 and student(4, 24) == 4


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(Path("~/runs/a"), 4)
    assert (tmp_path / "runs" / "a").is_dir() and not (tmp_path / "~").exists() and load(tmp_path / "runs" / "a")
