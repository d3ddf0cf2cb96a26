"""Checkpoints: a folder of safetensors files and one JSON file, complete or absent.

A checkpoint is written under a temporary name and renamed once its last byte is on disk, so a kill at any moment leaves
the previous ones intact. Reading one executes no code from it.

    step_00001000/
        weights.safetensors     the live parameters
        ema.safetensors         their exponential moving average, used for sampling
        optimizer.safetensors   the optimizer's state
        state.json              step, settings, the model's class and arguments
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowbook._core import validate
from flowbook._core.files import flush
from flowbook.condition import TrainedOn
from flowbook.training.sharding import like

PATIENCE = 20.0
"""Seconds to wait for a folder's lock, since the readers of a killed run outlive it for a while."""
FORMAT = 3
"""The format of state.json. Earlier ones, of flowbook 0.1 before its layout was settled, are refused."""
STATE = ("step", "config", "model", "recipe", "ingredients", "loss", "classes", "standardizer")
FILES = ("weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class Checkpoint:
    """Everything a run needs to continue as if it had never stopped."""

    step: int
    config: dict[str, Any]
    model: dict[str, Any] | None  # {"name": ..., "arguments": {...}}; None for a custom model
    recipe: dict[str, Any] | None
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ingredients: dict[str, str | None] | None = None  # short descriptions of loss, coupling and data
    loss: dict[str, Any] | None = None  # {"class": ..., "arguments": {...}} of a loss that defines the velocity
    trained_on: TrainedOn | None = None
    classes: list[str] | None = None  # the names of the labels
    standardizer: dict[str, Any] | None = None  # how the data were scaled


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step_.../`` atomically and return its path."""
    final = path_of(folder, checkpoint.step)
    temporary = folder / f".{final.name}.{os.getpid()}"
    for leftover in folder.glob(".step_*"):  # of a process killed while writing
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        save_file(_contiguous(checkpoint.weights), temporary / "weights.safetensors")
        save_file(_contiguous(checkpoint.ema), temporary / "ema.safetensors")
        save_file(_contiguous(checkpoint.optimizer), temporary / "optimizer.safetensors")
        state = {"format": FORMAT} | {name: getattr(checkpoint, name) for name in STATE}
        state["trained_on"] = checkpoint.trained_on and dataclasses.asdict(checkpoint.trained_on)
        state["torch"] = torch.__version__
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        for name in FILES:
            flush(temporary / name)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


@contextlib.contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Lock a run's folder; the lock is released when the process ends, however it ends."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock", timeout=PATIENCE).acquire()
    except Timeout as error:
        raise ValueError(
            f"out: another run is using {folder} at the moment; choose another folder, or wait until it has ended. "
            "(One run on several GPUs is started by torchrun or accelerate launch.)"
        ) from error
    with lock:
        yield


def path_of(folder: Path, step: int) -> Path:
    """The path of a step's checkpoint, whether or not it exists yet."""
    return folder / f"step_{step:08d}"


def read(path: Path) -> Checkpoint:
    """Read one checkpoint folder; the error for a missing or damaged file names it."""
    _refuse_earlier_format(path)
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(f"checkpoint: {path} is not a complete checkpoint; missing {', '.join(missing)}")
    try:
        state = json.loads((path / "state.json").read_text())
        said = {name: state[name] for name in STATE}
        _check_state(state["format"], said)
        trained = state["trained_on"] and TrainedOn(**state["trained_on"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"checkpoint: {path / 'state.json'} is damaged or was written by another program: {error!r}"
        ) from error
    return Checkpoint(
        **said,
        trained_on=trained,
        weights=_load_tensors(path / "weights.safetensors"),
        ema=_load_tensors(path / "ema.safetensors"),
        optimizer=_load_tensors(path / "optimizer.safetensors"),
    )


def _check_state(written: int, state: dict[str, Any]) -> None:
    if written != FORMAT:
        raise ValueError(f"format: expected {FORMAT}; got {written}")
    validate.positive_int("step", state["step"], at_least=0)
    for name, needed in (
        ("config", ()),
        ("model", ("name", "arguments")),
        ("recipe", ()),
        ("loss", ("class", "arguments")),
    ):
        value = state[name]
        if value is None and name != "config":
            continue
        if not isinstance(value, dict) or any(key not in value for key in needed):
            raise ValueError(f"{name}: {value!r}")


def _refuse_earlier_format(path: Path) -> None:
    if (path / "average.safetensors").is_file():
        raise ValueError(
            f"checkpoint: {path} has format 1, of an earlier version of flowbook, and this one reads format {FORMAT}; "
            "train again, into another folder"
        )


def available(folder: Path) -> list[Path]:
    """The complete checkpoints below a run's folder, oldest first."""
    paths = sorted(folder.glob("step_*"))
    for path in paths:
        _refuse_earlier_format(path)
    return [path for path in paths if all((path / name).is_file() for name in FILES)]


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, after reading back the newest."""
    paths = available(folder)
    if len(paths) > keep:
        read(paths[-1])
        for path in paths[:-keep]:
            shutil.rmtree(path)


def locate(path: str | Path) -> Path:
    """A checkpoint folder itself, or the newest one of a run's folder."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    if (path / "state.json").is_file():
        return path
    for folder in (path, path / "checkpoints"):
        if paths := available(folder):
            return paths[-1]
    raise FileNotFoundError(f"checkpoint: no complete checkpoint in {path}")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, ``"<parameter>.<name>"``."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:  # a fused optimizer needs the moments in the memory layout of the parameters
            value = like(parameter, value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Copies: safetensors rejects tensors that share memory, as tied parameters do.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint: {path} is damaged or not a safetensors file: {error}") from error
