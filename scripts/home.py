"""Write the public address of the project wherever it is needed: ``python scripts/home.py owner/name``.

The setting is ``repository.url`` in ``_config.yml``. It is repeated in the notebooks (setup cell, Colab links), in the
README, in CITATION.cff and in pyproject.toml, which cannot read a setting.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from setup_cell import ROOT, read_home

REPOSITORY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?/[A-Za-z0-9._-]+")


def files() -> list[Path]:
    """Every file that holds the address."""
    named = [ROOT / name for name in ("_config.yml", "README.md", "CITATION.cff", "pyproject.toml")]
    return named + sorted((ROOT / "book").glob("*.ipynb"))


def set_home(repository: str) -> list[Path]:
    """Replace the address by that of ``repository`` ("owner/name" on GitHub) and return the files that changed.

    Raises:
        ValueError: when ``repository`` is not of the form owner/name.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"REPO: expected owner/name of a GitHub repository; got {repository!r}")
    old = read_home().removeprefix("https://github.com/")
    # The name ends where the address does: owner/name is not to be found inside owner/name-of-another.
    address = re.compile(rf"(github(?:\.com)?/){re.escape(old)}(?![A-Za-z0-9_-])")
    changed = []
    for path in files():
        before = path.read_text(encoding="utf-8")
        after = address.sub(rf"\g<1>{repository}", before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    try:
        for path in set_home(sys.argv[1] if len(sys.argv) > 1 else ""):
            print(path.relative_to(ROOT))
    except ValueError as error:
        sys.exit(f"make home: {error}. For example: make home REPO=owner/name")
