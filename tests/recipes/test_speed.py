"""What `flowbook bench` says agrees with itself and with a training."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from flowbook import cli, models, recipes
from flowbook.models import DiT, UNet
from flowbook.recipes import speed
from flowbook.training import TrainConfig
from flowbook.training.config import PrecisionName
from flowbook.training.precision import Precision, choose_device


def test_the_parts_make_the_step_and_the_rates_follow_from_it() -> None:
    for _ in range(4):  # more than once only on a busy machine: the medians are of different steps
        result = speed.bench(recipes.read("digits", ["train.batch_size=16"]), steps=10, warmup=2)
        if 0.5 < (share := sum(result.parts.values()) / result.step) < 2:
            break
    assert 0.5 < share < 2
    assert result.images_per_second == pytest.approx(16 / result.step)
    work = 3 * 16 * result.cost.flops
    assert result.utilization == pytest.approx(work / result.step / result.matrix_rate) and result.utilization < 1
    assert result.memory > 1e6 and f"{torch.__version__}; fp32" in str(result)


@pytest.mark.parametrize(("recipe", "changes"), [
    ("reflow_digits", ["data.root=no/such/pairs"]), ("digits", ["train.accumulate=4"]),
])  # fmt: skip
def test_every_kind_of_step_is_timed(recipe: str, changes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, *rest: (sizes.append(len(x)), plain(self, x, *rest))[1])  # type: ignore[func-returns-value]
    speed.bench(recipes.read(recipe, ["train.batch_size=8", *changes]), steps=1, warmup=0)
    expected = {2} if recipe == "digits" else {8}
    assert set(sizes) - {1} == expected and len(sizes) >= 6  # one sample is looked at for its cost


def test_one_of_several_processes_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="bench: it times one process"):
        speed.bench(recipes.read("digits"))


def test_operations_are_counted_as_by_hand() -> None:
    x, width = torch.zeros(1, 3, 8, 8), 16
    network = DiT(3, 8, patch=2, width=width, depth=1, heads=2)
    # 16 patches: in, q k v, two products of attention, out, two layers of the perceptron, back; then the embedding's.
    patches = 16 * (12 * width + 3 * width**2 + 2 * 16 * width + width**2 + 8 * width**2 + 12 * width)
    embedding = 256 * width + width**2 + 6 * width**2 + 2 * width**2
    assert models.cost(network, x).flops == 2 * (patches + embedding)
    assert models.cost(network, x).parameters == sum(p.numel() for p in network.parameters())


def test_cost_needs_no_memory_and_leaves_the_model_alone() -> None:
    with torch.device("meta"):
        large = UNet(3, 64, width=512, multipliers=(1, 2, 4), num_classes=10)  # some gigabytes, if they were there
    assert models.cost(large, torch.zeros(1, 3, 64, 64)).parameters > 2e8
    small = UNet(1, 8, width=8, multipliers=(1,), num_classes=3)
    models.cost(small, torch.zeros(4, 1, 8, 8))
    assert small.training and all(p.requires_grad and p.device.type == "cpu" for p in small.parameters())


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: None = None) -> torch.Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))


def test_memory_is_counted_as_by_hand() -> None:
    cost = models.cost(Small(), torch.zeros(5, 3))
    # Kept: the input of each linear map, 3 and 8 numbers, and of the nonlinearity, 8; four bytes each.
    assert cost.activations == 4 * (3 + 8 + 8) and cost.parameters == 59
    assert cost.memory(10) == 20 * 59 + 10 * 76 and cost.memory(10, "bf16") == 22 * 59 + 10 * 38
    assert cost.fits(20 * 59 + 10 * 76) == 10 and cost.fits(20 * 59 + 10 * 76 - 1) == 9 and cost.fits(100) == 0


@pytest.mark.parametrize("network", [
    UNet(3, 16, width=16, multipliers=(1, 2), attention=(8,), num_classes=10), DiT(3, 16, width=32, depth=2, heads=2),
])  # fmt: skip
def test_memory_is_what_autograd_keeps_on_a_real_device(network: torch.nn.Module) -> None:
    network = network.to(memory_format=torch.channels_last)
    own = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.zeros(1, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(x, torch.zeros(1))
    real = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)
    # torch 2.6 keeps other tensors of a group norm on a CPU than on the meta device.
    exact = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
    assert models.cost(network, x).activations == pytest.approx(real, rel=0.03 if exact else 0.12)


def test_auto_is_the_cpu_where_there_is_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device(TrainConfig(device="auto")) == torch.device("cpu")
    assert "GB of the CPU" in recipes.announce(recipes.read("cifar10_unet"))


def test_shared_weights_are_counted_once_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def gigabytes(parallel: str) -> float:
        recipe = recipes.read("cifar10_unet", [f"train.parallel={parallel}", "train.device=cpu"])
        return float(recipes.announce(recipe).splitlines()[1].split()[1])

    assert gigabytes("fsdp") == gigabytes("ddp")
    monkeypatch.setenv("WORLD_SIZE", "128")
    weights = 22 * 36.6e6 / 1e9  # 22 bytes for each under bf16
    assert gigabytes("ddp") - gigabytes("fsdp") == pytest.approx(weights * 127 / 128, rel=0.05)


@pytest.mark.parametrize(("precision", "rough"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_a_gpu_rounds_products_of_float32_as_the_precision_says_and_only_then(
    precision: PrecisionName, rough: bool
) -> None:
    def now() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = now()
    with pytest.raises(ZeroDivisionError), Precision(precision, torch.device("cuda")).products():
        assert now() == (("high", True) if rough else ("highest", False))
        raise ZeroDivisionError
    assert now() == before
    with Precision(precision, torch.device("cpu")).products():
        assert now() == before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="the torch installed has one set of switches")
def test_a_program_may_have_moved_torch_s_new_switches_for_float32() -> None:
    script = """
        import torch
        from flowbook.training.precision import Precision

        on = torch.backends
        switches = [on.cuda.matmul, on.mkldnn.matmul, on.cudnn.conv, on.cudnn.rnn]
        on.cuda.matmul.fp32_precision, on.cudnn.conv.fp32_precision = "tf32", "ieee"
        before = [switch.fp32_precision for switch in switches]
        for precision, value in (("fp32", "ieee"), ("bf16", "tf32")):
            with Precision(precision, torch.device("cuda")).products():
                assert torch.get_float32_matmul_precision() == ("highest" if value == "ieee" else "high")
                assert on.cuda.matmul.fp32_precision == value and on.cudnn.allow_tf32 == (value == "tf32")
            assert [switch.fp32_precision for switch in switches] == before
    """  # in a process of its own: what is mixed stays so
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_prints_six_lines_and_refuses_what_is_no_velocity(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "digits", "--steps", "2", "train.batch_size=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "samples a second; a step of 8 takes" in lines[2] and "% of a matrix" in lines[4]
    assert cli.main(["bench", "digits_classifier"]) == 2
    assert "expected one that learns a velocity; got Classifier" in capsys.readouterr().err
