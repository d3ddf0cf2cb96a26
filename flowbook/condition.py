"""What a condition is: None, a tensor with the batch first, or a dict or tuple of such.

A condition is handed on to the velocity as it is. Only a model that says ``num_classes`` has integer labels, which are
checked: from 0 to num_classes - 1, and -1 for a sample without one if its ``missing`` says so. What stands for "no
condition" is the model's ``null``: a label, a number (NaN for the vectors and sequences of this package's networks), an
embedding, or a dict with the keys that it replaces.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook._core.tree import leaves, map_condition
from flowbook.velocity import Velocity, inside, said_by

Condition = Tensor | Mapping[str, Any] | Sequence[Any] | None
"""None, a tensor with the batch first, or a dict or tuple of conditions."""
Null = float | Tensor | Mapping[str, Any] | Sequence[Any] | None
"""A value that means "no condition", of one sample or of a batch; or a dict or tuple of such, as the condition is."""


def joined(conditions: Sequence[Condition]) -> Any:
    """Conditions of the same form, one batch after the other.

    Example:
        >>> joined([torch.tensor([1, 2]), torch.tensor([3])])
        tensor([1, 2, 3])
    """
    return map_condition(lambda *parts: torch.cat(parts), *conditions)


def repeated(y: Condition, times: int) -> Any:
    """The whole batch again and again.

    Example:
        >>> repeated({"label": torch.tensor([1, 2])}, 2)
        {'label': tensor([1, 2, 1, 2])}
    """
    return map_condition(lambda part: part.repeat(times, *[1] * (part.dim() - 1)), y)


def rows_of(y: Condition) -> int:
    """The number of rows of a condition: the length of its first tensor.

    Raises:
        ValueError: for a condition without a tensor.

    Example:
        >>> rows_of({"label": torch.tensor([1, 2])})
        2
    """
    for name, tensor in leaves(y):
        if tensor.dim() == 0:
            raise ValueError(f"{name}: expected a tensor with the batch first; got a single number")
        return len(tensor)
    raise ValueError(f"y: expected a tensor, or a dict or tuple with one; got {_form(y)}")


def check_condition(name: str, y: Condition, batch: int, model: Velocity | None = None) -> None:
    """Raise for a condition that has no row for each sample, or is not one of the model's labels.

    Args:
        name: of the argument, for the message.
        y: the condition.
        batch: the number of samples.
        model: its ``num_classes``, if it has any, says that a tensor y holds labels.

    Raises:
        ValueError, TypeError: with the name of the part that is wrong.

    Example:
        >>> check_condition("y", {"text": torch.zeros(3, 8)}, batch=4)
        Traceback (most recent call last):
        ValueError: y.text: expected a row for each of 4 samples; got shape (3, 8)
    """
    if y is None:
        return
    if isinstance(y, Tensor) and (classes := said_by(model, "num_classes")) is not None:
        null = said_by(model, "null")
        count = max(classes, null + 1) if validate.is_integer(null) else classes
        validate.labels(name, y, batch, classes=count, missing=said_by(model, "missing"))
        return
    for part, tensor in leaves(y, name):
        if tensor.dim() == 0 or len(tensor) != batch:
            raise ValueError(f"{part}: expected a row for each of {batch} samples; got shape {tuple(tensor.shape)}")


def as_null(null: Null, y: Condition) -> Any:
    """The null condition for a whole batch, in the form of its condition.

    Args:
        null: what stands for "no condition". A dict replaces only the parts of y whose keys it has.
        y: the condition.

    Raises:
        TypeError, ValueError: for a null that does not fit.

    Example:
        >>> as_null({"label": 10}, {"label": torch.tensor([1, 2]), "size": torch.ones(2)})
        {'label': tensor([10, 10]), 'size': tensor([1., 1.])}
    """
    if y is None or null is None:
        return y
    if isinstance(y, Tensor):
        return _filled(null, y)
    if isinstance(y, Mapping) and isinstance(null, Mapping):
        if not set(y) & set(null):
            raise ValueError(f"null: expected some of the keys of y, {', '.join(y)}; got {', '.join(null) or 'none'}")
        return {key: as_null(null.get(key), part) for key, part in y.items()}
    if isinstance(y, (tuple, list)) and isinstance(null, (tuple, list)) and len(null) == len(y):
        return tuple(as_null(*parts) for parts in zip(null, y, strict=True))
    raise TypeError(f"null: expected one of the form of y, {_form(y)}; got {_form(null)}")


def is_null(null: Null, y: Condition) -> bool:
    """Whether the condition of any sample is the null; where there is a null, a label -1 counts as one.

    Example:
        >>> is_null(10, torch.tensor([1, 10])), is_null(float('nan'), torch.zeros(2, 3))
        (True, False)
    """
    filled = [part for _, part in leaves(as_null(null, y))]
    for (_, part), value in zip(leaves(y), filled, strict=True):
        if value is part:  # a part that the null leaves as it is
            continue
        same = (part == value) | (part.isnan() & value.isnan() if part.is_floating_point() else part == -1)
        if len(part) and bool(same.flatten(1).all(1).any() if same.dim() > 1 else same.any()):
            return True
    return False


@dataclass(frozen=True)
class TrainedOn:
    """What the batches of a training held, as far as conditions go; ``fit`` notes it with the network."""

    something: bool
    """Whether there was a condition."""
    nothing: bool
    """Whether there was none, or its null, by ``condition_dropout`` or in the data."""


def remember(network: nn.Module, trained: TrainedOn | None) -> None:
    """Note with a network what it was trained on.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> remember(network, TrainedOn(something=True, nothing=False))
        >>> trained_on(nn.DataParallel(network))
        TrainedOn(something=True, nothing=False)
    """
    network._trained_on = trained  # type: ignore[assignment]  # private: it does not change what the network computes


def trained_on(velocity: Velocity | None) -> TrainedOn | None:
    """What the network inside a velocity was trained on; None where nobody knows.

    Example:
        >>> trained_on(lambda x, t: x) is None
        True
    """
    model: Any = velocity
    while model is not None:
        found = vars(model).get("_trained_on") if isinstance(model, nn.Module) else None
        if isinstance(found, TrainedOn):
            return found
        model = inside(model)
    return None


def warn_untrained(velocity: Velocity, y: Condition, *, stacklevel: int) -> None:
    """Warn where a network is asked for what it has not learned: with a condition, or without one."""
    if torch.compiler.is_compiling():
        return
    known = trained_on(velocity)
    if known is None or (known.nothing if y is None else known.something):
        return
    asked = "without a condition, y=None" if y is None else "with a condition y"
    seen = "with a condition on every sample" if known.something else "without any condition"
    remedy = "give a y, or train with condition_dropout" if y is None else "train on (x1, y)"
    warnings.warn(
        f"y: the network is asked for samples {asked}, but was trained {seen}; {remedy}", stacklevel=stacklevel + 1
    )


def _filled(null: Any, y: Tensor) -> Tensor:
    if isinstance(null, bool) and y.dtype == torch.bool:
        null = torch.tensor(null, device=y.device)
    if not isinstance(null, Tensor) and not validate.is_number(null):
        raise TypeError(f"null: expected one of the form of y, {_form(y)}; got {_form(null)}")
    value = null.to(y.device) if isinstance(null, Tensor) else torch.as_tensor(null, device=y.device)
    dtype = _holding(value, y.dtype)
    try:
        return value.to(dtype).expand(y.shape)
    except RuntimeError as error:
        raise ValueError(
            f"null: expected the shape of a condition, {tuple(y.shape[1:])}, or of the batch, {tuple(y.shape)}; "
            f"got {tuple(value.shape)}"
        ) from error


def _holding(null: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a condition, or int64 for labels among which the null does not fit."""
    if dtype.is_floating_point or dtype.is_complex or null.dtype == dtype:
        return dtype
    if null.is_floating_point() or null.is_complex():
        raise TypeError(f"null: expected an integer, since y has dtype {dtype}; got {null.tolist()}")
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    fits = not validate.values_are_readable(null) or bool(((null >= low) & (null <= high)).all())
    return dtype if fits else torch.int64


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a tuple of {len(value)}"
    return validate.described(value)
