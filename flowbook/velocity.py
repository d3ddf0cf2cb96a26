"""What a velocity is: how it is called, what a call costs, and what wraps it."""

from __future__ import annotations

import functools
import inspect
import itertools
import types
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Velocity(Protocol):
    """Any callable ``v(x, t, y=None)`` that returns a tensor like ``x``: a network, a function, a lambda.

    ``x`` is the state, shape (B, ...), ``t`` the time in [0, 1], a scalar or shape (B,), and ``y`` the condition (see
    :mod:`flowbook.condition`) or None. Without a condition the third argument is omitted, so ``lambda x, t: -x`` is a
    velocity too.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


def call(velocity: Velocity, x: Tensor, t: Tensor | float, y: Any) -> Tensor:
    """``velocity(x, t, y)``, or ``velocity(x, t)`` where there is no condition.

    Example:
        >>> call(lambda x, t: 2 * x, torch.ones(1, 1), 0.5, None)
        tensor([[2.]])
    """
    return velocity(x, t) if y is None else velocity(x, t, y)


def check_order(velocity: Velocity, order: str = "x,t") -> None:
    """Raise for a velocity whose arguments are named as if they came in the other order: called, it may do something.

    Args:
        velocity: a function, a network, or another object that can be called, also behind torch's wrappers.
        order: that is expected, "x,t" or "t,x".

    Raises:
        TypeError: with the remedy.

    Example:
        >>> check_order(lambda x, t: t * x)
        >>> check_order(lambda t, x: t * x, order="t,x")
    """
    if torch.compiler.is_compiling():
        return
    names = _first_names(velocity)
    if len(names) < 2:
        return
    state, time = (names[0], names[1]) if order == "x,t" else (names[1], names[0])
    if state in TIME_NAMES and time in STATE_NAMES:
        got = f"got one whose first two arguments are {names[0]}, {names[1]}"
        if order == "t,x":
            raise TypeError(f'f: expected f(t, x), the time first, as order="t,x" says; {got}')
        remedy = 'flowbook.adapters.from_callable(velocity, order="t,x") turns it round'
        raise TypeError(f"velocity: expected v(x, t), the state first; {got}: {remedy}")


def _first_names(velocity: Any) -> tuple[str, ...]:
    """The names of the first two arguments, as far as they can be read."""
    while isinstance(velocity, nn.Module) and (inner := inside(velocity)) is not None:
        velocity = inner
    skipped, named = 0, set[str]()
    while isinstance(velocity, functools.partial):
        skipped, named = skipped + len(velocity.args), named | set(velocity.keywords)
        velocity = velocity.func
    if isinstance(velocity, nn.Module):
        function: Any = type(velocity).forward
    elif isinstance(velocity, (types.FunctionType, types.MethodType)):
        function = velocity
    else:
        function = vars(type(velocity)).get("__call__", velocity)
    bound = function is not velocity or isinstance(function, types.MethodType)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return ()
    names = code.co_varnames[int(bound) + skipped : code.co_argcount]
    return tuple(name for name in names if name not in named)[:2]


TIME_NAMES = ("t", "time", "times", "timestep", "timesteps", "sigma")
STATE_NAMES = ("x", "xt", "x_t", "state", "sample", "hidden_states")


def model_calls(velocity: Velocity) -> int:
    """How many times the underlying network runs in one call: 1, or the velocity's own ``model_calls``.

    Example:
        >>> model_calls(lambda x, t: x)
        1
    """
    return int(getattr(velocity, "model_calls", 1))


class evaluating:
    """Put every module of the velocity in eval mode, and restore the mode of each afterwards.

    A function's modules are those that :func:`modules_of` finds.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(lambda x, t: network(x)):
        ...     network.training
        False
        >>> network.training
        True
    """

    def __init__(self, velocity: Velocity):
        self.velocity = velocity
        self.training: list[nn.Module] = []

    def __enter__(self) -> None:
        self.training = [part for found in modules_of(self.velocity) for part in found.modules() if part.training]
        for module in self.training:
            module.training = False

    def __exit__(self, *raised: object) -> None:
        for module in self.training:
            module.training = True


def modules_of(velocity: Any) -> list[nn.Module]:
    """The modules that a velocity calls: itself, or those that a function, a method or an object refers to.

    Found are modules among the variables that a function uses, its defaults, the arguments of a ``functools.partial``,
    and the attributes of an object, also in lists and dicts there; and so on for what can be called among them. Under
    ``torch.compile`` only modules are seen.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> modules_of(lambda x, t: network(x)) == [network], modules_of(lambda x, t: -x)
        (True, [])
    """
    if torch.compiler.is_compiling():
        return [velocity] if isinstance(velocity, nn.Module) else []
    found: list[nn.Module] = []
    seen, waiting = set(), [velocity]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, nn.Module):
            found.append(one)
            waiting += _callables(value for part in one.modules() for value in vars(part).values())
        else:
            waiting += _callables(_referred(one))
    return found


FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


def called_by(function: Any) -> list[Any]:
    """The modules, functions and partials that a function or a partial is made of: its closure, defaults, arguments.

    Of its global variables only the modules, since a velocity is rarely meant by a function there.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> called_by(functools.partial(network))
        [Linear(in_features=1, out_features=1, bias=True)]
    """
    known = (nn.Module, *FUNCTIONS)
    if not isinstance(function, types.FunctionType):
        return [part for part in _referred(function) if isinstance(part, known)]
    used = inspect.getclosurevars(function)
    close = [*used.nonlocals.values(), *(function.__defaults__ or ())]
    modules = [part for part in used.globals.values() if isinstance(part, nn.Module)]
    return [part for part in close if isinstance(part, known) and part is not function] + modules


def _callables(values: Iterable[Any]) -> list[Any]:
    """What can be called among values, and in lists and dicts among them, and may hold modules."""
    found = []
    for value in values:
        parts = value.values() if type(value) is dict else value if isinstance(value, (list, tuple)) else (value,)
        found += [part for part in parts if callable(part) and not isinstance(part, (type, types.BuiltinFunctionType))]
    return found


def _referred(one: Any) -> list[Any]:
    """What a callable that is no module refers to."""
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    if isinstance(one, types.MethodType):
        return [one.__func__, one.__self__, *getattr(one.__self__, "__dict__", {}).values()]
    if isinstance(one, types.FunctionType):
        used = inspect.getclosurevars(one)
        return [*used.nonlocals.values(), *used.globals.values(), *(one.__defaults__ or ())]
    return [] if isinstance(one, type) else list(getattr(one, "__dict__", {}).values())


def device_of(velocity: Velocity) -> torch.device:
    """The device of the parameters, also of a module inside a function; the CPU for a velocity without any.

    Example:
        >>> device_of(lambda x, t: x)
        device(type='cpu')
    """
    for module in modules_of(velocity):
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            return tensor.device
    return torch.device("cpu")


def dtype_of(velocity: Velocity) -> torch.dtype | None:
    """The dtype of the parameters, also of a module inside a function; None for a velocity without any.

    Example:
        >>> dtype_of(nn.Linear(1, 1).double()), dtype_of(lambda x, t: x)
        (torch.float64, None)
    """
    for module in modules_of(velocity):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return None


class Wrapper(nn.Module):
    """A module around another model that forwards the model's cost per call, and what it says about conditions.

    A subclass names the attribute that holds the model in ``_inner``, and sets ``_transparent`` if it changes only how
    the model is computed.
    """

    _inner = "velocity"
    _transparent = False

    @property
    def model_calls(self) -> int:
        """How many times the inner network runs in one call."""
        return model_calls(getattr(self, self._inner))

    def __getattr__(self, name: str) -> Any:
        if name in ("null", "num_classes", "missing", "classes", "standardizer"):
            return said_by(getattr(self, self._inner), name)
        return super().__getattr__(name)


def inside(model: Any) -> Any:
    """The model that a wrapper of torch or of this package holds; None for any other model.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> inside(nn.DataParallel(network)) is network, inside(network)
        (True, None)
    """
    if isinstance(model, nn.Module) and "_orig_mod" in model._modules:  # torch.compile
        return model._orig_mod
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return getattr(model, model._inner) if isinstance(model, Wrapper) else None


def unwrapped(model: Any) -> Any:
    """The model inside wrappers that change only how it is computed: torch's own, Autocast and Compiled.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> unwrapped(nn.DataParallel(network)) is network
        True
    """
    while (inner := inside(model)) is not None and (not isinstance(model, Wrapper) or model._transparent):
        model = inner
    return model


def said_by(velocity: Velocity | None, name: str) -> Any:
    """What a model says about itself in an attribute, also behind torch's wrappers; None if it does not.

    Models may have ``num_classes`` (integer labels), ``null`` (what stands for "no condition") and ``path``; and, by
    ``fit``, ``classes`` (the names of the labels) and ``standardizer`` (how their data were scaled).

    Example:
        >>> from flowbook.models import MLP
        >>> said_by(MLP(2, num_classes=10), "null"), said_by(lambda x, t: x, "null")
        (10, None)
    """
    said = getattr(velocity, name, None)
    return getattr(getattr(velocity, "module", None), name, None) if said is None else said
