"""The networks, and shipped weights that were trained with the recipes of this package."""

from flowbook.models.autocast import Autocast
from flowbook.models.building import CLASSES, build, describe
from flowbook.models.classifier import Classifier, CrossEntropy, features_and_labels
from flowbook.models.compiled import Compiled
from flowbook.models.counting import Cost, cost
from flowbook.models.dit import DiT
from flowbook.models.mlp import MLP
from flowbook.models.pretrained import (
    PRETRAINED,
    asset,
    export,
    load_classifier,
    load_moments,
    load_pretrained,
    read_exported,
)
from flowbook.models.unet import UNet

__all__ = [
    "CLASSES",
    "MLP",
    "PRETRAINED",
    "Autocast",
    "Classifier",
    "Compiled",
    "Cost",
    "CrossEntropy",
    "DiT",
    "UNet",
    "asset",
    "build",
    "cost",
    "describe",
    "export",
    "features_and_labels",
    "load_classifier",
    "load_moments",
    "load_pretrained",
    "read_exported",
]
