"""Preemption: SIGTERM asks a run to stop, as schedulers do before they take a machine back.

The run ends after the step it is in, writes a checkpoint and exits with status 75, "try again" (EX_TEMPFAIL of
sysexits.h); the same command goes on from there. A program that handles SIGTERM itself keeps its handler.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

EXIT_STATUS = 75


class Preempted(SystemExit):
    """Raised by ``fit`` when SIGTERM has stopped it; the process exits with status 75 unless it is caught.

    Example:
        >>> Preempted(40, Path("runs/mnist/checkpoints/step_00000040")).code
        75
    """

    def __init__(self, step: int, checkpoint: Path):
        super().__init__(EXIT_STATUS)
        self.step, self.checkpoint = step, checkpoint

    def __reduce__(self) -> tuple[type[Preempted], tuple[int, Path]]:
        return type(self), (self.step, self.checkpoint)

    def __str__(self) -> str:
        return f"stopped by SIGTERM at step {self.step}; the same call goes on from {self.checkpoint}"


class Listener:
    """Notes SIGTERM while it is entered; ``active=False`` leaves the signal alone."""

    def __init__(self, active: bool):
        self.asked = False
        # Python delivers signals to the main thread only, and only there a handler can be set.
        main = threading.current_thread() is threading.main_thread()
        self._active = active and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def __enter__(self) -> Listener:
        if self._active:
            signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._active:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def agreed(self, accelerator: Any) -> bool:
        """Whether any of the processes was asked: all must stop after the same step. Every process has to call it."""
        import torch

        asked = torch.tensor(float(self.asked), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)
