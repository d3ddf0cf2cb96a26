"""The progress bar: by default it is shown in a terminal only."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds after which a solve shows its progress."""


def bar(show: bool | None = None, **options: Any) -> Any:
    """tqdm's bar for the terminal or the notebook, without its warning that ipywidgets is missing.

    Args:
        show: None shows it in a terminal only.
        options: passed on to tqdm.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm
    return tqdm(disable=not (watched() if show is None else show), **options)


def watched() -> bool:
    """Whether stderr is a terminal, so that someone is likely to read it."""
    return sys.stderr is not None and sys.stderr.isatty()


def patiently(steps: Sequence[T], unit: str = "step") -> Iterable[T]:
    """The same steps, with a progress bar in a terminal if they take longer than a few seconds."""
    if torch.compiler.is_compiling() or not watched():
        return steps
    shown: Iterable[T] = bar(iterable=steps, unit=unit, delay=PATIENCE, leave=False)
    return shown
