"""The protocol of the losses that ``fit`` minimizes."""

from __future__ import annotations

import json
from typing import Any, Protocol

from torch import Tensor, nn


class Loss(Protocol):
    """Any callable ``loss(model, batch) -> scalar``: a function, or an object with options.

    An object may define more. What it omits has the default given here:

    * ``velocity(network)``: the velocity that a trained network represents. By default the network itself.
    * ``check(network, data)``: raise where the two are incompatible, before the first step. By default nothing.
    * ``describe()``: numbers and strings from which ``from_description``, a class method, rebuilds the loss, so that
      ``load`` finds the velocity. By default None: the network is the velocity.
    * ``one_call``: False where a step calls the network several times. By default True.
    * ``trains_velocity``: False where the network is not a velocity, such as a classifier. By default True.
    * ``learns_from_pairs``: True where a batch is (x0, x1, y), so that two tensors in an item of a Dataset are a pair.
      By default False.
    * ``condition_dropout``: with which probability conditions are dropped, so that a network later knows whether it has
      learned to do without. By default unknown.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


class CompleteLoss:
    """A loss with every default filled in, as the loop uses it."""

    def __init__(self, loss: Loss):
        self.loss = loss
        self.one_call = bool(getattr(loss, "one_call", True))
        self.trains_velocity = bool(getattr(loss, "trains_velocity", True))
        self.learns_from_pairs = bool(getattr(loss, "learns_from_pairs", False))
        self.condition_dropout = getattr(loss, "condition_dropout", None)

    def __call__(self, model: Any, batch: Any) -> Tensor:
        return self.loss(model, batch)

    def velocity(self, network: nn.Module) -> nn.Module:
        """The velocity that a trained network represents."""
        make = getattr(self.loss, "velocity", None)
        return network if make is None else make(network)

    def check(self, network: nn.Module, data: Any) -> None:
        """Raise where network and data are incompatible."""
        look = getattr(self.loss, "check", None)
        if look is not None:
            look(network, data)

    def describe(self) -> dict[str, Any] | None:
        """The loss as stored in a checkpoint: the path of its class, and the arguments that rebuild it."""
        tell = getattr(self.loss, "describe", None)
        told = None if tell is None else tell()
        if told is None:
            return None
        try:
            json.dumps(told)
        except (TypeError, ValueError) as error:
            raise TypeError(f"loss: describe() returns numbers and strings, to be stored as JSON; {error}") from error
        kind = type(self.loss)
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": told}
