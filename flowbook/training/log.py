"""The log of a run: one JSON object per line, the same numbers for TensorBoard, and grids of samples."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from flowbook._core import progress, validate
from flowbook._core.files import write_text
from flowbook.training.arguments import Progress


class RunLog:
    """Write ``log.jsonl``, ``tensorboard/`` and ``previews/`` below a run's folder.

    Lines after ``first_step`` are from an interrupted attempt; they are dropped, since they will be written again.
    """

    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        path = folder / "log.jsonl"
        kept = _lines(path, first_step) if path.exists() and first_step > 0 else []
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))  # a kill here loses no line
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, **numbers: Any) -> None:
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def images(self, step: int, images: Tensor) -> None:
        """Save a grid of images in [-1, 1], shape (B, C, H, W)."""
        from torchvision.utils import make_grid, save_image

        validate.float_tensor("preview(velocity)", images, min_dim=4)
        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        grid = make_grid(images.float().cpu().clamp(-1, 1), nrow=10, normalize=True, value_range=(-1, 1))
        save_image(grid, folder / f"step_{step:08d}.png")
        self._board.add_image("samples", grid, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _lines(path: Path, last_step: int) -> list[dict[str, Any]]:
    kept = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.endswith("}"):  # cut off when the run was killed
            continue
        try:
            entry = json.loads(line)
            if entry["step"] <= last_step:
                kept.append(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: line {number} of {path} is damaged; repair or remove it: {line!r}") from error
    return kept


class Display:
    """The visible progress of a run: a bar in a terminal, or plain lines on request."""

    def __init__(self, show: Progress, first: int, total: int, main: bool):
        self.total = total
        self.lines = main and show == "lines"
        self.bar: Any = None
        if main and not self.lines and (show or (show is None and progress.watched())):
            self.bar = progress.bar(True, total=total, initial=first, unit="step")

    def step(self) -> None:
        """Count one step; tqdm redraws at its own pace."""
        if self.bar is not None:
            self.bar.update()

    def write(self, done: int, logs: dict[str, float]) -> None:
        """Show the numbers of a log line."""
        shown = f"loss {logs['loss']:.4f}"
        if "validation_loss" in logs:
            shown += f", validation {logs['validation_loss']:.4f}"
        shown += f", {logs['images_per_second']:.0f} images/s"
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)
        if self.lines:
            try:
                print(f"step {done}/{self.total}: {shown}, {logs['seconds']:.0f} s", file=sys.stderr, flush=True)
            except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough; the training goes on
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
