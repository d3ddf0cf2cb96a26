"""The arguments of ``fit``, validated before anything else happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.couplings import Coupling
from flowbook.data import is_tensors, unpack
from flowbook.training import batches
from flowbook.training.config import TrainConfig
from flowbook.training.loss import CompleteLoss
from flowbook.velocity import check_order

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
