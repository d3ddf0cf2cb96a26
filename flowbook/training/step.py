"""One step of training, shared by the loop, ``flowbook bench`` and the book."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flowbook.data import Batch, map_batch, unpack
from flowbook.training.ema import EMA
from flowbook.training.loss import Loss


class StepContext:
    """The contexts of a micro-batch: here none; a run has contexts for precision, random numbers and processes."""

    def passes(self, part: int) -> contextlib.AbstractContextManager[Any]:
        """Around the forward and the backward pass of a micro-batch."""
        return contextlib.nullcontext()

    def forward(self, part: int) -> contextlib.AbstractContextManager[Any]:
        """Around its forward pass."""
        return contextlib.nullcontext()


def train_step(
    model: Any,
    batch: Batch,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None = None,
    *,
    accumulate: int = 1,
    gradient_clip: float | None = None,
    context: StepContext = StepContext(),  # noqa: B008 (holds nothing)
) -> Tensor:
    """Take one step: the gradient of the loss on a batch, and the updates of the optimizer and the EMA.

    Args:
        model: the network, in training mode.
        batch: x1, (x1, y) or (x0, x1, y), whose length ``accumulate`` divides.
        loss: ``loss(model, batch) -> scalar``, a mean over the batch.
        optimizer: an optimizer of the network's parameters, with the learning rate of this step.
        ema: the moving average to update after the step.
        accumulate: number of micro-batches for gradient accumulation; their gradients are averaged.
        gradient_clip: the largest norm of the gradient.
        context: the contexts in which the micro-batches are computed.

    Returns:
        The loss, a detached scalar.

    Example:
        >>> from flowbook.flow_matching import FlowMatching
        >>> from flowbook.models import MLP
        >>> model = MLP(2, hidden=16)
        >>> train_step(model, torch.randn(8, 2), FlowMatching(), torch.optim.Adam(model.parameters())).shape
        torch.Size([])
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for parameter in parameters:  # zero_grad() would call the profiler too
        parameter.grad = None
    values = []
    for part, micro_batch in enumerate(micro_batches(batch, accumulate)):
        with context.passes(part):
            with context.forward(part):
                value = loss(model, micro_batch)
                check_scalar(value)
            if accumulate > 1:
                value = value / accumulate
            value.backward()
        values.append(value.detach())
    if gradient_clip is not None:
        nn.utils.clip_grad_norm_(parameters, gradient_clip)
    optimizer.step()
    if ema is not None:
        ema.update()
    return values[0] if accumulate == 1 else torch.stack(values).sum()


def check_scalar(value: Any) -> None:
    """Raise for a loss that is not a scalar, such as one value per sample."""
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a scalar, the mean over the batch; got {got}")


def micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch in parts of equal length.

    Example:
        >>> [len(part) for part in micro_batches(torch.zeros(6, 2), 3)]
        [2, 2, 2]
    """
    if parts == 1:
        yield batch
        return
    rows = len(unpack(batch)[1]) // parts
    for start in range(0, parts * rows, rows):
        yield map_batch(lambda x: x[start : start + rows], batch)  # noqa: B023 (called at once)
