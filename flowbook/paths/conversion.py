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
from flowbook.velocity import Velocity, Wrapper, call, inside, unwrapped


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
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).clamp(low, high)
        return self.path.convert(self.predict(x, t, y), x, t, source=self.prediction, target="velocity")


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

    Velocities made by conversion and by :mod:`flowbook.adapters` have one. For every other velocity it is LinearPath().

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
        model = getattr(model, "velocity", None) if inside(model) is None else inside(model)
    return LinearPath()
