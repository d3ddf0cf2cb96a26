"""The arguments of ``fit``, validated before anything else happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from flowbook._core import validate
from flowbook.couplings import Coupling
from flowbook.data import Paired, Standardized, Standardizer, as_data, first_item, is_tensors, unpack
from flowbook.training import batches
from flowbook.training.config import TrainConfig
from flowbook.training.loss import CompleteLoss
from flowbook.velocity import check_order, dtype_of, said_by

Callback = Callable[[int, nn.Module, dict[str, float]], None]
Progress = bool | Literal["lines"] | None


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``fit``."""

    network: nn.Module
    loss: CompleteLoss
    data: Any
    config: TrainConfig
    coupling: Coupling | None
    folder: Path | None
    resume: bool
    stop_after: int | None
    preview: Callable[[nn.Module], Tensor] | None
    recipe: dict[str, Any] | None
    progress: Progress
    callbacks: Sequence[Callback]
    validation: Any
    init: str | Path | nn.Module | None = None
    strict: bool = True
    extend: Sequence[str] = ()
    classes: list[str] | None = None
    """The names of the labels, where the data say them."""
    standardizer: Standardizer | None = None

    def prepared(self) -> Arguments:
        """The same with data as the loop takes them: arrays as tensors of the network's dtype, dicts as tuples."""
        data, scale = self.data, None
        if isinstance(data, Standardized):
            data, scale = data.data, data.standardizer
        dtype = dtype_of(self.network) if isinstance(self.network, nn.Module) else None
        held_out = self.validation
        if scale is not None and held_out is not None:
            held_out = scale.data(held_out)
        data, held_out = as_data(data, dtype), as_data(held_out, dtype, "validation")
        if getattr(self.loss.loss, "learns_from_pairs", False):
            data, held_out = (_as_pairs(one) for one in (data, held_out))
        names = getattr(data, "classes", None)
        classes = [str(name) for name in names] if isinstance(names, (list, tuple)) else None
        return dataclasses.replace(self, data=data, validation=held_out, classes=classes, standardizer=scale)

    def check(self) -> None:
        """Raise for invalid arguments."""
        _check_network(self.network)
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "fit: gradients are disabled here; call it outside torch.no_grad() and torch.inference_mode()"
            )
        validate.function("loss", self.loss.loss, "FlowMatching()")
        self.loss.describe()
        validate.instance("config", self.config, TrainConfig, "TrainConfig(steps=1000)")
        if self.coupling is not None:
            validate.function("coupling", self.coupling, "OptimalTransport()")
        if self.preview is not None:
            validate.function("preview", self.preview, "lambda velocity: images")
        for callback in self.callbacks:
            validate.function("callbacks", callback, "lambda step, velocity, logs: print(step, logs)")
        if self.stop_after is not None:
            validate.positive_int("stop_after", self.stop_after)
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: expected a folder; {self.folder} is a file")
        validate.one_of("progress", self.progress, (None, True, False, "lines"))
        validate.boolean("strict", self.strict)
        if isinstance(self.extend, str) or not all(isinstance(name, str) for name in self.extend):
            raise TypeError(f"extend: expected names of settings, such as ['steps']; got {self.extend!r}")
        _check_classes(self.network, self.classes)
        for name, data in (("data", self.data), ("validation", self.validation)):
            if name == "data" or data is not None:
                batches.check(data, name)
                _check_finite(name, data)
                self.loss.check(self.network, data)


def _check_network(network: nn.Module) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"velocity: expected a torch.nn.Module to train; got {type(network).__name__}")
    check_order(network)
    if not any(True for _ in network.parameters()):
        raise ValueError(
            "velocity: expected trainable parameters; got a module without any. A network that a function calls is not "
            "seen: pass the network itself, or a module that holds it"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            "velocity: expected trainable parameters; got none that require gradients, as in the averaged copy that a "
            "run returns (velocity.requires_grad_(True) makes a copy trainable)"
        )


def _check_classes(network: nn.Module, classes: list[str] | None) -> None:
    """With another number of classes, the last label would train as the null, or some labels not at all."""
    count = said_by(network, "num_classes")
    if classes is None or count is None or len(classes) == count:
        return
    few = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    raise ValueError(f"num_classes: expected {len(classes)}, the number of classes of the data ({few}); got {count}")


def _as_pairs(data: Any) -> Any:
    """Items of two tensors of the same shape as pairs, for a loss that learns from nothing else."""
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return data
    first: Any = first_item(data) if len(data) > 0 else ()
    if not isinstance(first, (tuple, list)) or len(first) != 2 or not all(isinstance(one, Tensor) for one in first):
        return data
    return Paired(data) if first[0].shape == first[1].shape and first[1].is_floating_point() else data


def _check_finite(name: str, data: Any) -> None:
    """Checked once: a row that is not finite would end the run at the step that draws it."""
    if not is_tensors(data):
        return
    x0, x1, _ = unpack(data)
    for end, part in (("x0", x0), ("x1", x1)):
        if part is None or not part.is_floating_point() or bool(torch.isfinite(part).all()):
            continue
        rows = (~torch.isfinite(part)).reshape(len(part), -1).any(1).nonzero().flatten()
        raise ValueError(f"{name}: {len(rows)} of {len(part)} rows of {end} are not finite, the first is row {rows[0]}")
