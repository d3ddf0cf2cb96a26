r"""How fast is a U-Net on a GPU: training eager and compiled in bf16, and sampling?

    python benchmarks/gpu.py            # one GPU, under eight minutes

Training: class-conditional 32 x 32 colour images of random numbers already on the device, batch 256, through the same
loss, fused AdamW and averaged weights that ``fit`` uses, three ways: float32 eager (TF32 multiplications), bf16
autocast eager, bf16 autocast with ``torch.compile``. Every way gets warm-up steps (compilation falls into them) and is
then timed in turns with the others over steps that end with a synchronisation. Sampling: 256 images with 25 midpoint
steps, eager and compiled, in bf16. Throughput in images per second, median over the rounds. Without a GPU the script
says so and ends with status 1.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import measure
import torch

from flowbook import models
from flowbook.flow_matching import FlowMatching
from flowbook.solvers import sample
from flowbook.training.average import AveragedWeights

BATCH = 256


def bf16(on: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cuda", dtype=torch.bfloat16) if on else contextlib.nullcontext()


def trainer(
    model: torch.nn.Module, x1: torch.Tensor, y: torch.Tensor, half: bool, compiled: bool
) -> Callable[[int], None]:
    """A function that trains a fresh copy of the model for so many steps."""
    own = copy.deepcopy(model)
    called = torch.compile(own) if compiled else own
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    average = AveragedWeights(own, half_life=50_000.0, ramp=0.05)
    loss = FlowMatching(label_dropout=0.0)
    seen = 0

    def train(steps: int) -> None:
        nonlocal seen
        for _ in range(steps):
            seen += len(x1)
            optimizer.zero_grad(set_to_none=True)
            with bf16(half):
                value = loss(called, (x1, y))
            value.backward()
            optimizer.step()
            average.update(len(x1), seen)
        torch.cuda.synchronize()

    return train


def images_per_second(contenders: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """The median throughput of functions that return how many images they made or saw, in turns."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds):
        for name in list(contenders) if round_ % 2 else list(contenders)[::-1]:
            started = time.perf_counter()
            images = contenders[name]()
            speeds[name].append(images / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    options = measure.parser(__doc__, rounds=5)
    options.add_argument("--steps", type=int, default=20, help="training steps a round")
    arguments = options.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no GPU on this machine, so there is nothing to measure")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = models.UNet(channels=3, size=32, width=128, multipliers=(1, 2, 2), attention=(16,), num_classes=10)
    model = model.to(device, memory_format=torch.channels_last)
    x1 = torch.randn(BATCH, 3, 32, 32, device=device).clamp(-1, 1).to(memory_format=torch.channels_last)
    y = torch.randint(10, (BATCH,), device=device)

    trainers = {
        "float32 eager": trainer(model, x1, y, half=False, compiled=False),
        "bf16 eager": trainer(model, x1, y, half=True, compiled=False),
        "bf16 compiled": trainer(model, x1, y, half=True, compiled=True),
    }
    warmup = {}
    for name, train in trainers.items():
        started = time.perf_counter()
        train(5)
        warmup[name] = time.perf_counter() - started

    def training(train: Callable[[int], None]) -> Callable[[], int]:
        def run() -> int:
            train(arguments.steps)
            return arguments.steps * BATCH

        return run

    speeds = images_per_second({name: training(train) for name, train in trainers.items()}, arguments.rounds)

    def sampling(velocity: Any) -> Callable[[], int]:
        def run() -> int:
            with bf16(True):
                sample(velocity, torch.randn_like(x1), y=y, method="midpoint", steps=25)
            torch.cuda.synchronize()
            return BATCH

        return run

    samplers = {"bf16 eager": sampling(model), "bf16 compiled": sampling(torch.compile(model))}
    for run in samplers.values():
        run()
    sampled = images_per_second(samplers, arguments.rounds)
    result = {
        "gpu": torch.cuda.get_device_name(device),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": BATCH,
        "training_images_per_second": speeds,
        "warmup_s": warmup,
        "sampling_images_per_second_50_evaluations": sampled,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }
    print(result)
    if not arguments.dry:
        print(measure.save("gpu", result, note=arguments.note))


if __name__ == "__main__":
    main()
