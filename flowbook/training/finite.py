"""Errors for losses and parameters that are no longer finite."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from flowbook.training import checkpoint as checkpoints
from flowbook.training.processes import Processes
from flowbook.training.sharding import local


def check_losses(recent: Tensor, first: int, folder: Path | None) -> None:
    """Raise at the first loss that is not finite; ``first`` is the number of steps before these losses."""
    finite = torch.isfinite(recent)
    if bool(finite.all()):
        return
    step = first + int((~finite).nonzero()[0]) + 1
    raise _not_finite(f"the loss is {float(recent[step - first - 1])} at step {step}", folder)


def check_parameters(model: nn.Module, step: int, folder: Path | None, processes: Processes | None) -> None:
    """Raise for parameters that are not finite, before they are stored.

    A finite loss may have an infinite gradient, which only the next loss would reveal. ``processes`` is given where
    each checks its own shard: then all of them must raise together.
    """
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(local(p)).all())]
    if processes is not None and processes.any(bool(bad)):
        bad = bad or ["of another process"]
    if bad:
        raise _not_finite(f"the parameters {bad[0]} are not finite after step {step}", folder)


def _not_finite(what: str, folder: Path | None) -> FloatingPointError:
    kept = [] if folder is None else checkpoints.available(folder / "checkpoints")
    where = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written before it"
    return FloatingPointError(
        f"{what}; {where}. Try a lower learning rate, gradient_clip=1.0 or precision='fp32', and look for NaN in the "
        "data"
    )
