r"""What does one step of ``flowbook.training.fit`` cost beyond a bare loop written by hand?

    python benchmarks/step_overhead.py

Two models: the MLP on points in the plane, and the U-Net of the digits (8 x 8), both at batch 256. Equal on both sides:
model, initial weights, data and how it is drawn, fused AdamW, cosine decay, averaged weights after every step. The bare
loop is plain torch: torch.randn and torch.rand, the interpolation and the squared error in four lines, no checks of
arguments, no log, nothing keyed to sample and step, no way to resume. Only the steps are timed, not the building of
models and optimizers.

``minimal`` leaves out cosine decay and averaged weights too, which a first script would.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor, nn

from flowbook import data, models
from flowbook.flow_matching import FlowMatching
from flowbook.training import TrainConfig, fit

BATCH = 256


class Clocks:
    """Wall-clock and CPU seconds since the first call of ``start``."""

    def __init__(self) -> None:
        self.started: tuple[float, float] | None = None

    def start(self) -> None:
        if self.started is None:
            self.started = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        assert self.started is not None
        return time.perf_counter() - self.started[0], time.process_time() - self.started[1]


def fitted(model: nn.Module, given: Any, config: TrainConfig) -> tuple[float, float]:
    """Train with ``fit``; returns the wall-clock and CPU seconds from the first loss to the end of the last step."""
    clocks, loss = Clocks(), FlowMatching()

    def timed(velocity: Any, batch: Any) -> Tensor:
        clocks.start()
        return loss(velocity, batch)

    fit(model, timed, given, config, progress=False)
    return clocks.read()


def bare(
    model: nn.Module, draw: Callable[[], tuple[Tensor, Tensor | None]], steps: int, minimal: bool
) -> tuple[float, float]:
    """Train by hand; returns the wall-clock and CPU seconds of the steps, the first batch's draw left out as above."""
    clocks = Clocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    mean = copy.deepcopy(model)
    pairs = list(mean.parameters()), list(model.parameters())
    for step in range(steps):
        x1, y = draw()
        clocks.start()
        x0 = torch.randn_like(x1)
        t = torch.rand(len(x1))
        at = t.reshape(-1, *[1] * (x1.dim() - 1))
        v = model((1 - at) * x0 + at * x1, t) if y is None else model((1 - at) * x0 + at * x1, t, y)
        loss = (v - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if not minimal:
            for group in optimizer.param_groups:
                group["lr"] = 0.5e-3 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        if not minimal:
            with torch.no_grad():
                torch._foreach_lerp_(*pairs, 0.02)
    return clocks.read()


def task(name: str) -> tuple[nn.Module, Any, Callable[[], tuple[Tensor, Tensor | None]]]:
    """A model, the data as ``fit`` takes it, and the draw of a batch for the bare loop."""
    torch.manual_seed(0)
    if name == "mlp":
        moons = data.moons()
        return models.MLP(2), moons, lambda: (moons.sample(BATCH), None)
    unet = models.UNet(channels=1, size=8, width=32, multipliers=(1, 2), num_classes=10)
    images, labels = data.digits()

    def draw() -> tuple[Tensor, Tensor]:
        index = torch.randint(len(images), (BATCH,))
        return images[index], labels[index]

    return unet.to(memory_format=torch.channels_last), (images, labels), draw


def main() -> None:
    options = measure.parser(__doc__, rounds=11)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {}
    for name, steps in (("mlp", 400), ("unet", 20)):
        model, given, draw = task(name)
        config = TrainConfig(steps=steps, batch_size=BATCH)
        run = {
            "fit": lambda: fitted(copy.deepcopy(model), given, config),  # noqa: B023
            "bare": lambda: bare(copy.deepcopy(model), draw, steps, minimal=False),  # noqa: B023
            "minimal": lambda: bare(copy.deepcopy(model), draw, steps, minimal=True),  # noqa: B023
        }
        timings = measure.clocked(run, arguments.rounds)
        result[name] = {
            "steps_a_round": steps,
            "ms_per_step": {key: 1e3 * timing.summary()["wall_s"] / steps for key, timing in timings.items()},
            "cpu_ms_per_step": {key: 1e3 * timing.summary()["cpu_s"] / steps for key, timing in timings.items()},
            "fit_over_bare": measure.ratio(timings["fit"], timings["bare"]),
            "fit_over_minimal": measure.ratio(timings["fit"], timings["minimal"]),
        }
        print(name, result[name], flush=True)
    if not arguments.dry:
        print(measure.save("step_overhead", result, note=arguments.note))


if __name__ == "__main__":
    main()
