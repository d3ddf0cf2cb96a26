"""The processes of a run and the device of this one, through accelerate."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowbook.training import checkpoint as checkpoints
from flowbook.training.config import TrainConfig
from flowbook.training.precision import choose_device


class Processes:
    """All processes that train together: one, unless torchrun or ``accelerate launch`` has started more."""

    def __init__(self, config: TrainConfig):
        self._accelerator = _accelerator(config)
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.main: bool = self._accelerator.is_main_process
        self.device: torch.device = choose_device(config) if self.count == 1 else self._accelerator.device

    def share(self, config: TrainConfig) -> slice:
        """This process's rows of each batch."""
        parts = self.count * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size: expected a multiple of {parts}, for {self.count} processes with {config.accumulate} "
                f"micro-batches each; got {config.batch_size}"
            )
        rows = config.batch_size // self.count
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def wrap(self, model: nn.Module) -> Any:
        """The module whose gradients are averaged over the processes."""
        return model if self.count == 1 else self._accelerator.prepare_model(model)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes; every one of them has to call it."""
        return values if self.count == 1 else self._accelerator.reduce(values, "mean")

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes; every one of them has to call it."""
        if self.count == 1:
            return flag
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum") > 0)

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def agree_on_step(self, step: int, folder: Path | None) -> None:
        """Raise unless all processes have found the same checkpoint: they would train different networks."""
        if self.count == 1:
            return
        steps = self._accelerator.gather(torch.tensor([step], device=self.device)).tolist()
        if min(steps) != max(steps):
            raise ValueError(
                f"out: the processes found this run at different steps, {min(steps)} and {max(steps)}: expected one "
                f"folder that all of them see; got {folder}"
            )

    @contextlib.contextmanager
    def together(self, folder: Path | None) -> Iterator[None]:
        """Explain the error when the connection to another process breaks."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or "peer" not in str(error):
                raise
            kept = [] if folder is None else checkpoints.available(folder / "checkpoints")
            raise RuntimeError(
                f"another process of this run is gone ({str(error).splitlines()[0]}); "
                + (f"the last checkpoint is {kept[-1]}" if kept else "no checkpoint was written before")
            ) from error


def _accelerator(config: TrainConfig) -> Any:
    """accelerate's view of devices and processes. Precision and compilation stay with the loop."""
    with warnings.catch_warnings():  # accelerate imports tqdm's widget, which a notebook without ipywidgets warns of
        warnings.filterwarnings("ignore", message="IProgress not found")
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

    # One interpreter may train twice, on the CPU and on a GPU; accelerate keeps its first device unless it is reset.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    one_copy = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # of the gradients, instead of two
    return Accelerator(cpu=config.device == "cpu", mixed_precision="no", kwargs_handlers=[one_copy])
