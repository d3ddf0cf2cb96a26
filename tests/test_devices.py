"""Contract: no step waits for a GPU. The meta device has shapes and no values, so whatever reads one raises there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ALL_PATHS, FIXED
from torch import Tensor, nn

from flowbook import cnf, data, solvers
from flowbook.adapters import from_callable, from_edm
from flowbook.diffusion import Diffusion, NoiseSchedule, StepModel, probability_flow
from flowbook.divergence import divergence, rademacher
from flowbook.flow_matching import FlowMatching
from flowbook.guidance import guided
from flowbook.models import DiT, UNet
from flowbook.paths import LinearPath, VPPath, as_velocity, change_path, retimed
from flowbook.reflow import reflow_loss
from flowbook.solvers import Method
from flowbook.training import EMA

META = torch.device("meta")


def unet() -> UNet:
    return UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=3).to(META)


def dit() -> DiT:
    return DiT(1, 8, width=16, depth=1, heads=2, num_classes=3).to(META)


class Small(nn.Module):
    """As good as a U-Net here, and its meta kernels take no time."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x * t.reshape(-1, *[1] * (x.dim() - 1))


def images(n: int = 4) -> Tensor:
    return torch.empty(n, 1, 8, 8, device=META)


LABELS = torch.empty(4, dtype=torch.long, device=META)
SCHEDULE = NoiseSchedule.cosine(20)
FLOWS: dict[str, Callable[[], nn.Module]] = {
    "unet": unet,
    "dit": dit,
    "guided": lambda: guided(unet(), 2.0, 3),
    "retimed": lambda: retimed(Small()),
    "on another path": lambda: change_path(as_velocity(Small(), VPPath())),
    "a denoiser": lambda: from_edm(lambda x, sigma, y: x),
    "another convention": lambda: from_callable(Small(), time_scale=10.0, reverse=True),
    "diffusion": lambda: probability_flow(StepModel(Small(), SCHEDULE), SCHEDULE),
    "diffusion of data": lambda: probability_flow(StepModel(Small(), SCHEDULE, "data"), SCHEDULE),
    "integer steps": lambda: probability_flow(StepModel(Small(), SCHEDULE), SCHEDULE, integer_steps=True),
    **{
        f"{prediction} on {path!r}": lambda path=path, prediction=prediction: as_velocity(Small(), path, prediction)  # type: ignore[misc]
        for path in ALL_PATHS
        for prediction in ("noise", "data", "score", "v")
    },
}


@pytest.fixture
def without_the_look_at_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """``solve`` looks once whether x is finite, which the contract allows."""
    monkeypatch.setattr("flowbook.solvers.solution._check", lambda *arguments: None)


@pytest.mark.usefixtures("without_the_look_at_the_entry")
@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("name", FLOWS)
def test_no_step_of_a_solve_reads_a_value(name: str, method: Method) -> None:
    solution = solvers.sample(FLOWS[name](), images(), y=LABELS, method=method, steps=3, save_at=[0.0, 0.3, 1.0])
    assert solution.x.device == META and solution.trajectory is not None and len(solution.trajectory) == 3


def test_no_condition_of_a_network_is_read() -> None:
    y = {"vector": torch.empty(4, 3, device=META), "context": torch.empty(4, 5, 6, device=META)}
    options: dict[str, Any] = {"condition_dim": 3, "context_dim": 6}
    for network in (
        UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), **options).to(META),
        DiT(1, 8, width=16, depth=1, heads=2, **options).to(META),
    ):
        assert network(images(), torch.tensor(0.5, device=META), y).shape == images().shape
        assert guided(network, 2.0)(images(), torch.tensor(0.5, device=META), y).shape == images().shape
        FlowMatching(condition_dropout=0.1)(network, (images(), y))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_no_divergence_reads_a_value(name: str, mode: str) -> None:
    x, t, flow = images(), torch.empty((), device=META), FLOWS[name]()
    for how in ({"method": "exact"}, {"method": "hutchinson", "noise": rademacher(2, like=x)}):
        assert divergence(flow, x, t, y=LABELS, mode=mode, **how)[1].shape == (4,)  # type: ignore[arg-type]


LOSSES: dict[str, Callable[[nn.Module], Tensor]] = {
    "flow matching": lambda v: FlowMatching(condition_dropout=0.1)(v, (images(), LABELS)),
    "diffusion": lambda v: Diffusion(SCHEDULE, prediction="v")(v, (images(), LABELS)),
    "reflow": lambda v: reflow_loss(v, images(), images(), y=LABELS, times=4),
    "likelihood": lambda v: cnf.nll_loss(v, images(), y=LABELS, trace="hutchinson", steps=2, kinetic=0.1, jacobian=0.1),
    "likelihood on nodes": lambda v: cnf.nll_loss(v, images(), y=LABELS, trace="hutchinson", steps=2, nodes=3),
}


@pytest.mark.usefixtures("without_the_look_at_the_entry")
@pytest.mark.parametrize("name", LOSSES)
def test_no_step_of_training_reads_a_value(name: str) -> None:
    model = unet().train()
    ema = EMA(model, 4, half_life=100.0, ramp=0.05)
    LOSSES[name](model).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    ema.update()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", data.CORRUPTIONS)
def test_a_generator_may_live_on_another_device_than_the_data(kind: str) -> None:
    corrupted = data.corrupt(images(), kind, torch.Generator())
    assert corrupted.device == META and corrupted.shape == images().shape


def test_the_device_notices_a_value_that_is_read() -> None:
    def reads(x: Tensor, t: Any) -> Tensor:
        return x * float(t)

    LinearPath().interpolate(images(), images(), 0.5)
    with pytest.raises(RuntimeError, match="meta"):
        reads(images(), torch.empty((), device=META))
