"""Images in shards: the bytes of a solver's samples, whoever draws them and however often it is stopped."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import normal, randomized, wait_for
from torch._dynamo.testing import CompileCounterWithBackend

from flowbook import cli, solvers
from flowbook.data import ImageShards, generate_images, generated_images, to_bytes
from flowbook.data.generation import keyed_noise
from flowbook.flow_matching import FlowMatching
from flowbook.guidance import guided
from flowbook.models import Compiled, UNet, load_pretrained
from flowbook.paths import Normal
from flowbook.reflow import PairDataset, generate_pairs
from flowbook.training import TrainConfig, fit

FEW: dict[str, Any] = {"method": "euler", "steps": 2, "batch_size": 5, "shard_size": 16, "seed": 3}


def unet() -> UNet:
    return randomized(UNet(1, size=8, width=8, multipliers=(1, 2), blocks=1, num_classes=3)).float()  # type: ignore[return-value]


LABELS = torch.arange(40) % 3


def test_shards_hold_the_solver_s_images_as_bytes(tmp_path: Path) -> None:
    velocity = unet()
    made = generate_images(velocity, (1, 8, 8), 40, tmp_path, y=LABELS, **FEW)
    noise = keyed_noise(Normal((1, 8, 8)), 3, 0, 40)
    wanted = to_bytes(solvers.sample(velocity, noise, y=LABELS, method="euler", steps=2).x)
    got = made.bytes(torch.arange(40))
    assert got.dtype == torch.uint8 and (got.int() - wanted.int()).abs().max() <= 1  # other batches round differently
    assert (got == wanted).float().mean() > 0.99
    assert torch.equal(made.labels, LABELS) and made.nfe == 2 and made.shape == (1, 8, 8)
    image, label = made[17]
    torch.testing.assert_close(image, got[17].float() / 127.5 - 1)
    assert int(label) == 17 % 3 and image.abs().max() <= 1
    assert len(pickle.loads(pickle.dumps(made))) == 40


def test_what_was_stopped_goes_on_and_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate_images(unet(), (1, 8, 8), 40, tmp_path / "whole", y=LABELS, **FEW)
    calls, real = 0, generated_images.to_bytes

    def stops(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return real(images)

    monkeypatch.setattr(generated_images, "to_bytes", stops)
    with pytest.raises(KeyboardInterrupt):
        generate_images(unet(), (1, 8, 8), 40, tmp_path / "stopped", y=LABELS, **FEW)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 shards are missing.*generate_images"):
        ImageShards(tmp_path / "stopped")
    again = generate_images(unet(), (1, 8, 8), 40, tmp_path / "stopped", y=LABELS, **FEW)
    assert (
        torch.equal(again.bytes(torch.arange(40)), whole.bytes(torch.arange(40)))
        and again.identity() == whole.identity()
    )


def test_images_train_and_pairs_are_no_images(tmp_path: Path) -> None:
    made = generate_images(unet(), (1, 8, 8), 40, tmp_path / "images", y=LABELS, **FEW)
    result = fit(unet(), FlowMatching(condition_dropout=0.1), made, TrainConfig(steps=2, batch_size=8))
    assert result.losses.isfinite().all()
    with pytest.raises(ValueError, match=r"folder: expected pairs in .*; it holds images"):
        PairDataset(tmp_path / "images")
    with pytest.raises(ValueError, match="folder: expected pairs"):
        generate_pairs(unet(), (1, 8, 8), 40, tmp_path / "images", y=LABELS, **FEW)
    generate_pairs(unet(), (1, 8, 8), 4, tmp_path / "pairs", y=LABELS[:4], **FEW)
    with pytest.raises(ValueError, match=r"folder: expected images in .*; it holds pairs"):
        ImageShards(tmp_path / "pairs")
    with pytest.raises(IndexError, match="expected 0 to 39"):
        made.bytes(torch.tensor([40]))


def test_bytes_are_the_nearest_of_256_values() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_bytes(levels / 127.5 - 1), levels.to(torch.uint8))
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_the_command_draws_into_a_folder_and_two_processes_share_it(tmp_path: Path, capsys: Any) -> None:
    few = ["--n", "40", "--solver", "euler:steps=2", "--batch-size", "8", "--shard-size", "8"]
    assert cli.main(["sample", "digits", "--out", str(tmp_path / "one"), *few]) == 0
    assert "40 images, 2 evaluations each" in capsys.readouterr().out
    one = ImageShards(tmp_path / "one")
    assert one.labels is not None and one.labels.bincount().tolist() == [4] * 10
    noise = keyed_noise(Normal((1, 8, 8)), 0, 0, 8)
    drawn = solvers.sample(load_pretrained("digits"), noise, y=one.labels[:8], method="euler", steps=2).x
    assert (one.bytes(torch.arange(8)).int() - to_bytes(drawn).int()).abs().max() <= 1
    running = []
    for rank in range(2):
        command = [sys.executable, "-m", "flowbook", "sample", "digits", "--out", str(tmp_path / "two"), *few]
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    wait_for(running)
    two = ImageShards(tmp_path / "two")
    assert (two.bytes(torch.arange(40)).int() - one.bytes(torch.arange(40)).int()).abs().max() <= 1
    assert torch.equal(two.labels, one.labels)


def test_one_graph_serves_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    network = unet().eval()
    velocity = Compiled(network, batch_size=4)
    assert velocity.null == 3
    for n in (4, 1, 9, 3, 0):
        x, y = normal(n, 1, 8, 8).float(), torch.arange(n) % 3
        for t in (torch.tensor(0.3), torch.linspace(0, 1, n)):
            with torch.no_grad():
                torch.testing.assert_close(velocity(x, t, y), network(x, t, y), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2  # one for a single time, one for a time of each sample
    with pytest.raises(RuntimeError, match="Compiled is for sampling"):
        velocity(normal(2, 1, 8, 8).float().requires_grad_(), 0.5, torch.zeros(2, dtype=torch.long))


def test_a_compiled_velocity_is_solved_guided_and_counted_as_the_velocity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The default backend takes most of a minute for these; a real one is in the example of Compiled.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    network = load_pretrained("digits")
    x0, y = normal(5, 1, 8, 8).float(), torch.arange(5)
    plain = solvers.sample(guided(network, 1.5, 10), x0, y=y, method="midpoint", steps=3)
    compiled = solvers.sample(Compiled(guided(network, 1.5, 10), 8), x0, y=y, method="midpoint", steps=3)
    torch.testing.assert_close(compiled.x, plain.x, rtol=1e-4, atol=1e-4)
    assert compiled.nfe == plain.nfe == 12
    few = ["--n", "10", "--solver", "midpoint:steps=1", "--batch-size", "8"]
    assert cli.main(["sample", "digits", "--out", str(tmp_path / "a"), *few]) == 0
    assert cli.main(["sample", "digits", "--out", str(tmp_path / "b"), "--compile", *few]) == 0
    a, b = (ImageShards(tmp_path / name).bytes(torch.arange(10)).int() for name in "ab")
    assert int((a - b).abs().max()) <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--solver", "ddim"], "--solver ddim: a folder is generated by an ODE solver"),
        (["--labels", "3"], "--labels: a folder has labels as frequent as in the data"),
        (["--n", "0"], "--n"),
        (["--batch-size", "0"], "batch_size"),
    ],
)
def test_misuse_of_the_command_ends_with_one_line(more: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["sample", "digits", "--out", str(tmp_path / "images"), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
