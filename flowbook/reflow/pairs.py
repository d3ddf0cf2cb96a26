"""Pairs of noise and the data that a flow generates from it: the training data of Reflow (chapter 4).

Writing a folder of pairs may be interrupted at any time: see :mod:`flowbook.data.generation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from flowbook._core.draws import indices
from flowbook._core.fields import set_fields
from flowbook._core.shard_folder import ShardFolder
from flowbook._core.shards import Shards
from flowbook._core.tree import map_condition, stored_dtype
from flowbook.condition import Condition, rows_of
from flowbook.data import GenerationOptions, Source
from flowbook.data.generated_images import split_options
from flowbook.data.generation import as_condition, as_source, generate, generation
from flowbook.solvers import Solver, SolverOptions, as_solver, solve
from flowbook.velocity import Velocity, device_of, dtype_of


class PairFolder(ShardFolder):
    kind: ClassVar[str] = "pairs"
    unit: ClassVar[str] = "pair"
    maker: ClassVar[str] = "generate_pairs"

    def arrays(self, rows: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        ends = (stored_dtype(self.settings["dtype"]), (rows, *self.settings["shape"]))
        return {"x0": ends, "x1": ends, **self.condition_arrays(rows)}

    def kept(self, x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
        return {"x0": x0, "x1": x1}


def generate_pairs(
    velocity: Velocity,
    source: Source | Sequence[int],
    n: int,
    out: str | Path,
    *,
    y: Condition = None,
    seed: int = 0,
    **options: Unpack[GenerationOptions],
) -> PairDataset:
    """Draw noise, solve the flow, keep both ends: n pairs in a folder, resuming where an earlier call was stopped.

    Under torchrun or accelerate the processes divide the shards among themselves, and each returns when all are done.
    Memory holds one batch, whatever n is.

    Args:
        velocity: the teacher, ``v(x, t, y=None)``: with the averaged parameters (EMA) that ``fit`` or ``load`` return,
            not the live ones. It is called on the device of its parameters.
        source: the shape of a sample, such as (1, 28, 28), for noise from N(0, I); or an object with
            ``.sample(n, generator)``.
        n: number of pairs.
        out: the folder.
        y: the condition of each pair, n rows of any shape and dtype, stored with it.
        seed: the seed of the noise.
        options: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields, by default dopri5. Pairs are only as
            accurate as the solver; an adaptive method's steps depend on the whole batch. In addition ``batch_size``
            (256), the pairs solved at once; ``shard_size`` (4096), the pairs in a shard; ``name``, a name that
            identifies the velocity in place of the SHA-256 hex digest of its parameters (required for a function, which
            has none); and ``progress``, where None shows a bar with the remaining time in a terminal only.

    Returns:
        The :class:`PairDataset` of the folder.

    Raises:
        ValueError, TypeError: for invalid arguments, and for a folder made with other settings or another model.
        RuntimeError: when the generated data are not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     pairs = generate_pairs(lambda x, t: torch.ones_like(x), (2,), 10, folder, name="ones")
        ...     x0, x1, y = pairs.batch([3, 7])
        >>> torch.allclose(x1, x0 + 1), y
        (True, None)
    """
    solver, how = split_options(options, default=Solver())
    rows = generation(velocity, source, n=n, y=y, seed=seed, solver=solver)
    return PairDataset(generate(PairFolder, rows, n, out, **how).path)


class PairDataset(Shards):
    """The pairs of a folder, read from disk row by row: data for ``fit``.

    Args:
        folder: made by :func:`generate_pairs`.

    Raises:
        FileNotFoundError: when there are no pairs, or some are still missing.
        ValueError: for a damaged file.

    Example:
        >>> PairDataset("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: folder: no/such/folder holds no pairs: it has no manifest.json; see generate_pairs
    """

    _folder_class = PairFolder

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Any]:
        """One pair (x0, x1, y)."""
        x0, x1, y = self.batch([index])
        return x0[0], x1[0], map_condition(lambda part: part[0], y)

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Any]:
        """The pairs at the given indices: x0 and x1 of shape (B, ...), and their condition or None."""
        rows = self._rows(indices)
        return rows["x0"], rows["x1"], self._condition(rows)


@dataclass(frozen=True, init=False)
class OnlinePairs:
    """Fresh pairs in every batch, generated by the teacher during training: data for ``fit`` without a folder.

    No pair is seen twice, so none can be memorized; each costs a whole solve of the teacher in the loop.

    Args:
        velocity: the teacher, as in :func:`generate_pairs`.
        source: a shape, or an object with ``.sample(n, generator)``.
        y: conditions to draw from, N rows, uniformly with replacement, such as the labels of the data. None samples
            without a condition.
        options: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields.

    Example:
        >>> pairs = OnlinePairs(lambda x, t: torch.ones_like(x), (2,), method="euler", steps=1)
        >>> x0, x1, y = pairs.sample(5)
        >>> torch.equal(x1, x0 + 1), y
        (True, None)
    """

    velocity: Velocity
    source: Source
    y: Condition
    solver: Solver

    def __init__(
        self,
        velocity: Velocity,
        source: Source | Sequence[int],
        y: Condition = None,
        **options: Unpack[SolverOptions],
    ):
        set_fields(
            self,
            velocity=velocity,
            source=as_source(source, velocity),
            y=as_condition(y, velocity),
            solver=as_solver(options),
        )

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Any]:
        """A batch (x0, x1, y), on the teacher's device."""
        device = device_of(self.velocity)
        x0 = self.source.sample(n, generator=generator).to(device=device, dtype=dtype_of(self.velocity))
        y = None
        if self.y is not None:
            drawn = indices(rows_of(self.y), n, generator)
            y = map_condition(lambda part: part[drawn].to(device), self.y)
        return x0, solve(self.velocity, x0, y=y, solver=self.solver).x, y
