"""A trial before the first step, so that no network is trained that cannot be sampled from afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.condition import TrainedOn, is_null
from flowbook.data import Batch, labels_of, map_batch, unpack
from flowbook.paths import path_of
from flowbook.training.loss import CompleteLoss
from flowbook.training.precision import Precision
from flowbook.velocity import call, evaluating, said_by

ROWS = 2
LARGEST = 15.0
"""The factor between the sizes of data and noise from which on a run warns."""
Preview = Callable[[nn.Module], Tensor]


def try_out(velocity: nn.Module, batch: Batch, precision: Precision, preview: Preview | None) -> None:
    """Call the velocity as a solver will, and the preview, on the first rows of a batch; nothing is changed.

    A loss gives each sample its own time, a solver one time to all: with ``t[:, None]`` a network serves the loss only.

    Raises:
        ValueError, TypeError: for a velocity or preview that does not fit.
    """
    warn_scale(unpack(batch)[1], path_of(velocity).source_std)
    _, x1, y = unpack(map_batch(lambda part: part[:ROWS], batch))
    t = torch.tensor(0.5, dtype=torch.promote_types(x1.dtype, torch.float32), device=x1.device)
    with evaluating(velocity), torch.no_grad():
        with precision.autocast():
            v = _called_with_one_time(velocity, x1, t, y)
        validate.same_shape("velocity(x, t, y)", v, "x", x1)
        if not precision.mixed and v.dtype != x1.dtype:
            raise ValueError(f"velocity(x, t, y): expected the dtype of x, {x1.dtype}; got {v.dtype}")
        if preview is not None:
            validate.float_tensor("preview(velocity)", _tried(preview, velocity), min_dim=4)


def warn_scale(x1: Tensor, source_std: float) -> None:
    """Warn for data whose scale is not that of the noise: such a run trains, but badly, and without a word.

    Warns:
        UserWarning: for images from 0 to 1 or 0 to 255, and for data far larger or smaller than the noise.
    """
    low, high = (float(end) for end in x1.detach().float().aminmax())
    if x1.dim() == 4 and low >= 0 and high > 0.5 and x1.shape[1] in (1, 3):
        warnings.warn(
            f"data: expected images from -1 to 1; got {low:g} to {high:g}: 2 x - 1 takes 0 to 1 there", stacklevel=6
        )
        return
    size = float(x1.detach().float().square().mean().sqrt())
    if source_std == 1 and not LARGEST > size > 1 / LARGEST:
        warnings.warn(
            f"data: their root mean square is {size:.3g}, that of the noise 1; data.standardized brings them there",
            stacklevel=6,
        )


def what_it_learns(network: nn.Module, loss: CompleteLoss, batch: Any, data: Any) -> TrainedOn | None:
    """What a training with this loss, of which this is the first batch, shows the network; None where nobody knows."""
    dropout = loss.condition_dropout
    if dropout is None:
        return None
    y = unpack(batch)[2]
    if y is None:
        return TrainedOn(something=False, nothing=True)
    known, null = labels_of(data), said_by(network, "null")
    missing = null is not None and is_null(null, y if known is None else known)
    dropped = any(part > 0 for part in dropout.values()) if isinstance(dropout, Mapping) else dropout > 0
    return TrainedOn(something=True, nothing=bool(dropped or missing))


def _called_with_one_time(velocity: nn.Module, x1: Tensor, t: Tensor, y: Any) -> Tensor:
    try:
        return call(velocity, x1, t, y)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        if isinstance(y, Tensor) and y.shape == x1.shape and y.is_floating_point():
            hint = "items of two tensors are data and condition; data.Paired makes them pairs"
            raise type(error)(f"{error}. ({hint})") from error
        call(velocity, x1, t.expand(len(x1)), y)  # an error here as well has another cause, and is raised instead
        raise ValueError(
            f"velocity: expected a network that takes t of shape () as well as (B,), since solvers pass a 0-d tensor; "
            f"got one that fails with shape (): {error}. t = t.expand(len(x)) turns it into one time for each sample"
        ) from error


def _tried(preview: Preview, velocity: nn.Module) -> Tensor:
    """The preview's output: at no cost from a velocity that is 0, or else from the real one."""
    try:
        return preview(_Still(velocity))
    except Exception:  # a preview may ask more of its model than a stand-in has; an error of its own is raised here
        return preview(velocity)


class _Still(nn.Module):
    """A stand-in for a velocity, 0 everywhere."""

    def __init__(self, velocity: nn.Module):
        super().__init__()
        self.velocity = velocity

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["velocity"], name)

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return torch.zeros_like(x)
