"""Samples of a velocity in a folder of shards: the common part of generated images and pairs.

A folder is written shard by shard, each complete or absent, so that an interruption loses one shard at most; its
``manifest.json`` has the settings that determine every number, and a digest of the model. Noise and condition of row n
depend only on the seed and on n. Batches start anew in each shard, so the rows do not depend on the number of
processes or on interruptions either, bit for bit; another batch size rounds differently.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from flowbook._core import keyed, progress, validate
from flowbook._core.digest import digest
from flowbook._core.shard_folder import ShardFolder
from flowbook._core.tree import as_stored, form_of, leaves, map_condition
from flowbook.condition import Condition, check_condition, rows_of
from flowbook.data.planar import Source
from flowbook.paths import path_of
from flowbook.solvers import Solver, sample, solve
from flowbook.velocity import Velocity, device_of, dtype_of


class FolderOptions(TypedDict, total=False):
    """How a folder is written; only ``batch_size`` affects the numbers, and only by rounding."""

    batch_size: int
    shard_size: int
    name: str | None
    progress: bool | None


def keyed_noise(source: Source, seed: int, first: int, n: int) -> Tensor:
    """The noise of rows ``first`` to ``first + n - 1``, shape (n, ...): it depends only on the seed and the row.

    Example:
        >>> from flowbook.paths import Normal
        >>> noise = keyed_noise(Normal((2,)), seed=0, first=0, n=300)
        >>> torch.equal(keyed_noise(Normal((2,)), seed=0, first=200, n=100), noise[200:])
        True
    """
    blocks, generator = [], torch.Generator()
    for block in range(first // keyed.BLOCK, (first + n - 1) // keyed.BLOCK + 1):
        blocks.append(source.sample(keyed.BLOCK, generator=generator.manual_seed(keyed.mix(seed, block))))
    start = first % keyed.BLOCK
    return torch.cat(blocks)[start : start + n]


@dataclass(frozen=True)
class Generation:
    """A velocity with everything that determines its rows; made by :func:`generation`."""

    velocity: Velocity
    source: Source
    y: Condition
    seed: int
    solver: Solver
    as_data: bool = False
    """Whether x1 is in the units of the data, where the network has others."""

    def rows(self, first: int, n: int) -> tuple[Tensor, Tensor, Any, int]:
        """x0, x1, condition and model calls of rows ``first`` to ``first + n - 1``, on the CPU."""
        device = device_of(self.velocity)
        x0 = keyed_noise(self.source, self.seed, first, n)
        y = map_condition(lambda part: part[first : first + n], self.y)
        on_device = map_condition(lambda part: part.to(device), y)
        x0 = x0.to(dtype=dtype_of(self.velocity))
        solve_for = sample if self.as_data else solve
        solution = solve_for(self.velocity, x0.to(device), y=on_device, solver=self.solver)
        x1 = solution.x.cpu()
        if not bool(torch.isfinite(x1).all()):
            raise RuntimeError(f"velocity: the samples of rows {first} to {first + n - 1} are not all finite")
        return x0, x1, y, solution.nfe


def generation(
    velocity: Velocity,
    source: Source | Sequence[int],
    *,
    n: int,
    y: Condition,
    seed: int,
    solver: Solver,
    as_data: bool = False,
) -> Generation:
    """The validated arguments of :func:`generate`."""
    validate.positive_int("n", n)
    validate.positive_int("seed", seed, at_least=0)
    return Generation(velocity, as_source(source, velocity), as_condition(y, velocity, n), int(seed), solver, as_data)


def generate(
    kind: type[ShardFolder],
    rows: Generation,
    n: int,
    out: str | Path,
    *,
    batch_size: int = 256,
    shard_size: int = 4096,
    name: str | None = None,
    progress: bool | None = None,
) -> ShardFolder:
    """Write n rows into a folder, resuming where an earlier call was stopped; the shards are split among processes."""
    for argument, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        validate.positive_int(argument, value)
    n, batch_size, shard_size = int(n), int(batch_size), int(shard_size)
    x0, *_ = rows.rows(0, 1)  # a trial, so that invalid arguments fail before anything is written
    settings = {
        "n": n,
        "shape": list(x0.shape[1:]),
        "dtype": str(x0.dtype).removeprefix("torch."),
        "seed": rows.seed,
        "solver": str(rows.solver),
        "batch_size": batch_size,
        "shard_size": shard_size,
        "velocity": identity_of_velocity(rows.velocity, name),
        "source": digest(keyed_noise(rows.source, rows.seed, 0, keyed.BLOCK)),
        "condition": form_of(rows.y),
        "values": None if rows.y is None else digest(rows.y),
    }
    first = functools.partial(_digest_of_first, rows.y)
    folder = kind.claim(Path(out).expanduser(), settings, first)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine, missing = range(rank, folder.shards, processes), folder.missing()
    with _bar(progress, rank, folder, mine, missing) as bar:
        for k in sorted(set(mine) & set(missing)):
            with folder.writing(k) as (arrays, notes):
                notes["nfe"] = _fill(folder, k, arrays, rows, batch_size=batch_size, bar=bar)
    folder.wait_for_others()
    return folder


def _digest_of_first(y: Condition, n: int) -> str | None:
    return None if y is None else digest(map_condition(lambda part: part[:n], y))


def _fill(folder: ShardFolder, k: int, arrays: dict[str, Any], rows: Generation, *, batch_size: int, bar: Any) -> float:
    """Write shard k batch by batch; returns the mean number of model calls for a row."""
    calls, all_rows = 0, folder.rows(k)
    for start in range(0, len(all_rows), batch_size):
        batch = all_rows[start : start + batch_size]
        x0, x1, y, nfe = rows.rows(batch[0], len(batch))
        parts = {**folder.kept(x0, x1), **dict(leaves(y))}
        for name, array in arrays.items():
            array[start : start + len(batch)] = as_stored(parts[name])
        calls += nfe * len(batch)
        bar.update(len(batch))
    return calls / len(all_rows)


def as_source(source: Source | Sequence[int], velocity: Velocity) -> Source:
    """For a shape the noise that the velocity's path starts from; an object with ``sample`` unchanged."""
    if isinstance(source, Sequence) and not isinstance(source, str):
        for size in source:
            validate.positive_int("source", size)
        return path_of(velocity).source(source)
    if isinstance(source, type) or not callable(getattr(source, "sample", None)):
        raise TypeError(
            "source: expected the shape of a sample, such as (1, 28, 28), or an object with sample(n, generator=None); "
            f"got {validate.described(source)}"
        )
    return source


def as_condition(y: Condition, velocity: Velocity, n: int | None = None) -> Any:
    """The validated condition as it is stored: on the CPU, with its dtypes."""
    if y is None:
        return None
    check_condition("y", y, rows_of(y) if n is None else n, velocity)
    return map_condition(lambda part: part.detach().cpu(), y)


def identity_of_velocity(velocity: Velocity, name: str | None) -> str:
    """The name that was given, or else the digest of the parameters.

    Raises:
        ValueError: for a function without a name.

    Example:
        >>> identity_of_velocity(lambda x, t: x, "identity")
        'identity'
    """
    if name is not None:
        return name
    try:
        return digest(velocity)
    except TypeError as error:
        raise ValueError(
            f"name: expected a name that identifies the velocity in the folder's manifest, since {error}; got None"
        ) from error


def _bar(show: bool | None, rank: int, folder: ShardFolder, mine: range, missing: list[int]) -> Any:
    """A progress bar over this process's rows, shown on the first process."""
    total = sum(len(folder.rows(k)) for k in mine)
    left = sum(len(folder.rows(k)) for k in set(mine) & set(missing))
    return progress.bar(False if rank > 0 else show, total=total, initial=total - left, unit=folder.unit)
