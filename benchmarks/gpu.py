r"""How fast is the standard U-Net on a GPU, beside torchcfm's own?

    python benchmarks/gpu.py                 # one GPU
    python benchmarks/gpu.py --rehearse      # a small network on whatever is there, to try the script

Training, class-conditional 32 x 32 color images of random numbers already on the device, batch 128:

- flowbook: ``flowbook bench`` of the recipe cifar10_unet (36.6 million weights), that is loss, gradient, clipping,
  fused AdamW and averaged weights; in TF32 and in bf16, eager and compiled, with the share that it reaches of the rate
  of a large matrix product, measured in the same run;
- torchcfm, where it is installed: its U-Net with the settings of its CIFAR-10 script (128 channels, multipliers 1, 2,
  2, 2, two blocks, attention at 16 x 16, 35.7 million weights), Adam at 2e-4, clipping, averaged weights after every
  step; eager in float32 as in that script (whose convolutions PyTorch computes in TF32, so compare it with "tf32
  eager"), and compiled in bf16 as its user could.

Sampling: 256 images with 25 midpoint steps in bf16: the network as it is, and ``flowbook.models.Compiled``, whose graph
is recorded once and replayed; also of 192 images, which it pads.

Images a second, of sampling the median over rounds. Of training, the GPU is waited for at the beginning and the end of
a run of steps, as it is in a real one, and not after each.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import nn

from flowbook import models, recipes
from flowbook.recipes import speed
from flowbook.solvers import sample

SMALL = [
    "model.width=32", "model.blocks=1", "model.multipliers=[1, 2]", "model.attention=[]", "train.batch_size=4",
]  # fmt: skip
WAYS = {
    "tf32 eager": ["train.precision=tf32", "train.compile=false"],
    "bf16 eager": ["train.precision=bf16", "train.compile=false"],
    "bf16 compiled": ["train.precision=bf16", "train.compile=true"],
}


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def flowbook_training(steps: int, changes: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, settings in WAYS.items():
        result = speed.bench(recipes.read("cifar10_unet", [*settings, *changes]), steps=steps, warmup=5)
        print(f"flowbook, {name}\n{result}", flush=True)
        found[f"flowbook, {name}"] = {
            "images_per_second": result.images_per_second, "utilization": result.utilization,
            "matrix_rate": result.matrix_rate, "parts_s": result.parts, "memory_gib": result.memory / 2**30,
            "parameters": result.cost.parameters, "batch": result.batch_size,
        }  # fmt: skip
    return found


class TorchCFM:
    """A step of torchcfm's CIFAR-10 script, on random numbers."""

    def __init__(self, device: torch.device, half: bool, compiled: bool, small: bool):
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
        from torchcfm.models.unet.unet import UNetModelWrapper

        torch.manual_seed(0)
        self.network = UNetModelWrapper(
            dim=(3, 32, 32), num_res_blocks=2, num_channels=32 if small else 128, channel_mult=[1, 2, 2, 2],
            num_heads=4, num_head_channels=32 if small else 64, attention_resolutions="16", dropout=0.1,
        ).to(device)  # fmt: skip
        self.called: Any = torch.compile(self.network) if compiled else self.network
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=2e-4)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
        self.matcher, self.half = ConditionalFlowMatcher(sigma=0.0), half
        self.x1 = torch.randn(4 if small else 128, 3, 32, 32, device=device)

    def step(self) -> None:
        self.optimizer.zero_grad()
        t, xt, ut = self.matcher.sample_location_and_conditional_flow(torch.randn_like(self.x1), self.x1)
        with torch.autocast(self.x1.device.type, dtype=torch.bfloat16, enabled=self.half):
            loss = (self.called(t, xt) - ut).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)


def torchcfm_training(steps: int, device: torch.device, small: bool) -> dict[str, dict[str, Any]]:
    found = {}
    for name, half, compiled in (("fp32 eager", False, False), ("bf16 compiled", True, True)):
        peer = TorchCFM(device, half, compiled, small)
        for _ in range(5):
            peer.step()
        started = now(device)
        for _ in range(steps):
            peer.step()
        seconds = (now(device) - started) / steps
        found[f"torchcfm, {name}"] = {
            "images_per_second": len(peer.x1) / seconds, "batch": len(peer.x1),
            "weights": sum(p.numel() for p in peer.network.parameters()),
        }  # fmt: skip
        print(f"torchcfm, {name}: {found[f'torchcfm, {name}']}", flush=True)
    return found


def sampling(rounds: int, device: torch.device, changes: list[str], batch: int, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    network = recipes.build_model(recipes.read("cifar10_unet", changes)).to(device, memory_format=torch.channels_last)
    half = models.Autocast(network.eval())
    graphs = models.Compiled(half, batch)

    def drawn(velocity: nn.Module, n: int) -> Callable[[], int]:
        x0, y = torch.randn(n, 3, 32, 32, device=device), torch.arange(n, device=device) % 10

        def run() -> int:
            sample(velocity, x0, y=y, method="midpoint", steps=steps)
            return n

        return run

    fewer = batch - batch // 4
    ways = {
        f"eager, {batch} images": drawn(half, batch), f"recorded graph, {batch} images": drawn(graphs, batch),
        f"eager, {fewer} images": drawn(half, fewer), f"recorded graph, {fewer} images": drawn(graphs, fewer),
    }  # fmt: skip
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-1, rounds):
        for name in list(ways) if round_ % 2 else list(ways)[::-1]:
            started = now(device)
            images = ways[name]()
            if round_ >= 0:
                speeds[name].append(images / (now(device) - started))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    options = measure.parser(__doc__, rounds=5)
    options.add_argument("--steps", type=int, default=30, help="training steps that are timed")
    options.add_argument("--rehearse", action="store_true", help="small, anywhere, and nothing is stored")
    arguments = options.parse_args()
    if not torch.cuda.is_available() and not arguments.rehearse:
        sys.exit("gpu.py: torch sees no GPU on this machine, so there is nothing to measure")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    changes = SMALL if arguments.rehearse else []
    steps, rounds = (2, 1) if arguments.rehearse else (arguments.steps, arguments.rounds)
    small, peers = arguments.rehearse, ("torchcfm",) if importlib.util.find_spec("torchcfm") else ()
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}

    def keep(name: str, found: dict[str, Any]) -> None:
        """Each part when it is there: what comes later may fail."""
        result[name] = result.get(name, {}) | found
        if not (arguments.dry or small):
            print(measure.save("gpu", result, peers=peers, note=arguments.note), flush=True)

    keep("training", flowbook_training(steps, changes))
    keep("sampling_images_per_second", sampling(rounds, device, changes, 8 if small else 256, 2 if small else 25))
    if peers:
        keep("training", torchcfm_training(steps, device, small))
    print(result)


if __name__ == "__main__":
    main()
