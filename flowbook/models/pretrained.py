"""Shipped weights, and the files that hold them.

A file is safetensors with half-precision weights; its header describes the model and how it was trained. Nothing is
downloaded.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.condition import TrainedOn, remember, trained_on
from flowbook.data import Standardizer
from flowbook.models.building import build, describe
from flowbook.models.classifier import Classifier

PRETRAINED = ("digits", "mnist", "mnist_dequantized", "mnist_one_step")
CLASSIFIERS = ("mnist", "digits")


def load_pretrained(name: str) -> nn.Module:
    """A trained velocity that is shipped with the package, in eval mode.

    Args:
        name: "mnist", class-conditional digits of 28 x 28: ``v(x, t, y)`` with x (B, 1, 28, 28) in [-1, 1] and labels
            0 to 9; y None, or 10, is the null label. Made by ``flowbook train mnist``. "mnist_dequantized" is the same
            for likelihoods, trained on dequantized images (``flowbook train mnist_dequantized``). "mnist_one_step" is
            distilled from "mnist" (``flowbook train distill``), and only for
            ``sample(velocity, x0, y=y, method="euler", steps=1)``: it was trained at t = 0 alone. "digits" is a small
            network for 8 x 8 pixels (``flowbook train digits``).

    Example:
        >>> velocity = load_pretrained("mnist")
        >>> velocity(torch.zeros(2, 1, 28, 28), 0.5, torch.tensor([3, 7])).shape
        torch.Size([2, 1, 28, 28])
    """
    validate.one_of("name", name, PRETRAINED)
    return read_exported(asset(f"{name}.safetensors"))


def load_classifier(name: str) -> Classifier:
    """A trained classifier of images, in eval mode.

    Args:
        name: "mnist" (28 x 28) or "digits" (8 x 8); made by ``flowbook train mnist_classifier`` and
            ``digits_classifier``.

    Example:
        >>> load_classifier("mnist")(torch.zeros(1, 1, 28, 28)).shape
        torch.Size([1, 10])
    """
    validate.one_of("name", name, CLASSIFIERS)
    model = read_exported(asset(f"{name}_classifier.safetensors"))
    assert isinstance(model, Classifier)
    return model


def load_moments(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Means (F,) and covariances (F, F) of real images in the feature space of :func:`load_classifier`.

    Returns:
        {"train": ..., "test": ...}: of 10,000 training images and of the 10,000 test images.

    Example:
        >>> sorted(load_moments("mnist"))
        ['test', 'train']
    """
    validate.one_of("name", name, ("mnist",))
    with safe_open(asset(f"{name}_moments.safetensors"), framework="pt") as file:
        return {
            split: (file.get_tensor(f"{split}.mean"), file.get_tensor(f"{split}.covariance"))
            for split in ("train", "test")
        }


def asset(name: str) -> Path:
    """The path of a file in ``flowbook/assets``."""
    return Path(str(resources.files("flowbook") / "assets" / name))


def export(model: nn.Module, path: str | Path, **notes: Any) -> Path:
    """Write a model's weights in half precision, with what is needed to rebuild it.

    Args:
        model: one of this package's models.
        path: the file, ``....safetensors``; its folder is created.
        notes: stored in the header for information, such as the recipe.

    Raises:
        ValueError: for a model that :func:`flowbook.models.build` cannot build, or parameters beyond the range of half
            precision.
    """
    description = describe(model)
    if description is None:
        raise ValueError(f"model: expected one of flowbook.models; got {type(model).__name__}")
    tensors = {}
    for name, value in model.state_dict().items():
        half = value.half() if value.is_floating_point() else value
        if not bool(torch.isfinite(half.float()).all()):
            raise ValueError(f"model: expected parameters in the range of half precision; got larger ones in {name}")
        tensors[name] = half.cpu().contiguous()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    trained = trained_on(model)
    scale = getattr(model, "standardizer", None)
    told = {
        "model": description, "notes": notes, "trained_on": trained and dataclasses.asdict(trained),
        "classes": getattr(model, "classes", None), "standardizer": scale and scale.as_dict(),
    }  # fmt: skip
    save_file(tensors, path, metadata={name: json.dumps(value) for name, value in told.items()})
    return Path(path)


def read_exported(path: str | Path) -> nn.Module:
    """A model from a file of :func:`export`, in float32 and eval mode.

    Raises:
        FileNotFoundError, ValueError: when the file is missing, damaged, or not written by :func:`export`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            told = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            description, trained, scale = told["model"], told["trained_on"], told.get("standardizer")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = build(description["name"], **description["arguments"]).float()
        remember(model, trained and TrainedOn(**trained))
        said: dict[str, Any] = {"classes": told.get("classes"), "standardizer": scale and Standardizer.from_dict(scale)}
        vars(model).update(said)
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"path: {path} is damaged or was not written by flowbook: {error!r}") from error
    return model.eval()
