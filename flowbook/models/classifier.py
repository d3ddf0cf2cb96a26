"""A small convolutional classifier that judges generated images.

Its labels tell whether a sample shows the requested class, and its features are the space of the Frechet distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.data import labels_of, unpack
from flowbook.velocity import evaluating


class Classifier(nn.Module):
    """Two levels of two convolutions each, a hidden layer of ``features`` units, then the logits of the classes.

    Args:
        channels: color channels C.
        size: height and width, a multiple of 4.
        width: channels of the first level; the second has twice as many.
        features: size of the feature space.
        num_classes: number of classes.

    Shapes: x (B, C, size, size) in [-1, 1] -> logits (B, num_classes).

    Example:
        >>> judge = Classifier(size=8, width=8)
        >>> judge(torch.zeros(2, 1, 8, 8)).shape, judge.features(torch.zeros(2, 1, 8, 8)).shape
        (torch.Size([2, 10]), torch.Size([2, 64]))
    """

    def __init__(
        self, channels: int = 1, size: int = 28, width: int = 32, features: int = 64, num_classes: int = 10
    ) -> None:
        super().__init__()
        for name, value in (
            ("channels", channels),
            ("size", size),
            ("width", width),
            ("features", features),
            ("num_classes", num_classes),
        ):
            validate.positive_int(name, value)
        if size % 4:
            raise ValueError(f"size: expected a multiple of 4; got {size}")
        self.arguments = {
            "channels": channels, "size": size, "width": width, "features": features, "num_classes": num_classes,
        }  # fmt: skip
        self.channels, self.size, self.num_classes = channels, size, num_classes

        def convolution(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()]

        self.body = nn.Sequential(
            *convolution(channels, width), *convolution(width, width), nn.MaxPool2d(2),
            *convolution(width, 2 * width), *convolution(2 * width, 2 * width), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * width * (size // 4) ** 2, features), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(features, num_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image."""
        return (self.channels, self.size, self.size)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, shape (B, features)."""
        if x.dim() != 4 or x.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(f"x: expected shape (B, {self.channels}, {self.size}, {self.size}); got {tuple(x.shape)}")
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class CrossEntropy:
    """The loss of a classifier, ``loss(model, batch)`` with batches (x, y), under random affine augmentation.

    Args:
        label_smoothing: fraction of the target that is spread over all classes.
        shift: largest shift, as a fraction of the image's width.
        rotation: largest rotation, in radians.
        scaling: largest relative change of size.

    Example:
        >>> float(CrossEntropy()(Classifier(size=8), (torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)))) > 0
        True
    """

    trains_velocity: ClassVar[bool] = False

    label_smoothing: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    scaling: float = 0.0

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "shift", "scaling"):
            validate.number(name, getattr(self, name), 0, 1)
        validate.number("rotation", self.rotation, 0, math.inf, high_open=True)

    def check(self, network: nn.Module, data: Any) -> None:
        """Raise for labels of tensor data that are not classes of the classifier."""
        if (y := labels_of(data)) is not None:
            validate.labels("y", y, len(y), classes=getattr(network, "num_classes", None))

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        _, x, y = unpack(batch)
        if y is None:
            raise ValueError("batch: expected images with labels, (x, y), for a classifier; got images alone")
        return F.cross_entropy(model(self._moved(x)), y, label_smoothing=self.label_smoothing)

    def _moved(self, x: Tensor) -> Tensor:
        if self.shift == self.rotation == self.scaling == 0:
            return x
        draws = 2 * torch.rand(4, len(x), device=x.device, dtype=x.dtype) - 1
        angle, scale = self.rotation * draws[0], 1 + self.scaling * draws[1]
        cos, sin = scale * angle.cos(), scale * angle.sin()
        rows = [cos, -sin, 2 * self.shift * draws[2], sin, cos, 2 * self.shift * draws[3]]
        grid = F.affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x + 1, grid, align_corners=False) - 1  # pixels from outside are background, -1


@torch.no_grad()
def features_and_labels(judge: Classifier, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """The judge's features (n, F) and most likely labels (n,) of images (n, C, H, W), in batches.

    Example:
        >>> features, labels = features_and_labels(Classifier(size=8).eval(), torch.zeros(3, 1, 8, 8))
        >>> features.shape, labels.shape
        (torch.Size([3, 64]), torch.Size([3]))
    """
    validate.float_tensor("images", images, min_dim=4)
    with evaluating(judge):
        features = torch.cat([judge.features(part) for part in images.split(batch_size)])
        return features, judge.head(features).argmax(1)
