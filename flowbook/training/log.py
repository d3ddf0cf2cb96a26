"""The log of a run: one JSON object a line, the same numbers for TensorBoard, and grids of samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from flowbook import _validate
from flowbook._files import write_text
from flowbook._progress import tqdm


class RunLog:
    """Write ``log.jsonl``, ``tensorboard/`` and ``previews/`` below a run's folder.

    Lines after ``first_step`` are those of an interrupted attempt; they are dropped, since they are written again.
    """

    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        path = folder / "log.jsonl"
        kept = _lines(path, first_step) if path.exists() and first_step > 0 else []
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))  # a kill here loses no line
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)

    def write(self, step: int, **numbers: Any) -> None:
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def images(self, step: int, images: Tensor) -> None:
        """Save a grid of images in [-1, 1], shape (B, C, H, W)."""
        from torchvision.utils import make_grid, save_image

        _validate.float_tensor("preview(velocity)", images, min_dim=4)
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


class ProgressBar:
    """tqdm where a person watches, nothing elsewhere."""

    def __init__(self, progress: bool | None, first: int, total: int, main: bool):
        self.bar = None
        if main and (sys.stderr.isatty() if progress is None else progress):
            self.bar = tqdm(total=total, initial=first, unit="step")

    def update(self, done: int, loss: float, speed: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s", refresh=False)
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
