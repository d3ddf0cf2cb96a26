"""Where a run takes place, and how exactly it multiplies there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from flowbook.training.config import TrainConfig


def choose_device(config: TrainConfig) -> torch.device:
    """Where a run of one process takes place: "auto" is the CPU where torch was built for a GPU that is not there."""
    found = torch.accelerator.is_available() and config.device == "auto"
    return torch.accelerator.current_accelerator() if found else torch.device("cpu")  # type: ignore[return-value]


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Of a forward pass."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """How a GPU multiplies float32 during a run: exactly under "fp32", else in TF32. Afterwards as before."""
    if device.type != "cuda":
        yield
        return
    # Torch has two sets of switches, from 2.9 on. The old one moves the new one along; where a program has moved the
    # new one, the old one cannot be read any more, and is where it was at the start.
    matrices, convolutions = "highest", True
    with contextlib.suppress(RuntimeError):
        matrices = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    on: Any = torch.backends
    switches = [on.cuda.matmul, on.mkldnn.matmul, on.cudnn.conv, on.cudnn.rnn] if hasattr(on.cudnn, "conv") else []
    before = [switch.fp32_precision for switch in switches]
    rough = precision != "fp32"
    torch.set_float32_matmul_precision("high" if rough else "highest")
    torch.backends.cudnn.allow_tf32 = rough
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
