r"""Is one version of the package as fast as another? Two checkouts, measured turn and turn about.

    git worktree add /tmp/before COMMIT
    python benchmarks/versions.py /tmp/before .

Each checkout has a process of its own, with one thread; a round times every task once in both, in an order that
alternates. Two processes of one version may differ by several percent for as long as they live, so new ones are started
several times (``--processes``), and the rounds of all are pooled. What is timed exists in both versions under the same
names: sampling, divergences, log-densities and steps of training. The result holds the ratio after / before of each
task: its median over the rounds, and the middle half.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure


def tasks() -> dict[str, Callable[[], Any]]:
    """What a worker times; a few tenths of a second each."""
    import torch

    from flowbook import data, models
    from flowbook.cnf import log_prob
    from flowbook.divergence import divergence, rademacher
    from flowbook.flow_matching import FlowMatching
    from flowbook.solvers import sample
    from flowbook.training import TrainConfig, fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    plane, wide = models.MLP(2).eval(), models.MLP(64, hidden=256).eval()
    unet = models.UNet(1, size=8, width=16, multipliers=(1, 2), blocks=1, num_classes=10).eval()
    x, x64, images = torch.randn(512, 2), torch.randn(128, 64), torch.randn(32, 1, 8, 8)
    y = torch.arange(32) % 10
    t = torch.tensor(0.5)
    moons = data.moons()
    digits = data.digits()

    def trained(model: Any, given: Any, steps: int) -> Any:
        return fit(model, FlowMatching(), given, TrainConfig(steps=steps, batch_size=256), progress=False)

    small = models.UNet(1, size=8, width=16, multipliers=(1, 2), blocks=1, num_classes=10)
    return {
        "sampling, MLP, rk4": lambda: sample(plane, x, method="rk4", steps=100),
        "sampling, MLP, euler": lambda: sample(plane, x[:64], method="euler", steps=400),
        "sampling, MLP, dopri5": lambda: [sample(plane, x, rtol=1e-6, atol=1e-6) for _ in range(20)],
        "sampling, U-Net, midpoint": lambda: sample(unet, images, y=y, method="midpoint", steps=8),
        "divergence, D=2, exact": lambda: [divergence(plane, x, t) for _ in range(50)],
        "divergence, D=64, exact": lambda: [divergence(wide, x64, t) for _ in range(5)],
        "divergence, D=64, one probe": lambda: [
            divergence(wide, x64, t, method="hutchinson", noise=rademacher(1, like=x64)) for _ in range(50)
        ],
        "log_prob, D=2": lambda: log_prob(plane, x, steps=20),
        "log_prob, D=2, nodes": lambda: log_prob(plane, x, steps=20, nodes=16),
        "log_prob, D=64": lambda: log_prob(wide, x64, steps=2),
        "training, MLP": lambda: trained(plane.train(), moons, 150),
        "training, U-Net": lambda: trained(small, digits, 3),
    }


def work() -> None:
    """In a worker: read the name of a task a line, write its seconds."""
    known = tasks()
    print(json.dumps(list(known)), flush=True)
    for line in sys.stdin:
        run = known[line.strip()]
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


class Worker:
    """A process that imports the package of one checkout."""

    def __init__(self, checkout: Path):
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--work"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
        )
        self.names: list[str] = json.loads(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def clock(self, name: str) -> tuple[float, float]:
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        wall, cpu = json.loads(self._read())
        return wall, cpu

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    options = measure.parser(__doc__, rounds=5)
    options.add_argument("--processes", type=int, default=7, help="of each version, one after the other (default 7)")
    options.add_argument("before", type=Path)
    options.add_argument("after", type=Path)
    arguments = options.parse_args()
    measure.torch.set_num_threads(1)  # as in the workers
    checkouts = {name: getattr(arguments, name) for name in ("before", "after")}
    timings: dict[str, dict[str, measure.Timing]] = {}
    for _ in range(arguments.processes):
        workers = {name: Worker(checkout) for name, checkout in checkouts.items()}
        for task in workers["after"].names:
            contenders: Any = {name: functools.partial(worker.clock, task) for name, worker in workers.items()}
            found = measure.clocked(contenders, arguments.rounds)
            pooled = timings.setdefault(task, {name: measure.Timing() for name in checkouts})
            for name, timing in found.items():
                pooled[name].wall += timing.wall
                pooled[name].cpu += timing.cpu
        for worker in workers.values():
            worker.close()
    result: dict[str, Any] = {"commits": {name: commit(where) for name, where in checkouts.items()}}
    result["after_over_before"] = {}
    for task, pooled in timings.items():
        ratio = measure.ratio(pooled["after"], pooled["before"])
        result["after_over_before"][task] = ratio | {"ms": 1e3 * pooled["after"].summary()["wall_s"]}
        print(f"{task:30} {ratio['wall_ratio']:.3f}", flush=True)
    if not arguments.dry:
        print(measure.save("versions", result, note=arguments.note))


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        work()
    else:
        main()
