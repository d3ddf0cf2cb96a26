"""The figures of the book: one color per concept in all chapters, legible in both themes and to the color-blind.

Every function draws on an ``ax`` (or a new one) and returns it. Nothing here computes a result.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.data import to_unit_interval

# Okabe and Ito's palette, which stays distinct for the color-blind.
NOISE = "#0072B2"
DATA = "#D55E00"
MODEL = "#009E73"
TRUTH = "#444444"
WRONG = "#CC79A7"
EXTRA = ("#E69F00", "#56B4E9", "#F0E442")
COLORS = (MODEL, NOISE, DATA, WRONG, *EXTRA[:2])


def set_style() -> None:
    """matplotlib's defaults for the book: white figures with thin axes, 110 dots per inch."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.labelsize": 9.5,
            "axes.titlelocation": "left",
            "axes.linewidth": 0.7,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8.5,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "image.cmap": "cividis",
            "animation.html": "none",
        }
    )


def panels(columns: int, rows: int = 1, width: float = 7.4, aspect: float = 1.0, **options: Any) -> tuple[Any, Any]:
    """A figure with a row (or grid) of panels; ``aspect`` is a panel's height over its width.

    Example:
        >>> figure, axes = panels(3)
        >>> len(axes)
        3
    """
    import matplotlib.pyplot as plt

    height = width / columns * aspect * rows + 0.25
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def points(
    x: Tensor, color: str = DATA, ax: Any = None, label: str | None = None, size: float = 2.0, **options: Any
) -> Any:
    """A scatter of points (n, 2)."""
    ax = _axes(ax)
    x = x.detach().cpu()
    options = {"alpha": 0.5, "linewidths": 0, **options}
    ax.scatter(x[:, 0], x[:, 1], s=size, color=color, label=label, rasterized=True, **options)
    return ax


def plane(ax: Any, limit: float, title: str | None = None, ticks: bool = False) -> Any:
    """Equal axes from -limit to limit, by default without ticks."""
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.set_aspect("equal")
    if not ticks:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    if title is not None:
        ax.set_title(title)
    return ax


def mesh(limit: float, n: int) -> Tensor:
    """A square grid of n x n points on [-limit, limit]^2, shape (n^2, 2).

    Example:
        >>> mesh(1.0, 3).shape
        torch.Size([9, 2])
    """
    line = torch.linspace(-limit, limit, n)
    return torch.cartesian_prod(line, line)


@torch.no_grad()
def density(log_prob: Callable[[Tensor], Tensor], limit: float, ax: Any = None, n: int = 120, levels: int = 8) -> Any:
    """Filled contours of a density on the plane, from its log."""
    ax = _axes(ax)
    line = torch.linspace(-limit, limit, n)
    values = log_prob(mesh(limit, n).double()).exp().reshape(n, n).T
    ax.contourf(line, line, values, levels=levels, cmap="Grays", alpha=0.75, antialiased=True)
    return ax


@torch.no_grad()
def field(
    velocity: Callable[..., Tensor],
    t: float,
    limit: float,
    ax: Any = None,
    color: str = MODEL,
    *,
    n: int = 15,
    scale: float | None = None,
    **options: Any,
) -> Any:
    """Arrows of a velocity on the plane at time t; arrows of equal ``scale`` can be compared."""
    ax = _axes(ax)
    x = mesh(limit, n)
    v = velocity(x, torch.tensor(t))
    options = {"width": 0.006, "alpha": 0.9, "headwidth": 4, "headlength": 4, "headaxislength": 3.6, **options}
    ax.quiver(x[:, 0], x[:, 1], v[:, 0], v[:, 1], color=color, angles="xy", scale_units="xy", scale=scale, **options)
    return ax


def trajectories(
    trajectory: Tensor,
    ax: Any = None,
    color: str = "#888888",
    ends: bool = True,
    *,
    end_color: str = MODEL,
    width: float = 0.6,
    alpha: float = 0.6,
) -> Any:
    """Paths of points, trajectory (T, n, 2), with the noise at their start and the data or samples at their end."""
    ax = _axes(ax)
    path = trajectory.detach().cpu()
    ax.plot(path[..., 0], path[..., 1], color=color, linewidth=width, alpha=alpha, zorder=1)
    if ends:
        points(path[0], NOISE, ax, size=7, alpha=0.9, zorder=2)
        points(path[-1], end_color, ax, size=7, alpha=0.9, zorder=3)
    return ax


def convergence(
    errors: dict[str, tuple[Sequence[float], Sequence[float]]],
    ax: Any = None,
    xlabel: str = "evaluations",
    ylabel: str = "error",
) -> Any:
    """Error against cost on logarithmic axes; each entry is (costs, errors)."""
    ax = _axes(ax)
    for (name, (costs, values)), marker in zip(errors.items(), "osD^vP*X", strict=False):
        ax.loglog(costs, values, marker=marker, markersize=4, label=name)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    ax.legend()
    return ax


def slope(ax: Any, x: Sequence[float], y: float, order: int) -> None:
    """A thin line of slope -order from the point (x[0], y), to compare with."""
    ends = [y, y * (x[1] / x[0]) ** -order]
    ax.loglog(x, ends, color=TRUTH, linewidth=0.8, linestyle=":")
    ax.annotate(f"slope -{order}", (x[1], ends[1]), fontsize=7.5, color=TRUTH, ha="right", va="top")


def images(x: Tensor, columns: int, ax: Any = None, title: str | None = None) -> Any:
    """A grid of images (n, C, H, W) in [-1, 1], row by row."""
    ax = _axes(ax)
    n, channels, height, width = x.shape
    rows = -(-n // columns)
    grid = torch.ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for index, image in enumerate(to_unit_interval(x.detach().cpu())):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        grid[:, top : top + height, left : left + width] = image if channels == 3 else 1 - image
    ax.imshow(grid.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return ax


def loss_curve(losses: Tensor, floor: float | None = None, ax: Any = None, window: int = 100) -> Any:
    """A loss over steps, as means over ``window`` steps, with its floor where that is known."""
    ax = _axes(ax)
    means = losses[: len(losses) // window * window].reshape(-1, window).mean(1)
    ax.plot(window * (torch.arange(len(means)) + 0.5), means, color=MODEL, label="loss")
    if floor is not None:
        ax.axhline(floor, color=TRUTH, linestyle="--", linewidth=1.0, label="its floor")
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.legend()
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(3.6, 3.6))[1]


def animation(figure: Any, draw: Callable[[int], Any], frames: int, seconds: float = 4.0, hold: float = 1.0) -> Any:
    """An endless GIF: ``draw(n)`` prepares the figure for frame n, and the last frame stays a little longer.

    Args:
        figure: the figure that ``draw`` changes; it is closed, so that it is not shown a second time.
        draw: called with 0 to frames - 1.
        frames: number of frames.
        seconds: duration of one loop.
        hold: how much longer the last frame stays, in seconds.

    Example:
        >>> figure, ax = panels(1)
        >>> animation(figure, lambda n: ax.set_title(str(n)), frames=2).format
        'gif'
    """
    import io

    import matplotlib.pyplot as plt
    from IPython.display import Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image as Picture

    validate.positive_int("frames", frames)
    canvas: Any = FigureCanvasAgg(figure)
    pictures = []
    for n in range(frames):
        draw(n)
        canvas.draw()
        picture = Picture.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
        pictures.append(picture.quantize(48, dither=Picture.Dither.NONE))
    plt.close(figure)
    times = [round(1000 * seconds / frames)] * (frames - 1) + [round(1000 * (seconds / frames + hold))]
    stored = io.BytesIO()
    pictures[0].save(stored, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True)
    return Image(data=stored.getvalue(), format="gif")


def source(*functions: Callable[..., Any]) -> Any:
    """The source of functions of the package, without docstrings, to be shown on a page."""
    from IPython.display import Markdown

    return Markdown("```python\n" + "\n\n\n".join(source_lines(function) for function in functions) + "\n```")


def source_lines(function: Callable[..., Any]) -> str:
    """The source of a function or class without docstrings.

    Example:
        >>> from flowbook.metrics import transport_cost
        >>> source_lines(transport_cost).splitlines()[0]
        'def transport_cost(x0: Tensor, x1: Tensor, *, power: float = 2.0) -> float:'
    """
    text = textwrap.dedent(inspect.getsource(function))
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
            lines[first:last] = [None] * (last - first)  # type: ignore[list-item]
    kept = [line.split("  # noqa")[0].split("  # fmt:")[0] for line in lines if line is not None]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
