"""Conditions as trees of tensors: dicts and tuples, with tensors and None as leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowbook._core import validate


def leaves(y: Any, name: str = "y") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a condition, each with its name.

    Example:
        >>> [name for name, _ in leaves({"label": torch.zeros(1), "text": (torch.zeros(1), None)})]
        ['y.label', 'y.text.0']
    """
    if isinstance(y, Tensor):
        yield name, y
    elif isinstance(y, Mapping):
        for key, part in y.items():
            if not isinstance(key, str):
                raise TypeError(f"{name}: expected a dict with strings as keys; got the key {key!r}")
            yield from leaves(part, f"{name}.{key}")
    elif isinstance(y, (tuple, list)):
        for place, part in enumerate(y):
            yield from leaves(part, f"{name}.{place}")
    elif y is not None:
        raise TypeError(
            f"{name}: expected a tensor with the batch first, or a dict or tuple of such; got {validate.described(y)}"
        )


def map_condition(function: Callable[..., Any], y: Any, *others: Any) -> Any:
    """Apply a function to each tensor of a condition, and to the tensors in the same places of others.

    Example:
        >>> map_condition(lambda a, b: a + b, {"a": torch.ones(1), "b": None}, {"a": torch.ones(1), "b": None})
        {'a': tensor([2.]), 'b': None}
    """
    if y is None:
        return None
    if isinstance(y, Mapping):
        return {key: map_condition(function, part, *(other[key] for other in others)) for key, part in y.items()}
    if isinstance(y, (tuple, list)):
        return tuple(map_condition(function, *parts) for parts in zip(y, *others, strict=True))
    return function(y, *others)


def form_of(y: Any) -> Any:
    """The form of a condition as JSON: for each tensor its dtype and the shape of a row.

    Example:
        >>> form_of({"label": torch.zeros(3, dtype=torch.long), "text": None})
        {'label': ['int64', []], 'text': None}
    """
    if isinstance(y, Mapping):
        return {key: form_of(part) for key, part in y.items()}
    if isinstance(y, (tuple, list)):
        return {"": [form_of(part) for part in y]}  # a list is a tensor's
    return None if y is None else [str(y.dtype).removeprefix("torch."), list(y.shape[1:])]


def fields_of(form: Any, name: str = "y") -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and the shape of a row of each tensor of a form, by its name.

    Example:
        >>> fields_of({"label": ["int64", []], "text": None})
        {'y.label': ('int64', ())}
    """
    if form is None:
        return {}
    if isinstance(form, list):
        return {name: (form[0], tuple(form[1]))}
    parts = enumerate(form[""]) if "" in form else form.items()
    return {field: value for key, part in parts for field, value in fields_of(part, f"{name}.{key}").items()}


def built(form: Any, tensors: Mapping[str, Tensor], name: str = "y") -> Any:
    """A condition of a form from its tensors by name.

    Example:
        >>> built({"label": ["int64", []], "text": None}, {"y.label": torch.tensor([3])})
        {'label': tensor([3]), 'text': None}
    """
    if form is None:
        return None
    if isinstance(form, list):
        return tensors[name]
    if "" in form:
        return tuple(built(part, tensors, f"{name}.{place}") for place, part in enumerate(form[""]))
    return {key: built(part, tensors, f"{name}.{key}") for key, part in form.items()}


def stored_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype in which tensors of a dtype are stored; NumPy has no bfloat16, whose bits are stored.

    Example:
        >>> stored_dtype("float32"), stored_dtype("bfloat16")
        (dtype('float32'), dtype('int16'))
    """
    return np.dtype("int16" if name == "bfloat16" else name)


def as_stored(x: Tensor) -> Tensor:
    """A tensor as it is stored: see :func:`stored_dtype`."""
    return x.contiguous().view(torch.int16) if x.dtype == torch.bfloat16 else x


def from_stored(x: np.ndarray[Any, Any], name: str) -> Tensor:
    """The inverse of :func:`as_stored`.

    Example:
        >>> from_stored(as_stored(torch.ones(1, dtype=torch.bfloat16)).numpy(), "bfloat16")
        tensor([1.], dtype=torch.bfloat16)
    """
    tensor = torch.from_numpy(x)
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor
