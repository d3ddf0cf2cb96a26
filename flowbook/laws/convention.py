"""In which words a reader's code speaks of noise, data and time, and what it means when those words are others."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.adapters.functions import ORDERS, THEIR_NAMES, Order, from_callable
from flowbook.diffusion import NoiseSchedule, SchedulePath
from flowbook.laws.diagnosis import Violation
from flowbook.paths import QUANTITIES, LinearPath, Path
from flowbook.velocity import STATE_NAMES, TIME_NAMES, Velocity, call


class ConventionOptions(TypedDict, total=False):
    """The words of :func:`~flowbook.adapters.from_callable`."""

    order: Order
    time_scale: float
    reverse: bool
    sign: float
    output: str
    path: Path | NoiseSchedule


@dataclass(frozen=True)
class Convention:
    """How a model is called and what it returns: ``sign * f(x, time_scale * (1 - t if reverse else t))``.

    A :class:`~flowbook.diffusion.NoiseSchedule` in place of a path stands for a model of its steps: ``i`` counts from
    the cleanest, and the output is the noise unless it is named.
    """

    order: Order = "x,t"
    time_scale: float = 1.0
    reverse: bool = False
    sign: float = 1.0
    output: str = "velocity"
    path: Path = field(default_factory=LinearPath)

    def __post_init__(self) -> None:
        validate.one_of("order", self.order, ORDERS)
        validate.finite("time_scale", self.time_scale)
        if self.time_scale <= 0:
            raise ValueError(f"time_scale: expected a positive number; got {self.time_scale}")
        validate.boolean("reverse", self.reverse)
        validate.one_of("sign", self.sign, (1, -1))
        object.__setattr__(self, "output", THEIR_NAMES.get(self.output, self.output))
        validate.one_of("output", self.output, QUANTITIES)
        validate.instance("path", self.path, Path, "LinearPath(), or a NoiseSchedule")

    @classmethod
    def of(cls, options: ConventionOptions) -> Convention:
        """The convention that the arguments of a check describe."""
        given: dict[str, Any] = dict(options)
        if unknown := sorted(set(given) - {one.name for one in dataclasses.fields(cls)}):
            raise TypeError(
                f"convention: unknown {', '.join(unknown)}; expected {', '.join(ConventionOptions.__annotations__)}"
            )
        schedule = given.get("path")
        if isinstance(schedule, NoiseSchedule):
            steps = {"time_scale": schedule.steps - 1.0, "reverse": True, "output": "noise"}
            given = {**steps, **given, "path": SchedulePath(schedule)}
        return cls(**given)

    def but(self, **changes: Any) -> Convention:
        """Another convention that differs in some words."""
        return dataclasses.replace(self, **changes)

    @property
    def in_steps(self) -> bool:
        """Whether the model's times are the steps of a schedule."""
        return isinstance(self.path, SchedulePath)

    def time(self, theirs: Tensor) -> Tensor:
        """The time in [0, 1], noise first, behind the time that a model is given."""
        t = theirs / self.time_scale
        return 1 - t if self.reverse else t

    def their_time(self, t: Tensor) -> Tensor:
        """The time that a model is given at t."""
        return self.time_scale * (1 - t if self.reverse else t)

    def velocity(self, f: Callable[..., Any]) -> Velocity:
        """A reader's model as a velocity."""
        return from_callable(
            f, self.order, time_scale=self.time_scale, reverse=self.reverse, sign=self.sign, output=self.output,
            path=self.path,
        )  # fmt: skip

    def arguments(self, first: Any, second: Any) -> tuple[Any, Any]:
        """State and time among the first two arguments of a call, or the reverse."""
        return (first, second) if self.order == "x,t" else (second, first)

    def called(self, shape: torch.Size, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """State and time of a call of the model, with one time in all or one for each row, in float64.

        Raises:
            Violation: for another number of arguments, another order, and other shapes.
        """
        times = [value for name, value in named.items() if name in TIME_NAMES]
        states = [value for name, value in named.items() if name in STATE_NAMES]
        if len(given) >= 2:
            x, t = self.arguments(*given[:2])
        elif len(given) + len(states) >= 1 and times:  # by name
            x, t = (*given, *states)[0], times[0]
        else:
            raise Violation("arguments", f"model: expected a call with state and time; got {len(given)} arguments")
        if isinstance(t, Tensor) and t.shape == shape and getattr(x, "shape", ()) != shape:
            other = "t,x" if self.order == "x,t" else "x,t"
            raise Violation("arguments exchanged", f"model: called with time and state exchanged; say order={other!r}")
        if not isinstance(x, Tensor) or x.shape != shape:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else validate.described(x)
            raise Violation("shape", f"x: the model expected shape {tuple(shape)}, that of the batch; got {got}")
        t = torch.as_tensor(t).double()
        if t.numel() not in (1, len(x)):
            raise Violation("shape", f"t: expected one time, or one for each sample; got shape {tuple(t.shape)}")
        return x, t.reshape(-1)

    def spoken(self, velocity: Velocity, x: Tensor, theirs: Tensor) -> Tensor:
        """What a reader's model would return, if it were this velocity."""
        low, high = (0.0, 1.0) if self.output == "velocity" else self.path.t_range
        t = self.time(theirs.to(x.dtype)).clamp(low, high)
        v = call(velocity, x, t, None)
        return self.sign * self.path.convert(v, x, t, source="velocity", target=self.output)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The words that differ from the package's own."""
        usual = Convention()
        said = [
            f"{one.name}={getattr(self, one.name)!r}"
            for one in dataclasses.fields(self)
            if getattr(self, one.name) != getattr(usual, one.name)
        ]
        return ", ".join(said)


@dataclass(frozen=True)
class Mistake:
    """A convention other than the one that was agreed upon, with its name."""

    fault: str
    sentence: str
    convention: Convention


def mistaken(agreed: Convention) -> list[Mistake]:
    """The conventions that are commonly meant by mistake: time or sign reversed, another quantity, another scale."""
    start = "data" if agreed.reverse else "noise"
    points = "it points from data to noise" if agreed.sign > 0 else "it points from noise to data"
    points = points if agreed.output == "velocity" else f"this is minus the {agreed.output}"
    turned = {"reverse": not agreed.reverse}
    found = [
        Mistake("time reversed", f"time is reversed: t = 0 is to be {start} (else say reverse={not agreed.reverse})",
                agreed.but(**turned)),
        Mistake("sign flipped", f"the sign is flipped: {points} (else say sign={-agreed.sign:g})",
                agreed.but(sign=-agreed.sign)),
        Mistake("noise and data exchanged", "noise and data are exchanged, so that time and sign are both reversed "
                f"(else say reverse={not agreed.reverse}, sign={-agreed.sign:g})",
                agreed.but(sign=-agreed.sign, **turned)),
    ]  # fmt: skip
    for quantity in QUANTITIES:
        if quantity != agreed.output:
            name = {"velocity": "the velocity dx/dt", "v": "v of Salimans and Ho"}.get(quantity, f"the {quantity}")
            for words, extra in (({}, ""), (turned, ", and time is reversed")):
                found.append(Mistake(f"{quantity} instead of {agreed.output}", f"this is {name}{extra} (else say "
                                     f'output="{quantity}")', agreed.but(output=quantity, **words)))  # fmt: skip
    return found


def mixed(value: Tensor, t: Tensor) -> Tensor:
    """A time for each row, in the shape that multiplies the rows of a tensor."""
    return torch.as_tensor(t).reshape(-1, *[1] * (value.dim() - 1))


class StandIn(nn.Module, ABC):
    """A model that a reader's code is given: it can be called, moved and put in eval mode like a network.

    Its output is a tensor that is also its own ``sample``, as networks of diffusers have it; with ``return_dict=False``
    a tuple.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @abstractmethod
    def answer(self, *given: Any, **named: Any) -> Tensor:
        """What the model returns."""

    def forward(self, *given: Any, **named: Any) -> Any:
        output = self.answer(*given, **named)
        output.sample = output  # type: ignore[attr-defined]
        return (output,) if named.get("return_dict") is False else output
