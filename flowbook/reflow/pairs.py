"""Pairs of noise and the data that a flow makes of it: what Reflow (chapter 4) learns from.

A folder of pairs survives a kill: see :mod:`flowbook.data.generation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from flowbook._core.fields import set_fields
from flowbook._core.shard_folder import ShardFolder
from flowbook._core.shards import Shards
from flowbook.data import GenerationOptions, Source
from flowbook.data.generated_images import split_options
from flowbook.data.generation import as_labels, as_source, generate, generation
from flowbook.solvers import Solver, SolverOptions, as_solver, sample
from flowbook.velocity import Velocity, device_of


class PairFolder(ShardFolder):
    kind: ClassVar[str] = "pairs"
    unit: ClassVar[str] = "pair"
    maker: ClassVar[str] = "generate_pairs"

    def arrays(self, rows: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        ends = (np.dtype(self.settings["dtype"]), (rows, *self.settings["shape"]))
        return {"x0": ends, "x1": ends, **self.label_array(rows)}

    def kept(self, x0: Tensor, x1: Tensor, y: Tensor | None) -> dict[str, Tensor | None]:
        return {"x0": x0, "x1": x1, "y": y}


def generate_pairs(
    velocity: Velocity,
    source: Source | Sequence[int],
    n: int,
    out: str | Path,
    *,
    y: Tensor | None = None,
    seed: int = 0,
    **options: Unpack[GenerationOptions],
) -> PairDataset:
    """Draw noise, solve the flow, keep both ends: n pairs in a folder, going on where an earlier call was stopped.

    Under torchrun or accelerate the processes share the shards out among themselves, and each returns when all are
    done. Memory holds a batch, whatever n is.

    Args:
        velocity: the teacher, ``v(x, t, y=None)``: the averaged weights that ``fit`` or ``load`` return, not the live
            ones. It is called on the device of its parameters.
        source: the shape of a sample, such as (1, 28, 28), for noise from N(0, I); or anything with
            ``.sample(n, generator)``.
        n: number of pairs.
        out: the folder.
        y: a label for each pair, shape (n,), kept with it.
        seed: of the noise.
        options: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields, by default dopri5. Pairs are only as
            good as it is; an adaptive method's steps depend on the whole batch. Besides ``batch_size`` (256), the pairs
            solved at once; ``shard_size`` (4096), those of a shard; ``name``, what the velocity is, in a word that
            takes the place of its weights' digest (a function, which has no weights, needs it); and ``progress``, where
            None shows a bar with the time left where a person watches (a terminal).

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
    solver, how = split_options(options, default=Solver())
    rows = generation(velocity, source, n=n, y=y, seed=seed, solver=solver)
    return PairDataset(generate(PairFolder, rows, n, out, **how).path)


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

    _folder_class = PairFolder

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """One pair (x0, x1, y)."""
        x0, x1, y = self.batch(torch.tensor([index]))
        return x0[0], x1[0], None if y is None else y[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pairs of some indices: x0 and x1 of shape (B, ...), y (B,) or None."""
        x0, x1, *y = self._rows(indices)
        return x0, x1, y[0] if y else None


@dataclass(frozen=True, init=False)
class OnlinePairs:
    """Fresh pairs in every batch, by the teacher itself: data for ``fit`` that no folder holds.

    No pair comes twice, so nothing can be learned by heart; each costs the teacher's whole solve in the loop.

    Args:
        velocity: the teacher, as in :func:`generate_pairs`.
        source: a shape, or something with ``.sample(n, generator)``.
        y: labels to draw from, shape (N,), each equally often: those of the data, say. None draws without labels.
        options: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields.

    Example:
        >>> pairs = OnlinePairs(lambda x, t: torch.ones_like(x), (2,), method="euler", steps=1)
        >>> x0, x1, y = pairs.sample(5)
        >>> torch.equal(x1, x0 + 1), y
        (True, None)
    """

    velocity: Velocity
    source: Source
    y: Tensor | None
    solver: Solver

    def __init__(
        self,
        velocity: Velocity,
        source: Source | Sequence[int],
        y: Tensor | None = None,
        **options: Unpack[SolverOptions],
    ):
        labels = None if y is None else as_labels(y, len(y), velocity)
        set_fields(self, velocity=velocity, source=as_source(source), y=labels, solver=as_solver(options))

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """A batch (x0, x1, y), on the teacher's device."""
        device = device_of(self.velocity)
        x0 = self.source.sample(n, generator=generator).to(device)
        y = None
        if self.y is not None:
            y = self.y[torch.randint(len(self.y), (n,), generator=generator)].to(device)
        return x0, sample(self.velocity, x0, y=y, solver=self.solver).x, y
