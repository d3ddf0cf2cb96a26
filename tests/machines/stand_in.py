"""A device without float64, as Apple's GPUs are, on a machine that has none: tensors that say they are elsewhere.

Inside :class:`apple` a tensor on "mps" holds one on the CPU. Every operation on it is carried out there, and refused
where a real one would refuse it: a float64 on the device, and operands on two devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "apple"
DOUBLE = (torch.float64, torch.complex128)
REFUSED = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"


class Elsewhere(Tensor):
    """A tensor that says it is on the device, around one on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        if held.dtype in DOUBLE:
            raise TypeError(REFUSED)
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(NAME, 0), requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return carried_out(func, args, kwargs or {})


def on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


TRANSFERS = ("aten::_to_copy", "aten::copy_", "aten::to")
INDEXING = ("aten::index", "aten::_local_scalar_dense")


def carried_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; its results are on the device if its operands were, or if it was asked for."""
    tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
    there = any(isinstance(part, Elsewhere) for part in tensors)
    name = func._schema.name
    if there and not name.startswith((*TRANSFERS, *INDEXING)):
        foreign = [part for part in tensors if not isinstance(part, Elsewhere) and part.dim() > 0]
        if foreign:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found two! ({name})")
    plain_args, plain = tree_map(held_by, args), {key: held_by(value) for key, value in kwargs.items()}
    if "device" in plain and plain["device"] is not None:
        there = on_device(plain["device"])
        plain["device"] = torch.device("cpu") if there else plain["device"]
    if there and plain.get("dtype") in DOUBLE:
        raise TypeError(REFUSED)
    out = func(*plain_args, **plain)
    if name in ("aten::copy_",) or (name.endswith("_") and isinstance(args[0], Tensor)):
        return args[0]
    return tree_map(lambda part: placed(part, there), out)


def held_by(value: Any) -> Any:
    return tree_map(lambda part: part.held if isinstance(part, Elsewhere) else part, value)


def placed(part: Any, there: bool) -> Any:
    return Elsewhere(part) if there and isinstance(part, Tensor) and not isinstance(part, Elsewhere) else part


class _Creations(TorchDispatchMode):
    """Tensors that are made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if on_device(kwargs.get("device")) or any(
            isinstance(part, Elsewhere) for part in tree_flatten((args, kwargs))[0]
        ):
            return carried_out(func, args, kwargs)
        return func(*args, **kwargs)


class _FromNumbers(TorchFunctionMode):
    """``torch.tensor`` and ``torch.as_tensor`` of numbers: made on the CPU, then moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and on_device(kwargs.get("device")):
            device = kwargs.pop("device")
            if kwargs.get("dtype") in DOUBLE:
                raise TypeError(REFUSED)
            return func(*args, **kwargs).to(device)
        if func in (Tensor.tolist, Tensor.numpy) and isinstance(args[0], Elsewhere):
            if func is Tensor.numpy:
                raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


class _Module:
    """What torch asks a device's module for."""

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "is_initialized": True,
            "is_available": True,
            "current_device": 0,
            "device_count": 1,
            "manual_seed_all": None,
            "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
            "_is_in_bad_fork": False,
            "_lazy_init": None,
        }
        return lambda *arguments: answers[name]


def register() -> None:
    """Make the device known to this process, before its first backward pass."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    from flowbook._core import keyed, times

    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module())
    times.WITHOUT_FLOAT64.add(NAME)
    torch.accelerator.is_available = lambda: False  # it has no streams
    keyed._generator = lambda device: torch.Generator()  # type: ignore[assignment]  # random numbers come from the CPU
    made = torch.library.Library("aten", "IMPL")
    for name in ("empty.memory_format", "empty_strided"):  # outside the modes below, which belong to a thread
        made.impl(name, _created(getattr(torch.ops.aten, name.partition(".")[0])), "PrivateUse1")
    register.library = made  # type: ignore[attr-defined]  # which it has to outlive


def _created(func: Any) -> Any:
    return lambda *args, **kwargs: Elsewhere(func(*args, **{**kwargs, "device": "cpu"}))


@contextlib.contextmanager
def apple() -> Iterator[torch.device]:
    """The device, inside the block."""
    with _FromNumbers(), _Creations():  # type: ignore[no-untyped-call]
        yield torch.device(NAME, 0)
