"""Models by name, as in recipes, checkpoints and weight files."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from flowbook._core import validate
from flowbook.models.classifier import Classifier
from flowbook.models.dit import DiT
from flowbook.models.mlp import MLP
from flowbook.models.unet import UNet

CLASSES: dict[str, type[nn.Module]] = {"MLP": MLP, "UNet": UNet, "DiT": DiT, "Classifier": Classifier}


def build(name: str, **arguments: Any) -> nn.Module:
    """A model by the name of its class.

    Example:
        >>> type(build("MLP", dim=2)).__name__
        'MLP'
    """
    validate.one_of("model", name, tuple(CLASSES))
    return CLASSES[name](**arguments)


def describe(model: nn.Module) -> dict[str, Any] | None:
    """What :func:`build` needs to rebuild the model; None for a class that it does not know.

    Example:
        >>> describe(MLP(2))["name"]
        'MLP'
    """
    name = type(model).__name__
    if CLASSES.get(name) is not type(model):
        return None
    # Through JSON, as when stored: NumPy's numbers become Python's.
    return {"name": name, "arguments": json.loads(json.dumps(model.arguments, default=lambda number: number.item()))}
