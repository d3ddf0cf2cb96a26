"""A multilayer perceptron for points in a few dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.models.embedding import LabelEmbedding, TimeEmbedding, batch_of_times, check_dtype


class MLP(nn.Module):
    """A velocity (or any other prediction) on vectors: x with embeddings of t and y, then ``depth`` hidden layers.

    Args:
        dim: dimension D of the data.
        hidden: width of the hidden layers.
        depth: number of hidden layers.
        num_classes: number of classes; None makes an unconditional model.
        time_dim: components of the time embedding. Its fastest sine turns by about 4 radians over [0, 1], so that the
            field is as smooth in time as in space and a solver can take long steps.

    Shapes: x (B, D), t () or (B,), y (B,) or None -> (B, D).

    Example:
        >>> MLP(2)(torch.zeros(5, 2), 0.5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, dim: int, hidden: int = 128, depth: int = 3, num_classes: int | None = None, time_dim: int = 8
    ) -> None:
        super().__init__()
        validate.positive_int("dim", dim)
        validate.positive_int("hidden", hidden)
        validate.positive_int("depth", depth)
        validate.positive_int("time_dim", time_dim, at_least=2)
        if num_classes is not None:
            validate.positive_int("num_classes", num_classes)
            validate.positive_int("hidden", hidden, at_least=4)  # a label gets a quarter of it
        self.arguments = {
            "dim": dim,
            "hidden": hidden,
            "depth": depth,
            "num_classes": num_classes,
            "time_dim": time_dim,
        }
        self.dim, self.num_classes, self.null_label = dim, num_classes, num_classes
        self.time = TimeEmbedding(time_dim, scale=4.0)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, hidden // 4)
        width = dim + time_dim + (0 if num_classes is None else hidden // 4)
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(width, hidden), nn.SiLU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x: expected shape (B, {self.dim}); got {tuple(x.shape)}")
        check_dtype(x, self.layers[0].weight)  # type: ignore[arg-type]
        features = [x, self.time(batch_of_times(t, x)).to(x.dtype)]
        if self.label is not None:
            features.append(self.label(y, x.shape[0]))
        elif y is not None:
            raise ValueError("y: expected None, since this model was built without num_classes; got labels")
        return self.layers(torch.cat(features, dim=-1))
