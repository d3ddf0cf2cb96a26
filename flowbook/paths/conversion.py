"""Use a model that predicts noise, data, the score or v as a velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook.condition import Condition
from flowbook.paths.path import QUANTITIES, Path, Quantity
from flowbook.paths.retiming import Retimed, RetimedPath
from flowbook.paths.standard import LinearPath
from flowbook.velocity import FUNCTIONS, Velocity, Wrapper, call, called_by, inside, unwrapped


class ConvertedVelocity(Wrapper):
    """A model that predicts noise, data, the score or v, used as a velocity; made by :func:`as_velocity`."""

    _inner = "model"

    def __init__(self, model: Velocity, path: Path, prediction: Quantity):
        super().__init__()
        self.model, self.path, self.prediction = model, path, prediction

    def predict(self, x: Tensor, t: Tensor, y: Condition) -> Tensor:
        """The model's prediction at state x and time t."""
        return call(self.model, x, t, y)

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        validate.time("t", t, len(x))
        low, high = (0.0, 1.0) if self.prediction == "velocity" else self.path.t_range
        # In half precision t would round to another step, and the conversion cancel.
        exact = torch.promote_types(x.dtype, torch.float32)
        t = torch.as_tensor(t, dtype=exact, device=x.device).clamp(low, high)
        prediction = self.predict(x, t, y)
        validate.same_shape("the model's output", prediction, "x", x)
        v = self.path.convert(prediction.to(exact), x.to(exact), t, source=self.prediction, target="velocity")
        return v.to(prediction.dtype)


def as_velocity(model: Callable[..., Tensor], path: Path, prediction: Quantity = "noise") -> ConvertedVelocity:
    """Turn a model ``(x, t, y=None) -> noise | data | score | v`` into a velocity for :func:`flowbook.solvers.solve`.

    Times are clamped to ``path.t_range``, on which the conversion is regular, so that a solve may run from 0 to 1.

    Args:
        model: any callable ``(x, t, y=None)`` that returns a tensor like x.
        path: the path it was trained on.
        prediction: what it returns, "noise", "data", "score", "velocity" (dx/dt) or "v".

    Example:
        >>> always_two = as_velocity(lambda x, t, y=None: torch.full_like(x, 2.0), LinearPath(), prediction="data")
        >>> always_two(torch.zeros(1, 1), 0.5)
        tensor([[4.]])
    """
    validate.instance("path", path, Path, "LinearPath()")
    validate.one_of("prediction", prediction, QUANTITIES)
    return ConvertedVelocity(model, path, prediction)


def path_of(velocity: Velocity) -> Path:
    """The path of a velocity that has one (``velocity.path``), also behind guidance, retiming or torch's wrappers.

    Velocities made by conversion and by :mod:`flowbook.adapters` have one; a ``functools.partial``, a method or a
    function that calls one has its path. For every other velocity it is LinearPath(). A module of your own that holds a
    velocity of another path says so by an attribute ``path``.

    Example:
        >>> from flowbook.paths import CosinePath
        >>> path_of(as_velocity(lambda x, t, y=None: x, CosinePath())), path_of(lambda x, t, y=None: x)
        (CosinePath(), LinearPath(sigma_min=0.0))
    """
    model: Any = velocity
    while (model := unwrapped(model)) is not None:
        if isinstance(path := getattr(model, "path", None), Path):
            return path
        if isinstance(model, Retimed):
            return RetimedPath(path_of(model.velocity), model.power)
        if isinstance(model, FUNCTIONS):
            found = {path_of(part) for part in called_by(model)} - {LinearPath()}
            return found.pop() if len(found) == 1 else LinearPath()
        model = getattr(model, "velocity", None) if inside(model) is None else inside(model)
    return LinearPath()
