"""Frozen dataclasses whose ``__init__`` is written by hand."""

from __future__ import annotations

from typing import Any


def set_fields(instance: Any, **values: Any) -> None:
    """Set the fields of a frozen dataclass, in its ``__init__``."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
