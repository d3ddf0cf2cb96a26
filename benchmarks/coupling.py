r"""What does optimal transport add to a training step that is longer than the assignment itself?

    python benchmarks/coupling.py

The U-Net of the digits (8 x 8, class-conditional) at batch 256 through ``fit``, three ways in turns: no coupling;
OptimalTransport() in the background (``fit(..., coupling=...)``: the next batch is coupled while this one trains); the
same coupling in the foreground (``FlowMatching(coupling=...)``: the step waits for it). Equal on all sides: model,
weights, data, batches, optimizer, threads. Background coupling needs a second core to be free: with one core it is the
foreground. Also: whether SciPy's solver releases Python's global lock (the longest pause that it causes to a loop in
another thread, against its own duration), and a coupling alone, in milliseconds.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

import measure
import torch

from flowbook import data, models
from flowbook._core.assignment import assign
from flowbook.couplings import OptimalTransport
from flowbook.flow_matching import FlowMatching
from flowbook.training import TrainConfig, fit

BATCH = 256


def longest_pause() -> dict[str, float]:
    """Seconds of a large assignment, and the longest time that the main thread stood still meanwhile."""
    cost = torch.rand(2000, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    assign(cost)
    alone = time.perf_counter() - started
    worker = threading.Thread(target=assign, args=(cost,))
    worker.start()
    longest, last = 0.0, time.perf_counter()
    while worker.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return {"assignment_s": alone, "longest_pause_s": longest}


def main() -> None:
    options = measure.parser(__doc__, rounds=9)
    options.add_argument("--steps", type=int, default=20)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = models.UNet(channels=1, size=8, width=32, multipliers=(1, 2), num_classes=10)
    digits = data.digits()
    config = TrainConfig(steps=arguments.steps, batch_size=BATCH)
    transport = OptimalTransport()

    def train(loss: FlowMatching, **options: Any) -> None:
        fit(copy.deepcopy(model), loss, digits, config, progress=False, **options)

    timings = measure.interleaved({
        "none": lambda: train(FlowMatching()),
        "background": lambda: train(FlowMatching(), coupling=transport),
        "foreground": lambda: train(FlowMatching(coupling=transport)),
    }, arguments.rounds)  # fmt: skip
    x1 = digits[0][:BATCH]
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(0))
    alone = measure.interleaved({"coupling": lambda: transport(x0, x1)}, 21)["coupling"]
    result = {
        "ms_per_step": {name: 1e3 * timing.summary()["wall_s"] / arguments.steps for name, timing in timings.items()},
        "background_over_none": measure.ratio(timings["background"], timings["none"]),
        "foreground_over_none": measure.ratio(timings["foreground"], timings["none"]),
        "coupling_alone_ms": 1e3 * alone.summary()["wall_s"],
        "global_lock": longest_pause(),
    }
    print(result)
    if not arguments.dry:
        print(measure.save("coupling", result, note=arguments.note))


if __name__ == "__main__":
    main()
