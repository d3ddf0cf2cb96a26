r"""Pairs of noise and the data that a flow makes of it: what Reflow (chapter 4) learns from.

A folder of pairs is written shard by shard, each complete or absent, so that a kill loses one shard at most; its
``manifest.json`` has the settings that decide every number, and a digest of the teacher's weights. Noise and label of
pair n depend on the seed and on n alone. Batches start anew in each shard, so the data do not depend on the number of
processes or on interruptions either, bit for bit; another batch size rounds differently.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowbook import _validate, keyed
from flowbook._digest import digest
from flowbook._model import Velocity, device_of, null_label_of
from flowbook._pair_files import PairFolder
from flowbook._progress import tqdm
from flowbook._shards import Shards
from flowbook.data import Source
from flowbook.solvers import sample


@dataclass(frozen=True)
class Normal:
    """The standard normal distribution of tensors of one shape.

    Example:
        >>> Normal((1, 28, 28)).sample(2).shape
        torch.Size([2, 1, 28, 28])
    """

    shape: tuple[int, ...]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n tensors, shape (n, ...), float32."""
        return torch.randn(n, *self.shape, generator=generator)


def keyed_noise(source: Source, seed: int, first: int, n: int) -> Tensor:
    """The noise of pairs ``first`` to ``first + n - 1``, shape (n, ...): it depends on the seed and the pair alone.

    Example:
        >>> noise = keyed_noise(Normal((2,)), seed=0, first=0, n=300)
        >>> torch.equal(keyed_noise(Normal((2,)), seed=0, first=200, n=100), noise[200:])
        True
    """
    blocks, generator = [], torch.Generator()
    for block in range(first // keyed.BLOCK, (first + n - 1) // keyed.BLOCK + 1):
        blocks.append(source.sample(keyed.BLOCK, generator=generator.manual_seed(keyed.mix(seed, block))))
    start = first % keyed.BLOCK
    return torch.cat(blocks)[start : start + n]


def generate_pairs(
    velocity: Velocity,
    source: Source | Sequence[int],
    n: int,
    out: str | Path,
    *,
    y: Tensor | None = None,
    batch_size: int = 256,
    seed: int = 0,
    method: str = "dopri5",
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    shard_size: int = 4096,
    name: str | None = None,
    progress: bool | None = None,
) -> PairDataset:
    """Draw noise, solve the flow, keep both ends: n pairs in a folder, going on where an earlier call was stopped.

    Under torchrun or accelerate the processes share the shards out among themselves, and each returns when all are
    done. Memory holds a batch, whatever n is.

    Args:
        velocity: the teacher, ``v(x, t, y=None)``: the averaged weights that ``fit`` or ``load`` return, not the live
            ones. It is called on the device that its weights are on.
        source: the shape of a sample, such as (1, 28, 28), for noise from N(0, I); or anything with
            ``.sample(n, generator)``.
        n: number of pairs.
        out: the folder.
        y: a label for each pair, shape (n,), kept with it.
        batch_size: pairs solved at once.
        seed: of the noise.
        method, steps, rtol, atol: the solver, as in :func:`~flowbook.solvers.solve`. Pairs are only as good as it is;
            an adaptive method's steps depend on the whole batch.
        shard_size: pairs in a shard.
        name: what the velocity is, in a word that takes the place of its weights' digest; a function, which has no
            weights, needs it.
        progress: show a progress bar with the time left; None shows it where a person watches (a terminal).

    Returns:
        The :class:`PairDataset` of the folder.

    Raises:
        ValueError, TypeError: for arguments that do not fit, and for a folder made with other settings or weights.
        RuntimeError: when the data are not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     pairs = generate_pairs(lambda x, t: torch.ones_like(x), (2,), 10, folder, name="ones")
        ...     x0, x1, y = pairs.batch(torch.tensor([3, 7]))
        >>> torch.allclose(x1, x0 + 1), y
        (True, None)
    """
    solver = {"method": method} | ({"rtol": rtol, "atol": atol} if steps is None else {"steps": steps})
    made_by = teacher(velocity, source, y, n, seed, solver)
    return PairDataset(generate(PairFolder, made_by, n, Path(out), batch_size, shard_size, name, progress).path)


def teacher(
    velocity: Velocity, source: Source | Sequence[int], y: Tensor | None, n: int, seed: int, solver: dict[str, Any]
) -> Teacher:
    # Without docstrings, these two are not in the reference: flowbook.samples shares them.
    _validate.positive_int("n", n)
    _validate.positive_int("seed", seed, at_least=0)
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in solver.items()}
    return Teacher(velocity, _source(source), _labels(y, n, velocity), int(seed), plain)


def generate(
    kind: type[PairFolder], teacher: Teacher, n: int, out: Path, batch_size: int, shard_size: int, name: str | None,
    progress: bool | None,
) -> PairFolder:  # fmt: skip
    for argument, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        _validate.positive_int(argument, value)
    n, batch_size, shard_size = int(n), int(batch_size), int(shard_size)
    x0, *_ = teacher.pairs(0, 1)  # on trial: what is wrong with the arguments shows before anything is written
    folder = kind.claim(out, {
        "n": n, "shape": list(x0.shape[1:]), "dtype": str(x0.dtype).removeprefix("torch."), "seed": teacher.seed,
        **teacher.solver, "batch_size": batch_size, "shard_size": shard_size,
        "velocity": _word_for(teacher.velocity, name),
        "source": digest(keyed_noise(teacher.source, teacher.seed, 0, keyed.BLOCK)),
        "labels": None if teacher.y is None else digest(teacher.y),
    })  # fmt: skip

    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine, missing = range(rank, folder.shards, processes), folder.missing()
    with _progress_bar(progress, rank, folder, mine, missing) as bar:
        for k in sorted(set(mine) & set(missing)):
            with folder.writing(k) as (arrays, notes):
                notes["nfe"] = _fill(folder, arrays, folder.rows(k), batch_size, teacher, bar)
    folder.wait_for_others()
    return folder


def _fill(
    folder: PairFolder, arrays: dict[str, Any], rows: range, batch_size: int, teacher: Teacher, bar: Any
) -> float:
    """Write a shard, batch by batch; the model calls of a pair, on average."""
    calls = 0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        x0, x1, y, nfe = teacher.pairs(batch[0], len(batch))
        parts = folder.kept(x0, x1, y)
        for name, array in arrays.items():
            array[start : start + len(batch)] = parts[name]
        calls += nfe * len(batch)
        bar.update(len(batch))
    return calls / len(rows)


@dataclass(frozen=True)
class Teacher:
    velocity: Velocity
    source: Source
    y: Tensor | None
    seed: int
    solver: dict[str, Any]

    def pairs(self, first: int, n: int) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """x0, x1, labels and model calls of pairs ``first`` to ``first + n - 1``, on the CPU."""
        device = device_of(self.velocity)
        x0 = keyed_noise(self.source, self.seed, first, n)
        y = None if self.y is None else self.y[first : first + n]
        solution = sample(self.velocity, x0.to(device), y=None if y is None else y.to(device), **self.solver)
        x1 = solution.x.cpu()
        if not bool(torch.isfinite(x1).all()):
            raise RuntimeError(f"velocity: the data of pairs {first} to {first + n - 1} are not all finite")
        return x0, x1, y, solution.nfe


def _source(source: Source | Sequence[int]) -> Source:
    if isinstance(source, Sequence) and not isinstance(source, str):
        for size in source:
            _validate.positive_int("source", size)
        return Normal(tuple(source))
    if isinstance(source, type) or not callable(getattr(source, "sample", None)):
        raise TypeError(
            "source: expected the shape of a sample, such as (1, 28, 28), or something with sample(n, generator=None); "
            f"got {_validate.described(source)}"
        )
    return source


def _labels(y: Tensor | None, n: int, velocity: Velocity) -> Tensor | None:
    if y is None:
        return None
    null_label = null_label_of(velocity)
    y = y.detach().cpu() if isinstance(y, Tensor) else y
    _validate.labels("y", y, n, classes=None if null_label is None else null_label + 1)
    return y.long()


def _word_for(velocity: Velocity, name: str | None) -> str:
    if name is not None:
        return name
    try:
        return digest(velocity)
    except TypeError as error:
        raise ValueError(
            f"name: expected a word that says what the velocity is, for the folder to be known by: {error}; got None"
        ) from error


def _progress_bar(progress: bool | None, rank: int, folder: PairFolder, mine: range, missing: list[int]) -> Any:
    """tqdm over this process's pairs, on the first process, where a person watches."""
    show = sys.stderr.isatty() if progress is None else progress
    total = sum(len(folder.rows(k)) for k in mine)
    left = sum(len(folder.rows(k)) for k in set(mine) & set(missing))
    return tqdm(total=total, initial=total - left, unit="pair", disable=not show or rank > 0)


class PairDataset(Shards):
    """The pairs of a folder, read row by row from the disk: ``fit`` takes it as data.

    Args:
        folder: made by :func:`generate_pairs`.

    Raises:
        FileNotFoundError: when there are no pairs, or not all of them yet.
        ValueError: for a damaged file.

    Example:
        >>> PairDataset("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: folder: no/such/folder holds no pairs: there is no manifest.json; see generate_pairs
    """

    _folder_class, _maker = PairFolder, "generate_pairs"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """One pair (x0, x1, y)."""
        x0, x1, y = self.batch(torch.tensor([index]))
        return x0[0], x1[0], None if y is None else y[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pairs of some indices: x0 and x1 of shape (B, ...), y (B,) or None."""
        x0, x1, *y = self._rows(indices)
        return x0, x1, y[0] if y else None


# The teacher in the loop ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnlinePairs:
    """Fresh pairs in every batch, by the teacher itself: data for ``fit`` that no folder holds.

    No pair comes twice, so nothing can be learned by heart; each costs the teacher's whole solve in the loop.

    Args:
        velocity: the teacher, as in :func:`generate_pairs`.
        source: a shape, or something with ``.sample(n, generator)``.
        y: labels to draw from, shape (N,), each equally often: those of the data, say. None draws without labels.
        method, steps, rtol, atol: the solver, as in :func:`~flowbook.solvers.solve`.

    Example:
        >>> pairs = OnlinePairs(lambda x, t: torch.ones_like(x), (2,), method="euler", steps=1)
        >>> x0, x1, y = pairs.sample(5)
        >>> torch.equal(x1, x0 + 1), y
        (True, None)
    """

    velocity: Velocity
    source: Source | Sequence[int]
    y: Tensor | None = None
    method: str = "dopri5"
    steps: int | None = None
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        _source(self.source)
        if self.y is not None:
            object.__setattr__(self, "y", _labels(self.y, len(self.y), self.velocity))

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """A batch (x0, x1, y), on the teacher's device."""
        device = device_of(self.velocity)
        x0 = _source(self.source).sample(n, generator=generator).to(device)
        y = None
        if self.y is not None:
            y = self.y[torch.randint(len(self.y), (n,), generator=generator)].to(device)
        solution = sample(self.velocity, x0, y=y, method=self.method, steps=self.steps, rtol=self.rtol, atol=self.atol)
        return x0, solution.x, y
