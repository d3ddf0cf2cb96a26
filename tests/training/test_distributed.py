"""Law 10 over processes: two of them take the step of one."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Forked, free_port, ranked, wait_for
from safetensors.torch import load_file
from torch import Tensor

from flowbook.cnf import MaximumLikelihood
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP
from flowbook.training import TrainConfig, fit, sharding
from flowbook.training.finite import check_parameters
from flowbook.training.memory import FullMemory
from flowbook.training.precision import Precision
from flowbook.training.sharding import ON_CPUS

pytestmark = pytest.mark.faults

# One script for one process or two: every process stores the noise and times it met, the first one the weights.
SCRIPT = """
    import os, sys
    import torch
    from safetensors.torch import save_file
    from flowbook import data
    from flowbook._core import keyed
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import UNet
    from flowbook.training import TrainConfig, fit

    out, accumulate = sys.argv[1], int(sys.argv[2])
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    seen = []

    class Watched(UNet):
        def forward(self, x, t, y=None):
            if self.training:  # not the trial before the first step
                seen.append((x.detach().clone(), t.clone(), y.clone()))
            return super().forward(x, t, y)

    torch.manual_seed(0)
    model = Watched(1, size=8, width=8, multipliers=(1, 2), blocks=1, num_classes=10).double()
    images, labels = data.digits("test")
    config = TrainConfig(steps=3, batch_size=16, accumulate=accumulate, gradient_clip=1.0, log_every=2)
    result = fit(model, FlowMatching(condition_dropout=0.3), (images.double(), labels), config, out=out + "/run")
    gradients = {"gradient." + name: p.grad.contiguous() for name, p in model.named_parameters()}
    weights = {"weight." + name: p.detach().contiguous() for name, p in model.named_parameters()}
    inputs = {name: torch.cat([call[k] for call in seen]) for k, name in enumerate(("x", "t", "y"))}
    save_file({**gradients, **weights, **inputs, "losses": result.losses}, f"{out}/rank{rank}.safetensors")
"""


# The same with shared weights, in two calls to fit if there are two processes.
SHARED = """
    import functools, os, sys
    import torch
    from safetensors.torch import save_file
    from flowbook import data
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import DiT, UNet
    from flowbook.training import TrainConfig, fit

    out, accumulate = sys.argv[1], int(sys.argv[2])
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    images, labels = data.digits("test")
    images = images.double()
    kept = []

    class AdamW(torch.optim.AdamW):
        def step(self):
            super().step()
            kept.append(sum(getattr(s["exp_avg"], "_local_tensor", s["exp_avg"]).numel() for s in self.state.values()))

    torch.optim.AdamW = AdamW
    torch.compile = functools.partial(torch.compile, backend="eager")  # the graphs, without waiting for a C++ compiler

    def look(velocity):
        return velocity(images[:4], torch.tensor(0.5).double(), labels[:4])

    stored = {}
    for name, kind, compiled, sizes in (("unet", UNet, False, {"width": 8, "multipliers": (1, 2), "blocks": 1}),
                                        ("dit", DiT, True, {"width": 32, "depth": 2, "heads": 2})):
        torch.manual_seed(0)
        model = kind(1, size=8, num_classes=10, **sizes).double()
        total = sum(p.numel() for p in model.parameters())
        config = TrainConfig(steps=4, batch_size=16, accumulate=accumulate, gradient_clip=1.0, log_every=2,
                             preview_every=2, checkpoint_every=2, parallel="fsdp", compile=compiled)
        for stop in ((2, 4) if processes == 2 else (4,)):
            result = fit(model, FlowMatching(condition_dropout=0.3), (images, labels), config, out=f"{out}/{name}",
                         stop_after=stop, preview=look)
        assert result.live is model and model.training and not result.velocity.training
        stored |= {f"{name}.weight.{key}": p.detach().contiguous() for key, p in model.named_parameters()}
        stored |= {f"{name}.average.{key}": p.contiguous() for key, p in result.velocity.named_parameters()}
        stored[f"{name}.kept"] = torch.tensor([kept[-1] / total])
        assert not compiled or not torch._dynamo.utils.counters["graph_break"]
        kept.clear()
    save_file(stored, f"{out}/rank{rank}.safetensors")
"""

# A coupling sees the whole batch; a compiled network's gradients are exchanged as those of any other.
COUPLED = """
    import functools, os, sys
    import torch
    from safetensors.torch import save_file
    from flowbook import data
    from flowbook.couplings import OptimalTransport
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import MLP
    from flowbook.training import TrainConfig, fit

    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # without waiting for a C++ compiler
    out, accumulate, rank = sys.argv[1], int(sys.argv[2]), os.environ.get("RANK", "0")
    stored = {}
    for name, coupling in (("coupled", OptimalTransport()), ("compiled", None)):
        torch.manual_seed(0)
        model = MLP(2, hidden=32).double()
        x1 = data.moons().sample(256, torch.Generator().manual_seed(0)).double()
        config = TrainConfig(steps=5, batch_size=32, accumulate=accumulate, compile=coupling is None)
        fit(model, FlowMatching(), x1, config, coupling=coupling)
        stored |= {f"{name}.{key}": p.detach() for key, p in model.named_parameters()}
    save_file(stored, f"{out}/rank{rank}.safetensors")
"""

# Folders that not all processes see, as on two machines without common storage.
APART = """
    import os, sys
    import torch
    from safetensors.torch import save_file
    from flowbook import data
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import MLP
    from flowbook.training import TrainConfig, fit

    rank = os.environ.get("RANK", "0")
    config = TrainConfig(steps=6, batch_size=32)
    try:
        fit(MLP(2, hidden=16), FlowMatching(), data.moons(), config, out=f"{sys.argv[1]}/of{rank}", stop_after=4)
    except ValueError as error:
        assert "found this run at different steps, 0 and 4: expected one folder that all of them see" in str(error)
        save_file({"refused": torch.ones(1)}, f"{sys.argv[1]}/rank{rank}.safetensors")
    else:
        save_file({"refused": torch.zeros(1)}, f"{sys.argv[1]}/rank{rank}.safetensors")
"""

# Full memory in the backward pass, where some gradients are on their way to the other process already.
CROWDED = """
    import os, sys
    import torch
    from safetensors.torch import save_file
    from torch import nn
    from flowbook import data
    from flowbook.flow_matching import FlowMatching
    from flowbook.models import MLP
    from flowbook.training import TrainConfig, fit

    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if len(gradient) > 4:
                raise torch.OutOfMemoryError("no memory")
            return gradient

    class Crowded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x, t, y=None):
            return self.second(Full.apply(self.first(x)))

    try:
        fit(Crowded(), FlowMatching(), data.moons(), TrainConfig(steps=2, batch_size=32))
    except MemoryError as error:
        assert "16 samples in one forward pass are too many. accumulate=4 processes" in str(error), error
    else:
        raise AssertionError("no error")
    save_file({"said": torch.ones(1)}, f"{sys.argv[1]}/rank{os.environ['RANK']}.safetensors")
"""


def run(folder: Path, processes: int, accumulate: int, text: str = SCRIPT) -> list[dict[str, Tensor]]:
    folder.mkdir(exist_ok=True)
    port, code = free_port(), textwrap.dedent(text)
    started = [
        Forked(code, [str(folder), str(accumulate)], ranked(rank, processes, port), folder / f"errors{rank}")
        for rank in range(processes)
    ]
    wait_for(started)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(processes)]


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


def test_two_processes_couple_and_compile_as_one_does(tmp_path: Path) -> None:
    (alone,) = run(tmp_path / "one", 1, accumulate=1, text=COUPLED)
    both = run(tmp_path / "two", 2, accumulate=2, text=COUPLED)
    for name, values in alone.items():
        torch.testing.assert_close(both[0][name], values, rtol=1e-6, atol=1e-9)
        assert torch.equal(both[0][name], both[1][name])


def test_processes_that_do_not_see_one_folder_are_refused(tmp_path: Path) -> None:
    (alone,) = run(tmp_path, 1, accumulate=1, text=APART)  # leaves of0 behind
    assert not alone["refused"]
    assert all(process["refused"] for process in run(tmp_path, 2, accumulate=1, text=APART))


def test_full_memory_in_the_backward_pass_of_two_processes_says_what_fits(tmp_path: Path) -> None:
    assert all(process["said"] for process in run(tmp_path, 2, accumulate=1, text=CROWDED))


@pytest.mark.skipif(not ON_CPUS, reason="the FSDP2 of this torch runs on GPUs only")
def test_two_processes_that_share_the_weights_take_the_steps_of_one(tmp_path: Path) -> None:
    (alone,) = run(tmp_path / "one", 1, accumulate=1, text=SHARED)
    both = run(tmp_path / "two", 2, accumulate=2, text=SHARED)
    assert any(bool(values.any()) for name, values in alone.items() if name.startswith("unet.weight.output"))
    for name in (key for key in alone if not key.endswith("kept")):
        torch.testing.assert_close(both[0][name], alone[name], rtol=1e-6, atol=1e-9)
        assert torch.equal(both[0][name], both[1][name])
    for name in ("unet", "dit"):  # the optimizer's moments are shared out evenly, up to what cannot be halved
        assert float(alone[f"{name}.kept"]) == 1.0
        shares = [float(process[f"{name}.kept"]) for process in both]
        assert sum(shares) == pytest.approx(1.0) and max(shares) < 0.55
        assert len(list((tmp_path / "two" / name / "previews").iterdir())) == 2
    # One process goes on with what two have written.
    for name in ("unet", "dit"):
        shutil.rmtree(tmp_path / "two" / name / "checkpoints" / "step_00000004")
    (resumed,) = run(tmp_path / "two", 1, accumulate=2, text=SHARED)
    for name in (key for key in alone if not key.endswith("kept")):
        torch.testing.assert_close(resumed[name], alone[name], rtol=1e-6, atol=1e-9)


def test_shared_weights_are_refused_where_the_network_is_called_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=2, is_main_process=True)
    monkeypatch.setattr("flowbook.training.processes._accelerator", lambda config: accelerator)
    with pytest.raises(ValueError, match=r"parallel: 'fsdp' .* MaximumLikelihood .* use 'ddp'"):
        fit(MLP(2), MaximumLikelihood(steps=2), torch.zeros(8, 2), TrainConfig(batch_size=4, parallel="fsdp"))


@pytest.mark.parametrize(("own", "found"), [(False, 1.0), (True, 1.0), (False, 0.0)])
def test_processes_that_share_weights_come_to_one_conclusion_on_them(own: bool, found: float) -> None:
    model = MLP(2, hidden=8)
    if own:
        next(model.parameters()).detach().fill_(float("inf"))
    others = SimpleNamespace(any=lambda bad: bad or found > 0)
    if not found:
        check_parameters(model, 3, None, others)  # type: ignore[arg-type]
        return
    name = next(iter(dict(model.named_parameters()))) if own else "of another process"
    with pytest.raises(FloatingPointError, match=f"the parameters {name} are not finite after step 3"):
        check_parameters(model, 3, None, others)  # type: ignore[arg-type]


def test_full_memory_of_a_sharded_run_says_what_to_raise() -> None:
    full = FullMemory(None, FlowMatching(), Precision("fp32", torch.device("cpu")), exchanged=True)
    said = str(full.error("CUDA out of memory", torch.zeros(16, 2), accumulate=2))
    assert said == "CUDA out of memory: 8 samples in one forward pass are too many; raise accumulate above 2"


def test_where_torch_cannot_share_on_a_cpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "ON_CPUS", False)
    with pytest.raises(RuntimeError, match=r"parallel: torch .* use 'ddp' or a newer torch"):
        sharding.shard(MLP(2), torch.device("cpu"))
