"""A multilayer perceptron for points in a few dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.condition import Condition
from flowbook.models.conditioning import Conditioning, VectorEmbedding
from flowbook.models.embedding import LabelEmbedding, TimeEmbedding, batch_of_times, check_dtype


class MLP(Conditioning):
    """A velocity (or any other prediction) on points: x with embeddings of t and y, then ``depth`` hidden layers.

    Args:
        dim: dimension D of the data.
        hidden: width of the hidden layers.
        depth: number of hidden layers.
        num_classes: number of classes, for labels y of shape (B,).
        time_dim: components of the time embedding. Its fastest sine turns by about 4 radians over [0, 1], so that the
            field is as smooth in time as in space and a solver can take long steps.
        condition_dim: length of vectors y, shape (B, condition_dim), where a NaN is a missing number; of the order of
            1, like the data. With ``num_classes`` too, y is a dict with the keys "label" and "vector".

    Shapes: x (B, D), t () or (B,), y -> (B, D). None is the null: the network's own value for "no condition".

    Example:
        >>> MLP(2)(torch.zeros(5, 2), 0.5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        time_dim: int = 8,
        *,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__(num_classes, condition_dim)
        validate.positive_int("dim", dim)
        validate.positive_int("hidden", hidden)
        validate.positive_int("depth", depth)
        validate.positive_int("time_dim", time_dim, at_least=2)
        if self.kinds:
            validate.positive_int("hidden", hidden, at_least=4)  # a condition gets a quarter of it
        self.arguments = {
            "dim": dim,
            "hidden": hidden,
            "depth": depth,
            "num_classes": num_classes,
            "time_dim": time_dim,
            "condition_dim": condition_dim,
        }
        self.dim = dim
        self.time = TimeEmbedding(time_dim, scale=4.0)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, hidden // 4)
        self.vector = None if condition_dim is None else VectorEmbedding(condition_dim, hidden // 4)
        width = dim + time_dim + len(self.kinds) * (hidden // 4)
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(width, hidden), nn.SiLU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return (self.dim,)

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x: expected shape (B, {self.dim}); got {tuple(x.shape)}")
        check_dtype(x, self.layers[0].weight)  # type: ignore[arg-type]
        features = [x, self.time(batch_of_times(t, x)).to(x.dtype)]
        given = self.parts(y)
        if self.label is not None:
            features.append(self.label(given.get("label"), x.shape[0]))
        if self.vector is not None:
            features.append(self.vector(given.get("vector"), x))
        return self.layers(torch.cat(features, dim=-1))
