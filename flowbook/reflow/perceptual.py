r"""Perceptual distances ``(a, b) -> (B,)``: how different two images look to a trained image classifier.

.. math:: d(a, b) = \sum_l \frac{1}{H_l W_l} \sum_{h, w} \big\| w_l \odot (\hat f_l(a) - \hat f_l(b))_{hw} \big\|^2

with the activations :math:`f_l` of some layers, each normalized to unit length over its channels (Zhang et al. 2018,
equation 1). Both distances here are frozen and stay in eval mode; gradients pass through them to the images.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowbook._core import validate
from flowbook._core.digest import digest
from flowbook.models import Classifier

TORCHVISION = {"alex": "AlexNet_Weights.IMAGENET1K_V1", "vgg": "VGG16_Weights.IMAGENET1K_V1"}
"""The weights of each backbone that LPIPS was calibrated with, under torchvision's name."""


class _Frozen(nn.Module):
    """A module that stays in eval mode, has no trainable parameters, and moves to the device of its input."""

    def train(self, mode: bool = True) -> _Frozen:
        return super().train(False)

    def freeze(self) -> None:
        self.requires_grad_(False).train(False)

    def follow(self, a: Tensor, b: Tensor) -> None:
        validate.float_tensor("a", a, min_dim=1)
        validate.same_shape("b", b, "a", a)
        if next(self.parameters()).device != a.device:
            self.to(a.device)


class LPIPS(_Frozen):
    """The learned perceptual distance of the lpips package, which holds the weights w of each layer.

    The weights of its backbone are not shipped. They are downloaded once by torchvision, or read from a file; random
    weights are used only when requested by name.

    Args:
        net: the backbone, "alex" or "vgg".
        weights: "torchvision"; or the path of torchvision's own file (alexnet-owt-7be5be79.pth, vgg16-397923af.pth); or
            "random", for tests.
        size: an image whose shorter side is smaller is enlarged to it; at least 32, the smallest that the backbones
            accept. Grayscale images become three equal channels.

    Shapes: a, b (B, 1 or 3, H, W) in [-1, 1] -> (B,).

    Raises:
        RuntimeError: when the weights cannot be downloaded.
        FileNotFoundError, ValueError: when the file does not exist or is for another network.

    Example:
        >>> distance = LPIPS(weights="random")
        >>> distance(torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 28, 28))
        tensor([0., 0.])
    """

    def __init__(self, net: str = "alex", weights: str | Path = "torchvision", size: int = 64):
        super().__init__()
        validate.one_of("net", net, tuple(TORCHVISION))
        validate.positive_int("size", size, at_least=32)
        state = None if weights == "random" else _backbone(net, weights)
        self.net, self.weights, self.size = net, str(weights), size
        import lpips

        with warnings.catch_warnings():  # lpips builds its untrained backbone with a deprecated argument
            warnings.simplefilter("ignore", UserWarning)
            self.distance = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        if state is not None:
            # lpips splits torchvision's `features` into slices, whose layers keep their numbers.
            names = {name: "features." + name.split(".", 1)[1] for name in self.distance.net.state_dict()}
            if lacking := sorted(set(names.values()) - set(state)):
                raise ValueError(f"weights: {weights} is not torchvision's {net}; it lacks {', '.join(lacking[:3])}")
            try:
                self.distance.net.load_state_dict({name: state[theirs] for name, theirs in names.items()})
            except RuntimeError as error:
                raise ValueError(f"weights: {weights} is not torchvision's {net}: {error}") from error
        self.freeze()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.follow(a, b)
        if a.dim() != 4 or a.shape[1] not in (1, 3):
            raise ValueError(f"a: expected images, shape (B, 1 or 3, H, W); got {tuple(a.shape)}")
        return self.distance(self._prepared(a), self._prepared(b)).flatten().to(a.dtype)

    def _prepared(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        scale = self.size / min(x.shape[2:])
        if scale > 1:
            sides = [round(scale * side) for side in x.shape[2:]]
            x = F.interpolate(x, size=sides, mode="bilinear", align_corners=False)
        return x.expand(-1, 3, -1, -1)

    def __repr__(self) -> str:
        return f"LPIPS(net={self.net!r}, weights={self.weights!r}, size={self.size})"


def _backbone(net: str, weights: str | Path) -> dict[str, Any]:
    if weights == "torchvision":
        from torchvision.models import get_weight

        try:
            state: dict[str, Any] = get_weight(TORCHVISION[net]).get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # a URLError is an OSError; a wrong checksum is a RuntimeError
            raise RuntimeError(
                f"weights: torchvision's weights of {net} ({get_weight(TORCHVISION[net]).url}) could not be "
                f"downloaded: {error}. Download the file elsewhere and pass its path, weights='...'; or use "
                "weights='random', for tests only"
            ) from error
        return state
    if not Path(weights).is_file():
        raise FileNotFoundError(f"weights: expected 'torchvision', 'random' or the path of a file; got {weights}")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights: {weights} is damaged or not a file of torch.save: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"weights: expected a file with a dict of tensors; {weights} holds a {type(state).__name__}")
    return state


class ClassifierDistance(_Frozen):
    """The same distance in the layers of flowbook's own classifier, with all weights w equal to 1; nothing to download.

    Args:
        classifier: a trained classifier, see :func:`flowbook.models.load_classifier`.

    Shapes: a, b (B, C, H, W) in [-1, 1] -> (B,).

    Example:
        >>> from flowbook import models
        >>> distance = ClassifierDistance(models.load_classifier("mnist"))
        >>> distance(torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 28, 28))
        tensor([0., 0.])
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
        validate.instance("classifier", classifier, Classifier, 'load_classifier("mnist")')
        self.classifier = copy.deepcopy(classifier)
        self.freeze()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.follow(a, b)
        wanted = (self.classifier.channels, self.classifier.size, self.classifier.size)
        if a.shape[1:] != wanted:
            raise ValueError(f"a: expected the classifier's images, shape (B, *{wanted}); got {tuple(a.shape)}")
        distance = a.new_zeros(len(a))
        for ours, theirs in zip(self._activations(a), self._activations(b), strict=True):
            distance = distance + (ours - theirs).square().sum(1).mean(1)  # over channels, then over positions
        return distance

    def _activations(self, x: Tensor) -> list[Tensor]:
        """The output of each SiLU, (B, channels, positions), of unit length over its channels."""
        activations = []
        for layer in self.classifier.body:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                activations.append(F.normalize(x.reshape(*x.shape[:2], -1), dim=1))
        return activations

    def __repr__(self) -> str:
        return f"ClassifierDistance({digest(self.classifier)[:16]})"
