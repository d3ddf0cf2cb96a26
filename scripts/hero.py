"""Draw the picture of the README and the index page: ``python scripts/hero.py``.

Above, a velocity carries noise to eight Gaussians; below, the shipped model carries noise to digits, at the same times.
"""

from pathlib import Path

import torch

from flowbook import models
from flowbook.analytic import eight_gaussians
from flowbook.book import plotting
from flowbook.guidance import guided
from flowbook.paths import LinearPath
from flowbook.solvers import sample

OUT = Path(__file__).resolve().parent.parent / "book" / "_static" / "hero.png"
TIMES = (0.0, 0.4, 0.7, 0.85, 1.0)


def main() -> None:
    import matplotlib.pyplot as plt

    plotting.set_style()
    river = eight_gaussians().as_velocity(LinearPath())
    grains = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    points = sample(river, grains, save_at=torch.linspace(0, 1, 81))

    labels = torch.arange(25) % 10
    noise = torch.randn(25, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    field = guided(models.load_pretrained("mnist"), 1.25, null=10)
    digits = sample(field, noise, y=labels, method="midpoint", steps=20, save_at=TIMES)

    figure, axes = plt.subplots(2, len(TIMES), figsize=(10, 4.2))
    for column, t in enumerate(TIMES):
        upper, lower = axes[0, column], axes[1, column]
        now = round(80 * t)
        plotting.trajectories(points.trajectory[: now + 1, :150], upper, ends=False, alpha=0.35)
        plotting.points(points.trajectory[now], plotting.NOISE if t < 1 else plotting.MODEL, upper, size=5, alpha=0.8)
        plotting.plane(upper, 6.6)
        upper.set_title("noise" if t == 0 else "data" if t == 1 else f"t = {t}", loc="center", fontsize=12)
        plotting.images(digits.trajectory[column], 5, lower)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=150)
    print(OUT.name)


if __name__ == "__main__":
    main()
