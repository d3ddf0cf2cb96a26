r"""Pairs of noise and the data that a flow makes of it: what Reflow (chapter 4) learns from.

A folder of pairs is written shard by shard, each complete or absent, so that a kill loses one shard at most:

    manifest.json           the settings that decide every number, and a digest of the weights
    shard_000000/           pairs 0 to shard_size - 1
        x0.npy, x1.npy      shape (rows, ...), opened without being read
        y.npy               labels, where there are any
        shard.json          the model calls that a pair took

Noise and label of pair n depend on the seed and on n alone. Batches start anew in each shard, so the data do not depend
on the number of processes or on interruptions either, bit for bit; another batch size rounds differently.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import flowbook
from flowbook import _validate, keyed
from flowbook._digest import digest
from flowbook._files import flush, write_text
from flowbook._model import Velocity, null_label_of
from flowbook.data import Source
from flowbook.solvers import sample

if TYPE_CHECKING:
    from tqdm import tqdm

NOTES = ("torch", "flowbook")  # of the manifest: for readers, never compared
PATIENCE = 600.0
"""Seconds that a process waits for another one's next shard."""


@dataclass(frozen=True)
class Normal:
    """The standard normal distribution of tensors of one shape.

    Example:
        >>> Normal((1, 28, 28)).sample(2).shape
        torch.Size([2, 1, 28, 28])
    """

    shape: tuple[int, ...]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n tensors, shape (n, \\*shape), float32."""
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
    for argument, value in (("n", n), ("batch_size", batch_size), ("shard_size", shard_size)):
        _validate.positive_int(argument, value)
    _validate.positive_int("seed", seed, at_least=0)
    y = _labels(y, n, velocity)
    solver = {"method": method} | ({"rtol": rtol, "atol": atol} if steps is None else {"steps": steps})
    teacher = _Teacher(velocity, _source(source), y, seed, solver)
    x0, *_ = teacher.pairs(0, 1)  # on trial: what is wrong with the arguments shows before anything is written
    settings = {
        "n": n, "shape": list(x0.shape[1:]), "dtype": str(x0.dtype).removeprefix("torch."), "seed": seed, **solver,
        "batch_size": batch_size, "shard_size": shard_size, "velocity": _word_for(velocity, name),
        "source": digest(keyed_noise(teacher.source, seed, 0, keyed.BLOCK)), "labels": None if y is None else digest(y),
    }  # fmt: skip
    folder = Path(out)
    _claim(folder, settings)

    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine = {k: _rows(settings, k) for k in range(rank, _shards(settings), processes)}
    to_do = {k: rows for k, rows in mine.items() if not _shard(folder, k).is_dir()}
    total, left = (sum(map(len, shards.values())) for shards in (mine, to_do))
    with _progress_bar(progress, rank, total, initial=total - left) as bar:
        for k, rows in to_do.items():
            _write_shard(folder, k, rows, settings, teacher, bar)
    _wait_for_others(folder, settings)
    return PairDataset(folder)


@dataclass(frozen=True)
class _Teacher:
    velocity: Velocity
    source: Source
    y: Tensor | None
    seed: int
    solver: dict[str, Any]

    def pairs(self, first: int, n: int) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """x0, x1, labels and model calls of pairs ``first`` to ``first + n - 1``, on the CPU."""
        device = _device(self.velocity)
        x0 = keyed_noise(self.source, self.seed, first, n)
        y = None if self.y is None else self.y[first : first + n]
        solution = sample(self.velocity, x0.to(device), y=None if y is None else y.to(device), **self.solver)
        x1 = solution.x.cpu()
        if not bool(torch.isfinite(x1).all()):
            raise RuntimeError(f"velocity: the data of pairs {first} to {first + n - 1} are not all finite")
        return x0, x1, y, solution.nfe


def _write_shard(
    folder: Path, k: int, rows: range, settings: dict[str, Any], teacher: _Teacher, bar: tqdm[NoReturn]
) -> None:
    final = _shard(folder, k)
    for leftover in folder.glob(f".{final.name}.*"):  # of an attempt that was killed
        shutil.rmtree(leftover)
    temporary = folder / f".{final.name}.{os.getpid()}"
    temporary.mkdir()
    files = {
        name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", dtype, shape)
        for name, (dtype, shape) in _arrays(settings, len(rows)).items()
    }
    calls = 0
    for start in range(0, len(rows), settings["batch_size"]):
        n = min(settings["batch_size"], len(rows) - start)
        x0, x1, y, nfe = teacher.pairs(rows[start], n)
        for name, part in zip(files, (x0, x1, y), strict=False):
            files[name][start : start + n] = part
        calls += n * nfe
        bar.update(n)
    for array in files.values():
        array.flush()
    (temporary / "shard.json").write_text(json.dumps({"nfe": calls / len(rows)}) + "\n")
    for file in temporary.iterdir():
        flush(file)
    os.replace(temporary, final)
    flush(folder)


# The folder -----------------------------------------------------------------------------------------------------------


def _shard(folder: Path, k: int) -> Path:
    return folder / f"shard_{k:06d}"


def _shards(settings: dict[str, Any]) -> int:
    return math.ceil(settings["n"] / settings["shard_size"])


def _rows(settings: dict[str, Any], k: int) -> range:
    return range(k * settings["shard_size"], min(settings["n"], (k + 1) * settings["shard_size"]))


def _arrays(settings: dict[str, Any], rows: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Type and shape of each array of a shard."""
    ends = (np.dtype(settings["dtype"]), (rows, *settings["shape"]))
    labels = {} if settings["labels"] is None else {"y": (np.dtype(np.int64), (rows,))}
    return {"x0": ends, "x1": ends, **labels}


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder these settings', or refuse it if it is others'."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    if not manifest.exists():
        if any(folder.iterdir()):
            raise ValueError(f"out: expected an empty folder, or one of pairs; {folder} holds other files")
        notes = {"torch": torch.__version__, "flowbook": flowbook.__version__}
        write_text(manifest, json.dumps(settings | notes, indent=2) + "\n")
    was = _read_manifest(folder)
    if differing := [f"{k} was {was.get(k)!r}, is {v!r}" for k, v in settings.items() if was.get(k) != v]:
        raise ValueError(f"out: {folder} holds pairs made with other settings ({'; '.join(differing)}); choose another")


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"folder: {folder} holds no pairs: there is no manifest.json; see generate_pairs")
    try:
        settings = json.loads(manifest.read_text())
        for name in ("n", "shard_size"):
            _validate.positive_int(name, settings[name])
        _arrays(settings, 0)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder: {manifest} is damaged or of another program: {error!r}") from error
    return settings


def _wait_for_others(folder: Path, settings: dict[str, Any]) -> None:
    """Until the other processes' shards are there; an error when none of them has come for long."""
    last, since = -1, time.monotonic()
    while (done := sum(_shard(folder, k).is_dir() for k in range(_shards(settings)))) < _shards(settings):
        if done > last:
            last, since = done, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise TimeoutError(
                f"out: {_shards(settings) - done} shards of {folder} are missing, and no other process has written one "
                f"for {PATIENCE:.0f} seconds; call again to make them"
            )
        time.sleep(0.1)


# Arguments ------------------------------------------------------------------------------------------------------------


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


def _device(velocity: Velocity) -> torch.device:
    weight = next(velocity.parameters(), None) if isinstance(velocity, nn.Module) else None
    return torch.device("cpu") if weight is None else weight.device


def _progress_bar(progress: bool | None, rank: int, total: int, initial: int) -> tqdm[NoReturn]:
    from tqdm.auto import tqdm

    show = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total, initial=initial, unit="pair", disable=not show or rank > 0)


# Reading --------------------------------------------------------------------------------------------------------------


class PairDataset(Dataset[Any]):
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

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        """The settings that the pairs were made with."""
        count = _shards(self.manifest)
        if missing := count - sum(_shard(self.folder, k).is_dir() for k in range(count)):
            raise FileNotFoundError(
                f"folder: {missing} of {count} shards are missing in {self.folder}; make them by calling "
                "generate_pairs again, with the same settings"
            )
        self._shards = [_open(self.folder, self.manifest, k) for k in range(count)]

    def __len__(self) -> int:
        return int(self.manifest["n"])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """One pair (x0, x1, y)."""
        x0, x1, y = self.batch(torch.tensor([index]))
        return x0[0], x1[0], None if y is None else y[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pairs of some indices: x0 and x1 of shape (B, ...), y (B,) or None."""
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"indices: expected 0 to {len(self) - 1}; got {indices.min()} to {indices.max()}")
        parts = [np.empty((len(indices), *shape[1:]), dtype) for dtype, shape in _arrays(self.manifest, 0).values()]
        for row, index in enumerate(indices.tolist()):
            k, place = divmod(index, self.manifest["shard_size"])
            for part, array in zip(parts, self._shards[k], strict=True):
                part[row] = array[place]
        x0, x1, *y = (torch.from_numpy(part) for part in parts)
        return x0, x1, y[0] if y else None

    @property
    def labelled(self) -> bool:
        """Whether the pairs have labels."""
        return self.manifest["labels"] is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.manifest["shape"])

    @property
    def nfe(self) -> float:
        """The model calls that a pair took, on average."""
        rows = [len(_rows(self.manifest, k)) for k in range(len(self._shards))]
        calls = [json.loads((_shard(self.folder, k) / "shard.json").read_text())["nfe"] for k in range(len(rows))]
        return sum(n * nfe for n, nfe in zip(rows, calls, strict=True)) / len(self)

    @property
    def name(self) -> str:
        """A word that differs where the pairs do: a run is not continued on others."""
        return digest({name: value for name, value in self.manifest.items() if name not in NOTES})[:16]


def _open(folder: Path, manifest: dict[str, Any], k: int) -> list[Any]:
    arrays = []
    for name, (dtype, shape) in _arrays(manifest, len(_rows(manifest, k))).items():
        file = _shard(folder, k) / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"folder: {file} is damaged: {error}; remove {file.parent} and generate again") from error
        if (array.dtype, array.shape) != (dtype, shape):
            raise ValueError(
                f"folder: {file} is damaged: expected {dtype} {shape}; got {array.dtype} {array.shape}; remove "
                f"{file.parent} and generate again"
            )
        arrays.append(array.view(np.ndarray))  # a memory map without its class, which is slow to index
    return arrays


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
        device = _device(self.velocity)
        x0 = _source(self.source).sample(n, generator=generator).to(device)
        y = None
        if self.y is not None:
            y = self.y[torch.randint(len(self.y), (n,), generator=generator)].to(device)
        solution = sample(self.velocity, x0, y=y, method=self.method, steps=self.steps, rtol=self.rtol, atol=self.atol)
        return x0, solution.x, y
