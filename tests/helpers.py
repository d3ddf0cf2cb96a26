"""What several test files share: the paths, the methods and the fields that every law is tried on."""

from __future__ import annotations

import math
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowbook import solvers
from flowbook.analytic import GaussianMixture
from flowbook.data import data_root
from flowbook.paths import CosinePath, LinearPath, Path, VPPath
from flowbook.solvers import Method

ALL_PATHS: list[Path] = [LinearPath(), LinearPath(sigma_min=0.1), CosinePath(), VPPath(), VPPath(0.5, 8.0)]
FIXED: tuple[Method, ...] = tuple(method for method in solvers.METHODS if method in solvers.FIXED)
ADAPTIVE: tuple[Method, ...] = solvers.ADAPTIVE
METHODS: tuple[Method, ...] = FIXED + ADAPTIVE
NAN, INF = math.nan, math.inf
needs_mnist = pytest.mark.skipif(
    not (data_root() / "MNIST").is_dir(), reason=f"needs MNIST, which is not in {data_root()}"
)

MIXTURE = GaussianMixture([[1.0, -0.5], [-2.0, 0.7], [0.3, 1.8]], [0.4, 0.8, 0.25], [0.5, 0.3, 0.2])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same ones for a seed."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def options(method: Method, steps: int = 8, tolerance: float = 1e-6) -> dict[str, Any]:
    """What a method needs to be told."""
    return {"method": method, "steps": steps} if method in FIXED else {
        "method": method, "rtol": tolerance, "atol": tolerance,
    }  # fmt: skip


class Recorder:
    """A velocity that writes down how it was called."""

    def __init__(self, field: Any):
        self.field = field
        self.times: list[float] = []
        self.labels: list[Tensor | None] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == () and t.dtype == torch.promote_types(x.dtype, torch.float32)
        self.times.append(float(t))
        self.labels.append(y)
        return self.field(x, t)


def randomized(model: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Replace every weight, also those that start at zero, so that nothing cancels by accident."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


# Processes that start with torch imported: it is imported once, by the server that they are forked from.
PRELOADED = [
    "flowbook.training", "flowbook.recipes", "flowbook.cli", "accelerate", "torch._dynamo",
    "torch.utils.tensorboard", "torch.distributed.fsdp",
]  # fmt: skip


class Forked:
    """A real process, with the interface of subprocess.Popen that the tests need."""

    def __init__(self, code: str, arguments: list[str], environment: dict[str, str], errors: pathlib.Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.errors = errors
        self.process = context.Process(target=_execute, args=(code, arguments, environment, str(errors)))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"a process has not ended within {timeout:g} s: {self.errors.read_text()}")
        return self.process.exitcode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return "", self.errors.read_text()


def _execute(code: str, arguments: list[str], environment: dict[str, str], errors: str) -> None:
    """In the new process: the code as a script, with stderr in a file."""
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts start background jobs with Ctrl-C ignored
    sys.argv = ["script", *arguments]
    torch.set_num_threads(1)
    try:
        exec(compile(code, "script", "exec"), {"__name__": "__main__"})
    except SystemExit as stopped:
        sys.stderr.flush()
        os._exit(stopped.code if isinstance(stopped.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def ranked(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    if processes == 1:
        return {}
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def wait_for(processes: Sequence[subprocess.Popen[str] | Forked]) -> None:
    """Until all have ended well; none outlives a failure."""
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
