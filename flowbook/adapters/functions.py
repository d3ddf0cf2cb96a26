"""Any function or network as a velocity, whatever its conventions."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.condition import Condition, Null, remember, trained_on
from flowbook.paths import QUANTITIES, ConvertedVelocity, LinearPath, Path, Quantity
from flowbook.velocity import check_order, said_by

Order = Literal["x,t", "t,x"]
ORDERS: tuple[Order, ...] = get_args(Order)
THEIR_NAMES: dict[str, Quantity] = {
    "epsilon": "noise", "eps": "noise", "sample": "data", "x0": "data", "x_start": "data", "v_prediction": "v",
}  # fmt: skip
"""Names that other packages have for what a model predicts."""


class Called(nn.Module):
    """A function with its conventions: how it is called, and what of its output counts; made by :func:`from_callable`.

    Calling it returns ``sign * f(x, time_scale * (1 - t if reverse else t))``.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        order: Order = "x,t",
        time_scale: float = 1.0,
        reverse: bool = False,
        sign: float = 1.0,
        condition: str | None = None,
        null: Null = None,
        fixed: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        validate.function("f", function, "a network")
        validate.one_of("order", order, ORDERS)
        validate.finite("time_scale", time_scale)
        if time_scale == 0:
            raise ValueError("time_scale: expected a number that is not 0, such as 1000; got 0")
        validate.boolean("reverse", reverse)
        validate.number("sign", sign, -math.inf, math.inf, low_open=True, high_open=True)
        if sign == 0:
            raise ValueError("sign: expected a number that is not 0, such as -1; got 0")
        if condition is not None and not isinstance(condition, str):
            raise TypeError(f"condition: expected the name of an argument, or '**'; got {condition!r}")
        if isinstance(condition, str) and condition != "**" and not condition.isidentifier():
            raise ValueError(f"condition: expected the name of an argument, or '**'; got {condition!r}")
        check_order(function, order)
        self.function, self.order, self.time_scale = function, order, float(time_scale)
        self.reverse, self.sign, self.condition, self.fixed = reverse, float(sign), condition, dict(fixed or {})
        self.null = said_by(function, "null") if null is None else null
        if not self.fixed:  # with arguments of its own, it may get a condition that is not seen here
            remember(self, trained_on(function))
        self.num_classes, self.missing = said_by(function, "num_classes"), said_by(function, "missing")

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        t = torch.as_tensor(t, device=x.device)
        if not t.is_floating_point():
            t = t.to(x.dtype)
        time = (1 - t if self.reverse else t) * self.time_scale
        if isinstance(self.function, nn.Module):  # written for one time for each sample, as in training
            time = time.expand(len(x))
        arguments = (x, time) if self.order == "x,t" else (time, x)
        out = tensor_in(self._call(arguments, y))
        if out.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            out = out.to(x.dtype)
        return out if self.sign == 1 else self.sign * out

    def _call(self, arguments: tuple[Tensor, Tensor], y: Condition) -> Any:
        if y is None:
            return self.function(*arguments, **self.fixed)
        if self.condition is None:
            return self.function(*arguments, y, **self.fixed)
        if self.condition != "**":
            return self.function(*arguments, **{self.condition: y}, **self.fixed)
        if not isinstance(y, Mapping):
            raise TypeError(f"y: expected a dict of keyword arguments with condition='**'; got {validate.described(y)}")
        return self.function(*arguments, **y, **self.fixed)


def tensor_in(output: Any) -> Tensor:
    """The tensor in a network's output: itself, the first of a tuple, or the ``sample`` of an object.

    Example:
        >>> tensor_in((torch.ones(1), "more"))
        tensor([1.])
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    output = output if isinstance(output, Tensor) else getattr(output, "sample", output)
    if not isinstance(output, Tensor):
        raise TypeError(
            "f: expected a function that returns a tensor, a tuple that starts with one, or an object with .sample; "
            f"got a {type(output).__name__}"
        )
    return output


def from_callable(
    f: Callable[..., Any],
    order: Order = "x,t",
    *,
    time_scale: float = 1.0,
    reverse: bool = False,
    sign: float = 1.0,
    output: str = "velocity",
    path: Path | None = None,
    condition: str | None = None,
    null: Null = None,
    **fixed: Any,
) -> ConvertedVelocity:
    """Any function or network as a velocity: ``sign * f(x, time_scale * (1 - t if reverse else t))``.

    Args:
        f: the function. A module gets one time for each sample, shape (B,), a function the time as it comes from the
            solver, 0-d. Of a tuple the first part counts, and of an object its ``sample``.
        order: of its first two arguments, "x,t" or "t,x".
        time_scale: times are multiplied by this before the call, such as 1000 for a network that takes steps. It does
            not change the magnitude of the output.
        reverse: f has data at time 0 and noise at the end. It does not change the sign of the output.
        sign: a factor of the output, -1 for a velocity from data to noise.
        output: what f returns: "velocity" (dx/dt), "noise", "data", "score" or "v" (of Salimans and Ho 2022, see
            :meth:`flowbook.paths.Path.convert`); or another package's name for it, such as "epsilon", "sample",
            "v_prediction", "x0".
        path: the path on which f was trained; None is LinearPath().
        condition: the name of the argument that takes y; "**" for a dict y whose entries are arguments; None passes y
            as the third one.
        null: what stands for "no condition", for guidance; None asks f for its ``null``.
        fixed: further arguments of f, the same in every call.

    Returns:
        A velocity ``v(x, t, y=None)``, a module that holds f if f is one; its ``path`` is known to what needs it.

    Raises:
        ValueError, TypeError: for invalid arguments, and when called for an output without a tensor.

    Example:
        >>> def theirs(t, x):  # noise at time 1000, and the velocity from data to noise
        ...     return x * t / 1000
        >>> v = from_callable(theirs, order="t,x", time_scale=1000.0, reverse=True, sign=-1)
        >>> v(torch.ones(1, 2), 0.25)
        tensor([[-0.7500, -0.7500]])
    """
    path = LinearPath() if path is None else path
    validate.instance("path", path, Path, "LinearPath()")
    validate.one_of("output", output, (*QUANTITIES, *THEIR_NAMES))
    quantity = THEIR_NAMES.get(output, output)
    _check_fixed(f, fixed)
    called = Called(
        f, order=order, time_scale=time_scale, reverse=reverse, sign=sign, condition=condition, null=null, fixed=fixed
    )
    return ConvertedVelocity(called, path, quantity)  # type: ignore[arg-type]


def _check_fixed(f: Callable[..., Any], fixed: Mapping[str, Any]) -> None:
    """Raise for a misspelled option, which a function that takes any argument would swallow."""
    options = inspect.signature(from_callable).parameters
    for name in fixed:
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.85)
        if near and name not in _named_arguments(f):
            raise TypeError(f"{name}: f has no argument of this name; is {near[0]} meant?")


def _named_arguments(f: Callable[..., Any]) -> set[str]:
    function: Any = f.forward if isinstance(f, nn.Module) else f
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some functions in C have no signature
        return set()


def from_torchcfm(model: Callable[..., Any], *, path: Path | None = None, **fixed: Any) -> ConvertedVelocity:
    """A model of torchcfm as a velocity: ``model(t, x)``, or its perceptron on ``cat([x, t])``.

    Its time runs as here, from noise to data. Its condition, if it has one, is the third argument.

    Args:
        model: such as ``torchcfm.models.unet.UNetModel`` or ``torchcfm.models.MLP``.
        path: None is LinearPath(), of its conditional and optimal-transport flow matching; its variance-preserving one
            is CosinePath().
        fixed: further arguments of the model.

    Example:
        >>> from_torchcfm(lambda t, x: t * x)(torch.ones(1, 1), 0.5)
        tensor([[0.5000]])
    """
    if not _takes_one(model):
        return from_callable(model, order="t,x", path=path, **fixed)
    return from_callable(_Concatenated(model), path=path, **fixed)


class _Concatenated(nn.Module):
    """A network of one argument, in which the time is the last column."""

    def __init__(self, network: Callable[..., Any]):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(torch.cat([x, t.to(x.dtype)[:, None]], dim=1))


def _takes_one(model: Any) -> bool:
    """Whether a network has a single argument, as torchcfm's perceptron."""
    function = model.forward if isinstance(model, nn.Module) else model
    parameters = inspect.signature(function).parameters.values()
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(positional) == 1 and not any(one.kind is one.VAR_POSITIONAL for one in parameters)
