r"""Does the model of a step on the page "From laptop to cluster" say what a step takes?

    python benchmarks/scaling.py

The model: a step takes c + 3 F B / (N R), and with several processes the time to sum the gradients; its memory is 20
bytes for each weight and what B / N samples leave for the backward pass. F and the activations are counted
(``flowbook.models.cost``). c and R are fitted to one process at three batch sizes, the sum of the gradients is timed on
its own, an all-reduce of as many numbers over gloo. Then two processes are predicted and measured, each with one thread
and a core of its own, and the memory of all.

The package's U-Net at width 32 on random images of 8 x 8 and 16 x 16, through ``fit``. Time: the median step. Memory:
the most that the process held, less what it held before the first step. Every run is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import measure
import numpy as np
import torch
from torch import Tensor

from flowbook import models
from flowbook.flow_matching import FlowMatching
from flowbook.training import TrainConfig, fit

SIZES, BATCHES, STEPS = (8, 16), (64, 128, 256), 12


def network(size: int) -> models.UNet:
    torch.manual_seed(0)
    return models.UNet(channels=1, size=size, width=32, multipliers=(1, 2))


def held() -> int:
    """The most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(size: int, batch: int) -> dict[str, float]:
    """One process's part of a run: seconds of a step, and bytes."""
    torch.set_num_threads(1)
    model, loss, starts = network(size), FlowMatching(), []
    before = [held()]

    def timed(velocity: Any, given: Any) -> Tensor:
        starts.append(time.perf_counter())
        if len(starts) == 1:
            before[0] = held()
        return loss(velocity, given)

    images = torch.randn(1000, 1, size, size).clamp(-1, 1)
    fit(model, timed, images, TrainConfig(steps=STEPS, batch_size=batch, log_every=STEPS), progress=False)
    steps = [later - earlier for earlier, later in itertools.pairwise(starts[2:])]
    result = {"seconds": statistics.median(steps), "bytes": held() - before[0], "gradients_s": 0.0}
    if torch.distributed.is_initialized():
        numbers, times = torch.zeros(sum(p.numel() for p in model.parameters())), []
        for _ in range(12):
            torch.distributed.barrier()
            started = time.perf_counter()
            torch.distributed.all_reduce(numbers)
            times.append(time.perf_counter() - started)
        result["gradients_s"] = statistics.median(times[2:])
    return result


def run(size: int, batch: int, processes: int) -> dict[str, float]:
    """What the first of so many processes says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        if processes > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
        command = [sys.executable, __file__, "--worker", str(size), str(batch)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"scaling.py: a run of {processes} processes at batch {batch} failed")
    return json.loads(said[0].splitlines()[-1])


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        print(json.dumps(work(*arguments.worker)))
        return
    rows = []
    for size in SIZES:
        cost = models.cost(network(size), torch.zeros(1, 1, size, size))
        found = {(batch, n): run(size, batch, n) for batch in BATCHES for n in (1, 2)}
        slope, constant = np.polyfit(
            [3 * cost.flops * batch for batch in BATCHES], [found[batch, 1]["seconds"] for batch in BATCHES], 1
        )
        for (batch, n), measured in found.items():
            row = {
                "size": size, "batch": batch, "processes": n, "measured_s": measured["seconds"],
                "predicted_s": constant + slope * 3 * cost.flops * batch / n + measured["gradients_s"],
                "gradients_s": measured["gradients_s"], "rate_flops": 1 / slope,
                "measured_bytes": measured["bytes"],
                # The average and the weights are there before the first step.
                "predicted_bytes": cost.memory(batch // n) - 8 * cost.parameters,
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    if not arguments.dry:
        print(measure.save("scaling", {"rows": rows}, note=arguments.note))


if __name__ == "__main__":
    main()
