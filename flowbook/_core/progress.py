"""The progress bar, shown where a person watches: in a terminal, unless asked for elsewhere."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds after which a solve shows that it is alive."""


def bar(show: bool | None = None, **options: Any) -> Any:
    """tqdm's bar for the terminal or the notebook, without its advice to install ipywidgets.

    Args:
        show: None shows it in a terminal only.
        options: tqdm's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm
    return tqdm(disable=not (watched() if show is None else show), **options)


def watched() -> bool:
    """Whether a person is likely to see what is written to stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def patiently(steps: Sequence[T], unit: str = "step") -> Iterable[T]:
    """The same steps, with a bar where a person watches and they take longer than a few seconds."""
    if torch.compiler.is_compiling() or not watched():
        return steps
    shown: Iterable[T] = bar(iterable=steps, unit=unit, delay=PATIENCE, leave=False)
    return shown
