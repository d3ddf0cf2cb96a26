"""Where a run takes place, and how exactly it multiplies there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from flowbook.training.config import PrecisionName, TrainConfig


def choose_device(config: TrainConfig) -> torch.device:
    """Where a run of one process takes place: "auto" is the CPU where torch was built for a GPU that is not there.

    Raises:
        ValueError: for an accelerator that is not there.
    """
    if config.device == "auto":
        found = torch.accelerator.is_available()
        return torch.accelerator.current_accelerator() if found else torch.device("cpu")  # type: ignore[return-value]
    device = torch.device(config.device)
    if device.type == "cpu":
        return device
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if kind is not None else 0
    if kind is None or kind.type != device.type or (device.index or 0) >= count:
        there = "no accelerator" if kind is None else f"{count} of type {kind.type}"
        raise ValueError(f"device: {config.device} is not there; this machine has {there}")
    return device


class Precision:
    """How exactly a run multiplies on its device.

    Args:
        name: "fp32", "tf32", "bf16"; or "auto", which is bf16 on a CUDA GPU and fp32 elsewhere.
        device: where.

    Example:
        >>> str(Precision("auto", torch.device("cpu")))
        'fp32'
    """

    def __init__(self, name: PrecisionName, device: torch.device):
        self.device = device
        self.name: PrecisionName = ("bf16" if device.type == "cuda" else "fp32") if name == "auto" else name

    def __str__(self) -> str:
        return self.name

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Of a forward pass."""
        if self.name != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def products(self) -> contextlib.AbstractContextManager[None]:
        """Of a whole run: how a GPU multiplies float32, exactly under "fp32", else in TF32."""
        return _float32_products(self.name, self.device)


@contextlib.contextmanager
def _float32_products(precision: str, device: torch.device) -> Iterator[None]:
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
