"""Draw the picture of the page "Your own images": ``python scripts/own_images.py FOLDER``.

FOLDER is where the commands of the page were run: it holds ``runs/digits`` and ``runs/student``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from flowbook import data, load, sample
from flowbook.book import plotting

OUT = Path(__file__).resolve().parent.parent / "book" / "_static" / "own_images.png"
EACH = 4


def main(folder: Path) -> None:
    teacher, student = load(folder / "runs" / "digits"), load(folder / "runs" / "student")
    images, labels = data.digits("train")
    y = torch.arange(10).repeat(EACH)
    real = torch.stack([images[labels == k][row] for row in range(EACH) for k in range(10)])
    x0 = torch.randn(len(y), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one = {"method": "euler", "steps": 1}
    shown = {
        "images of the folder": real,
        "teacher, 24 evaluations": sample(teacher, x0, y=y, method="midpoint", steps=12).x,
        "teacher, 1 evaluation": sample(teacher, x0, y=y, **one).x,
        "student, 1 evaluation": sample(student, x0, y=y, **one).x,
    }
    plotting.set_style()
    figure, axes = plt.subplots(2, 2, figsize=(7.4, 3.5), layout="constrained")
    for ax, (title, grid) in zip(axes.flat, shown.items(), strict=True):
        plotting.images(grid, 10, ax=ax, title=title)
    figure.savefig(OUT, dpi=200)
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
