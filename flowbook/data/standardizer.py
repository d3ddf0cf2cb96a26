"""Data of any scale: standardized for training, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowbook._core import validate


class Standardizer:
    """Subtract the mean and divide by the standard deviation, for each column of a table or each channel of images.

    ``fit`` takes ``standardized(x1)``, and stores the standardizer with the checkpoint. The velocity that it returns,
    and the one that ``load`` returns, knows it as ``velocity.standardizer``: ``sample`` undoes it, ``invert`` and
    ``log_prob`` apply it, and ``edit``, ``interpolate`` and ``round_trip`` do both, so that all of them speak of your
    data. ``solve``, pairs and losses stay in the units of the network.

    Args:
        mean, std: of a sample, broadcastable to its shape; std is positive.

    Example:
        >>> scale = Standardizer.of(torch.tensor([[100.0, 0.1], [300.0, 0.3]]))
        >>> z = scale(torch.tensor([[200.0, 0.2]]))
        >>> z, scale.undo(z)
        (tensor([[0., 0.]]), tensor([[200.0000,   0.2000]]))
    """

    def __init__(self, mean: Tensor, std: Tensor):
        for name, value in (("mean", mean), ("std", std)):
            validate.float_tensor(name, value, finite=True)
        if not bool((std > 0).all()):
            raise ValueError(f"std: expected positive numbers; got {float(std.min()):g}")
        self.mean, self.std = mean.double().cpu(), std.double().cpu()

    @classmethod
    def of(cls, x1: Tensor) -> Standardizer:
        """That of data (N, ...): for each column of a table (N, D), or each channel of (N, C, ...).

        Raises:
            ValueError: for fewer than two samples, and for a column that never changes, which has no density.
        """
        validate.float_tensor("x1", x1, min_dim=2, finite=True)
        if len(x1) < 2:
            raise ValueError(f"x1: expected at least 2 samples; got {len(x1)}")
        others = [axis for axis in range(x1.dim()) if axis != 1]
        exact = x1.double()
        mean, std = exact.mean(others), exact.std(others)
        constant = (std <= 1e-12 * mean.abs().clamp_min(1.0)).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"x1: expected columns that vary; {', '.join(map(str, constant))} (counted from 0) never change: leave "
                "them out"
            )
        shape = (-1, *[1] * (x1.dim() - 2))
        return cls(mean.reshape(shape), std.reshape(shape))

    def __call__(self, x: Tensor) -> Tensor:
        """Data, shape (B, ...), standardized."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def undo(self, z: Tensor) -> Tensor:
        """Standardized samples, shape (B, ...), as data."""
        return self.mean.to(z) + self.std.to(z) * z

    def log_volume(self, x: Tensor) -> float:
        """By how much the log-density of data is smaller than that of standardized data: the sum of log std, in nats.

        Example:
            >>> round(Standardizer(torch.zeros(2), torch.tensor([2.0, 3.0])).log_volume(torch.zeros(1, 2)), 4)
            1.7918
        """
        return float(self.std.log().expand(x.shape[1:]).sum())

    def data(self, raw: Any) -> Any:
        """Held-out data x1 or (x1, y), brought to the same units; of those that are already only the data.

        Raises:
            TypeError, ValueError: for what is no array, and for data in other units.
        """
        from flowbook.data.conversion import Standardized, as_data

        if isinstance(raw, Standardized):
            if raw.standardizer != self:
                raise ValueError(
                    "validation: expected the units of the training data; got data standardized by themselves"
                )
            return raw.data
        found = as_data(raw)
        if isinstance(found, Tensor):
            return self(found)
        if isinstance(found, tuple) and isinstance(found[0], Tensor) and len(found) <= 2:
            return (self(found[0]), *found[1:])
        raise TypeError(f"validation: expected x1 or (x1, y), as arrays; got {validate.described(raw)}")

    def as_dict(self) -> dict[str, Any]:
        """Numbers, as a checkpoint stores them."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Standardizer:
        """The inverse of :meth:`as_dict`."""
        return cls(*(torch.tensor(stored[name], dtype=torch.float64) for name in ("mean", "std")))

    def __repr__(self) -> str:
        return f"Standardizer({self.mean.numel()} means and standard deviations)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Standardizer) or self.mean.shape != other.mean.shape:
            return False
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    __hash__ = None  # type: ignore[assignment]
