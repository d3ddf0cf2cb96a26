"""The device of a run, and the precision of its matrix products there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from flowbook.training.config import PrecisionName, TrainConfig


def choose_device(config: TrainConfig) -> torch.device:
    """The device of a run with one process: "auto" is the CPU where torch was built for a GPU but none is available.

    Raises:
        ValueError: for an accelerator that is not available.
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
        raise ValueError(f"device: {config.device} is not available; this machine has {there}")
    return device


class Precision:
    """The precision of a run's products on its device.

    Args:
        name: "fp32", "tf32", "bf16"; or "auto", which is bf16 on a CUDA GPU and fp32 elsewhere.
        device: the device of the run.

    Example:
        >>> str(Precision("auto", torch.device("cpu")))
        'fp32'
    """

    def __init__(self, name: PrecisionName, device: torch.device):
        self.device = device
        self.name: PrecisionName = ("bf16" if device.type == "cuda" else "fp32") if name == "auto" else name

    def __str__(self) -> str:
        return self.name

    @property
    def mixed(self) -> bool:
        """Whether a forward pass computes in two precisions."""
        return self.name == "bf16"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if not self.mixed:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def products(self) -> contextlib.AbstractContextManager[None]:
        """The context of a whole run: a GPU multiplies float32 in full under "fp32", and otherwise in TF32."""
        return _float32_products(self.name, self.device)


@contextlib.contextmanager
def _float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """How a GPU multiplies float32 during a run: in full under "fp32", else in TF32; restored afterwards."""
    if device.type != "cuda":
        yield
        return
    # From 2.9 on torch has two sets of switches. Setting the old ones also sets the new ones; where a program has set
    # the new ones, the old ones can no longer be read, and still have their initial values.
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
