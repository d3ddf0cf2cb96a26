"""Law 10 under fire: whatever ends a run, the same call goes on as if nothing had been, or says in one line why not."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # an optimizer's first use does it: many seconds on a busy machine, here no test's own
from helpers import NAN, PRELOADED, Forked, free_port, ranked
from torch import nn

from flowbook import data
from flowbook.couplings import OptimalTransport
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP, UNet
from flowbook.training import EXIT_STATUS, Preempted, TrainConfig, checkpoint, fit

pytestmark = pytest.mark.faults

STEPS = 20_000
PATIENCE = 240  # seconds until something is called a hang, on a machine that does other work beside


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP(2, hidden=16)


def train(out: Path | None, **more: Any) -> nn.Module:
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": 32, "checkpoint_every": 3, "log_every": 5, **more}
    return fit(mlp(), FlowMatching(), data.moons(), TrainConfig(**settings), out=out).velocity


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, left), (_, right) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(left, right), name


def reached(folder: Path) -> int:
    paths = checkpoint.available(folder / "checkpoints")
    return int(paths[-1].name.removeprefix("step_")) if paths else 0


def wait_until(condition: Any, what: str, seconds: float = PATIENCE) -> None:
    for _ in range(int(seconds * 200)):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def test_fifty_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # a killed process is a real one, but torch is imported once
    context.set_forkserver_preload(PRELOADED)
    moments, folder, half_written = random.Random(0), tmp_path / "killed", 0
    for _ in range(50):
        before = reached(folder)
        process = context.Process(target=train, args=(folder,), kwargs={"schedule": "constant"})
        process.start()
        wait_until(lambda: reached(folder) > before or not process.is_alive(), "a checkpoint")  # noqa: B023
        time.sleep(moments.uniform(0.0, 0.05))
        assert process.pid is not None and process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        half_written += len(list((folder / "checkpoints").glob(".step_*")))
        assert checkpoint.read(checkpoint.locate(folder)).step == reached(folder)
    assert half_written > 5  # some kills hit the writing itself
    last = reached(folder) + 10
    lines = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))
    resumed = train(folder, schedule="constant", steps=last)
    assert_equal(resumed, train(None, schedule="constant", steps=last, checkpoint_every=None))


def test_sigterm_ends_a_run_after_its_step_and_the_same_call_goes_on(tmp_path: Path) -> None:
    def terminate() -> None:
        wait_until(lambda: reached(tmp_path) >= 9, "checkpoints")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(Preempted, match="stopped by SIGTERM at step") as stopped:
        train(tmp_path, schedule="constant")
    thread.join()
    assert stopped.value.code == EXIT_STATUS == 75
    assert stopped.value.step == reached(tmp_path) and stopped.value.checkpoint == checkpoint.locate(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    last = stopped.value.step + 4
    assert_equal(train(tmp_path, schedule="constant", steps=last), train(None, schedule="constant", steps=last))


def test_a_program_that_handles_sigterm_keeps_its_handler() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        train(None, steps=3)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


RECIPE = """
model: {name: MLP, dim: 2, hidden: 16}
data: {name: moons}
loss: {name: flow_matching}
train: {steps: 20000, batch_size: 32, checkpoint_every: 3, log_every: 3}
"""


def started(folder: Path, rank: int = 0, processes: int = 1, port: int = 0, recipe: str = RECIPE) -> Forked:
    """``flowbook train`` in a process of its own, as torchrun would start it."""
    (folder / "plane.yaml").write_text(recipe)
    code = "import sys; from flowbook import cli; sys.exit(cli.main())"
    arguments = ["train", str(folder / "plane.yaml"), "--out", str(folder / "run")]
    return Forked(code, arguments, ranked(rank, processes, port), folder / f"errors{rank}")


READING = """
    import sys
    import torch
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import MLP
    from flowbook.training import TrainConfig, fit

    class Points(torch.utils.data.Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            return torch.randn(2)

    if __name__ == "__main__":
        config = TrainConfig(steps=20_000, batch_size=32, workers=2, checkpoint_every=20, schedule="constant")
        fit(MLP(2, hidden=16), FlowMatching(), Points(), config, out=sys.argv[1])
"""


def test_sigterm_to_a_run_and_its_readers_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(READING))
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_until(lambda: reached(tmp_path / "run") >= 20, "checkpoints")
        os.killpg(process.pid, signal.SIGTERM)  # as torchrun and Slurm do
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == EXIT_STATUS, errors
    assert checkpoint.read(checkpoint.locate(tmp_path / "run")).step == reached(tmp_path / "run")
    with pytest.raises(ProcessLookupError):  # the readers have ended too
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_line_exits_with_75_and_says_where_it_goes_on(processes: int, tmp_path: Path) -> None:
    port = free_port()
    running = [started(tmp_path, rank, processes, port) for rank in range(processes)]
    try:
        wait_until(lambda: reached(tmp_path / "run") >= 6, "checkpoints")
        for process in running[-1:]:  # one is enough: they agree
            process.send_signal(signal.SIGTERM)
        for process in running:
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == EXIT_STATUS, errors
            last = errors.strip().splitlines()[-1]
            assert last.startswith("flowbook train: stopped by SIGTERM at step") and str(tmp_path / "run") in last
    finally:
        for process in running:
            process.kill()
    assert checkpoint.read(checkpoint.locate(tmp_path / "run")).step == reached(tmp_path / "run")


def test_processes_that_rarely_pause_still_stop_within_ten_steps(tmp_path: Path) -> None:
    recipe = RECIPE.replace("checkpoint_every: 3, log_every: 3", "checkpoint_every: 1003, log_every: 100000")
    port = free_port()
    running = [started(tmp_path, rank, 2, port, recipe) for rank in range(2)]
    try:
        wait_until(lambda: reached(tmp_path / "run") >= 1003, "a checkpoint")
        running[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=PATIENCE) for process in running] == [EXIT_STATUS, EXIT_STATUS]
    finally:
        for process in running:
            process.kill()
    assert reached(tmp_path / "run") % 10 == 0


def test_a_killed_process_ends_the_others_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    port = free_port()
    running = [started(tmp_path, rank, 2, port) for rank in range(2)]
    try:
        wait_until(lambda: reached(tmp_path / "run") >= 6, "checkpoints")
        running[1].kill()
        _, errors = running[0].communicate(timeout=PATIENCE)  # no hang
        assert running[0].returncode == 2, errors
        assert "another process of this run is gone" in errors.strip().splitlines()[-1]
    finally:
        for process in running:
            process.kill()
    stored = checkpoint.read(checkpoint.locate(tmp_path / "run"))
    assert stored.step == reached(tmp_path / "run") >= 6


@pytest.mark.parametrize("processes", [1, 4])
def test_what_two_processes_stored_one_or_four_go_on_with(processes: int, tmp_path: Path) -> None:
    port = free_port()
    running = [started(tmp_path, rank, 2, port) for rank in range(2)]
    try:
        wait_until(lambda: reached(tmp_path / "run") >= 6, "checkpoints")
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.communicate(timeout=PATIENCE)
        first, port = reached(tmp_path / "run"), free_port()
        running = [started(tmp_path, rank, processes, port) for rank in range(processes)]
        wait_until(lambda: reached(tmp_path / "run") >= first + 6, "further checkpoints")
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.communicate(timeout=PATIENCE)
    finally:
        for process in running:
            process.kill()
    stored = checkpoint.read(checkpoint.locate(tmp_path / "run"))
    alone = fit(mlp(), FlowMatching(), data.moons(), TrainConfig(**stored.config), stop_after=stored.step).live
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(stored.weights[name], weight, rtol=0, atol=1e-5)


class Crowded:
    """A loss that holds only so many samples at once, as a small GPU does."""

    def __init__(self, most: int):
        self.most = most

    def __call__(self, velocity: Any, batch: Any) -> torch.Tensor:
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return FlowMatching()(velocity, batch)


def test_out_of_memory_says_which_batch_would_fit(tmp_path: Path) -> None:
    settings = TrainConfig(steps=4, batch_size=64)
    with pytest.raises(MemoryError, match=r"64 samples in one forward pass.*accumulate=8.*8 at a time"):
        fit(mlp(), Crowded(8), data.moons(), settings, out=tmp_path)
    with pytest.raises(MemoryError, match="not even one"):
        fit(mlp(), Crowded(0), data.moons(), settings)
    again = fit(mlp(), Crowded(8), data.moons(), TrainConfig(steps=4, batch_size=64, accumulate=8), out=tmp_path)
    assert again.step == 4


def test_a_run_goes_on_with_the_parts_that_the_error_named(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 6, "batch_size": 64}
    fit(mlp(), FlowMatching(), data.moons(), TrainConfig(**settings), out=tmp_path, stop_after=3)
    after = fit(mlp(), FlowMatching(), data.moons(), TrainConfig(**settings, accumulate=8), out=tmp_path)
    alone = fit(mlp(), FlowMatching(), data.moons(), TrainConfig(**settings))
    assert after.step == 6 and len(after.losses) == 3
    torch.testing.assert_close(after.losses, alone.losses[3:], rtol=1e-5, atol=1e-6)


FULL = """
    import resource, signal, sys
    from flowbook import cli

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    sys.exit(cli.main(["train", sys.argv[1], "train.checkpoint_every=20", "--out", sys.argv[2]]))
"""


def test_a_full_disk_ends_in_one_line_and_earlier_checkpoints_stay(tmp_path: Path) -> None:
    (tmp_path / "plane.yaml").write_text(RECIPE.replace("hidden: 16", "hidden: 64"))
    fit(MLP(2, hidden=64), FlowMatching(), data.moons(), TrainConfig(steps=5, batch_size=32), out=tmp_path / "other")
    whole = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*.safetensors")}
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / "plane.yaml")]
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("flowbook train: ")
    assert "Traceback" not in done.stderr and checkpoint.available(tmp_path / "run" / "checkpoints") == []
    assert not list((tmp_path / "run" / "checkpoints").glob(".step_*"))
    assert whole == {path: path.read_bytes() for path in (tmp_path / "other").rglob("*.safetensors")}


def test_a_folder_that_cannot_be_written_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flowbook import cli

    (tmp_path / "plane.yaml").write_text(RECIPE)
    (tmp_path / "file").write_text("not a folder")
    assert cli.main(["train", str(tmp_path / "plane.yaml"), "--out", str(tmp_path / "file" / "run")]) in (1, 2)
    assert "file" in capsys.readouterr().err
    assert cli.main(["train", str(tmp_path / "plane.yaml"), "train.steps=2", "--out", "/proc/run"]) in (1, 2)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.2)
    said: list[str] = []

    def also(velocity: nn.Module, batch: Any) -> torch.Tensor:
        if not said:
            try:
                train(tmp_path)
            except ValueError as error:
                said.append(str(error))
        return FlowMatching()(velocity, batch)

    settings = TrainConfig(steps=2, batch_size=8)
    assert fit(mlp(), also, data.moons(), settings, out=tmp_path).step == 2
    assert said[0].startswith(f"out: another run is using {tmp_path} at the moment; choose another folder")
    assert fit(mlp(), also, data.moons(), TrainConfig(steps=4, batch_size=8), out=tmp_path / "other").step == 4


IMAGES = torch.zeros(40, 1, 8, 8)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            IMAGES.index_fill(0, torch.tensor([3, 7]), NAN),
            r"data: 2 of 40 rows of x1 are not finite, the first is row 3",
        ),
        (torch.zeros(40, 1, 9, 9), r"x: expected shape \(B, 1, 8, 8\), .*multiples of 2; got \(2, 1, 9, 9\)"),
        ((IMAGES, torch.full((40,), 7)), "y: expected labels from 0 to 3; got 7 to 7"),
        ((IMAGES, torch.full((40,), 3)), "y: expected labels from 0 to 2, .*got 3 to 3"),
        ((IMAGES, torch.zeros(39, dtype=torch.long)), r"data: expected parts of equal length; got {'x1': 40, 'y': 39}"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_what_is_wrong(source: Any, message: str, tmp_path: Path) -> None:
    network = UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, num_classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(network, FlowMatching(), source, TrainConfig(steps=2, batch_size=8), out=tmp_path)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert checkpoint.available(tmp_path / "checkpoints") == []


def test_coupled_runs_are_preempted_too(tmp_path: Path) -> None:
    config = TrainConfig(steps=STEPS, batch_size=32, checkpoint_every=2, schedule="constant")

    def terminate() -> None:
        wait_until(lambda: reached(tmp_path) >= 4, "checkpoints")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(Preempted):
        fit(mlp(), FlowMatching(), data.moons(), config, coupling=OptimalTransport(), out=tmp_path)
    thread.join()
    assert reached(tmp_path) >= 4
