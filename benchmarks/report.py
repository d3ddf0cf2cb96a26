r"""Write the tables and the picture of the book's pages on benchmarks and clusters from the JSON files.

    python benchmarks/report.py           # rewrite book/benchmarks.md and its picture, and the table in book/cluster.md
    python benchmarks/report.py --check   # status 1 if they are not what the files say

A page is prose with a place for each benchmark, ``<!-- name -->`` to ``<!-- end -->``. A benchmark without a file
leaves its place empty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = [HERE.parent / "book" / name for name in ("benchmarks.md", "cluster.md")]
PICTURE = HERE.parent / "book" / "_static" / "benchmarks.svg"
Table = list[list[str]]  # the first row is the head


def short(number: float) -> str:
    """Three digits, and no exponent."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def beside_flowbook(columns: dict[str, dict[str, Any]], key: str) -> Table:
    """A row for each library, a column for each task: milliseconds, and in brackets how many times flowbook's."""
    libraries = list(dict.fromkeys(name for numbers in columns.values() for name in numbers[key]))
    table = [["", *(f"{name}, ms" for name in columns)]]
    for library in libraries:
        row = [library]
        for numbers in columns.values():
            if library not in numbers[key]:
                row.append("")
                continue
            spent = short(numbers[key][library])
            times = "" if library == "flowbook" else f" ({numbers['over_flowbook'][library]['wall_ratio']:.2f})"
            row.append(spent + times)
        table.append(row)
    return table


def training_step(result: dict[str, Any]) -> Table:
    return beside_flowbook({"perceptron": result["mlp"], "U-Net": result["unet"]}, "ms_per_step")


def step_overhead(result: dict[str, Any]) -> Table:
    names = {"fit": "`fit`", "bare": "a loop by hand", "minimal": "the same without decay and averaging"}
    table = [["", "perceptron, ms", "U-Net, ms"]]
    for key, name in names.items():
        row = [name]
        for numbers in (result["mlp"], result["unet"]):
            share = "" if key == "fit" else f" (`fit` {percent(numbers[f'fit_over_{key}']['wall_ratio'])})"
            row.append(f"{numbers['ms_per_step'][key]:.3g}{share}")
        table.append(row)
    return table


def quality(result: dict[str, Any], by: str) -> Table:
    table = [["seed", "torchcfm ends at", "after, s", "flowbook ends at", "after, s", "times shorter"]]
    for row in result["seeds"]:
        peer, own = row["torchcfm"], row["flowbook"]
        ours = ["not reached", "", ""]
        if own is not None:
            ours = [f"{own[by]:.3g}", f"{own['cpu_s']:.3g}", f"{row['times_shorter']['cpu_s']:.3g}"]
        table.append([str(row["seed"]), f"{peer[by]:.3g}", f"{peer['cpu_s']:.3g}", *ours])
    return table


def sampling_fixed(result: dict[str, Any]) -> Table:
    columns = {"perceptron": result["mlp, fixed"], "U-Net": result["unet, fixed"]}
    return beside_flowbook(columns, "ms_per_evaluation")


def sampling_error(result: dict[str, Any]) -> Table:
    table = [["", "perceptron, ms", "how", "U-Net, ms", "how"]]
    columns = [result["mlp, equal error"], result["unet, equal error"]]
    for library in columns[0]["ms"]:
        row = [library]
        for numbers in columns:
            told = numbers["chosen"][library]
            times = numbers["over_flowbook"].get(library)
            row.append(short(numbers["ms"][library]) + ("" if times is None else f" ({times['wall_ratio']:.2f})"))
            row.append(f"{told['method']}, {told['calls']} evaluations")
        table.append(row)
    return table


def divergence(result: dict[str, Any], kind: str) -> Table:
    columns = {name.split(", ")[1]: numbers for name, numbers in result.items() if name.startswith(kind)}
    return beside_flowbook(columns, "ms")


def log_prob(result: dict[str, Any]) -> Table:
    table = [["", "D=2, ms", "how", "D=64, ms", "how"]]
    for library in result["D=2"]["ms"]:
        row = [library]
        for numbers in result.values():
            told, times = numbers["chosen"][library], numbers["over_flowbook"].get(library)
            row.append(short(numbers["ms"][library]) + ("" if times is None else f" ({times['wall_ratio']:.2f})"))
            row.append(f"{told['method'].split(',')[0]}, {told['calls']} evaluations, {told['products']} traces")
        table.append(row)
    return table


def transport(result: dict[str, Any]) -> Table:
    return beside_flowbook(result, "ms")


def coupling(result: dict[str, Any]) -> Table:
    names = {"none": "no coupling", "background": "in the background", "foreground": "in the foreground"}
    table = [["", "a step, ms", "beyond no coupling"]]
    for key, name in names.items():
        share = "" if key == "none" else percent(result[f"{key}_over_none"]["wall_ratio"])
        table.append([name, f"{result['ms_per_step'][key]:.3g}", share])
    return table


def two_dimensions(result: dict[str, Any]) -> Table:
    table = [["", "median of 30 draws", "medians of five", "root mean square"]]
    for name in ("independent, dopri5", "optimal transport, dopri5", "optimal transport, one Euler step"):
        numbers = result[name]
        fives = numbers["median_over_floor_of_fives"]
        spread = f"{min(fives):.2f} to {max(fives):.2f}"
        table.append([name, f"{numbers['median_over_floor']:.2f}", spread, f"{numbers['rms_over_floor']:.2f}"])
    return table


def scaling(result: dict[str, Any]) -> Table:
    table = [["images", "batch", "processes", "step, ms", "by the model", "memory, MB", "by the model"]]
    for row in result["rows"]:
        table.append([
            f"{row['size']} x {row['size']}", str(row["batch"]), str(row["processes"]),
            short(1e3 * row["measured_s"]), short(1e3 * row["predicted_s"]),
            short(row["measured_bytes"] / 1e6), short(row["predicted_bytes"] / 1e6),
        ])  # fmt: skip
    return table


def gpu(result: dict[str, Any]) -> Table:
    table = [[result["gpu"], "images a second", "of a matrix product's rate"]]
    for name, numbers in result["training"].items():
        share = f"{100 * numbers['utilization']:.0f}%" if "utilization" in numbers else ""
        table.append([f"training, {name}", f"{numbers['images_per_second']:.0f}", share])
    return table + [
        [f"sampling, {name}", f"{speed:.0f}", ""] for name, speed in result["sampling_images_per_second"].items()
    ]


# The places of the page, each with its file and what makes its table.
PLACES: dict[str, tuple[str, Callable[[dict[str, Any]], Table]]] = {
    "training_step": ("training_step", training_step),
    "step_overhead": ("step_overhead", step_overhead),
    "time_to_quality": ("time_to_quality", lambda result: quality(result, "w2")),
    "time_to_quality_digits": ("time_to_quality_digits", lambda result: quality(result, "frechet")),
    "sampling_fixed": ("sampling", sampling_fixed),
    "sampling_error": ("sampling", sampling_error),
    "divergence_exact": ("divergence", lambda result: divergence(result, "exact")),
    "divergence_probe": ("divergence", lambda result: divergence(result, "one probe")),
    "log_prob": ("log_prob", log_prob),
    "likelihood_training": ("likelihood_training", log_prob),
    "transport": ("transport", transport),
    "coupling": ("coupling", coupling),
    "two_dimensions": ("two_dimensions", two_dimensions),
    "gpu": ("gpu", gpu),
    "scaling": ("scaling", scaling),
}


def percent(quotient: float) -> str:
    return f"{100 * (quotient - 1):+.1f}%"


def stored(name: str) -> dict[str, Any] | None:
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def section(place: str) -> str:
    """The table of a place with its command, machine and versions; nothing where nothing was measured."""
    name, make = PLACES[place]
    content = stored(name)
    if content is None:
        return ""
    head, *rows = make(content["result"])
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]
    machine, versions = content["machine"], content["versions"]
    threads = f"{machine['torch_threads']} thread{'s' if machine['torch_threads'] > 1 else ''}"
    told = ", ".join(f"{package} {version.split('+')[0]}" for package, version in versions.items())
    command = re.sub(r" --note .*", "", content["command"])
    remark = f" {content['note']}" if content["note"] else ""
    under = f"`{command}`. {machine['cpu']}, {threads}; {told}.{remark}"
    return "\n".join([*lines, "", f"<small>{under}</small>"])


def page(text: str) -> str:
    """The page with the places filled anew."""

    def filled(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{section(match[1])}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


# The picture ----------------------------------------------------------------------------------------------------------


def bars() -> list[tuple[str, list[tuple[str, float]]]]:
    """For each question, the peers' times in units of flowbook's."""
    chosen = [
        ("training step, perceptron", "training_step", "mlp"), ("training step, U-Net", "training_step", "unet"),
        ("sampling, per evaluation", "sampling", "mlp, fixed"),
        ("sampling, equal error, plane", "sampling", "mlp, equal error"),
        ("sampling, equal error, digits", "sampling", "unet, equal error"),
        ("exact divergence, D=64", "divergence", "exact divergence, D=64"),
        ("one probe, D=784", "divergence", "one probe, D=784"), ("log-density, D=2", "log_prob", "D=2"),
        ("log-density, D=64", "log_prob", "D=64"),
        ("its gradient, D=2", "likelihood_training", "D=2"), ("its gradient, D=64", "likelihood_training", "D=64"),
        ("optimal transport, 512 digits", "transport", "D=64, batch 512"),
    ]  # fmt: skip
    found = []
    for title, name, key in chosen:
        content = stored(name)
        if content is not None and key in content["result"]:
            times = content["result"][key]["over_flowbook"]
            found.append((
                title,
                [(peer.replace("-pytorch", ""), ratio["wall_ratio"]) for peer, ratio in times.items()
                 if not peer.startswith("flowbook") and "every 10th" not in peer],
            ))  # fmt: skip
    return found


COLORS = {
    "torchcfm": "#d55e00", "flow_matching": "#0072b2", "zuko": "#009e73", "torchdyn": "#cc79a7",
    "rectified-flow": "#e69f00", "denoising-diffusion": "#56b4e9", "FFJORD": "#a05a2c",
}  # fmt: skip


def draw() -> None:
    """One row for each question, one dot for each library, on a logarithmic axis; readable on light and dark pages."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows, gray = bars()[::-1], "#808890"
    plt.rcParams.update({"svg.hashsalt": "flowbook", "font.size": 10, "svg.fonttype": "path"})
    figure, axes = plt.subplots(figsize=(7.2, 0.38 * len(rows) + 1.3))
    axes.axvspan(0.95, 1.05, color=gray, alpha=0.12, lw=0)
    axes.axvline(1.0, color=gray, lw=1.2)
    for height, (_, peers) in enumerate(rows):
        for peer, ratio in peers:
            axes.plot(ratio, height, "o", ms=7.5, color=COLORS[peer], mec="none", alpha=0.95)
    for peer, color in COLORS.items():
        axes.plot([], [], "o", ms=7.5, color=color, mec="none", label=peer)
    axes.set_xscale("log")
    axes.set_xlim(0.75, 1.2 * max(ratio for _, peers in rows for _, ratio in peers))
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.set_xlabel("time, in units of flowbook's")
    axes.grid(axis="x", color=gray, alpha=0.25, lw=0.7)
    axes.tick_params(colors=gray, length=0)
    axes.xaxis.label.set_color(gray)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=4, frameon=False, labelcolor=gray, handletextpad=0.1,
        columnspacing=1.2,
    )  # fmt: skip
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(
        PICTURE, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None, "Description": word()}
    )


def word() -> str:
    """What the picture is drawn from, in a word that changes with it."""
    return hashlib.sha256(json.dumps([bars(), COLORS]).encode()).hexdigest()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="compare only")
    arguments = options.parse_args()
    for path in PAGES:
        text = path.read_text()
        if not arguments.check:
            path.write_text(page(text))
        elif page(text) != text:
            sys.exit(f"{path.name}: a table is not what results/ says; run benchmarks/report.py")
    if not arguments.check:
        draw()
    elif word() not in PICTURE.read_text():
        sys.exit("benchmarks.svg: the picture is not what results/ says; run benchmarks/report.py")


if __name__ == "__main__":
    main()
