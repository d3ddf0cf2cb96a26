"""How close are generated images to those of a folder? By the Frechet distance in features of one's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flowbook._core import validate
from flowbook.metrics.images import frechet_distance
from flowbook.models import Classifier, read_exported

Features = Callable[[Tensor], Tensor]
BLOCKS = 4
"""Features of pixels are the means over 4 x 4 blocks of the image."""
INCEPTION = 2048


@dataclass(frozen=True)
class FolderScores:
    """What :func:`score_against` returns."""

    frechet: float
    """Squared Frechet distance between generated and real images."""
    floor: float
    """What two halves of the real images have between them; a perfect model would reach less, with twice the images."""
    images: int
    """The number of images on either side."""
    features: str
    """What they were compared in."""


def features_named(name: str) -> Features:
    """Features of images in [-1, 1] by name.

    Args:
        name: "pixels", the mean colors of 4 x 4 blocks, which see colors and shapes but no detail; "inception", the
            network of the literature's FID; or the path of a network: a classifier that ``flowbook export`` wrote, or a
            TorchScript file that maps images (B, C, H, W) to (B, F).

    Raises:
        ValueError: for another name, or a file that holds something else.
        ImportError: without the package that has Inception.

    Example:
        >>> features_named("pixels")(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 48])
    """
    if name == "pixels":
        return lambda images: F.adaptive_avg_pool2d(images, BLOCKS).flatten(1)
    if name == "inception":
        return _inception()
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"features: expected 'pixels', 'inception' or the path of a network; got {name!r}")
    if path.suffix == ".safetensors":
        judge = read_exported(path)
        if not isinstance(judge, Classifier):
            raise ValueError(f"features: expected a classifier in {path}; got a {type(judge).__name__}")
        return judge.features
    try:
        return torch.jit.load(str(path)).eval()
    except RuntimeError as error:
        raise ValueError(f"features: {path} is no TorchScript file: {str(error).splitlines()[0]}") from error


def _inception() -> Features:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError("features: 'inception' needs torch-fidelity: pip install 'flowbook[fid]'") from error
    network = FeatureExtractorInceptionV3("inception", [str(INCEPTION)])

    def features(images: Tensor) -> Tensor:
        colored = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        found: Tensor = network(((colored.clamp(-1, 1) + 1) * 127.5).round().byte())[0]
        return found

    return features


@torch.no_grad()
def score_against(generated: Tensor, real: Tensor, features: str = "pixels", batch_size: int = 250) -> FolderScores:
    """The Frechet distance between generated and real images, and what two halves of the real ones have.

    Args:
        generated, real: images (n, C, H, W) in [-1, 1], equally many: the distance depends on the number.
        features: as in :func:`features_named`.
        batch_size: images at once.

    Raises:
        ValueError: for different numbers, and for fewer images than features.

    Example:
        >>> images = torch.rand(400, 1, 8, 8) * 2 - 1
        >>> scores = score_against(images[:200], images[200:])
        >>> 0 < scores.frechet < 10 * scores.floor, scores.images
        (True, 200)
    """
    validate.float_tensor("generated", generated, min_dim=4, finite=True)
    validate.same_shape("real", real, "generated", generated)
    function = features_named(features)
    fake, true = (torch.cat([function(part) for part in images.split(batch_size)]) for images in (generated, real))
    if true.dim() != 2:
        raise ValueError(f"features: expected shape (B, F); got {tuple(true.shape)}")
    if len(true) // 2 <= true.shape[1]:
        raise ValueError(
            f"features: expected more than {2 * true.shape[1]} images for {true.shape[1]} features; got {len(true)}: "
            "take more images, or features='pixels'"
        )
    order = torch.randperm(len(true), generator=torch.Generator().manual_seed(0))
    half = len(true) // 2
    floor = frechet_distance(true[order[:half]], true[order[half : 2 * half]])
    return FolderScores(frechet_distance(fake, true), floor, len(true), features)
