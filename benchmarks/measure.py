"""What the benchmarks share: interleaved timing, the description of the machine, and the JSON file of a result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass
class Timing:
    """Seconds of every round, wall-clock and CPU (all threads of the process)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        return {"wall_s": statistics.median(self.wall), "cpu_s": statistics.median(self.cpu), "rounds": len(self.wall)}


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Time every contender once a round, so that what else the machine does meets all of them alike.

    The order alternates between forward and backward. The first ``warmup`` rounds are thrown away.
    """
    return clocked({name: lambda run=run: clock(run) for name, run in contenders.items()}, rounds, warmup)  # type: ignore[misc]


def clock(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def clocked(
    contenders: dict[str, Callable[[], tuple[float, float]]], rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """As :func:`interleaved`, for contenders that time themselves and return wall-clock and CPU seconds."""
    timings = {name: Timing() for name in contenders}
    for round_ in range(-warmup, rounds):
        names = list(contenders) if round_ % 2 == 0 else list(contenders)[::-1]
        for name in names:
            wall, cpu = contenders[name]()
            if round_ >= 0:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def ratio(numerator: Timing, denominator: Timing) -> dict[str, float]:
    """The median over rounds of the quotient within a round, wall-clock and CPU, with the middle half of the rounds."""
    result: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        quotients = [a / b for a, b in zip(getattr(numerator, clock), getattr(denominator, clock), strict=True)]
        low, middle, high = statistics.quantiles(quotients, n=4) if len(quotients) > 1 else quotients * 3
        result |= {f"{clock}_ratio": middle, f"{clock}_ratio_quartiles": [low, high]}
    return result


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    if sys.platform == "darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
        ).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def save(name: str, result: dict[str, Any], *, peers: tuple[str, ...] = (), note: str | None = None) -> Path:
    """Write ``results/<name>.json``: what was measured, with what, on what.

    Args:
        name: of the benchmark.
        result: its numbers.
        peers: distributions whose versions belong to the result.
        note: what a reader must know about the conditions, for example that the machine was busy.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "cpu": cpu_model(),
        "cores": cores,
        "torch_threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    content = {
        "benchmark": name,
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {peer: metadata.version(peer) for peer in ("scipy", *peers)},
        "note": note,
        "result": result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def parser(doc: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options that scripts share: threads, rounds of timing if any, a note, whether to keep the result at all."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    if rounds is not None:
        options.add_argument("--rounds", type=int, default=rounds, help=f"of interleaved timing (default {rounds})")
    options.add_argument("--note", help="a remark on the conditions, stored with the result")
    options.add_argument("--dry", action="store_true", help="print the numbers, write no file")
    return options
