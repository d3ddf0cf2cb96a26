"""Validation of arguments at the public entry points.

Each error names the argument, what was expected and what it got instead. Types and shapes are always checked: that
costs nothing. Values are checked only where reading them is free: on the CPU, in eager mode, outside ``vmap`` and
``torch.compile`` (reading a value from a GPU would make the host wait for it).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TIME_SLACK = 1e-6
"""Times may leave [0, 1] by this much, for rounding."""


def values_are_readable(x: Tensor) -> bool:
    """True where reading the values of ``x`` needs no synchronization and breaks no graph."""
    if torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_integer(value: Any) -> bool:
    """Python's and NumPy's integers, but not True and False."""
    # The exact types first: isinstance with numbers.Integral takes ten times as long.
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def is_number(value: Any) -> bool:
    """Python's and NumPy's real numbers, but not True and False."""
    return type(value) in (float, int) or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False; got {value!r}")


def instance(name: str, value: Any, kind: type, example: str) -> None:
    """``value`` is an object of a class, not the class itself or a name for it."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__} such as {example}; got {described(value)}")


def function(name: str, value: Any, example: str) -> None:
    """``value`` is callable but not a class, of which an instance would be expected."""
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"{name}: expected a function or an object such as {example}; got {described(value)}")


def generator(value: Any) -> None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None; got {value!r}")


def described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    return repr(value) if isinstance(value, (str, int, float)) or value is None else f"a {type(value).__name__}"


def one_of(name: str, value: Any, options: Sequence[Any]) -> None:
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name}: expected one of {listed}; got {value!r}")


def float_tensor(name: str, x: Any, *, min_dim: int = 0, finite: bool = False) -> None:
    """``x`` is a floating-point tensor with at least ``min_dim`` dimensions (without NaN or infinity if ``finite``)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor; got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor; got dtype {x.dtype}")
    if x.dim() < min_dim:
        raise ValueError(f"{name}: expected at least {min_dim} dimensions (batch first); got shape {tuple(x.shape)}")
    if not finite or torch.compiler.is_compiling() or x.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name}: expected finite numbers; got {bad} of {x.numel()} NaN or infinite")


def same_shape(name: str, x: Any, other_name: str, other: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor; got {type(x).__name__}")
    if x.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {tuple(other.shape)}; got {tuple(x.shape)}")


def velocity_like(v: Any, x: Tensor) -> None:
    """A velocity's output has the shape and dtype of x; otherwise a step would silently change them."""
    same_shape("velocity(x, t, y)", v, "x", x)
    if v.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"velocity(x, t, y): expected the dtype of x, {x.dtype}; got {v.dtype}")


def time(name: str, t: Any, batch: int | None = None, *, values: bool = True) -> None:
    """``t`` is a number or a float tensor, 0-d or of shape ``(batch,)``, within [0, 1] (a tensor: if ``values``)."""
    if isinstance(t, Tensor):
        if not t.is_floating_point():
            raise TypeError(f"{name}: expected a float time in [0, 1]; got a tensor of dtype {t.dtype}")
        if t.dim() > 1 or (t.dim() == 1 and batch is not None and t.shape[0] != batch):
            wanted = "()" if batch is None else f"() or ({batch},)"
            raise ValueError(f"{name}: expected a scalar or one time per sample, shape {wanted}; got {tuple(t.shape)}")
        if not values or not values_are_readable(t) or t.numel() == 0:
            return
        if t.dim() == 0:
            low = high = float(t)
        else:
            low, high = (float(v) for v in t.detach().aminmax())
    elif is_number(t):
        low = high = float(t)
    else:
        raise TypeError(f"{name}: expected a float or a tensor in [0, 1]; got {type(t).__name__}")
    if not (low >= -TIME_SLACK and high <= 1 + TIME_SLACK):
        raise ValueError(f"{name}: expected times in [0, 1] (0 is noise, 1 is data); got {low:g} to {high:g}")


def labels(name: str, y: Any, batch: int, classes: int | None = None, missing: int | None = None) -> None:
    """``y`` is an integer tensor ``(batch,)`` of labels below ``classes``, or ``missing``."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: expected an integer tensor of labels; got {type(y).__name__}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{name}: expected integer labels; got dtype {y.dtype}")
    if y.shape != (batch,):
        raise ValueError(f"{name}: expected one label per sample, shape ({batch},); got {tuple(y.shape)}")
    if classes is not None and y.numel() and values_are_readable(y):
        low, high = (int(v) for v in y.aminmax())
        if low < (0 if missing is None else missing) or high >= classes:
            raise ValueError(f"{name}: expected labels from 0 to {classes - 1}; got {low} to {high}")


def positive_int(name: str, value: Any, *, at_least: int = 1) -> None:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer of at least {at_least}; got {value!r}")
    if value < at_least:
        raise ValueError(f"{name}: expected an integer of at least {at_least}; got {value}")


def finite(name: str, value: Any) -> None:
    """``value`` is a number, not infinite and not NaN."""
    if not is_number(value):
        raise TypeError(f"{name}: expected a number; got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number; got {value!r}")


def number(name: str, value: Any, low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> None:
    """``value`` is a number between ``low`` and ``high``."""
    if not is_number(value):
        raise TypeError(f"{name}: expected a number; got {value!r}")
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below):
        left, right = "(" if low_open else "[", ")" if high_open else "]"
        raise ValueError(f"{name}: expected a number in {left}{low:g}, {high:g}{right}; got {value!r}")
