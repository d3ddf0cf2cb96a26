"""What ``fit`` minimises, and what it may further ask of that."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Loss(Protocol):
    """Any callable ``loss(model, batch) -> scalar``: a function, or an object with options.

    An object may say more. What it leaves out has the default given here:

    * ``velocity(network)``: the velocity that a trained network stands for. By default the network itself.
    * ``check(network, data)``: raise where the two do not go together, before the first step. By default nothing.
    * ``describe()``: numbers and words that ``from_description``, a class method, makes the loss of again, so that
      ``load`` finds the velocity. By default None: the network is the velocity.
    * ``one_call``: False where a step calls the network again and again. By default True.
    * ``trains_velocity``: False where the network is none, as a classifier. By default True.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


class CompleteLoss:
    """A loss with every default filled in: all that the loop knows of one."""

    def __init__(self, loss: Loss):
        self.loss = loss
        self.one_call = bool(getattr(loss, "one_call", True))
        self.trains_velocity = bool(getattr(loss, "trains_velocity", True))

    def __call__(self, model: Any, batch: Any) -> Tensor:
        return self.loss(model, batch)

    def velocity(self, network: nn.Module) -> nn.Module:
        """What a trained network stands for."""
        make = getattr(self.loss, "velocity", None)
        return network if make is None else make(network)

    def check(self, network: nn.Module, data: Any) -> None:
        """Raise where network and data do not go together."""
        look = getattr(self.loss, "check", None)
        if look is not None:
            look(network, data)

    def describe(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of the loss: the address of its class, and what that makes it of again."""
        tell = getattr(self.loss, "describe", None)
        told = None if tell is None else tell()
        if told is None:
            return None
        kind = type(self.loss)
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": told}
