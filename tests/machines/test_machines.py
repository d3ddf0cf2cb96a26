"""Contract: the public interface runs on devices without float64, under any default dtype and default device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowbook import analytic, cnf, data, inversion, metrics, models
from flowbook.couplings import OptimalTransport
from flowbook.diffusion import Diffusion, NoiseSchedule, StepModel, ddpm_sample, probability_flow
from flowbook.divergence import divergence
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP, UNet
from flowbook.paths import VPPath, change_path, karras_grid
from flowbook.reflow import OnlinePairs, distill, generate_pairs
from flowbook.solvers import sample
from flowbook.training import TrainConfig, fit

TESTS = Path(__file__).parent.parent
OF_PYTHON = hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.mark.skipif(not OF_PYTHON, reason="this torch has no devices written in Python")
def test_the_public_interface_runs_on_a_device_without_float64() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "machines.without_float64"], env=environment, capture_output=True, text=True, timeout=500
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(lines) > 75 and [line for line in lines if not line.endswith(": ok")] == []


@pytest.mark.skipif(not OF_PYTHON, reason="this torch has no devices written in Python")
def test_the_stand_in_refuses_what_such_a_device_refuses() -> None:
    script = """
import torch
from machines.stand_in import apple, register
register()
with apple() as device:
    x = torch.ones(2, device=device)
    double = dict(dtype=torch.float64, device=device)
    for wrong in (lambda: x.double(), lambda: x.double().cpu(), lambda: torch.zeros(2, **double), lambda: x.numpy(),
                  lambda: torch.tensor(1.0, **double), lambda: torch.zeros(2).double().to(device),
                  lambda: x + torch.ones(2)):
        try:
            wrong()
        except (TypeError, RuntimeError):
            continue
        raise SystemExit("not refused")
    assert x.cpu().double().sum() == 2 and (x + 1).device == device and x[torch.tensor([0])].device == device
"""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


# Defaults of torch ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["float64", "bfloat16"])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(getattr(torch, request.param))
    yield torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def default_device() -> Iterator[None]:
    """Whatever does not say where it is made is made on "meta", where values cannot be read."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def x32() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=torch.float32, device="cpu").reshape(6, 2)


def network() -> MLP:
    torch.manual_seed(0)
    with torch.device("cpu"):
        return MLP(2, hidden=16, num_classes=3).float()


def uses(tmp_path: Path) -> dict[str, Any]:
    """A call of everything that makes tensors of its own, with states in float32 on the CPU."""
    y = torch.tensor([0, 1, 2, 0, 1, 2], device="cpu")
    net, schedule = network(), NoiseSchedule.linear(50, rescale=True)
    mixture, config = analytic.eight_gaussians(), TrainConfig(steps=2, batch_size=4, device="cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.float32, device="cpu")
    return {
        "transport": lambda: OptimalTransport()(x32(), x32().flip(0))[0],
        "sinkhorn": lambda: OptimalTransport("sinkhorn", reg=0.5)(x32(), x32().flip(0))[0],
        "solve": lambda: sample(net, x32(), y=y, method="rk4", steps=2, save_at=[0.0, 0.5, 1.0]).x,
        "dopri5": lambda: sample(net, x32(), y=y).x,
        "log_prob": lambda: cnf.log_prob(net, x32(), steps=2).log_prob,
        "probes": lambda: cnf.log_prob(net, x32(), steps=2, trace="hutchinson", generator=generator).log_prob,
        "divergence": lambda: divergence(net, x32(), 0.5)[1],
        "dequantize": lambda: cnf.dequantize(images, 3, generator=generator),
        "mixture": lambda: mixture.velocity(x32(), 0.5, VPPath()),
        "mixture's samples": lambda: mixture.sample(4, generator).float(),
        "diffusion": lambda: ddpm_sample(StepModel(net, schedule), x32(), schedule, y, generator=generator),
        "probability flow": lambda: sample(probability_flow(StepModel(net, schedule), schedule), x32(), y=y).x,
        "path": lambda: change_path(net, VPPath())(x32(), torch.tensor(0.5, dtype=torch.float32, device="cpu"), y),
        "grid": lambda: torch.tensor(karras_grid(4), dtype=torch.float32, device="cpu"),
        "edit": lambda: inversion.edit(net, x32(), y, y.flip(0), steps=2).x,
        "interpolate": lambda: inversion.interpolate(net, x32(), x32().flip(0) + 3, 3, steps=2).x,
        "noise": lambda: inversion.estimate_noise(net, x32(), y=y, generator=generator),
        "pairs": lambda: generate_pairs(net, (2,), 8, tmp_path / "pairs", y=torch.zeros(8, dtype=torch.long, device="cpu"), steps=2)[0][1],  # noqa: E501
        "online": lambda: OnlinePairs(net, (2,), steps=2).sample(4, generator)[1].float(),
        "flow matching": lambda: fit(network(), FlowMatching(condition_dropout=0.1), (x32(), y), config).losses,
        "coupled": lambda: fit(network(), FlowMatching(), (x32(), y), config, coupling=OptimalTransport(label_aware=True)).losses,  # noqa: E501
        "denoising": lambda: fit(network(), Diffusion(schedule), (x32(), y), config).losses,
        "likelihood": lambda: fit(network(), cnf.MaximumLikelihood(steps=1), (x32(), y), config).losses,
        "distillation": lambda: distill(net, (x32(), x32(), y), config)(x32(), 0.5, y),
        "distance": lambda: torch.tensor(metrics.wasserstein2(x32(), x32() + 1), dtype=torch.float32, device="cpu"),
        "digits": lambda: data.digits("test")[0],
        "shipped": lambda: models.load_pretrained("digits")(images, 0.5),
        "photographs": lambda: data.photo_patches(2, size=8)[0],
        "letters": lambda: data.letters(size=28)[0],
    }  # fmt: skip


NAMES = list(uses(Path()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:y. the network is asked")
def test_float32_stays_so_under_another_default_dtype(name: str, default_dtype: torch.dtype, tmp_path: Path) -> None:
    found = uses(tmp_path)[name]()
    assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())


# Shipped networks are made on the default device, as all networks are.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "shipped"])
@pytest.mark.filterwarnings("ignore:y. the network is asked")
def test_the_cpu_is_the_cpu_under_another_default_device(name: str, default_device: None, tmp_path: Path) -> None:
    found = uses(tmp_path)[name]()
    assert found.device.type == "cpu" and bool(torch.isfinite(found).all())


@pytest.mark.parametrize("make", [lambda: MLP(2), lambda: UNet(1, 8, width=8, multipliers=(1, 2), attention=(4,))])
def test_a_network_is_made_in_the_default_dtype(make: Any, default_dtype: torch.dtype) -> None:
    made = make()
    x = torch.zeros(2, *made.shape)
    assert x.dtype == default_dtype and sample(made, x, steps=2).x.dtype == default_dtype
    result = fit(made, FlowMatching(), torch.zeros(8, *made.shape), TrainConfig(steps=2, batch_size=4))
    assert next(result.velocity.parameters()).dtype == default_dtype


class Drawn(Dataset[Tensor]):
    """Items that draw random numbers of their own."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(2) + index


def test_spawned_workers_read_what_this_process_reads(tmp_path: Path) -> None:
    script = """
import torch
from machines.test_machines import Drawn, network
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP
from flowbook.training import TrainConfig, fit
if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    losses = []
    for workers in (0, 2):
        torch.manual_seed(0)
        config = TrainConfig(steps=4, batch_size=4, workers=workers)
        losses.append(fit(MLP(2, hidden=16), FlowMatching(), Drawn(), config).losses)
    assert torch.equal(*losses), losses
"""
    file = tmp_path / "spawned.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(file)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
