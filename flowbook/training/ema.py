"""The exponential moving average of the parameters, whose half-life is counted in images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from flowbook.training.sharding import is_sharded, local


class EMA:
    r"""Keep :math:`\bar w \leftarrow \bar w + (1 - 2^{-B/h})(w - \bar w)`, with B images per step and half-life h.

    Counting in images makes the average the same for every batch size; early on the half-life is ``ramp`` times the
    images seen, so that the initial parameters are forgotten (Karras et al. 2022, appendix F).

    Args:
        model: the module whose parameters are averaged. The averages are in ``.model``, a copy in eval mode.
        batch_size: images per step.
        half_life: in images; None keeps the live parameters.
        ramp: the half-life is at most this fraction of the images seen so far.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> ema = EMA(model, batch_size=10, half_life=1000.0, ramp=0.05)
        >>> ema.update()
        >>> torch.allclose(ema.model.weight, model.weight)
        True
    """

    def __init__(self, model: nn.Module, batch_size: int, half_life: float | None = 10_000.0, ramp: float = 0.05):
        self.batch_size, self.half_life, self.ramp = batch_size, half_life, ramp
        self.images = 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """From now on average the parameters of this module: the original one, after sharding or a change of device."""
        self._live, self._mean = _floating(model), _floating(self.model)
        self._sharded = any(map(is_sharded, self._live))
        self._counts = [
            pair for pair in zip(self.model.buffers(), model.buffers(), strict=True) if not pair[0].is_floating_point()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the live parameters, after a step."""
        self.images += self.batch_size
        if self.half_life is None:
            weight = 1.0
        else:
            weight = 1.0 - 0.5 ** (self.batch_size / min(self.half_life, self.images * self.ramp))
        mean, live = self._mean, self._live
        if self._sharded:
            mean, live = [local(p) for p in mean], [local(p) for p in live]
        torch._foreach_lerp_(mean, live, weight)
        for kept, now in self._counts:  # counters and flags have no average
            kept.copy_(now)


def _floating(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers that can be averaged, each once: tied parameters have several names."""
    return list(dict.fromkeys(p for p in model.state_dict(keep_vars=True).values() if p.is_floating_point()))
