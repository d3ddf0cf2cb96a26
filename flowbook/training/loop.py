"""The one training loop: every chapter and every GPU run goes through :func:`fit`."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowbook import keyed, models
from flowbook._model import Velocity, evaluating
from flowbook.batch import Batch
from flowbook.cnf import MaximumLikelihood
from flowbook.couplings import Coupling, couple_ahead
from flowbook.diffusion import Diffusion
from flowbook.training import checkpoint as checkpoints
from flowbook.training import entry, sharding
from flowbook.training.average import AveragedWeights
from flowbook.training.batches import batches, map_batch, with_noise
from flowbook.training.config import TrainConfig
from flowbook.training.failures import check_finite, check_weights, same_step, together, what_fits
from flowbook.training.log import ProgressBar, RunLog
from flowbook.training.optimizer import learning_rate, make_optimizer
from flowbook.training.precision import autocast, float32_products, resolve_precision
from flowbook.training.preemption import Listener, Preempted

AGREE = 10
"""After so many steps several processes tell each other whether one was asked to stop."""
Loss = Callable[[Any, Any], Tensor]
ONE_THREAD = threading.RLock()
"""Held while a run draws its random numbers, which belong to the process."""


@dataclass
class TrainResult:
    """What a run leaves behind."""

    velocity: nn.Module
    """The averaged weights, in eval mode, to sample with; of a diffusion loss, their probability flow."""
    live: nn.Module
    """The module that was passed in, with the weights of the last step."""
    step: int
    """Optimiser steps taken, those before a resume included."""
    losses: Tensor
    """The loss of every step of this call, shape (steps,)."""
    seconds: float
    """Wall-clock time of this call's steps."""
    checkpoint: Path | None
    """The last checkpoint written, or None without an output folder."""


def fit(
    velocity: nn.Module,
    loss: Loss,
    data: Any,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    *,
    coupling: Coupling | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    stop_after: int | None = None,
    preview: Callable[[nn.Module], Tensor] | None = None,
    recipe: dict[str, Any] | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Train a velocity.

    Args:
        velocity: the network; it is trained in place, and its averaged copy is in the result.
        loss: ``loss(velocity, batch) -> scalar``. Draws made with :mod:`flowbook.keyed` (all of this package's losses)
            depend on seed, step and sample alone; others on seed, step and process.
        data: a tensor x1; a tuple (x1, y) or (x0, x1, y); something with ``.sample(n, generator)``; or a Dataset.
        config: see :class:`TrainConfig`.
        coupling: if given, noise is drawn for each batch and coupled with it, one batch ahead in a background thread;
            the loss then gets (x0, x1, y). Of several processes each couples the whole batch and keeps its rows.
        out: a folder for checkpoints, log and previews; None keeps everything in memory. With a folder, SIGTERM stops
            the run after the step it is in (of several processes, within ten steps), with a checkpoint.
        resume: continue from the newest checkpoint in ``out``, bit for bit; False refuses a folder that has one.
        stop_after: stop, with a checkpoint, when this step of the run is reached.
        preview: ``preview(velocity) -> images``, saved as a grid every ``config.preview_every`` steps.
        recipe: stored with the checkpoints, so that they say what made them.
        progress: show a progress bar; None shows it where a person watches (a terminal).

    Raises:
        FloatingPointError: when the loss is no longer finite; the last good checkpoint is kept.
        RuntimeError: with gradients switched off, or while another thread of the process trains.
        MemoryError: when a forward pass and its gradient do not fit into the memory; it says how many samples would.
        Preempted: when SIGTERM has stopped the run; the process exits with status 75 unless it is caught.
        ValueError: when ``out`` holds a run with other settings, data, loss, coupling or recipe, is used by another run
            at the moment, or is another folder for another process; when labels of tensor data are none that the model
            knows, or the batch cannot be shared by the processes.
        TypeError: for arguments of a wrong kind, a class in place of an object among them.

    Example:
        >>> from flowbook import data, models
        >>> from flowbook.flow_matching import FlowMatching
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at 0x...>
        >>> result = fit(models.MLP(2, hidden=16), FlowMatching(), data.moons(), TrainConfig(steps=20, batch_size=64))
        >>> result.step, result.losses.shape
        (20, torch.Size([20]))
    """
    folder = None if out is None else Path(out)
    entry.check(velocity, loss, data, config, coupling, folder, stop_after, preview)
    recipe = None if recipe is None else json.loads(json.dumps(recipe))
    if not ONE_THREAD.acquire(blocking=False):
        raise RuntimeError(
            "fit: another thread of this process trains at the moment, and both would draw from one source of random "
            "numbers; train in processes of their own"
        )
    try:
        accelerator = _accelerator(config)
        with checkpoints.alone(folder) if accelerator.is_main_process else contextlib.nullcontext():
            return _fit(velocity, loss, data, config, coupling, folder, resume, stop_after, preview, recipe, progress,
                        accelerator)  # fmt: skip
    finally:
        ONE_THREAD.release()


def _fit(
    velocity: nn.Module, loss: Loss, data: Any, config: TrainConfig, coupling: Coupling | None, folder: Path | None,
    resume: bool, stop_after: int | None, preview: Callable[[nn.Module], Tensor] | None, recipe: dict[str, Any] | None,
    progress: bool | None, accelerator: Any,
) -> TrainResult:  # fmt: skip
    ingredients = {} if folder is None else entry.ingredients(loss, coupling, data)
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    parts = processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size: {config.batch_size} samples cannot be shared evenly by {processes} processes with "
            f"{config.accumulate} accumulated parts each; choose a multiple of {parts}"
        )
    rows = config.batch_size // parts  # of one forward pass
    share = slice(rank * config.accumulate * rows, (rank + 1) * config.accumulate * rows)

    sharded = config.parallel == "fsdp" and processes > 1
    if sharded and isinstance(loss, MaximumLikelihood):
        raise ValueError(
            "parallel: 'fsdp' frees the weights after each call of the network, and MaximumLikelihood goes back "
            "through many of them; use 'ddp'"
        )
    model = velocity if sharded else velocity.to(device)
    if not sharded and any(isinstance(module, nn.Conv2d) for module in model.modules()):  # shares are rows of weights
        model = model.to(memory_format=torch.channels_last)
    average = AveragedWeights(model, config.average_half_life, config.average_ramp)
    stored = entry.restore(folder, resume, config, recipe, ingredients, model, average, loss)
    first_step = 0 if stored is None else stored.step
    with together(processes, folder):
        same_step(first_step, folder, accelerator)
    live = model
    if sharded:
        live = sharding.shard(copy.deepcopy(model), device, config.compile)
        average.model = sharding.shard(average.model, device)
        average.follow(live)
    optimizer = make_optimizer(live, config, device)
    if stored is not None:
        checkpoints.restore_optimizer(optimizer, stored.optimizer)
    last_step = config.steps if stop_after is None else min(stop_after, config.steps)
    if first_step >= last_step and accelerator.is_main_process:
        warnings.warn(
            f"out: the run in {folder} is at step {first_step} already, the last one asked for is {last_step}: nothing "
            "is left to train",
            stacklevel=3,
        )
    log = RunLog(folder, first_step) if folder is not None and accelerator.is_main_process else None

    trained: Any = accelerator.prepare_model(live) if processes > 1 and not sharded else live
    if config.compile and not sharded:
        trained = torch.compile(trained)  # around DDP: it cuts the graph where gradients are sent, during the rest
    # Shared weights: a sum of gradients that waits for the last part would be whole on each device.
    no_sync = contextlib.nullcontext if processes == 1 or sharded else trained.no_sync
    precision = resolve_precision(config.precision, device)
    stream: Iterator[Batch] = batches(
        data, batch_size=config.batch_size, seed=keyed.mix(config.seed, 1), first_step=first_step,
        last_step=last_step, share=share if coupling is None else slice(0, config.batch_size), device=device,
        workers=config.workers,
    )  # fmt: skip
    noise_seed = keyed.mix(config.seed, 2)
    if coupling is not None:  # of whole batches: partners may lie in another process's share
        # A seed of its own: with the loss's, the noise and the times would come from the same random bits.
        noisy = with_noise(stream, seed=keyed.mix(config.seed, 4), first_step=first_step)
        stream = (map_batch(lambda x: x[share], batch) for batch in couple_ahead(noisy, coupling))  # type: ignore[arg-type]

    def save(step: int) -> None:
        if not (sharded or accelerator.is_main_process):  # whoever keeps a share must hand it in
            return
        main = accelerator.is_main_process
        tensors = {
            "weights": sharding.whole(live.state_dict(), main),
            "average": sharding.whole(average.model.state_dict(), main),
            "optimizer": sharding.whole(checkpoints.optimizer_tensors(optimizer), main),
        }
        if not main:
            return
        stored = checkpoints.Checkpoint(
            step=step, config=config.as_dict(), model=models.describe(model), recipe=recipe, ingredients=ingredients,
            diffusion=entry.diffusion(loss), **tensors,
        )  # fmt: skip
        assert folder is not None
        checkpoints.save(folder / "checkpoints", stored)
        checkpoints.prune(folder / "checkpoints", config.keep_checkpoints)

    def averaged() -> nn.Module:
        if not sharded:
            return average.model
        return sharding.filled(model, sharding.whole(average.model.state_dict())).to(device)

    live.train()
    parameters = list(live.parameters())
    losses = torch.zeros(max(last_step - first_step, 0), device=device)
    written: Path | None = None
    checked = first_step
    bar = ProgressBar(progress, first_step, config.steps, accelerator.is_main_process)
    started = time.perf_counter()
    listener = Listener(active=folder is not None)
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    products = float32_products(precision, device)
    with forked, listener, products, together(processes, folder), contextlib.closing(bar):
        for step, batch in zip(range(first_step, last_step), stream, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            _seed_process(keyed.mix(config.seed, 3, step, rank), device)
            for parameter in parameters:
                parameter.grad = None  # zero_grad() without the profiler's hooks, which cost 3% of a small step
            for part in range(config.accumulate):
                rows_of_part = slice(part * rows, (part + 1) * rows)
                piece = batch if config.accumulate == 1 else map_batch(lambda x: x[rows_of_part], batch)  # noqa: B023
                last_part = part == config.accumulate - 1
                with contextlib.nullcontext() if last_part else no_sync():
                    try:
                        with keyed.keyed(noise_seed, step, share.start + part * rows), autocast(precision, device):
                            value = loss(trained, piece)
                        if config.accumulate > 1:
                            value = value / config.accumulate
                        value.backward()
                    except torch.OutOfMemoryError as error:
                        value, crowded = None, str(error).split(". ")[0]  # the error holds what fills the memory
                if value is None:
                    tried = None if sharded else model
                    said = what_fits(loss, tried, piece, rows, config.accumulate, precision, crowded, processes > 1)
                    raise MemoryError(said)
                losses[step - first_step] += value.detach()
            if config.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            optimizer.step()
            done = step + 1
            average.update(config.batch_size, done * config.batch_size)

            last = done == last_step
            due = _due(config.checkpoint_every, done) or last
            show = _due(config.preview_every, done) and preview is not None
            pause = done % config.log_every == 0 or due or show  # the processes wait for each other
            stop = listener.asked if processes == 1 else (pause or done % AGREE == 0) and listener.agreed(accelerator)
            due = due or stop
            if pause or stop:
                recent = losses[checked - first_step : done - first_step]
                if processes > 1:
                    recent = accelerator.reduce(recent, "mean")
                check_finite(recent, checked, folder)
                mean, checked = float(recent.mean()), done
                speed = (done - first_step) * config.batch_size / (time.perf_counter() - started)
                bar.update(done, mean, speed)
                if log is not None:
                    log.write(done, loss=mean, learning_rate=learning_rate(config, step), images_per_second=speed,
                              seconds=time.perf_counter() - started)  # fmt: skip
            if due:
                check_weights(live, done, folder, accelerator if sharded else None)
            if due and folder is not None:
                save(done)
                written = checkpoints.path_of(folder / "checkpoints", done)
                accelerator.wait_for_everyone()
            if show:
                mean_model = averaged()
                if log is not None:
                    assert preview is not None
                    with evaluating(mean_model), torch.no_grad():
                        log.images(done, preview(_velocity(loss, mean_model)))
            if stop and not last:
                if log is not None:
                    log.close()
                assert written is not None
                raise Preempted(done, written)
    seconds = time.perf_counter() - started
    if log is not None:
        log.close()
    if written is None and folder is not None and last_step <= first_step:
        written = checkpoints.locate(folder)
    if sharded:
        model.load_state_dict(sharding.whole(live.state_dict()))
        model.to(device).train()
    return TrainResult(_velocity(loss, averaged()), model, max(last_step, first_step), losses.cpu(), seconds, written)


def _velocity(loss: Loss, network: nn.Module) -> nn.Module:
    return loss.velocity(network) if isinstance(loss, Diffusion) else network


def _accelerator(config: TrainConfig) -> Any:
    """accelerate's view of devices and processes. Precision and compilation stay with the loop."""
    with warnings.catch_warnings():  # accelerate imports tqdm's widget, which a notebook without ipywidgets warns of
        warnings.filterwarnings("ignore", message="IProgress not found")
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

    # One interpreter may train twice, on the CPU and on a GPU; accelerate keeps its first answer unless told.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    one_copy = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # of the gradients, not two
    return Accelerator(cpu=config.device == "cpu", mixed_precision="no", kwargs_handlers=[one_copy])


def _seed_process(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


__all__ = ["Loss", "TrainResult", "Velocity", "fit"]
