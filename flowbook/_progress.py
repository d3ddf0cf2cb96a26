"""The progress bar."""

from __future__ import annotations

import warnings
from typing import Any


def tqdm(**options: Any) -> Any:
    """tqdm's bar for the terminal or the notebook, without its advice to install ipywidgets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm as bar
    return bar(**options)
