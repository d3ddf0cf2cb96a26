"""Run notebooks from top to bottom and store what they print: ``python scripts/notebooks.py book/*.ipynb``.

The same notebook gives the same file on every machine: cells are numbered 1 to n, and metadata that only tells who ran
it and when is left out. A notebook that raises is not written.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python"}
CELL_METADATA = ("tags", "mystnb")
OUTPUT_METADATA = ("scrapbook",)
SECONDS_PER_CELL = 300


def clean(notebook: NotebookNode) -> NotebookNode:
    """The notebook without volatile metadata; outputs stay. Ids of cells are their places."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                kept = {key: output.metadata[key] for key in OUTPUT_METADATA if key in output.metadata}
                output.metadata = nbformat.from_dict(kept)
    return notebook


def execute(path: Path) -> float:
    """Run the notebook in its own folder, write it back, and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        coalesce_streams=True,  # one output, however the kernel flushed it
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - start
    write(clean(notebook), path)
    return seconds


def write(notebook: NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook, version=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name} ", end="", flush=True)
        print(f"{execute(Path(name)):.0f} s", flush=True)
