"""What several test files share: the paths, the methods and the fields that every law is tried on."""

from __future__ import annotations

import math
import os
import socket
import subprocess
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowbook import solvers
from flowbook.analytic import GaussianMixture
from flowbook.paths import CosinePath, LinearPath, Path, VPPath

ALL_PATHS: list[Path] = [LinearPath(), LinearPath(sigma_min=0.1), CosinePath(), VPPath(), VPPath(0.5, 8.0)]
FIXED = tuple(solvers.FIXED)
ADAPTIVE = solvers.ADAPTIVE
METHODS = FIXED + ADAPTIVE
NAN, INF = math.nan, math.inf
needs_mnist = pytest.mark.skipif(
    not os.environ.get("FLOWBOOK_DATA"), reason="needs MNIST, and FLOWBOOK_DATA names no folder that has it"
)

MIXTURE = GaussianMixture([[1.0, -0.5], [-2.0, 0.7], [0.3, 1.8]], [0.4, 0.8, 0.25], [0.5, 0.3, 0.2])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same ones for a seed."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def options(method: str, steps: int = 8, tolerance: float = 1e-6) -> dict[str, Any]:
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
        assert isinstance(t, Tensor) and t.shape == () and t.dtype == x.dtype
        self.times.append(float(t))
        self.labels.append(y)
        return self.field(x, t)


def randomised(model: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Replace every weight, also those that start at zero, so that nothing cancels by accident."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def wait_for(processes: list[subprocess.Popen[str]]) -> None:
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
