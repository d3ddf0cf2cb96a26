r"""Write the table of results in README.md from the JSON files.

python benchmarks/report.py           # rewrite the table
python benchmarks/report.py --check   # status 1 if the table is not what the files say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE / "README.md"
START, END = "<!-- results: written by report.py -->", "<!-- end of results -->"
Row = tuple[str, str, str]  # question, measured, target


def time_to_quality(result: dict[str, Any]) -> Iterator[Row]:
    rows = result["seeds"]
    shorter = result["median_times_shorter"]
    peers = ", ".join(f"{row['torchcfm']['w2']:.3f} in {row['torchcfm']['cpu_s']:.1f} s" for row in rows)
    ours = ", ".join(
        f"{row['flowbook']['w2']:.3f} in {row['flowbook']['cpu_s']:.2f} s" if row["flowbook"] else "not reached"
        for row in rows
    )
    gained = "not reached" if shorter is None else f"{shorter['wall_s']:.0f} times shorter (CPU {shorter['cpu_s']:.0f})"
    question = f"time to torchcfm's final distance, {result['coupling']} coupling"
    yield question, f"{gained}; torchcfm {peers}; flowbook {ours} (CPU seconds)", "at least 5 times"


def step_overhead(result: dict[str, Any]) -> Iterator[Row]:
    for name, numbers in result.items():
        quotients, milliseconds = numbers["fit_over_bare"], numbers["ms_per_step"]
        spent = f"{milliseconds['fit']:.2f} against {milliseconds['bare']:.2f} ms"
        measured = f"{percent(quotients['wall_ratio'])} ({spent}); CPU time {percent(quotients['cpu_ratio'])}"
        yield f"a step of `fit` beyond a bare loop, {name}", measured, "at most +5%"


def divergence(result: dict[str, Any]) -> Iterator[Row]:
    for name, numbers in result.items():
        peers = ", ".join(f"{peer} {ms:.1f}" for peer, ms in numbers["ms"].items() if peer != "flowbook")
        quotient = numbers["flowbook_over_fastest"]["wall_ratio"]
        measured = f"{quotient:.2f} of {numbers['fastest_peer']} ({numbers['ms']['flowbook']:.1f} ms; {peers})"
        yield f"{name}, batch {numbers['batch']}", measured, "at most 1.05 of the fastest"


def log_prob(result: dict[str, Any]) -> Iterator[Row]:
    for name, numbers in result.items():
        ways, milliseconds = numbers["chosen"], numbers["ms"]
        spent = ", ".join(
            f"{way} {milliseconds[way]:.0f} ms ({told['method']}, {told['calls']} calls)" for way, told in ways.items()
        )
        faster = ", ".join(f"{q['wall_ratio']:.2f} than {way}" for way, q in numbers["over_flowbook"].items())
        question = f"`log_prob` within {numbers['bound_nats']:g} nats, {name}, batch {numbers['batch']}"
        yield question, f"times faster: {faster}; {spent}", "at least 2 times"
        parts = numbers["profile_ms"]
        whole = sum(parts.values())
        shares = ", ".join(f"{part} {100 * ms / whole:.0f}%" for part, ms in parts.items())
        yield f"where the time of `log_prob` goes, {name}", shares, ""


def coupling(result: dict[str, Any]) -> Iterator[Row]:
    milliseconds = result["ms_per_step"]
    for name, target in (("background", "at most +10%"), ("foreground", "")):
        quotient = result[f"{name}_over_none"]["wall_ratio"]
        spent = f"{milliseconds[name]:.0f} against {milliseconds['none']:.0f} ms"
        measured = f"{percent(quotient)} ({spent}); CPU time {percent(result[f'{name}_over_none']['cpu_ratio'])}"
        yield f"optimal transport in the {name}, digits U-Net", measured, target
    lock = result["global_lock"]
    yield (
        "does the assignment hold Python's lock?",
        f"{lock['assignment_s']:.2f} s of assignment, longest pause elsewhere {1e3 * lock['longest_pause_s']:.0f} ms",
        "",
    )


def two_dimensions(result: dict[str, Any]) -> Iterator[Row]:
    for name, target in (
        ("independent, dopri5", "at most 1.2 floors"), ("optimal transport, dopri5", "at most 1.2 floors"),
        ("optimal transport, one Euler step", "at most 1.5 floors"),
    ):  # fmt: skip
        numbers = result[name]
        fives = numbers["median_over_floor_of_fives"]
        measured = (
            f"{numbers['median_over_floor']:.2f} floors (median of {result['draws']} draws; of five draws "
            f"{min(fives):.2f} to {max(fives):.2f}; root mean squares {numbers['rms_over_floor']:.2f})"
        )
        yield f"chapter 3's distance to the data, {name}", measured, target


def gpu(result: dict[str, Any]) -> Iterator[Row]:
    for name, speed in result["training_images_per_second"].items():
        yield f"training on {result['gpu']}, {name}", f"{speed:.0f} images/s", ""
    for name, speed in result["sampling_images_per_second_50_evaluations"].items():
        yield f"sampling on {result['gpu']}, 50 evaluations, {name}", f"{speed:.0f} images/s", ""


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "time_to_quality": time_to_quality, "time_to_quality_ot": time_to_quality, "step_overhead": step_overhead,
    "divergence": divergence, "log_prob": log_prob, "coupling": coupling, "two_dimensions": two_dimensions, "gpu": gpu,
}  # fmt: skip


def percent(quotient: float) -> str:
    return f"{100 * (quotient - 1):+.1f}%"


def table() -> str:
    """The results of every benchmark that has been run, and what they were measured on."""
    lines = ["| question | measured | target |", "|---|---|---|"]
    conditions = []
    for name, rows in ROWS.items():
        path = HERE / "results" / f"{name}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        lines += [f"| {' | '.join(row)} |" for row in rows(content["result"])]
        machine, versions = content["machine"], content["versions"]
        cores, threads = (
            f"{machine[key]} {word}{'s' if machine[key] > 1 else ''}"
            for key, word in (("cores", "core"), ("torch_threads", "thread"))
        )
        remark = f" {content['note']}" if content["note"] else ""
        conditions.append(
            f"- {name}: {machine['cpu']}, {cores}, {threads}; "
            + ", ".join(f"{package} {version}" for package, version in versions.items()) + f".{remark}"
        )  # fmt: skip
    return "\n".join([*lines, "", *conditions])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="compare only")
    arguments = options.parse_args()
    text = README.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = f"{before}{START}\n{table()}\n{END}{after}"
    if arguments.check:
        sys.exit(0 if wanted == text else "README.md: the table is not what results/ says; run benchmarks/report.py")
    README.write_text(wanted)


if __name__ == "__main__":
    main()
