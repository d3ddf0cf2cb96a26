"""The first code cell of every notebook, in one place: ``python scripts/setup_cell.py`` prints it.

The address of the project is the setting ``repository.url`` of ``_config.yml``. As long as it holds `UNSET`, a notebook
that does not find the package stops with a message instead of installing something. ``scripts/home.py`` sets it.
"""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
UNSET = "https://github.com/_unset_/flowbook"
"""The address while there is none. GitHub's account names hold no underscore at the start, so nobody can own it."""

TEMPLATE = """\
# Installs flowbook where it is missing, as in Colab, and leaves torch and NumPy as they are. Elsewhere: seed and style.
import os
import subprocess
import sys
import tempfile
from importlib import invalidate_caches, metadata, util

if util.find_spec("flowbook") is None:
    home = os.environ.get("FLOWBOOK_HOME", "@HOME@")
    if "/_unset_/" in home:
        raise RuntimeError("flowbook is not installed and has no public address yet: set FLOWBOOK_HOME to a git one")
    there = [name for name in ("torch", "torchvision", "numpy") if util.find_spec(name)]
    held = [f"{name}=={metadata.version(name)}" for name in there]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        print(*held, sep="\\n", file=constraints, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints.name]
        subprocess.run([*pip, f"git+{home}"], check=True)
    invalidate_caches()
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that spin longer stall a busy machine
import torch
from flowbook.book import plotting

torch.manual_seed(0)
torch.set_num_threads(1)
plotting.set_style()
"""


def read_home() -> str:
    """The address of the project, as ``_config.yml`` has it."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return str(config["repository"]["url"])


def setup_cell(home: str) -> str:
    """The source of the cell for a project at ``home``, without a final newline (as notebooks keep it)."""
    return TEMPLATE.replace("@HOME@", home).rstrip("\n")


if __name__ == "__main__":
    print(setup_cell(read_home()))
