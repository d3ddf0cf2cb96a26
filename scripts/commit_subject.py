"""Refuse a commit whose subject is too long: ``python scripts/commit_subject.py FILE``, as git's commit-msg hook does.

A subject is read in lists and logs, where a longer one is cut off. What it cannot hold belongs below it.
"""

from __future__ import annotations

import sys
from pathlib import Path

MAX_LENGTH = 60
OF_GIT = ("Merge ", 'Revert "', "fixup! ", "squash! ", "amend! ")
"""How the subjects begin that git writes itself."""


def subject(message: str) -> str:
    """The first line that is neither empty nor one of git's comments; empty when there is none."""
    lines = (line.strip() for line in message.splitlines() if not line.startswith("#"))
    return next(filter(None, lines), "")


def complaint(message: str) -> str:
    """What is wrong with the subject of this message; empty when nothing is."""
    line = subject(message)
    if len(line) <= MAX_LENGTH or line.startswith(OF_GIT):
        return ""
    return f"the subject has {len(line)} characters; expected {MAX_LENGTH} at most: {line}"


if __name__ == "__main__":
    sys.exit(complaint(Path(sys.argv[1]).read_text(encoding="utf-8")) or 0)
