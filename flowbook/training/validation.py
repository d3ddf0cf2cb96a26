"""The loss on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from flowbook._core import keyed
from flowbook.couplings import Coupling
from flowbook.training import batches
from flowbook.training.config import TrainConfig
from flowbook.training.loss import CompleteLoss
from flowbook.training.precision import Precision
from flowbook.velocity import device_of, evaluating

MOST_BATCHES = 10
"""The number of batches drawn from large or endless data."""


def validation_loss(
    network: nn.Module,
    loss: CompleteLoss,
    data: Any,
    config: TrainConfig,
    *,
    precision: Precision,
    coupling: Coupling | None,
) -> float:
    """The mean loss on up to ten batches, always the same ones with the same noise, times and coupling.

    They are drawn in the order of an epoch, so that small data sets are covered completely.
    """
    length = len(data) if hasattr(data, "__len__") and not isinstance(data, tuple) else None
    length = len(data[0]) if isinstance(data, tuple) else length
    batch_size = config.batch_size if length is None else min(config.batch_size, length)
    count = MOST_BATCHES if length is None else min(MOST_BATCHES, -(-length // batch_size))
    seed = keyed.mix(config.seed, 5)
    plan = batches.Plan(batch_size, seed, range(count), slice(0, batch_size), device_of(network))
    total = 0.0
    with evaluating(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
        stream: Iterator[Any] = batches.batches(data, plan)
        if coupling is not None:  # the objective of the training loss
            stream = (coupling(*each) for each in batches.with_noise(stream, seed=keyed.mix(seed, 2), first_step=0))
        for step, batch in enumerate(stream):
            torch.default_generator.manual_seed(keyed.mix(seed, step))
            with keyed.keyed(keyed.mix(seed, 1), step, 0), precision.autocast():
                total += float(loss(network, batch)) / count
    return total
