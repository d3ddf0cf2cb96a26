"""The SHA-256 hex digest of a model's parameters and settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type)


def digest(value: Any) -> str:
    """The SHA-256 hex digest of tensors, modules and plain values: of all parameters, buffers and public attributes.

    Raises:
        TypeError: for a function, alone or nested: its name does not determine what it computes.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> before = digest(layer)
        >>> _ = layer.weight.data.add_(1.0)
        >>> digest(layer) != before
        True
    """
    sha = hashlib.sha256()
    _add(sha, value)
    return sha.hexdigest()


def _add(sha: Any, value: Any) -> None:
    kind = type(value)
    sha.update(f"<{kind.__module__}.{kind.__qualname__}>".encode())
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.Size)):
        sha.update(repr(value).encode())
    elif isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else torch.from_numpy(value.copy())
        sha.update(f"{array.dtype} {tuple(array.shape)}".encode())
        flat = (
            array.reshape(-1) if array.numel() != 1 else array.reshape(())[None]
        )  # a single number may have any stride
        sha.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, (list, tuple)):
        for part in value:
            _add(sha, part)
    elif isinstance(value, dict):
        for name, part in value.items():
            _add(sha, name)
            _add(sha, part)
    elif isinstance(value, nn.Module):
        _add(sha, _settings(value))
        for group in (value._parameters, value._buffers, value._modules):
            _add(sha, dict(group))
    elif dataclasses.is_dataclass(value) or (hasattr(value, "__dict__") and not isinstance(value, FUNCTIONS)):
        _add(sha, _settings(value))
    else:
        raise TypeError(f"{kind.__name__} has no parameters or settings that identify it")


def _settings(value: Any) -> dict[str, Any]:
    """The public attributes; `training` is a mode, not a setting."""
    return {name: part for name, part in vars(value).items() if not name.startswith("_") and name != "training"}
