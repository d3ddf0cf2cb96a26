"""Averaged weights: an exponential moving average whose half-life is counted in images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from flowbook.training.sharding import local


class AveragedWeights:
    r"""Keep :math:`\bar w \leftarrow \bar w + (1 - 2^{-B/h})(w - \bar w)`, with B images a step and half-life h.

    Counting in images makes the average the same for every batch size; early on the half-life is ``ramp`` times the
    images seen, so that the first weights are forgotten (Karras et al. 2022, appendix F).

    Example:
        >>> model = nn.Linear(1, 1)
        >>> average = AveragedWeights(model, half_life=1000.0, ramp=0.05)
        >>> average.update(batch_size=10, images=10)
        >>> torch.allclose(average.model.weight, model.weight)
        True
    """

    def __init__(self, model: nn.Module, half_life: float | None, ramp: float):
        self.half_life, self.ramp = half_life, ramp
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """From now on take in the weights of this module: the one it was made for, shared out or moved."""
        self._live, self._mean = _floating(model), _floating(self.model)
        self._counts = [
            pair for pair in zip(self.model.buffers(), model.buffers(), strict=True) if not pair[0].is_floating_point()
        ]

    @torch.no_grad()
    def update(self, batch_size: int, images: int) -> None:
        """Take in the live weights after a step of ``batch_size`` images, the ``images``-th in all."""
        if self.half_life is None:
            weight = 1.0
        else:
            weight = 1.0 - 0.5 ** (batch_size / min(self.half_life, images * self.ramp))
        torch._foreach_lerp_([local(p) for p in self._mean], [local(p) for p in self._live], weight)
        for kept, now in self._counts:  # numbers and flags, which have no mean
            kept.copy_(now)


def _floating(model: nn.Module) -> list[Tensor]:
    """Weights and buffers that can be averaged, each once: tied weights have several names."""
    return list(dict.fromkeys(p for p in model.state_dict(keep_vars=True).values() if p.is_floating_point()))
