"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


@dataclass
class TrainResult:
    """The result of a run."""

    velocity: nn.Module
    """The network with averaged parameters (EMA), in eval mode; for a diffusion loss, its probability flow."""
    live: nn.Module
    """The module that was passed in, with the parameters of the last step."""
    step: int
    """Optimizer steps taken, including steps before a resume."""
    losses: Tensor
    """The loss of every step of this call, shape (steps,)."""
    seconds: float
    """Wall-clock time of this call's steps."""
    checkpoint: Path | None
    """The last checkpoint written, or None without an output folder."""
