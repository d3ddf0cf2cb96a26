"""The batches of a run: which samples each step sees, on each process.

A batch is ``x1``, ``(x1, y)`` or ``(x0, x1, y)``. Its content depends on the seed and the step, never on how many
processes share it: process r of R takes rows ``r B/R`` to ``(r + 1) B/R`` of the global batch.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from flowbook._core import keyed, validate
from flowbook._core.seeding import seeded
from flowbook.data import Batch, is_tensors, map_batch, parts_of, to_device, unpack


@runtime_checkable
class Distribution(Protocol):
    """Anything that can be sampled: x1 from the planar data or a mixture, (x0, x1, None) from ``data.Unpaired``."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Batch: ...


@runtime_checkable
class Indexed(Protocol):
    """A finite data set that returns a whole batch for its indices, such as :class:`flowbook.reflow.PairDataset`."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch: ...


class EpochOrder:
    """The endless sequence of shuffled epochs; ``indices(step)`` is the global batch of a step.

    Example:
        >>> order = EpochOrder(samples=4, batch_size=2, seed=0)
        >>> sorted(order.indices(0).tolist() + order.indices(1).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, samples: int, batch_size: int, seed: int):
        if samples < 1:
            raise ValueError("data: expected at least one sample; got an empty data set")
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._epochs: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        position = torch.arange(step * self.batch_size, (step + 1) * self.batch_size, device="cpu")
        first, last = int(position[0]) // self.samples, int(position[-1]) // self.samples
        self._epochs = {epoch: self._permutation(epoch) for epoch in range(first, last + 1)}
        if first == last:
            return self._epochs[first][position - first * self.samples]
        joined = torch.cat([self._epochs[epoch] for epoch in range(first, last + 1)])
        return joined[position - first * self.samples]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self._epochs:
            return self._epochs[epoch]
        generator = torch.Generator().manual_seed(keyed.mix(self.seed, epoch))
        return torch.randperm(self.samples, generator=generator, device="cpu")


@dataclass(frozen=True)
class Plan:
    """Which batches a process works on."""

    batch_size: int
    """The number of samples in a global batch."""
    seed: int
    steps: range
    share: slice
    """This process's rows of the global batch."""
    device: torch.device
    workers: int = 0
    """Processes that prefetch a Dataset; a sample does not depend on the process that reads it."""
    look: Callable[[Batch], None] | None = None
    """Called with each batch of a Dataset before it goes to the device, to raise for labels that are no classes."""


def batches(data: Any, plan: Plan) -> Iterator[Batch]:
    """This process's rows of the batches of some steps, on its device.

    Args:
        data: a tensor x1; a tuple (x1, y) or (x0, x1, y); an object whose ``.sample(n, generator)`` returns a batch; a
            Dataset whose items are such tuples; or one whose ``.batch(indices)`` returns a batch.
        plan: which batches, and which of their rows.
    """
    check(data)
    if is_tensors(data):
        return _from_tensors(data, plan)
    if isinstance(data, Indexed):
        return _from_indexed(data, plan)
    if isinstance(data, Dataset):
        return _from_dataset(data, plan)
    return _from_distribution(data, plan)


def check(data: Any, name: str = "data") -> None:
    """Raise for data from which no batches can be made."""
    if is_tensors(data):
        parts = parts_of(data)
        if any(part.dim() == 0 for part in parts.values()) or not all(len(part) for part in parts.values()):
            shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
            raise ValueError(f"{name}: expected at least one sample; got empty or 0-d tensors, {shapes}")
        lengths = {part: len(tensor) for part, tensor in parts.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{name}: expected parts of equal length; got {lengths}")
    elif isinstance(data, Indexed):
        return
    elif isinstance(data, Dataset):
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            raise TypeError(
                f"{name}: expected a Dataset with a length and an item for each index, so that every step's batch is "
                f"known; got a {type(data).__name__} without them"
            )
    elif isinstance(data, type) or not isinstance(data, Distribution):
        raise TypeError(
            f"{name}: expected a tensor, a tuple of tensors, a torch Dataset or an object with sample(n, generator); "
            f"got {validate.described(data)}"
        )


def _from_tensors(data: Batch, plan: Plan) -> Iterator[Batch]:
    data = map_batch(lambda part: part.to(plan.device), data)  # all of it, once
    order = EpochOrder(len(unpack(data)[1]), plan.batch_size, plan.seed)
    for step in plan.steps:
        index = to_device(order.indices(step)[plan.share], plan.device)
        yield map_batch(lambda part: part[index], data)  # noqa: B023 (called at once)


def _from_indexed(data: Indexed, plan: Plan) -> Iterator[Batch]:
    order = EpochOrder(len(data), plan.batch_size, plan.seed)
    for step in plan.steps:
        batch = data.batch(order.indices(step)[plan.share])
        if plan.look is not None:
            plan.look(batch)
        yield map_batch(lambda part: to_device(part, plan.device), batch)


def _from_distribution(data: Distribution, plan: Plan) -> Iterator[Batch]:
    generator, alone = torch.Generator(), plan.share == slice(0, plan.batch_size)
    for step in plan.steps:
        generator.manual_seed(keyed.mix(plan.seed, step))
        batch = data.sample(plan.batch_size, generator=generator)
        yield map_batch(lambda x: to_device(x if alone else x[plan.share], plan.device), batch)


class _BatchIndices:
    """A batch sampler for DataLoader: (index, seed) for each row of this process, step after step."""

    def __init__(self, order: EpochOrder, steps: range, share: slice):
        self.order, self.steps, self.share = order, steps, share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            rows = range(self.order.batch_size)[self.share]
            seeds = [keyed.mix(self.order.seed, step, row) for row in rows]
            yield list(zip(self.order.indices(step)[self.share].tolist(), seeds, strict=True))

    def __len__(self) -> int:
        return len(self.steps)


class _Seeded(Dataset[Any]):
    """A data set read by (index, seed): a random flip or crop belongs to the sample, not to the process or the run."""

    def __init__(self, data: Dataset[Any]):
        self.data = data

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        with seeded(seed):
            return self.data[index]


def _from_dataset(data: Dataset[Any], plan: Plan) -> Iterator[Batch]:
    order = EpochOrder(len(data), plan.batch_size, plan.seed)  # type: ignore[arg-type]
    loader: Iterable[Any] = DataLoader(
        _Seeded(data), batch_sampler=_BatchIndices(order, plan.steps, plan.share), num_workers=plan.workers,
        pin_memory=plan.device.type == "cuda", worker_init_fn=_stay, collate_fn=_together,
    )  # fmt: skip
    for batch in loader:
        if plan.look is not None:
            plan.look(batch)
        yield map_batch(lambda part: part.to(plan.device, non_blocking=True), batch)


def _together(items: list[Any]) -> Any:
    """The items of a batch as tensors with the batch first; what is None in all of them stays None."""
    first = items[0]
    if all(item is None for item in items):
        return None
    if isinstance(first, Mapping):
        return {key: _together([item[key] for item in items]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_together(list(parts)) for parts in zip(*items, strict=True))
    return default_collate(items)


def _stay(worker: int) -> None:
    """Ignore SIGTERM in a reader: a scheduler sends it to all processes of a run before the checkpoint is written.

    The readers end when the training process closes them or has ended.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def with_noise(stream: Iterable[Batch], *, seed: int, first_step: int) -> Iterator[Any]:
    """Add to each global batch the noise that its samples are keyed to: (x0, x1, y), ready for a coupling."""
    for step, batch in enumerate(stream, start=first_step):
        x0, x1, y = unpack(batch)
        if x0 is None:
            with keyed.keyed(seed, step, 0):
                x0 = keyed.randn_like(x1)
        yield x0, x1, y
