"""The error of a run that is out of memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from flowbook.data import Batch, map_batch, unpack
from flowbook.training.loss import Loss
from flowbook.training.precision import Precision
from flowbook.velocity import device_of


class FullMemory:
    """Finds the micro-batch that would fit, by trying smaller and smaller ones.

    A model whose gradients are ``exchanged`` with other processes is copied, since its own gradients would be sent to
    them. A sharded model, given as None, cannot be tried.
    """

    def __init__(self, model: nn.Module | None, loss: Loss, precision: Precision, exchanged: bool):
        self.model, self.loss, self.precision, self.exchanged = model, loss, precision, exchanged

    def error(self, said: str, batch: Batch, accumulate: int) -> MemoryError:
        """The error to raise after torch has ``said`` that a micro-batch of this batch was too large."""
        rows = len(unpack(batch)[1]) // accumulate
        too_many = f"{said}: {rows} samples in one forward pass are too many"
        model = self._copied()
        if model is None:
            return MemoryError(f"{too_many}; raise accumulate above {accumulate}")
        for fewer in [n for n in range(rows - 1, 0, -1) if rows % n == 0]:
            if self._fits(model, batch, fewer):
                return MemoryError(
                    f"{too_many}. accumulate={accumulate * rows // fewer} processes the same batch {fewer} at a time, "
                    "with the same noise"
                )
        return MemoryError(f"{said}: not even one sample fits in a forward pass; choose a smaller model")

    def _copied(self) -> nn.Module | None:
        if not self.exchanged:
            return self.model
        try:
            return copy.deepcopy(self.model)
        except torch.OutOfMemoryError:
            return None

    def _fits(self, model: nn.Module, batch: Any, rows: int) -> bool:
        for parameter in model.parameters():
            parameter.grad = None
        if device_of(model).type == "cuda":
            torch.cuda.empty_cache()
        try:
            with self.precision.autocast():
                self.loss(model, map_batch(lambda x: x[:rows], batch)).backward()
        except torch.OutOfMemoryError:
            return False
        return True
