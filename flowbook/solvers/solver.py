"""How a flow is solved, as one object: :class:`Solver`, and the keywords that describe one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast, get_args

from torch import Tensor

from flowbook._core import validate
from flowbook.solvers.fixed import FIXED

Method = Literal[
    "dopri5", "euler", "midpoint", "heun", "rk4", "ab3", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
ADAPTIVE = tuple(method for method in METHODS if method not in FIXED)
TOLERANCE = 1e-5


class SolverOptions(TypedDict, total=False):
    """The keywords of every function that solves an ODE: a :class:`Solver`, or its fields."""

    solver: Solver
    method: Method | None
    steps: int | None
    grid: Sequence[float] | Tensor | None
    rtol: float
    atol: float
    max_calls: int | None


@dataclass(frozen=True)
class Solver:
    """How an ODE is solved. Every function that solves one accepts it as ``solver=``, or its fields as keywords.

    Args:
        method: "dopri5" or another adaptive method of torchdiffeq ("dopri8", "bosh3", "fehlberg2", "adaptive_heun"),
            with ``rtol``, ``atol`` and ``max_calls``; or "euler", "midpoint", "heun", "rk4", "ab3", with ``steps`` or
            ``grid``. "ab3" is the third-order Adams-Bashforth method: it extrapolates the parabola through the last
            three slopes, so that a step costs one call (and the whole solve one more, to start). None is midpoint where
            ``steps`` or ``grid`` is given, and dopri5 otherwise.
        steps: the number of equal steps of a fixed-step method.
        grid: instead of ``steps``, the times at which steps begin and end, in order; a solve in the other direction
            runs through them in reverse. Velocities of data with fine detail change fastest near t = 1:
            ``1 - (1 - torch.linspace(0, 1, n + 1)) ** 1.5`` makes the steps there shorter (Karras et al. 2022, equation
            5, space their steps by the same reasoning).
        rtol, atol: tolerances of an adaptive method, for the error of one step: its root mean square over the whole
            batch, relative to ``atol + rtol |x|``. At 1e-5 no error is visible in an image; a likelihood may need 1e-7.
            In float32 nothing below about 1e-6 can be reached.
        max_calls: an adaptive method that needs more evaluations than this stops with an error; None sets no limit.

    Raises:
        ValueError, TypeError: for invalid values, and for options that the method does not take.

    Example:
        >>> Solver(steps=20)
        Solver('midpoint:steps=20')
        >>> Solver("dopri5", rtol=1e-7, atol=1e-7).fixed
        False
    """

    method: Method | None = None
    steps: int | None = None
    grid: Sequence[float] | Tensor | None = None
    rtol: float = TOLERANCE
    atol: float = TOLERANCE
    max_calls: int | None = None

    def __post_init__(self) -> None:
        """The one place that knows which options a method takes."""
        stepped = self.steps is not None or self.grid is not None
        method = self.method if self.method is not None else ("midpoint" if stepped else "dopri5")
        validate.one_of("method", method, METHODS)
        object.__setattr__(self, "method", method)
        for name in ("rtol", "atol"):
            validate.number(name, getattr(self, name), 0, 1, low_open=True)
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.max_calls is not None:
            validate.positive_int("max_calls", self.max_calls)
        if self.fixed:
            self._check_fixed()
        elif stepped:
            name = "steps" if self.grid is None else "grid"
            raise ValueError(
                f"{name}: {method} chooses its own steps from rtol and atol; got {name}={getattr(self, name)}"
            )

    def _check_fixed(self) -> None:
        if self.steps is None and self.grid is None:
            raise ValueError(f"steps: {self.method} takes fixed steps; expected their number, such as 50; got None")
        if self.steps is not None and self.grid is not None:
            raise ValueError(f"grid: expected either grid or steps; got steps={self.steps} as well")
        for name, default in (("rtol", TOLERANCE), ("atol", TOLERANCE), ("max_calls", None)):
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}: {self.method} takes fixed steps without error control; got "
                    f"{name}={getattr(self, name)}, which is for an adaptive method such as dopri5"
                )
        if self.steps is not None:
            validate.positive_int("steps", self.steps)
            object.__setattr__(self, "steps", int(self.steps))
        else:
            object.__setattr__(self, "grid", ordered_times("grid", self.grid))

    @property
    def fixed(self) -> bool:
        """Whether this is a fixed-step method."""
        return self.method in FIXED

    def times(self, t0: float, t1: float) -> list[float]:
        """The times between the steps of a fixed-step method from t0 to t1, both included.

        Raises:
            ValueError: for a grid that does not start and end at t0 and t1, and for an adaptive method.

        Example:
            >>> Solver("euler", steps=2).times(0.0, 1.0)
            [0.0, 0.5, 1.0]
        """
        if (grid := self._grid) is not None:
            ordered = grid if (grid[-1] - grid[0]) * (t1 - t0) > 0 else grid[::-1]
            return ending_at("grid", list(ordered), t0, t1)
        if self.steps is None:
            raise ValueError(f"times: {self.method} chooses its own steps; expected a fixed-step method")
        return [t1 if n == self.steps else t0 + n * ((t1 - t0) / self.steps) for n in range(self.steps + 1)]

    def between(self, t0: float, t1: float) -> Solver:
        """The solver for the interval from t0 to t1: a grid is cut to it; a number of equal steps stays the same.

        Example:
            >>> Solver("heun", grid=[0.0, 0.3, 0.6, 1.0]).between(0.5, 1.0).grid
            (0.5, 0.6, 1.0)
        """
        if (grid := self._grid) is None:
            return self
        low, high, slack = min(t0, t1), max(t0, t1), validate.TIME_SLACK
        if low < min(grid) - slack or max(grid) + slack < high:
            raise ValueError(f"grid: expected times that cover {low:g} to {high:g}; got {list(grid)}")
        inner = sorted(t for t in grid if low + slack < t < high - slack)
        return dataclasses.replace(self, grid=(low, *inner, high))

    @property
    def _grid(self) -> tuple[float, ...] | None:
        return cast("tuple[float, ...] | None", self.grid)  # __post_init__ has made it a tuple

    @classmethod
    def parse(cls, text: str) -> Solver:
        """A solver from a string, as on the command line and in recipes; the inverse of ``str``.

        Example:
            >>> Solver.parse("rk4:steps=10"), Solver.parse("dopri5:rtol=1e-7,atol=1e-7")
            (Solver('rk4:steps=10'), Solver('dopri5:rtol=1e-07,atol=1e-07'))
            >>> Solver.parse("heun:grid=0/0.3/1").grid
            (0.0, 0.3, 1.0)
        """
        if not isinstance(text, str):
            raise TypeError(f"solver: expected a string such as 'rk4:steps=10'; got {text!r}")
        method, _, rest = text.partition(":")
        fields: dict[str, Any] = {"method": method}
        for part in rest.split(",") if rest else ():
            name, equals, value = part.partition("=")
            if not equals or name not in _READERS or name in fields:
                raise ValueError(
                    f"solver: expected method:name=value,... with names {', '.join(_READERS)}, each once; got {text!r}"
                )
            try:
                fields[name] = _READERS[name](value)
            except ValueError as error:
                raise ValueError(f"solver: expected a number for {name}; got {value!r} in {text!r}") from error
        return cls(**fields)

    def __str__(self) -> str:
        grid = None if self._grid is None else "/".join(map(repr, self._grid))
        given: list[tuple[str, Any]] = [("steps", self.steps), ("grid", grid)]
        given += [(name, value) for name in ("rtol", "atol") if (value := getattr(self, name)) != TOLERANCE]
        given += [("max_calls", self.max_calls)]
        options = ",".join(f"{name}={value}" for name, value in given if value is not None)
        return f"{self.method}:{options}" if options else str(self.method)

    def __repr__(self) -> str:
        return f"Solver({str(self)!r})"


def as_solver(options: SolverOptions, default: Solver = Solver()) -> Solver:
    """The solver that the keywords describe, for every function that solves an ODE.

    What is not given comes from the default, where that applies: its method, and its steps for another fixed-step
    method. ``steps`` or ``grid`` alone selects fixed steps (the default's method, or midpoint), a tolerance alone an
    adaptive method (the default's, or dopri5).

    Args:
        options: ``solver`` alone, or fields of :class:`Solver`.
        default: the solver without any keywords.

    Raises:
        TypeError: for an unknown keyword, for a ``solver`` that is not a Solver, and for one given along with fields.
        ValueError: for invalid fields.

    Example:
        >>> as_solver({"steps": 4}), as_solver({"method": "heun"}, default=Solver("rk4", steps=50))
        (Solver('midpoint:steps=4'), Solver('heun:steps=50'))
    """
    for name in options:
        if name not in SolverOptions.__annotations__:
            known = ", ".join(SolverOptions.__annotations__)
            raise TypeError(f"{name}: unexpected keyword argument; a solver is described by {known}")
    if "solver" in options:
        if len(options) > 1:
            raise TypeError(f"solver: expected either a solver or its fields; got {', '.join(options)}")
        validate.instance("solver", options["solver"], Solver, "Solver('rk4', steps=10)")
        return options["solver"]
    fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not fields:
        return default
    if "method" not in fields:
        stepped = "steps" in fields or "grid" in fields
        if default.fixed == stepped:
            fields["method"] = default.method
        elif not stepped:
            fields["method"] = "dopri5"
    elif fields["method"] in FIXED and default.fixed and not {"steps", "grid"} & fields.keys():
        fields |= {"steps": default.steps, "grid": default.grid}
    return Solver(**fields)


def ordered_times(name: str, given: Any) -> tuple[float, ...]:
    """Times in [0, 1], at least two, strictly increasing or strictly decreasing."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a sequence of times; got {type(given).__name__}")
    try:
        times = tuple(float(t) for t in given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers; got {given!r}") from error
    if len(times) < 2:
        raise ValueError(f"{name}: expected at least two times; got {list(times)}")
    for t in (min(times), max(times)):
        validate.time(name, t)
    direction = 1.0 if times[-1] >= times[0] else -1.0
    if not all((later - earlier) * direction > 0 for earlier, later in itertools.pairwise(times)):
        raise ValueError(f"{name}: expected times in strictly increasing or decreasing order; got {list(times)}")
    return times


def ending_at(name: str, times: list[float], t0: float, t1: float) -> list[float]:
    """The times with their ends set to exactly t0 and t1, which they must equal up to rounding."""
    if abs(times[0] - t0) > validate.TIME_SLACK or abs(times[-1] - t1) > validate.TIME_SLACK:
        raise ValueError(f"{name}: expected times that start at t0 = {t0:g} and end at t1 = {t1:g}; got {times}")
    return [t0, *times[1:-1], t1]


def _read_grid(text: str) -> tuple[float, ...]:
    return tuple(float(t) for t in text.split("/"))


_READERS: dict[str, Callable[[str], Any]] = {
    "steps": int,
    "grid": _read_grid,
    "rtol": float,
    "atol": float,
    "max_calls": int,
}
