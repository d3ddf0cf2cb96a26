"""Law 10: a run is the same however it is cut, shared or killed, and its checkpoints are whole or absent."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import INF, NAN, normal, randomized
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from flowbook import data, models
from flowbook._core import keyed
from flowbook.analytic import GaussianMixture
from flowbook.cnf import MaximumLikelihood
from flowbook.couplings import Coupled, Independent, OptimalTransport
from flowbook.diffusion import Diffusion, NoiseSchedule
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP, Classifier, CrossEntropy, UNet
from flowbook.paths import CosinePath, VPPath
from flowbook.training import EMA, EXIT_STATUS, Preempted, TrainConfig, fit, load
from flowbook.training import checkpoint as checkpoints
from flowbook.training.batches import EpochOrder, Plan, batches
from flowbook.training.optimizer import learning_rate


class Flipped(Dataset[Any]):
    """Images with a random flip and random dequantizing noise: what a DataLoader draws belongs to the sample."""

    def __init__(self) -> None:
        self.images, self.labels = data.digits("test")

    def __len__(self) -> int:
        return 50

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        image = self.images[n].flip(-1) if torch.rand(()) < 0.5 else self.images[n]
        return image + 0.01 * torch.randn_like(image), int(self.labels[n])


def mlp(**more: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(2, hidden=16, **more)


def unet(dropout: float = 0.1) -> UNet:
    torch.manual_seed(0)
    return UNet(1, size=8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=10, dropout=dropout)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return itertools.repeat(torch.zeros(2))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    """Bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


RUNS: dict[str, tuple[Callable[[], nn.Module], Any, Any, dict[str, Any], dict[str, Any]]] = {
    "MLP": (mlp, FlowMatching(), data.moons(), {}, {}),
    "MLP, clipped, accumulated, warmed up": (
        mlp, FlowMatching(VPPath()), data.moons(),
        {"gradient_clip": 0.1, "accumulate": 4, "warmup_steps": 5, "weight_decay": 0.01, "ema_half_life": 100.0},
        {},
    ),
    "MLP, coupled ahead": (mlp, FlowMatching(), data.checkerboard(), {}, {"coupling": OptimalTransport()}),
    "MLP, coupled ahead, accumulated": (
        mlp, FlowMatching(), data.moons(), {"accumulate": 2}, {"coupling": OptimalTransport()},
    ),
    "MLP, pairs": (
        mlp, FlowMatching(), data.Unpaired(data.eight_gaussians(), data.moons()), {}, {"coupling": OptimalTransport()},
    ),
    "U-Net with dropout and labels": (
        unet, FlowMatching(condition_dropout=0.2), data.digits("test"),
        {"schedule": "constant", "gradient_clip": 1.0, "accumulate": 2}, {},
    ),
    "U-Net, data set with random flips": (unet, FlowMatching(), Flipped(), {"batch_size": 20}, {}),
    "U-Net, bf16": (unet, FlowMatching(condition_dropout=0.1), data.digits("test"), {"precision": "bf16"}, {}),
}  # fmt: skip
runs = pytest.mark.parametrize(("make", "loss", "source", "settings", "more"), RUNS.values(), ids=RUNS)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 20, "batch_size": 32, "log_every": 3, "ema_half_life": 200.0, **settings})


@runs
def test_20_steps_are_10_and_a_resume_and_10_bit_for_bit(
    make: Any, loss: Any, source: Any, settings: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    whole = fit(make(), loss, source, config(**settings), out=tmp_path / "whole", **more)
    first = fit(make(), loss, source, config(**settings), out=tmp_path / "cut", stop_after=10, **more)
    assert first.step == 10 and first.losses.shape == (10,)
    torch.manual_seed(123)
    torch.randn(7)  # the process that resumes is another one
    stranger = randomized(make(), seed=9)
    second = fit(stranger, loss, source, config(**settings), out=tmp_path / "cut", **more)
    assert second.step == 20 and second.live is stranger
    assert torch.equal(torch.cat([first.losses, second.losses]), whole.losses)
    assert_equal(whole.live, second.live)
    assert_equal(whole.velocity, second.velocity)
    stored = [checkpoints.read(checkpoints.locate(tmp_path / name)) for name in ("whole", "cut")]
    assert all(torch.equal(stored[0].optimizer[key], stored[1].optimizer[key]) for key in stored[0].optimizer)


@runs
def test_the_same_run_twice_is_the_same_and_another_seed_is_another(
    make: Any, loss: Any, source: Any, settings: dict[str, Any], more: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    first = fit(make(), loss, source, config(steps=3, **settings), **more)
    torch.manual_seed(2)
    second = fit(make(), loss, source, config(steps=3, **settings), **more)
    other = fit(make(), loss, source, config(steps=3, seed=1, **settings), **more)
    assert torch.equal(first.losses, second.losses) and not torch.equal(first.losses, other.losses)
    assert_equal(first.live, second.live)


@pytest.mark.parametrize("more", [{}, {"coupling": OptimalTransport()}], ids=["independent", "coupled"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_give_the_gradients_of_the_whole(more: dict[str, Any], parts: int) -> None:
    loss = FlowMatching(condition_dropout=0.3)
    source = (normal(64, 2).float(), torch.arange(64) % 3)
    whole, accumulated = (
        fit(mlp(num_classes=3).double(), loss, (source[0].double(), source[1]), config(steps=5, accumulate=n), **more)
        for n in (1, parts)
    )
    torch.testing.assert_close(accumulated.losses, whole.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tensors(accumulated.live), tensors(whole.live), rtol=1e-6, atol=1e-8)


def test_who_reads_a_sample_changes_no_bit(tmp_path: Path) -> None:
    """Also when the readers are other ones after a resume."""
    whole = fit(unet(), FlowMatching(), Flipped(), config(batch_size=20, steps=6))
    fit(unet(), FlowMatching(), Flipped(), config(batch_size=20, steps=6, workers=2), out=tmp_path, stop_after=3)
    resumed = fit(unet(), FlowMatching(), Flipped(), config(batch_size=20, steps=6, workers=1), out=tmp_path)
    assert resumed.step == 6
    assert_equal(resumed.velocity, whole.velocity)


def test_torch_s_generator_is_as_it_was_after_a_run() -> None:
    model = mlp()
    state = torch.get_rng_state()
    fit(model, FlowMatching(), data.moons(), config(steps=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_with_a_coupling_noise_and_times_are_independent() -> None:
    # They were once drawn from the same random bits.
    noise, times = [], []

    def loss(velocity: nn.Module, batch: Any) -> Tensor:
        x0, x1, _ = batch
        noise.append(x0.flatten())
        times.append(keyed.rand(len(x1), like=x1))
        return velocity(x0, 0.5).square().mean()

    torch.manual_seed(0)
    fit(
        MLP(1, hidden=4),
        loss,
        torch.zeros(256, 1),
        config(steps=60, batch_size=128),
        coupling=lambda x0, x1, y: (x0, x1, y),
    )
    x, t = torch.cat(noise), torch.cat(times)
    correlations = torch.corrcoef(torch.stack([x, x.abs(), t]))[2, :2]
    assert correlations.abs().max() < 5 / len(t) ** 0.5


# Averaged weights -----------------------------------------------------------------------------------------------------


def test_averaged_weights_differ_from_the_live_ones_and_are_the_ones_that_load_gives(tmp_path: Path) -> None:
    result = fit(mlp(), FlowMatching(), data.moons(), config(), out=tmp_path)
    assert any(
        not torch.equal(a, b) for a, b in zip(result.velocity.parameters(), result.live.parameters(), strict=True)
    )
    loaded = load(tmp_path)
    assert_equal(loaded, result.velocity)
    assert not loaded.training and not result.velocity.training
    assert isinstance(loaded, MLP)
    assert_equal(load(tmp_path, model=mlp()), result.velocity)
    assert result.checkpoint is not None
    assert_equal(load(result.checkpoint), result.velocity)


def test_without_a_half_life_the_average_is_the_live_weights() -> None:
    result = fit(mlp(), FlowMatching(), data.moons(), config(steps=3, ema_half_life=None))
    assert_equal(result.velocity, result.live)


def test_the_half_life_counts_images() -> None:
    # The live weight jumps from 0 to 1; after one half-life of images the average has gone half the way.
    for batch_size in (1, 10, 50):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        ema: Any = EMA(model, batch_size, half_life=100.0, ramp=INF)
        nn.init.ones_(model.weight)
        for _ in range(100 // batch_size):
            ema.update()
        assert float(ema.model.weight) == pytest.approx(0.5, rel=1e-5)


def test_early_on_the_average_forgets_the_first_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema: Any = EMA(model, 10, half_life=1e9, ramp=0.05)
    nn.init.constant_(model.weight, 7.0)
    for _ in range(10):
        ema.update()
    assert float(ema.model.weight) == pytest.approx(7.0, rel=1e-3)


class Tied(nn.Module):
    """A weight with two names, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.b(self.norm(self.a(x)))


def test_tied_weights_are_averaged_once_and_stored(tmp_path: Path) -> None:
    model = Tied()
    nn.init.zeros_(model.a.weight)
    ema: Any = EMA(model, 10, half_life=10.0, ramp=INF)
    nn.init.ones_(model.a.weight)
    ema.update()
    torch.testing.assert_close(ema.model.b.weight, torch.full((2, 2), 0.5))
    result = fit(Tied(), FlowMatching(), data.moons(), config(steps=4), out=tmp_path)
    assert_equal(load(tmp_path, model=Tied()), result.velocity)
    with pytest.raises(ValueError, match=r"model: .*load\(\.\.\., model=yours\)"):
        load(tmp_path)


# When things go wrong -------------------------------------------------------------------------------------------------


class BreaksAt:
    """Flow matching whose loss, or only whose gradient, is no longer finite from one step on."""

    def __init__(self, step: int, value: float, gradient_only: bool = False):
        self.step, self.value, self.gradient_only, self.calls = step, value, gradient_only, 0

    def __call__(self, velocity: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        loss = FlowMatching()(velocity, batch)
        if self.calls < self.step:
            return loss
        if self.gradient_only:  # sqrt at 0: a finite loss of 0 with an infinite derivative, times 0
            weight = next(velocity.parameters())
            return loss + (weight - weight.detach()).square().sum().sqrt()
        return loss * self.value


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(
    value: float, tmp_path: Path
) -> None:
    with pytest.raises(
        FloatingPointError, match=r"loss is (nan|inf) at step 13; the last good checkpoint is .*step_00000010"
    ):
        fit(mlp(), BreaksAt(13, value), data.moons(), config(checkpoint_every=5, log_every=100), out=tmp_path)
    kept = checkpoints.available(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step_00000005", "step_00000010"]
    assert all(parameter.isfinite().all() for parameter in load(tmp_path).parameters())


def test_weights_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"parameters layers.0.weight are not finite after step 10; .*step_00000005"
    ):
        fit(mlp(), BreaksAt(10, 1.0, gradient_only=True), data.moons(), config(checkpoint_every=5), out=tmp_path)
    assert all(parameter.isfinite().all() for parameter in load(tmp_path).parameters())


def test_without_a_folder_the_stop_says_that_nothing_was_written() -> None:
    with pytest.raises(FloatingPointError, match="nan at step 1; no checkpoint was written"):
        fit(mlp(), BreaksAt(1, NAN), data.moons(), config())


KILLED = """
    import os, signal, sys
    import torch
    from flowbook import data
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import MLP
    from flowbook.training import TrainConfig, checkpoint, fit

    write, calls = checkpoint.save_file, 0

    def dies(tensors, path):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        write(tensors, path)

    checkpoint.save_file = dies
    torch.manual_seed(0)
    settings = TrainConfig(steps=20, batch_size=32, log_every=3, ema_half_life=200.0, checkpoint_every=4)
    fit(MLP(2, hidden=16), FlowMatching(), data.moons(), settings, out=sys.argv[1])
"""


@pytest.mark.parametrize("file", [2, 8])  # a checkpoint has three files of tensors: in the first one, in the third one
def test_a_kill_in_the_middle_of_a_checkpoint_leaves_a_usable_run(file: int, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(KILLED))
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), str(file)], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.available(folder)] == [
        f"step_{4 * n:08d}" for n in range(1, (file - 1) // 3 + 1)
    ]
    assert list(folder.glob(".step_*"))  # what was being written, out of the way
    settings = config(checkpoint_every=4)
    resumed = fit(mlp(), FlowMatching(), data.moons(), settings, out=tmp_path / "run")
    assert_equal(resumed.velocity, fit(mlp(), FlowMatching(), data.moons(), settings).velocity)
    assert not list(folder.glob(".step_*"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 20


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    fit(mlp(), FlowMatching(), data.moons(), config(steps=4), out=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_a_truncated_file_is_named(run_folder: Path, name: str) -> None:
    path = checkpoints.locate(run_folder) / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"checkpoint: .*{name} is damaged"):
        load(run_folder)
    with pytest.raises(ValueError, match=f"checkpoint: .*{name} is damaged"):
        fit(mlp(), FlowMatching(), data.moons(), config(steps=4), out=run_folder)


@pytest.mark.parametrize("text", [
    "", '{"step": 4', "[]", '{"step": 4}', "\x00",
    '{"step": "4", "config": {}, "model": null, "recipe": null}',
    '{"step": 4, "config": 3, "model": null, "recipe": null}',
    '{"step": 4, "config": {}, "model": {"name": "MLP"}, "recipe": null}',
    '{"step": 4, "config": {}, "model": null, "recipe": "mnist"}',
])  # fmt: skip
def test_a_damaged_state_is_named(run_folder: Path, text: str) -> None:
    (checkpoints.locate(run_folder) / "state.json").write_text(text)
    with pytest.raises(ValueError, match=r"checkpoint: .*state\.json is damaged"):
        load(run_folder)


@pytest.mark.parametrize("name", checkpoints.FILES)
def test_an_incomplete_checkpoint_is_not_one(run_folder: Path, name: str) -> None:
    (checkpoints.locate(run_folder) / name).unlink()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        load(run_folder)


def test_weights_of_another_model_are_refused(run_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"parameters of .* do not fit the model"):
        load(run_folder, model=MLP(3))
    with pytest.raises(ValueError, match=r"out: .* holds a run of another network \(model.hidden was 16, is 8\)"):
        fit(MLP(2, hidden=8), FlowMatching(), data.moons(), config(steps=4), out=run_folder)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 2e-3}, {"batch_size": 64}, {"seed": 1}, {"steps": 8}, {"gradient_clip": 1.0}]
)
def test_a_run_is_not_continued_with_other_settings(run_folder: Path, change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"out: .*other settings.*{name} was .*, is {change[name]}"):
        fit(mlp(), FlowMatching(), data.moons(), config(**{"steps": 4, **change}), out=run_folder)


def shuffled(x0: Tensor, x1: Tensor, y: Tensor | None = None) -> Coupled:
    return x0.flip(0), x1, y


X = normal(40, 2).float()
ONE_TO_THREE = torch.tensor([1, 2, 3, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": FlowMatching(CosinePath())}, r"loss was '.*LinearPath.*', is '.*CosinePath"),
        ({"loss": FlowMatching(coupling=Independent())}, None),
        ({"coupling": OptimalTransport()}, r"coupling was 'none', is \"OptimalTransport\(method='exact'"),
        ({"coupling": shuffled}, r"coupling was 'none', is 'shuffled of source [0-9a-f]{8}'"),
        ({"loss": lambda v, batch: FlowMatching()(v, batch)}, r"loss was .*, is '.*<lambda> of source [0-9a-f]{8}'"),
        ({"source": X[:30]}, r"data was '\(40, 2\)', is '\(30, 2\)'"),
        ({"source": data.moons()}, r"data was '\(40, 2\)', is 'moons\(noise=0.2, scale=3.0, shift=-1.0\)'"),
        ({"source": GaussianMixture([[0.0, 0.0]], 1.0)}, "data was .*, is 'GaussianMixture'"),
        ({"source": X + 1}, r"SHA-256 of the data was '[0-9a-f]{16}', is '[0-9a-f]{16}'"),
        ({"source": X.clone()}, None),
    ],
)
def test_a_run_is_not_continued_with_another_loss_coupling_or_data(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    def run(stop: int, loss: Any = FlowMatching(), source: Any = X, **more: Any) -> Any:  # noqa: B008
        return fit(mlp(), loss, source, config(), out=tmp_path, stop_after=stop, **more)

    run(2)
    if message is None:
        assert run(4, **change).step == 4
        return
    with pytest.raises(ValueError, match="out: .*other settings.*" + message):
        run(4, **change)


def test_a_loss_described_by_a_function_is_the_same_in_every_process(tmp_path: Path) -> None:
    for stop in (2, 4):
        loss = FlowMatching(coupling=lambda x0, x1, y: (x0, x1, y))
        assert fit(mlp(), loss, X, config(), out=tmp_path, stop_after=stop).step == stop


RECIPE = {"model": {"width": (1, 2)}, "loss": {"name": "a"}, "train": {"steps": 1}, "preview": {"steps": 1}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"name": "b"}}, "loss.name was 'a', is 'b'"),
        ({"model": {"width": [1, 3]}}, r"model.width was \[1, 2\], is \[1, 3\]"),
        ({"data": {"name": "c"}}, "data.name was None, is 'c'"),
        ({"coupling": {"name": "optimal_transport"}}, "coupling.name was 'independent', is 'optimal_transport'"),
        ({"coupling": {"name": "independent"}}, None),
        ({"train": {"steps": 2}}, None),
        ({"preview": {"steps": 2}}, None),
    ],
)
def test_a_run_is_not_continued_with_another_recipe(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    def run(stop: int, recipe: dict[str, Any]) -> Any:
        return fit(mlp(), FlowMatching(), X, config(), out=tmp_path, stop_after=stop, recipe=recipe)

    run(2, RECIPE)
    if message is None:
        assert run(4, {**RECIPE, **change}).step == 4
    else:
        with pytest.raises(ValueError, match="out: .*other settings.*" + message):
            run(4, {**RECIPE, **change})


def test_numpy_s_numbers_may_be_settings_and_arguments(tmp_path: Path) -> None:
    settings = config(steps=np.int64(2), learning_rate=np.float32(0.5), seed=np.int64(1))
    assert [type(value) for value in (settings.steps, settings.learning_rate)] == [int, float]
    model = MLP(np.int64(2), hidden=np.int64(8), num_classes=np.int64(3))  # type: ignore[arg-type]
    fit(model, FlowMatching(condition_dropout=np.float64(0.5)), (X, torch.arange(40) % 3), settings, out=tmp_path)
    assert load(tmp_path)(X, 0.5).shape == X.shape


def test_a_preview_that_is_no_picture_and_a_damaged_log_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"preview\(velocity\): expected a torch.Tensor; got NoneType"):
        fit(mlp(), FlowMatching(), X, config(preview_every=2), out=tmp_path / "a", preview=lambda velocity: None)  # type: ignore[arg-type, return-value]
    fit(mlp(), FlowMatching(), X, config(), out=tmp_path / "b", stop_after=6)
    log = tmp_path / "b" / "log.jsonl"
    log.write_text(log.read_text().replace('"loss"', "loss") + '{"step": 6, "lo')  # the last line is that of a kill
    with pytest.raises(ValueError, match=r"out: line 1 of .*log.jsonl is damaged"):
        fit(mlp(), FlowMatching(), X, config(), out=tmp_path / "b")


def test_load_takes_a_model_and_not_its_class(run_folder: Path) -> None:
    with pytest.raises(TypeError, match=r"model: expected a Module such as .*; got the class MLP itself"):
        load(run_folder, MLP)  # type: ignore[arg-type]


def test_a_finished_run_is_left_as_it_is_and_a_constant_schedule_may_go_on(run_folder: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="out: the run in .* is at step 4 already, .*nothing is left to train"):
        again = fit(mlp(), FlowMatching(), data.moons(), config(steps=4, log_every=1), out=run_folder)
    assert again.losses.shape == (0,) and again.step == 4 and again.checkpoint == checkpoints.locate(run_folder)
    with pytest.raises(ValueError, match=r"out: .*already holds a run"):
        fit(mlp(), FlowMatching(), data.moons(), config(steps=4), out=run_folder, resume=False)
    short, long = (config(steps=n, schedule="constant") for n in (4, 8))
    fit(mlp(), FlowMatching(), data.moons(), short, out=tmp_path / "longer")
    longer = fit(mlp(), FlowMatching(), data.moons(), long, out=tmp_path / "longer")
    assert_equal(longer.live, fit(mlp(), FlowMatching(), data.moons(), long).live)


def test_only_the_newest_checkpoints_are_kept_and_none_is_pickled(tmp_path: Path) -> None:
    fit(
        mlp(),
        FlowMatching(),
        data.moons(),
        config(checkpoint_every=2, keep_checkpoints=3),
        out=tmp_path,
        recipe={"a": 1},
    )
    kept = checkpoints.available(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step_00000016", "step_00000018", "step_00000020"]
    assert all(sorted(file.name for file in path.iterdir()) == sorted(checkpoints.FILES) for path in kept)
    stored = checkpoints.read(kept[-1])
    assert stored.step == 20 and stored.recipe == {"a": 1} and stored.config["steps"] == 20
    assert stored.model == {"name": "MLP", "arguments": mlp().arguments}


def test_a_run_leaves_a_log_and_previews(tmp_path: Path) -> None:
    from PIL import Image

    fit(
        mlp(), FlowMatching(), data.moons(), config(preview_every=10), out=tmp_path,
        preview=lambda velocity: torch.zeros(20, 1, 8, 8),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 10, 12, 15, 18, 20]
    assert all(line["loss"] > 0 and line["images_per_second"] > 0 for line in lines)
    assert [path.name for path in sorted((tmp_path / "previews").iterdir())] == [
        "step_00000010.png",
        "step_00000020.png",
    ]
    assert Image.open(tmp_path / "previews" / "step_00000010.png").size == (10 * 10 + 2, 2 * 10 + 2)
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_log_s_loss_is_the_mean_since_the_last_line(tmp_path: Path) -> None:
    result = fit(mlp(), FlowMatching(), data.moons(), config(log_every=5), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for n, line in enumerate(lines):
        assert line["loss"] == pytest.approx(float(result.losses[5 * n : 5 * n + 5].mean()), rel=1e-6)


# The batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 3), (3, 10), (8, 4), (1, 5), (7, 7)])
def test_every_epoch_holds_every_sample_once_and_epochs_differ(samples: int, batch_size: int) -> None:
    order = EpochOrder(samples, batch_size, seed=0)
    drawn = torch.cat([order.indices(step) for step in range(4 * samples)])
    epochs = drawn[: len(drawn) // samples * samples].reshape(-1, samples)
    assert (epochs.sort(dim=1).values == torch.arange(samples)).all()
    if samples > 5:
        assert not torch.equal(epochs[0], epochs[1])
    late = EpochOrder(samples, batch_size, seed=0)
    assert torch.equal(late.indices(3), drawn[3 * batch_size : 4 * batch_size])  # without the steps before it


SOURCES: dict[str, Any] = {
    "tensor": torch.arange(40.0)[:, None], "labeled": (torch.arange(40.0)[:, None], torch.arange(40)),
    "pairs": data.Unpaired(data.eight_gaussians(), data.moons()), "distribution": data.spirals(), "data set": Flipped(),
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_rows_of_one_global_batch(source: Any, processes: int) -> None:
    def stream(share: slice, first: int = 0) -> list[tuple[Tensor, ...]]:
        drawn: Any = batches(source, Plan(8, 3, range(first, 6), share, torch.device("cpu")))
        return [tuple(part for part in ((b,) if isinstance(b, Tensor) else b) if part is not None) for b in drawn]

    whole, rows = stream(slice(0, 8)), 8 // processes
    shares = [stream(slice(r * rows, (r + 1) * rows)) for r in range(processes)]
    for step in range(6):
        joined = [torch.cat(parts) for parts in zip(*(share[step] for share in shares), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, whole[step], strict=True))
    late = stream(slice(0, 8), first=4)
    assert all(torch.equal(a, b) for n in (0, 1) for a, b in zip(late[n], whole[4 + n], strict=True))


def test_labels_stay_with_their_samples() -> None:
    x, y = SOURCES["labeled"]
    drawn: Any = batches((x, y), Plan(8, 0, range(9), slice(0, 8), x.device))
    for x1, labels in drawn:
        assert torch.equal(x1[:, 0].long(), labels)


# The schedule ---------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    cosine = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(cosine, step) for step in range(110)]
    assert rates[:10] == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert rates[10] == 1 and rates[60] == pytest.approx(0.5) and rates[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    constant = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, schedule="constant")
    assert {learning_rate(constant, step) for step in range(10, 110)} == {1.0}


def test_clipping_bounds_the_gradient() -> None:
    norms = []

    class Seen(MLP):
        def forward(self, x: Tensor, t: Any, y: Any = None) -> Tensor:
            norms.append([p.grad for p in self.parameters()])
            return super().forward(x, t, y)

    def step(clip: float | None) -> float:
        torch.manual_seed(0)
        model = Seen(2, hidden=8)
        fit(model, lambda v, b: 1e3 * FlowMatching()(v, b), data.moons(), config(steps=1, gradient_clip=clip))
        return float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())  # type: ignore[union-attr]

    assert step(None) > 100 and step(0.5) == pytest.approx(0.5, rel=1e-3)


# Misuse ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: .*0"),
        ({"steps": 1.5}, TypeError, "steps: .*1.5"),
        ({"batch_size": "64"}, TypeError, "batch_size: .*'64'"),
        ({"batch_size": 10, "accumulate": 3}, ValueError, "batch_size: .*multiple of accumulate = 3; got 10"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"learning_rate": NAN}, ValueError, "learning_rate"),
        ({"learning_rate": "1e-3"}, TypeError, "learning_rate: .*'1e-3'"),
        ({"schedule": "linear"}, ValueError, "schedule: .*'cosine', 'constant'.*'linear'"),
        ({"precision": "fp16"}, ValueError, "precision: .*'fp16'"),
        ({"device": "gpu"}, ValueError, "device: expected .*such as 'cuda:1'; got 'gpu'"),
        ({"beta2": 1.0}, ValueError, "beta2"),
        ({"gradient_clip": -1.0}, ValueError, "gradient_clip"),
        ({"ema_half_life": 0.0}, ValueError, "ema_half_life"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every"),
        ({"seed": -1}, ValueError, "seed: .*-1"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps"),
        ({"lerning_rate": 1e-3}, TypeError, "lerning_rate"),
        ({"compile": "yess"}, TypeError, "compile: .*'yess'"),
    ],
)
def test_misuse_of_the_settings_names_the_field(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"velocity": lambda x, t: x}, TypeError, "velocity: .*Module.*function"),
        ({"data": [1, 2]}, TypeError, "data: .*sample.*list"),
        ({"data": "moons"}, TypeError, "data: .*'moons'"),
        ({"data": data.moons}, TypeError, "data: .*function"),
        ({"data": data.Unpaired}, TypeError, "data: .*class Unpaired itself"),
        ({"data": Endless()}, TypeError, "data: expected a Dataset with a length.*Endless"),
        ({"loss": FlowMatching}, TypeError, r"loss: .*FlowMatching\(\); got the class FlowMatching itself"),
        ({"loss": "flow_matching"}, TypeError, "loss: .*got 'flow_matching'"),
        ({"coupling": "optimal_transport"}, TypeError, "coupling: .*got 'optimal_transport'"),
        ({"coupling": OptimalTransport}, TypeError, "coupling: .*class OptimalTransport itself"),
        ({"config": {"steps": 3}}, TypeError, r"config: expected a TrainConfig such as .*; got a dict"),
        ({"preview": "grid"}, TypeError, "preview: .*got 'grid'"),
        ({"velocity": mlp().requires_grad_(False)}, ValueError, "velocity: expected trainable parameters"),
        ({"velocity": nn.Identity()}, ValueError, "velocity: expected trainable parameters"),
        ({"out": __file__}, ValueError, "out: expected a folder; .*test_training.py is a file"),
        *(
            (
                {"velocity": MLP(2, num_classes=3), "loss": loss, "data": (torch.zeros(4, 2), ONE_TO_THREE)},
                ValueError,
                "y: expected labels from 0 to 2, and -1 where there is none; got 1 to 3",
            )
            for loss in (FlowMatching(), Diffusion(NoiseSchedule.cosine(8)), MaximumLikelihood())
        ),
        (
            {
                "velocity": Classifier(size=8, width=4, num_classes=3),
                "loss": CrossEntropy(),
                "data": (torch.zeros(3, 1, 8, 8), torch.tensor([1, 2, 3])),
            },
            ValueError,
            "y: expected labels from 0 to 2; got 1 to 3",
        ),
        ({"data": (torch.zeros(4, 2), torch.zeros(3))}, ValueError, r"data: .*'x1': 4, 'y': 3"),
        ({"data": torch.zeros(0, 2)}, ValueError, "data: .*empty"),
        ({"data": torch.zeros(4, 2, dtype=torch.long)}, TypeError, "x: .*int64"),
        ({"data": torch.zeros(4, 3)}, ValueError, r"x: .*\(B, 2\).*\(2, 3\)"),
        ({"stop_after": 0}, ValueError, "stop_after: .*0"),
        ({"stop_afer": 3}, TypeError, "stop_afer"),
    ],
)
def test_misuse_of_fit_names_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "velocity": mlp(),
        "loss": FlowMatching(),
        "data": data.moons(),
        "config": config(),
        **change,
    }
    with pytest.raises(error, match=message):
        fit(**arguments)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no/such/run does not exist"):
        load("no/such/run")
    with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
        load(tmp_path)


def test_a_moved_checkpoint_still_loads(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints.locate(run_folder), tmp_path / "elsewhere")
    assert_equal(load(tmp_path / "elsewhere"), load(run_folder))
    assert torch.equal(load(run_folder)(normal(2, 2).float(), 0.5), load(str(run_folder))(normal(2, 2).float(), 0.5))


def test_without_gradients_nothing_is_trained_and_the_error_says_why() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"fit: gradients are disabled here"):
        fit(MLP(2, hidden=8), FlowMatching(), data.moons(), TrainConfig(steps=1))


class Initialized(nn.Module):
    """It takes its shift from the first batch, as activation norms do."""

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network, self.shift = MLP(2, hidden=8), nn.Parameter(torch.zeros(2))
        self.register_buffer("done", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if not self.done:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.done.fill_(1)
        return self.network(x + self.shift, t)


@pytest.mark.parametrize("half_life", [None, 1000.0])
def test_averaged_weights_take_flags_and_counts_along(half_life: float | None) -> None:
    config = TrainConfig(steps=3, batch_size=8, ema_half_life=half_life)
    result: Any = fit(Initialized(), FlowMatching(), data.moons(), config)
    assert result.velocity.done == 1
    if half_life is None:
        assert torch.equal(result.velocity.shift, result.live.shift)


ROOTS = torch.linspace(0.01, 0.02**0.5, 1000, dtype=torch.float64)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        # Two schedules of the same ends.
        ((2, Diffusion(NoiseSchedule(ROOTS**2))), (2, Diffusion(NoiseSchedule.linear(1000))), "loss was Diffusion"),
        ((1, FlowMatching()), (4, FlowMatching()), "model.heads was 1, is 4"),
        ((1, FlowMatching()), (1, FlowMatching()), None),
    ],
)
def test_a_run_is_not_continued_as_another_network(first: Any, second: Any, message: Any, tmp_path: Path) -> None:
    def go_on(of: tuple[int, Any], until: int) -> None:
        network = models.DiT(1, 8, width=16, depth=1, heads=of[0])
        config = TrainConfig(steps=4, batch_size=4)
        fit(network, of[1], torch.zeros(8, 1, 8, 8), config, out=tmp_path, stop_after=until)

    go_on(first, 2)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        go_on(second, 4)


def test_a_run_is_not_continued_on_another_mixture_or_other_values(tmp_path: Path) -> None:
    def dataset(shift: float) -> TensorDataset:
        return TensorDataset(torch.arange(20.0).reshape(10, 2) + shift)

    pairs = ((GaussianMixture([[0.0, 0.0]], 1.0), GaussianMixture([[9.0, 0.0]], 1.0)), (dataset(0.0), dataset(1.0)))
    for k, (one, other) in enumerate(pairs):
        config = TrainConfig(steps=4, batch_size=4)
        fit(MLP(2, hidden=8), FlowMatching(), one, config, out=tmp_path / str(k), stop_after=2)
        with pytest.raises(ValueError, match="SHA-256 of the data was"):
            fit(MLP(2, hidden=8), FlowMatching(), other, config, out=tmp_path / str(k))
        assert fit(MLP(2, hidden=8), FlowMatching(), one, config, out=tmp_path / str(k)).step == 4


def test_two_threads_do_not_train_at_once() -> None:
    said = []

    def also(velocity: Any, batch: Any) -> Tensor:
        def train() -> None:
            try:
                fit(MLP(2, hidden=8), FlowMatching(), data.moons(), TrainConfig(steps=1, batch_size=8))
            except RuntimeError as error:
                said.append(str(error))

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        return FlowMatching()(velocity, batch)

    fit(MLP(2, hidden=8), also, data.moons(), TrainConfig(steps=1, batch_size=8))
    assert len(said) == 1 and said[0].startswith("fit: another thread of this process is training")
    fit(MLP(2, hidden=8), FlowMatching(), data.moons(), TrainConfig(steps=1, batch_size=8))


def test_a_preempted_run_can_be_told_to_another_process() -> None:
    told = pickle.loads(pickle.dumps(Preempted(4, Path("runs"))))
    assert (told.step, told.checkpoint, told.code) == (4, Path("runs"), EXIT_STATUS)
