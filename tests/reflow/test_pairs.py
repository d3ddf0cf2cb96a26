"""Pairs: the same ones however they are made, found again after a kill, and read without being loaded."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import NAN, randomized, seeded, wait_for
from torch import Tensor, nn

from flowbook import data
from flowbook.analytic import eight_gaussians
from flowbook.data.generation import keyed_noise
from flowbook.guidance import guided
from flowbook.models import MLP, UNet
from flowbook.paths import Normal
from flowbook.reflow import OnlinePairs, PairDataset, Reflow, generate_pairs
from flowbook.reflow.pairs import PairFolder
from flowbook.solvers import Method
from flowbook.training import TrainConfig, fit
from flowbook.training.batches import Plan, batches

PLANE: dict[str, Any] = {"method": "euler", "steps": 2, "shard_size": 16, "batch_size": 5}


def teacher(classes: int | None = 10) -> nn.Module:
    return randomized(UNet(channels=1, size=8, width=8, multipliers=(1,), blocks=1, num_classes=classes), scale=0.1)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything(pairs: PairDataset) -> tuple[Tensor, Tensor, Tensor | None]:
    return pairs.batch(torch.arange(len(pairs)))


class Doubles:
    """Normal points of the plane in float64."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def ones(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return torch.ones_like(x)


# Law 1 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, 0.75])
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_law_1_a_constant_velocity_moves_every_pair_by_itself(tmp_path: Path, c: float, method: Method) -> None:
    solver: dict[str, Any] = {"method": method, "steps": None if method == "dopri5" else 3}
    pairs = generate_pairs(lambda x, t: torch.full_like(x, c), Doubles(), 40, tmp_path, name="constant", **solver)
    online = OnlinePairs(lambda x, t: torch.full_like(x, c), Doubles(), **solver).sample(40)
    for x0, x1, _ in (everything(pairs), online):
        assert x0.std() > 0.8 and x1.dtype == torch.float64
        torch.testing.assert_close(x1, x0 + c, rtol=0, atol=1e-12)


# Law 9 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    return make(tmp_path_factory.mktemp("reference") / "pairs")


def make(out: Path, **changes: Any) -> PairDataset:
    settings: dict[str, Any] = {"batch_size": 20, "seed": 3, "method": "midpoint", "steps": 2, "shard_size": 50}
    return generate_pairs(teacher(), (1, 8, 8), 330, out, y=torch.arange(330) % 10, **settings | changes)


@pytest.mark.parametrize("batch_size", [4, 7, 300])
def test_law_9_noise_and_labels_do_not_depend_on_the_batch_size_and_data_by_rounding_only(
    reference: PairDataset, tmp_path: Path, batch_size: int
) -> None:
    (x0, x1, y), (wanted_x0, wanted_x1, wanted_y) = (
        everything(pairs) for pairs in (make(tmp_path / "pairs", batch_size=batch_size, shard_size=80), reference)
    )
    assert torch.equal(x0, wanted_x0) and torch.equal(y, wanted_y)  # type: ignore[arg-type]
    torch.testing.assert_close(x1, wanted_x1, rtol=0, atol=1e-5)
    assert (x1 - x0).abs().mean() > 0.01  # the teacher does move them


def test_law_9_the_pair_of_an_index_does_not_depend_on_how_many_there_are(
    reference: PairDataset, tmp_path: Path
) -> None:
    few = generate_pairs(
        teacher(), (1, 8, 8), 50, tmp_path, y=torch.arange(50) % 10, batch_size=20, seed=3, method="midpoint", steps=2,
        shard_size=50,
    )  # fmt: skip
    for ours, theirs in zip(everything(few), reference.batch(torch.arange(50)), strict=True):
        assert torch.equal(ours, theirs)  # type: ignore[arg-type]
    other = make(tmp_path / "other", seed=4)
    assert not torch.equal(everything(other)[0], everything(reference)[0])


PROCESS = """
    import sys, torch
    torch.set_num_threads(1)
    sys.path[:0] = sys.argv[2:]
    from pathlib import Path
    import test_pairs
    pairs = test_pairs.make(Path(sys.argv[1]))
    assert len(pairs) == 330  # every process sees them all
"""


def test_law_9_two_processes_write_the_bytes_of_one(reference: PairDataset, tmp_path: Path) -> None:
    running = []
    for rank in range(2):
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(PROCESS),
            str(tmp_path / "pairs"),
            *(str(folder) for folder in Path(__file__).parents[:2]),
        ]
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    wait_for(running)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = make(tmp_path / "alone")
    finally:
        torch.set_num_threads(threads)
    assert len(alone) == len(reference)
    assert files(tmp_path / "pairs") == files(tmp_path / "alone")


class Slow(nn.Module):
    """A velocity that takes its time, so that a kill finds it at work."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        time.sleep(0.002)
        return torch.sin(3 * x + t) * self.weight + (0 if y is None else y[:, None])


def make_slowly(out: Path) -> PairDataset:
    return generate_pairs(Slow(), (2,), 400, out, y=torch.arange(400) % 3, **PLANE)


def test_law_9_ten_kills_at_random_moments_leave_no_trace(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # a killed process is a real one, but torch is imported once
    context.set_forkserver_preload(["flowbook.reflow.pairs", "flowbook.solvers"])
    moments, half_written = random.Random(0), 0
    folder = tmp_path / "killed"
    for attempt in range(10):
        process = context.Process(target=make_slowly, args=(folder,))
        process.start()
        # Every other time as soon as the folder is claimed, else when it writes; then at a random moment.
        sign = "manifest.json" if attempt % 2 else f".shard_*.{process.pid}"
        for _ in range(2000):
            if any(folder.glob(sign)):
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.15))
        assert process.pid is not None and process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        half_written += len(list(folder.glob(".shard_*")))
        with pytest.raises(FileNotFoundError, match="shards are missing"):
            PairDataset(folder)
    assert half_written > 0
    make_slowly(folder)
    make_slowly(tmp_path / "whole")
    assert files(folder) == files(tmp_path / "whole")


def test_a_finished_folder_is_returned_without_a_call_but_the_trial(tmp_path: Path) -> None:
    calls = []

    def counting(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    first = generate_pairs(counting, (2,), 50, tmp_path, name="x", **PLANE)
    assert first.nfe == 2 and max(calls) == 5  # batches of 5 from a shard of 16: 5, 5, 5, 1
    assert sorted(calls[2:]) == sorted([5] * 2 * 9 + [1] * 2 * 3 + [2] * 2)
    calls.clear()
    again = generate_pairs(counting, (2,), 50, tmp_path, name="x", **PLANE)
    assert calls == [1, 1] and again.identity() == first.identity()


def test_memory_holds_a_batch_whatever_n_is(tmp_path: Path) -> None:
    asked = []

    class Watched(Normal):
        def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
            asked.append(n)
            return super().sample(n, generator)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        asked.append(len(x))
        return x

    generate_pairs(velocity, Watched((2,)), 5000, tmp_path, name="x", method="euler", steps=1, batch_size=100)
    assert max(asked) == 256  # the block of noise that shares a generator


# What is in a folder --------------------------------------------------------------------------------------------------


def test_each_pair_keeps_its_own_noise_data_and_label(tmp_path: Path) -> None:
    def by_label(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 10.0 * y[:, None].to(x) + 0 * x

    y = torch.randint(0, 7, (100,), generator=seeded())
    pairs = generate_pairs(by_label, (3,), 100, tmp_path, y=y, name="by label", **PLANE)
    assert pairs.shape == (3,) and torch.equal(pairs.labels, y)
    order = torch.randperm(100, generator=seeded(1))
    x0, x1, labels = pairs.batch(order)
    assert torch.equal(labels, y[order])
    assert torch.equal(x0, keyed_noise(Normal((3,)), 0, 0, 100)[order])
    torch.testing.assert_close(x1, x0 + 10.0 * y[order][:, None])
    for index in (0, 15, 16, 99):
        x0, x1, label = pairs[index]
        assert label == y[index] and torch.allclose(x1, x0 + 10.0 * y[index])
    for index in (-1, 100):
        with pytest.raises(IndexError, match=re.escape(f"expected 0 to 99; got {index} to {index}")):
            pairs[index]


def test_any_source_can_be_the_start(tmp_path: Path) -> None:
    source = eight_gaussians()
    pairs = generate_pairs(ones, source, 600, tmp_path / "a", name="ones", **PLANE)
    x0 = everything(pairs)[0]
    assert torch.equal(x0, keyed_noise(source, 0, 0, 600)) and x0.norm(dim=1).mean() > 3
    with pytest.raises(ValueError, match="source was"):
        generate_pairs(ones, data.moons(), 600, tmp_path / "a", name="ones", **PLANE)
    exact = generate_pairs(ones, Doubles(), 20, tmp_path / "b", name="ones", **PLANE)
    assert exact.manifest["dtype"] == "float64" and exact[0][1].dtype == torch.float64


def test_the_teacher_runs_in_eval_mode_and_gets_its_mode_back(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            assert not self.training
            return self.network(x)

    velocity = Wrapped().train()
    first = generate_pairs(velocity, (2,), 30, tmp_path / "a", **PLANE)
    again = generate_pairs(velocity, (2,), 30, tmp_path / "b", **PLANE)
    assert files(first._folder.path) == files(again._folder.path) and network.training
    x1 = OnlinePairs(velocity, (2,), method="euler", steps=1).sample(3)[1]
    assert not x1.requires_grad and velocity.training


# What is refused ------------------------------------------------------------------------------------------------------

OTHER_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"n": 39}, "n was 40, is 39"),
    ({"source": (3,)}, "shape was"),
    ({"seed": 1}, "seed was 0, is 1"),
    ({"steps": 3}, "solver was 'euler:steps=2', is 'euler:steps=3'"),
    ({"method": "heun"}, "solver was 'euler:steps=2', is 'heun:steps=2'"),
    ({"method": "dopri5", "steps": None}, "solver was 'euler:steps=2', is 'dopri5'"),
    ({"batch_size": 6}, "batch_size was 5, is 6"),
    ({"shard_size": 17}, "shard_size was 16, is 17"),
    ({"y": torch.ones(40, dtype=torch.long)}, "condition was None, is"),
    ({"name": "twos"}, "velocity was 'ones', is 'twos'"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_SETTINGS, ids=[",".join(c) for c, _ in OTHER_SETTINGS])
def test_a_folder_made_with_other_settings_is_refused_and_left_alone(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    settings = {"source": (2,), "n": 40, "name": "ones", **PLANE}
    generate_pairs(ones, out=tmp_path, **settings)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"out: .*holds pairs made with other settings .*{re.escape(message)}"):
        generate_pairs(ones, out=tmp_path, **settings | change)
    assert files(tmp_path) == before


def test_another_version_of_torch_is_noted_and_not_refused(tmp_path: Path) -> None:
    pairs = generate_pairs(ones, (2,), 40, tmp_path, name="ones", **PLANE)
    changed = json.dumps(pairs.manifest | {"torch": "1.0"})
    (tmp_path / "manifest.json").write_text(changed)
    again = generate_pairs(ones, (2,), 40, tmp_path, name="ones", **PLANE)
    assert again.manifest["torch"] == "1.0" and again.identity() == pairs.identity()


def test_pairs_are_known_by_the_teacher_s_weights_and_settings(tmp_path: Path) -> None:
    model = teacher()
    y = torch.zeros(8, dtype=torch.long)

    def word(velocity: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return generate_pairs(velocity, (1, 8, 8), 8, folder, y=y, **PLANE).manifest["velocity"]

    before = word(model)
    assert before == word(teacher().train()) and len(before) == 64
    assert len({before, *(word(guided(model, scale, 10)) for scale in (1.0, 2.0))}) == 3
    assert word(guided(model, 1.0, 10)) == word(guided(teacher(), 1.0, 10))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert word(model) != before


@pytest.mark.parametrize("function", [ones, functools.partial(ones, y=None), guided(ones, 1.0, 0)])
def test_a_function_has_no_weights_and_needs_a_name(tmp_path: Path, function: Any) -> None:
    y = torch.zeros(8, dtype=torch.long) if isinstance(function, nn.Module) else None
    with pytest.raises(ValueError, match="name: expected a name that identifies the velocity"):
        generate_pairs(function, (2,), 8, tmp_path / "pairs", y=y, **PLANE)
    assert not (tmp_path / "pairs").exists()


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n": 0}, ValueError, "n: .*0"),
    ({"n": 2.5}, TypeError, "n: .*2.5"),
    ({"batch_size": 0}, ValueError, "batch_size: .*0"),
    ({"shard_size": -1}, ValueError, "shard_size: .*-1"),
    ({"seed": -1}, ValueError, "seed: .*-1"),
    ({"method": "rk45"}, ValueError, "method: .*'rk45'"),
    ({"method": "euler", "steps": None}, ValueError, "steps: euler takes fixed steps"),
    ({"method": "dopri5"}, ValueError, "steps: dopri5 chooses its own steps"),
    ({"source": (2, 0)}, ValueError, "source: .*0"),
    ({"source": "normal"}, TypeError, "source: expected the shape of a sample.*'normal'"),
    ({"source": Normal}, TypeError, "source: .*the class Normal itself"),
    ({"y": torch.zeros(7, dtype=torch.long)}, ValueError, r"y: .*\(8,\); got \(7,\)"),
    ({"y": [0] * 8}, TypeError, "y.0: expected a tensor with the batch first, .* got 0"),
    ({"y": torch.full((8,), 4)}, ValueError, "y: expected labels from 0 to 3; got 4 to 4"),
    ({"velocity": lambda x, t: x[:, :1], "name": "x"}, ValueError, r"velocity\(x, t, y\): expected the shape"),
    ({"velocity": lambda x, t: x * NAN, "name": "x"}, RuntimeError, "NaN"),
    ({"velocity": 3, "name": "x"}, TypeError, "velocity: expected a callable"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_law_11_a_wrong_argument_is_named_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = {"velocity": MLP(2, hidden=8, num_classes=3), "source": (2,), "n": 8, **PLANE}
    with pytest.raises(error, match=message):
        generate_pairs(out=tmp_path / "pairs", **settings | change)
    assert not (tmp_path / "pairs").exists()


def test_law_11_data_that_are_not_finite_are_named_and_the_earlier_shards_kept(tmp_path: Path) -> None:
    def late(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y[:, None] == 1, NAN, 1.0) * x

    y = (torch.arange(40) == 37).long()
    with pytest.raises(RuntimeError, match="NaN"):
        generate_pairs(late, (2,), 40, tmp_path, y=y, name="late", **PLANE)
    assert PairFolder.read(tmp_path).missing() == [2] and not list(tmp_path.glob(".shard*"))


def test_law_11_damaged_and_incomplete_folders_are_named(tmp_path: Path) -> None:
    def fresh() -> PairDataset:
        return generate_pairs(ones, (2,), 40, tmp_path, name="ones", **PLANE)

    pairs = fresh()
    x1 = tmp_path / "shard_000001" / "x1.npy"
    content = x1.read_bytes()
    for damaged in (content[:-1], content[:40], b"", b"noise" * 100, (tmp_path / "shard_000002/x1.npy").read_bytes()):
        x1.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(f"folder: {x1} is damaged")):
            PairDataset(tmp_path)
    for file in (x1.parent).iterdir():
        file.unlink()
    x1.parent.rmdir()
    with pytest.raises(FileNotFoundError, match="1 of 3 shards are missing"):
        PairDataset(tmp_path)
    torch.testing.assert_close(everything(fresh())[1], keyed_noise(Normal((2,)), 0, 0, 40) + 1)
    (tmp_path / "shard_000000" / "shard.json").write_text("{")
    with pytest.raises(ValueError, match=r"shard.json is damaged"):
        _ = PairDataset(tmp_path).nfe
    for text in ("{", "[]", "{}", json.dumps(pairs.manifest | {"n": 0})):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json is damaged"):
            PairDataset(tmp_path)


def test_a_folder_of_other_files_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"expected an empty folder, or one of pairs; .* holds notes.txt"):
        generate_pairs(ones, (2,), 8, tmp_path, name="ones", **PLANE)
    with pytest.raises(ValueError, match=r"expected a folder; .*notes.txt is a file"):
        generate_pairs(ones, (2,), 8, tmp_path / "notes.txt", name="ones", **PLANE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_process_that_waits_in_vain_for_the_others_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("flowbook._core.shard_folder.PATIENCE", 0.3)
    with pytest.raises(TimeoutError, match=r"1 shards of .* are missing, and no other process"):
        generate_pairs(ones, (2,), 40, tmp_path, name="ones", **PLANE)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(generate_pairs(ones, (2,), 40, tmp_path, name="ones", **PLANE)) == 40


def test_a_process_waits_as_long_as_another_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowbook._core.shard_folder.PATIENCE", 0.5)
    folder = PairFolder.claim(
        tmp_path, {"n": 16, "shard_size": 16, "dtype": "float32", "shape": [2], "condition": None}, lambda n: None
    )
    file = tmp_path / ".shard_000000.99" / "x1.npy"
    file.parent.mkdir()
    file.touch()
    stopped = []

    def write() -> None:
        for n in range(40):
            os.utime(file, (n, n))
            time.sleep(0.05)
        stopped.append(time.monotonic())

    thread = threading.Thread(target=write)
    thread.start()
    with pytest.raises(TimeoutError, match="no other process has written"):
        folder.wait_for_others()
    assert stopped and time.monotonic() > stopped[0]
    thread.join()


def test_a_folder_may_have_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    pairs = generate_pairs(ones, (2,), 100, tmp_path, name="ones", method="euler", steps=1, shard_size=1)
    expected = everything(pairs)[1]
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, usual[1]))
    try:
        assert torch.equal(everything(PairDataset(tmp_path))[1], expected)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_a_progress_bar_tells_the_time_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    generate_pairs(ones, (2,), 40, tmp_path / "a", name="ones", progress=True, **PLANE)
    assert "40/40" in capfd.readouterr().err
    generate_pairs(ones, (2,), 40, tmp_path / "b", name="ones", progress=False, **PLANE)
    assert capfd.readouterr().err == ""


# Training on pairs ----------------------------------------------------------------------------------------------------


def stream(pairs: Any, steps: int, share: slice = slice(0, 10)) -> list[Any]:
    return list(batches(pairs, Plan(10, 0, range(steps), share, torch.device("cpu"))))


@pytest.mark.parametrize("labeled", [True, False])
def test_an_epoch_meets_every_pair_once_in_a_new_order(tmp_path: Path, labeled: bool) -> None:
    y = torch.arange(50) if labeled else None
    pairs = generate_pairs(ones, (2,), 50, tmp_path, y=y, name="ones", **PLANE)
    wanted, _, _ = everything(pairs)
    got = stream(pairs, 10)
    for x0, x1, label in got:
        assert x0.shape == x1.shape == (10, 2) and torch.allclose(x1, x0 + 1)
        assert (label is not None) == labeled
    first, second = (torch.cat([x0 for x0, _, _ in epoch]) for epoch in (got[:5], got[5:]))
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort(dim=0)[0], wanted.sort(dim=0)[0])
    halves = [stream(pairs, 10, share) for share in (slice(0, 5), slice(5, 10))]
    for whole, *parts in zip(got, *halves, strict=True):
        assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))


def test_training_on_files_is_training_on_the_same_tensors(tmp_path: Path) -> None:
    pairs = generate_pairs(ones, (2,), 50, tmp_path, y=torch.arange(50) % 3, name="ones", **PLANE)
    config = TrainConfig(steps=8, batch_size=10)
    weights = []
    for source in (pairs, everything(pairs)):
        torch.manual_seed(0)
        weights.append(fit(MLP(2, hidden=8, num_classes=3), Reflow(), source, config).velocity.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_is_not_continued_on_other_pairs(tmp_path: Path) -> None:
    config = TrainConfig(steps=2, batch_size=10)
    for seed in (0, 1):
        pairs = generate_pairs(ones, (2,), 20, tmp_path / str(seed), seed=seed, name="ones", **PLANE)
        if seed == 0:
            fit(MLP(2, hidden=8), Reflow(), pairs, config, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"data was 'PairDataset .*', is 'PairDataset"):
        fit(MLP(2, hidden=8), Reflow(), pairs, config, out=tmp_path / "run")


def test_labels_that_the_student_does_not_know_are_refused(tmp_path: Path) -> None:
    pairs = generate_pairs(ones, (2,), 20, tmp_path, y=torch.arange(20) % 5, name="ones", **PLANE)
    with pytest.raises(ValueError, match="y: expected labels from 0 to 3; got 0 to 4"):
        fit(MLP(2, hidden=8, num_classes=3), Reflow(), pairs, TrainConfig(steps=1))
    fit(MLP(2, hidden=8, num_classes=4), Reflow(), pairs, TrainConfig(steps=1))  # 4 is its null label


def test_a_copy_of_the_pairs_opens_the_files_again(tmp_path: Path) -> None:
    pairs = generate_pairs(ones, (2,), 5000, tmp_path, name="ones", method="euler", steps=1)
    stored = pickle.dumps(pairs)
    assert len(stored) < 1000
    for ours, theirs in itertools.zip_longest(everything(pickle.loads(stored)), everything(pairs)):
        assert ours is theirs is None or torch.equal(ours, theirs)  # type: ignore[arg-type]


# The teacher in the loop ----------------------------------------------------------------------------------------------


def test_online_pairs_are_new_in_every_batch_and_keyed_to_the_generator() -> None:
    labels = torch.tensor([2, 2, 2, 5])
    pairs = OnlinePairs(lambda x, t, y: y[:, None] + 0 * x, (3,), y=labels, method="euler", steps=1)
    x0, x1, y = pairs.sample(400, seeded())
    assert y is not None and set(y.tolist()) == {2, 5} and 250 < int((y == 2).sum()) < 350
    torch.testing.assert_close(x1, x0 + y[:, None])
    again = pairs.sample(400, seeded())
    assert torch.equal(x0, again[0]) and torch.equal(y, again[2])
    assert not torch.equal(x0, pairs.sample(400, seeded(1))[0])
    first, second = stream(pairs, 2)
    assert not torch.equal(first[0], second[0])


def test_online_pairs_train_a_student() -> None:
    pairs = OnlinePairs(ones, (2,), method="euler", steps=1)
    torch.manual_seed(0)
    run = fit(MLP(2, hidden=16), Reflow(times="t0"), pairs, TrainConfig(steps=200, batch_size=64, learning_rate=0.02))
    assert run.losses[-20:].mean() < 1e-2 < run.losses[0]


def test_law_11_online_pairs_look_at_their_arguments_when_they_are_made() -> None:
    with pytest.raises(TypeError, match=r"source: .*3"):
        OnlinePairs(ones, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y: expected labels from 0 to 3; got 5 to 5"):
        OnlinePairs(MLP(2, num_classes=3), (2,), y=torch.tensor([5]))
    with pytest.raises(ValueError, match=r"method: .*'rk45'"):
        OnlinePairs(ones, (2,), method="rk45").sample(1)  # type: ignore[arg-type]


def test_rows_are_named_by_numbers_or_by_a_mask(tmp_path: Path) -> None:
    made = generate_pairs(ones, (2,), np.int64(10), tmp_path, name="ones", method="euler", steps=np.int64(1),  # type: ignore[arg-type]
                          seed=np.int64(3), y=torch.arange(10) % 3)  # type: ignore[arg-type]  # fmt: skip
    assert made.labels is not None
    assert made.batch(made.labels == 2)[2].tolist() == [2, 2, 2]
    assert torch.equal(made.batch([3, 7])[0], made.batch(torch.tensor([3, 7]))[0])
    with pytest.raises(ValueError, match=r"indices: expected a mask of shape \(10,\)"):
        made.batch(torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="indices: expected integers"):
        made.batch(torch.tensor([0.5]))
