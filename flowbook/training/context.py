"""The contexts in which a run computes its micro-batches."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from flowbook._core import keyed
from flowbook.training.config import TrainConfig
from flowbook.training.precision import Precision
from flowbook.training.step import StepContext

ONE_THREAD = threading.RLock()
"""Held while a run draws random numbers, since their generators belong to the process."""


class RunContext(StepContext):
    """The precision of a run, random numbers that belong to the sample, and one exchange of gradients for each step.

    Args:
        precision: the precision of the forward pass.
        config: for the seed and the number of micro-batches.
        share: this process's rows of the global batch.
        no_sync: a context in which gradients are not yet exchanged.
    """

    step = 0
    """The number of the step, to be set before each."""

    def __init__(self, precision: Precision, config: TrainConfig, share: slice, no_sync: Callable[[], Any]):
        self.precision, self.accumulate, self.no_sync = precision, config.accumulate, no_sync
        self.seed, self.first_row = keyed.mix(config.seed, 2), share.start
        self.rows = (share.stop - share.start) // config.accumulate

    def passes(self, part: int) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if part == self.accumulate - 1 else self.no_sync()

    @contextlib.contextmanager
    def forward(self, part: int) -> Iterator[None]:
        with keyed.keyed(self.seed, self.step, self.first_row + part * self.rows), self.precision.autocast():
            yield


def seed_process(seed: int, device: torch.device) -> None:
    """Seed what a network or a loss draws from torch's own generators."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Raise while another thread of the process trains."""
    if not ONE_THREAD.acquire(blocking=False):
        raise RuntimeError(
            "fit: another thread of this process is training, and both would draw from the same random number "
            "generators; train in separate processes"
        )
    try:
        yield
    finally:
        ONE_THREAD.release()
