"""Law 10 over processes: two of them take the step of one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import free_port, wait_for
from safetensors.torch import load_file
from torch import Tensor

# One script for one process or two: every process stores the noise and times it met, the first one the weights.
SCRIPT = """
    import os, sys
    import torch
    from safetensors.torch import save_file
    from flowbook import data, keyed
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import UNet
    from flowbook.training import TrainConfig, fit

    out, accumulate = sys.argv[1], int(sys.argv[2])
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    seen = []

    class Watched(UNet):
        def forward(self, x, t, y=None):
            seen.append((x.detach().clone(), t.clone(), y.clone()))
            return super().forward(x, t, y)

    torch.manual_seed(0)
    model = Watched(1, size=8, width=8, multipliers=(1, 2), blocks=1, num_classes=10).double()
    images, labels = data.digits("test")
    config = TrainConfig(steps=3, batch_size=16, accumulate=accumulate, gradient_clip=1.0, log_every=2)
    result = fit(model, FlowMatching(label_dropout=0.3), (images.double(), labels), config, out=out + "/run")
    gradients = {"gradient." + name: p.grad.contiguous() for name, p in model.named_parameters()}
    weights = {"weight." + name: p.detach().contiguous() for name, p in model.named_parameters()}
    inputs = {name: torch.cat([call[k] for call in seen]) for k, name in enumerate(("x", "t", "y"))}
    save_file({**gradients, **weights, **inputs, "losses": result.losses}, f"{out}/rank{rank}.safetensors")
"""


def run(folder: Path, processes: int, accumulate: int) -> list[dict[str, Tensor]]:
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment["OMP_NUM_THREADS"] = "1"
    port, started = str(free_port()), []
    for rank in range(processes):
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        command = [sys.executable, str(script), str(folder), str(accumulate)]
        started.append(subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, text=True))
    wait_for(started)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(processes)]


@pytest.mark.timeout(240)
def test_two_processes_that_accumulate_take_the_steps_of_one(tmp_path: Path) -> None:
    (alone,) = run(tmp_path / "one", 1, accumulate=1)
    both = run(tmp_path / "two", 2, accumulate=2)
    # Noise, times and label dropout, bit for bit: of every global batch of 16 the first 8 rows are the first process's.
    for name in ("x", "t", "y"):
        shares = [process[name].reshape(3, 8, *process[name].shape[1:]) for process in both]
        assert torch.equal(torch.cat(shares, dim=1).flatten(0, 1), alone[name])
    assert len(alone["y"].unique()) == 11  # the null label too
    for name in (key for key in alone if key.startswith(("gradient", "weight"))):
        torch.testing.assert_close(both[0][name], alone[name], rtol=1e-6, atol=1e-9)
        assert torch.equal(both[0][name], both[1][name])
    torch.testing.assert_close((both[0]["losses"] + both[1]["losses"]) / 2, alone["losses"])
