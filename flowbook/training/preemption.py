"""Requests to stop: SIGTERM, as schedulers send it before they reclaim a machine, and Ctrl-C.

The run ends after the current step and writes a checkpoint; the same call resumes from there. After SIGTERM the
process exits with status 75, "try again" (EX_TEMPFAIL of sysexits.h). A program that handles these signals itself keeps
its handlers.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowbook.training.result import TrainResult

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
        return f"stopped by SIGTERM at step {self.step}; the same call resumes from {self.checkpoint}"


class Interrupted(KeyboardInterrupt):
    """Raised by ``fit`` when Ctrl-C has stopped it: ``.result`` is the result of the run so far.

    A notebook and the ``flowbook`` command show its message alone, without a traceback.
    """

    def __init__(self, result: TrainResult):
        super().__init__()
        self.result = result

    def __str__(self) -> str:
        kept = self.result.checkpoint
        where = "the exception's .result has the velocity" if kept is None else f"the same call resumes from {kept}"
        return f"stopped by Ctrl-C at step {self.result.step}; {where}"

    def _render_traceback_(self) -> list[str]:  # what IPython prints
        return [str(self)]


class Listener:
    """Notes SIGTERM (where ``preemptible``) and the first Ctrl-C while it is entered; a second Ctrl-C acts at once."""

    def __init__(self, preemptible: bool):
        self.asked: int | None = None
        # Python delivers signals to the main thread only, and only there can a handler be set.
        main = threading.current_thread() is threading.main_thread()
        usual = {signal.SIGINT: signal.default_int_handler} | ({signal.SIGTERM: signal.SIG_DFL} if preemptible else {})
        self._handlers = {number: old for number, old in usual.items() if main and signal.getsignal(number) is old}

    def __enter__(self) -> Listener:
        for number in self._handlers:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def stop(self, step: int, result: TrainResult) -> Any:
        """The exception that ends a run after a signal."""
        if self.asked == signal.SIGINT:
            return Interrupted(result)
        assert result.checkpoint is not None  # SIGTERM is handled only where there is a folder
        return Preempted(step, result.checkpoint)
