"""What a run says when it cannot go on: full memory, a process that is gone, numbers that are not finite."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowbook._model import device_of
from flowbook.batch import Batch
from flowbook.training import checkpoint as checkpoints
from flowbook.training.batches import map_batch
from flowbook.training.precision import autocast
from flowbook.training.sharding import local


def what_fits(
    loss: Any, model: nn.Module | None, batch: Batch, rows: int, parts: int, precision: str, said: str,
    exchanged: bool = False,
) -> str:  # fmt: skip
    """What to say when memory is full: tries smaller and smaller parts of the batch.

    A model whose gradients are ``exchanged`` with other processes is copied: its own would still be sent to them.
    """
    if exchanged:
        try:
            model = copy.deepcopy(model)
        except torch.OutOfMemoryError:
            model = None
    if model is None:
        return f"{said}: {rows} samples in one forward pass are too many; raise accumulate above {parts}"
    device = device_of(model)
    for fewer in [n for n in range(rows - 1, 0, -1) if rows % n == 0]:
        for parameter in model.parameters():
            parameter.grad = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            with autocast(precision, device):
                loss(model, map_batch(lambda x: x[:fewer], batch)).backward()  # noqa: B023
        except torch.OutOfMemoryError:
            continue
        return (
            f"{said}: {rows} samples in one forward pass are too many. accumulate={parts * rows // fewer} works "
            f"through the same batch {fewer} at a time, with the same noise"
        )
    return f"{said}: not even one sample in a forward pass fits; choose a smaller model"


@contextlib.contextmanager
def together(processes: int, folder: Path | None) -> Iterator[None]:
    """Say what it means when the connection to another process breaks."""
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or "peer" not in str(error):
            raise
        kept = [] if folder is None else checkpoints.available(folder / "checkpoints")
        raise RuntimeError(
            f"another process of this run is gone ({str(error).splitlines()[0]}); "
            + (f"the last checkpoint is {kept[-1]}" if kept else "no checkpoint was written before")
        ) from error


def same_step(step: int, folder: Path | None, accelerator: Any) -> None:
    """All processes of a run must have found the same checkpoint, or they would train different networks."""
    if accelerator.num_processes == 1:
        return
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if min(steps) != max(steps):
        raise ValueError(
            f"out: the processes found this run at different steps, {min(steps)} and {max(steps)}: expected one folder "
            f"that all of them see; got {folder}"
        )


def check_finite(recent: Tensor, first: int, folder: Path | None) -> None:
    finite = torch.isfinite(recent)
    if bool(finite.all()):
        return
    step = first + int((~finite).nonzero()[0]) + 1
    raise _not_finite(f"the loss is {float(recent[step - first - 1])} at step {step}", folder)


def check_weights(model: nn.Module, step: int, folder: Path | None, accelerator: Any | None) -> None:
    """A finite loss may have an infinite gradient: the weights would be stored before the next loss tells.

    The accelerator is given where every process looks at its own share: then they must come to one conclusion.
    """
    parameters = dict(model.named_parameters())
    bad = [name for name, parameter in parameters.items() if not bool(torch.isfinite(local(parameter)).all())]
    if accelerator is not None:
        found = accelerator.reduce(torch.tensor(float(len(bad)), device=accelerator.device))
        bad = bad or ["of another process"] * int(found > 0)
    if bad:
        raise _not_finite(f"the weights {bad[0]} are not finite after step {step}", folder)


def _not_finite(what: str, folder: Path | None) -> FloatingPointError:
    kept = [] if folder is None else checkpoints.available(folder / "checkpoints")
    where = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written before it"
    return FloatingPointError(
        f"{what}; {where}. Try a lower learning rate, gradient_clip=1.0 or precision='fp32', and look for NaN in the "
        "data"
    )
