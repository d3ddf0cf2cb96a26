"""The training loop: every chapter and every GPU run goes through :func:`fit`.

From top to bottom: ``fit`` validates its arguments and runs the stages of :class:`Run`, which are prepare, restore,
loop (with record after steps at which something is due) and finish.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowbook import models
from flowbook._core import keyed
from flowbook.condition import remember, trained_on
from flowbook.couplings import Coupling, couple_ahead
from flowbook.data import Batch, map_batch
from flowbook.training import batches, identity, sharding
from flowbook.training import checkpoint as checkpoints
from flowbook.training.arguments import Arguments, Callback, Progress
from flowbook.training.config import TrainConfig
from flowbook.training.context import RunContext, one_thread, seed_process
from flowbook.training.ema import EMA
from flowbook.training.finite import check_losses, check_parameters
from flowbook.training.loading import describe_data, start_from
from flowbook.training.log import Display, RunLog
from flowbook.training.loss import CompleteLoss, Loss
from flowbook.training.memory import FullMemory
from flowbook.training.optimizer import learning_rate, make_optimizer
from flowbook.training.precision import Precision
from flowbook.training.preemption import Listener
from flowbook.training.processes import Processes
from flowbook.training.result import TrainResult
from flowbook.training.step import train_step
from flowbook.training.trial import try_out, what_it_learns
from flowbook.training.validation import validation_loss
from flowbook.velocity import evaluating, said_by

AGREE = 10
"""Number of steps after which several processes tell each other whether one of them has to stop."""


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
    progress: Progress = None,
    callbacks: Sequence[Callback] = (),
    validation: Any = None,
    init: str | Path | nn.Module | None = None,
    strict: bool = True,
    extend: Sequence[str] = (),
) -> TrainResult:
    """Train a velocity.

    Args:
        velocity: the network; it is trained in place, and the result holds its exponential moving average (EMA).
        loss: ``loss(velocity, batch) -> scalar``; see :class:`Loss` for its optional methods. Draws of
            :func:`randn_like` and :func:`rand` (as in all of this package's losses) depend only on seed, step and
            sample; other draws on seed, step and process.
        data: x1; a tuple (x1, y) or (x0, x1, y); a dict with these names; an object with ``.sample(n, generator)``; a
            Dataset; or a DataLoader, whose Dataset is read. Arrays may be tensors, NumPy's or DataFrames;
            :func:`flowbook.data.standardized` takes them at any scale.
        config: see :class:`TrainConfig`.
        coupling: if given, noise is drawn for each batch and coupled with it, one batch ahead in a background thread;
            the loss then gets (x0, x1, y). With several processes, each couples the whole batch and keeps its rows.
        out: a folder for checkpoints, log and previews; None keeps everything in memory. With a folder, SIGTERM stops
            the run after the current step (with several processes, within ten steps), with a checkpoint.
        resume: continue from the newest checkpoint in ``out``, bit for bit; False refuses a folder that has one.
        stop_after: stop, with a checkpoint, when this step of the run is reached.
        preview: ``preview(velocity) -> images``, saved as a grid every ``config.preview_every`` steps.
        recipe: stored with the checkpoints, as a record of how they were made.
        progress: show a progress bar; None shows it in a terminal only; "lines" prints each line of the log.
        callbacks: each is called as ``f(step, velocity, logs)`` whenever a line of the log is due, with the averaged
            velocity (EMA) and the numbers of the line.
        validation: data like ``data``; the loss of the averaged network (EMA) on them is logged every
            ``config.validation_every`` steps, always with the same noise, times and coupling.
        init: a trained network to start from: anything that :func:`load` takes, or a module. A resumed run does not
            read it again.
        strict: raise where parameters of ``init`` do not fit; False copies those that do.
        extend: the settings in which a resumed run may differ from what it was, such as ``["steps", "learning_rate"]``
            for a longer schedule, ``"device"``, ``"data"``, ``"loss"`` or ``"coupling"``. Seed, batch size and network
            never change within a run.

    Raises:
        FloatingPointError: when the loss or the parameters are no longer finite; the last good checkpoint is kept.
        RuntimeError: with gradients disabled, or while another thread of the process trains.
        MemoryError: when a forward pass and its gradient do not fit into memory; it says how many samples would.
        Preempted: when SIGTERM has stopped the run; the process exits with status 75 unless it is caught.
        Interrupted: when Ctrl-C has stopped the run, after a checkpoint; it holds the result. A second Ctrl-C acts at
            once.
        ValueError: when ``out`` holds a run with other settings, data, loss, coupling or recipe, is in use, or is not
            the same folder for all processes; when labels are not classes of the model, or the batch cannot be split
            evenly among the processes; and, before the first step, when the loss does not return a scalar, the velocity
            does not return a tensor like x, or does not accept a 0-d time.
        TypeError: for arguments of a wrong type, such as a class in place of an object.

    Example:
        >>> from flowbook import data
        >>> from flowbook.flow_matching import FlowMatching
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at 0x...>
        >>> result = fit(models.MLP(2, hidden=16), FlowMatching(), data.moons(), TrainConfig(steps=20, batch_size=64))
        >>> result.step, result.losses.shape
        (20, torch.Size([20]))
    """
    folder = None if out is None else Path(out).expanduser()
    recipe = None if recipe is None else json.loads(json.dumps(recipe))
    arguments = Arguments(
        velocity, CompleteLoss(loss), data, config, coupling, folder, resume, stop_after, preview, recipe, progress,
        callbacks, validation, init, strict, extend,
    ).prepared()  # fmt: skip
    arguments.check()
    with one_thread():
        processes = Processes(config)
        with checkpoints.alone(folder) if processes.main else contextlib.nullcontext():
            run = Run(arguments, processes)
            run.restore()
            run.loop()
            return run.finish()


class Run:
    """One call of ``fit``, in its stages."""

    def __init__(self, arguments: Arguments, processes: Processes):
        """Prepare: the network on its device, its EMA, and the contexts of a step."""
        self.arguments, self.processes, self.config = arguments, processes, arguments.config
        self.loss, self.folder, self.device = arguments.loss, arguments.folder, processes.device
        self.share = processes.share(self.config)
        self.sharded = self.config.parallel == "fsdp" and processes.count > 1
        if self.sharded and not self.loss.one_call:
            raise ValueError(
                f"parallel: 'fsdp' frees the parameters after each call of the network, and "
                f"{type(self.loss.loss).__name__} backpropagates through many calls; use 'ddp'"
            )
        self.model = arguments.network if self.sharded else arguments.network.to(self.device)
        if not self.sharded and _channels_last(self.model, self.config):  # shards are rows of parameters
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = EMA(self.model, self.config.batch_size, self.config.ema_half_life, self.config.ema_ramp)
        self._describe(arguments.network)
        self.precision = Precision(self.config.precision, self.device)
        known = {} if self.folder is None else identity.ingredients(arguments)
        self.identity = identity.Identity(self.config, arguments.recipe, known, self.loss)
        tried = None if self.sharded else self.model
        self.memory = FullMemory(tried, self.loss, self.precision, exchanged=processes.count > 1)

    def _describe(self, before: nn.Module) -> None:
        """Note names and scale of the data; a student of pairs, which are in the units of its teacher, keeps those."""
        told, keep = self.arguments, self.loss.learns_from_pairs
        classes = told.classes or (getattr(before, "classes", None) if keep else None)
        scale = told.standardizer or (getattr(before, "standardizer", None) if keep else None)
        for network in (self.model, self.ema.model):
            describe_data(network, classes, scale)

    def restore(self) -> None:
        """Resume from the newest checkpoint; then create everything whose memory layout depends on the parameters."""
        config, folder = self.config, self.folder
        stored = identity.restore(self.arguments, self.identity, self.model, self.ema)
        if stored is None and (init := self.arguments.init) is not None:
            self._describe(start_from(self.model, init, self.arguments.strict))
            self.ema.model.load_state_dict(self.model.state_dict())
        self.step = self.first = 0 if stored is None else stored.step
        with self.processes.together(folder):
            self.processes.agree_on_step(self.first, folder)
        self.live = self.model
        if self.sharded:
            self.live = sharding.shard(copy.deepcopy(self.model), self.device, config.compile)
            self.ema.model = sharding.shard(self.ema.model, self.device)
            self.ema.follow(self.live)
        self.optimizer = make_optimizer(self.live, config, self.device)
        if stored is not None:
            checkpoints.restore_optimizer(self.optimizer, stored.optimizer)
        self.trained: Any = self.live if self.sharded else self.processes.wrap(self.live)
        if config.compile and not self.sharded:
            self.trained = torch.compile(self.trained)  # around DDP: it cuts the graph where gradients are sent
        # Sharded: gradients accumulated until the last micro-batch would be unsharded on each device.
        alone = self.processes.count == 1 or self.sharded
        no_sync: Any = contextlib.nullcontext if alone else self.trained.no_sync
        self.context = RunContext(self.precision, config, self.share, no_sync)
        self.last = config.steps if self.arguments.stop_after is None else min(self.arguments.stop_after, config.steps)
        if self.first >= self.last and self.processes.main:
            warnings.warn(
                f"out: the run in {folder} is at step {self.first} already, and the last step to train is {self.last}: "
                "nothing is left to train",
                stacklevel=3,
            )
        self.losses = torch.zeros(max(self.last - self.first, 0), dtype=torch.float32, device=self.device)
        kept = [] if folder is None else checkpoints.available(folder / "checkpoints")
        self.checked, self.written = self.first, kept[-1] if kept else None

    def loop(self) -> None:
        """The steps, inside the contexts that are closed afterwards."""
        config, main = self.config, self.processes.main
        forked = torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])
        with contextlib.ExitStack() as stack:
            self.display = stack.enter_context(
                contextlib.closing(Display(self.arguments.progress, self.first, config.steps, main))
            )
            self.log = None
            if self.folder is not None and main:
                self.log = stack.enter_context(contextlib.closing(RunLog(self.folder, self.first)))
            for context in (forked, self.precision.products(), self.processes.together(self.folder)):
                stack.enter_context(context)
            self.listener = stack.enter_context(Listener(preemptible=self.folder is not None))
            stream = stack.enter_context(contextlib.closing(self._batches()))
            self.live.train()
            self.started = time.perf_counter()
            for batch in stream:
                self.losses[self.step - self.first] = self._step(batch)
                self.step += 1
                self.display.step()
                if self.record():
                    raise self.listener.stop(self.step, self.finish())

    def _step(self, batch: Batch) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        seed_process(keyed.mix(self.config.seed, 3, self.step, self.processes.rank), self.device)
        self.context.step = self.step
        try:
            return train_step(
                self.trained, batch, self.loss, self.optimizer, self.ema, accumulate=self.config.accumulate,
                gradient_clip=self.config.gradient_clip, context=self.context,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            said = str(error).split(". ")[0]  # the error itself keeps the memory occupied
        raise self.memory.error(said, batch, self.config.accumulate)

    def _batches(self) -> Generator[Batch, None, None]:
        """This process's rows of each batch, coupled if there is a coupling; the first one has been tried out."""
        coupling, whole = self.arguments.coupling, slice(0, self.config.batch_size)
        stream = batches.batches(self.arguments.data, batches.Plan(
            batch_size=self.config.batch_size, seed=keyed.mix(self.config.seed, 1), steps=range(self.first, self.last),
            share=self.share if coupling is None else whole, device=self.device, workers=self.config.workers,
            look=lambda batch: self.loss.check(self.model, batch),
        ))  # fmt: skip
        if coupling is not None:  # of whole batches: partners may lie in another process's share
            # Not the seed of the loss, with which the noise and the times would come from the same random bits.
            noisy = batches.with_noise(stream, seed=keyed.mix(self.config.seed, 4), first_step=self.first)
            stream = (map_batch(lambda x: x[self.share], batch) for batch in couple_ahead(noisy, coupling))
        first = list(itertools.islice(stream, 1))
        for batch in first:
            self._try_out(batch)
        yield from itertools.chain(first, stream)

    def _try_out(self, batch: Batch) -> None:
        if not self.loss.trains_velocity:
            return None
        for network in (self.model, self.ema.model):
            remember(network, what_it_learns(network, self.loss, batch, self.arguments.data))
        preview = None if self.sharded else self.arguments.preview
        try:
            return try_out(self.loss.velocity(self.live), batch, self.precision, preview)
        except torch.OutOfMemoryError as error:
            said = str(error).split(". ")[0]
        raise self.memory.error(said, batch, self.config.accumulate)

    def record(self) -> bool:
        """After a step: check the losses, and write what is due; returns whether the run has to stop."""
        config, step, last = self.config, self.step, self.step == self.last
        due = _due(config.checkpoint_every, step) or last
        show = _due(config.preview_every, step) and self.arguments.preview is not None
        look = self.arguments.validation is not None and (_due(config.validation_every, step) or last)
        pause = _due(config.log_every, step) or due or show or look  # the processes wait for each other
        alone = self.processes.count == 1
        stop = self.listener.asked is not None if alone else (pause or _due(AGREE, step)) and self._agreed()
        if not (pause or stop):
            return False
        logs = self._logs()
        try:
            self._tell(logs, look)
        except Exception:  # of a callback, for example; of several processes, the others do not know of it
            if alone and (due or stop):
                self._save()
            raise
        if due or stop:
            self._save()
        if show:
            self._preview()
        return stop and not last

    def _tell(self, logs: dict[str, float], look: bool) -> None:
        if look:
            logs["validation_loss"] = self._validate()
        self.display.write(self.step, logs)
        if self.log is not None:
            self.log.write(self.step, **logs)
        if self.arguments.callbacks:
            velocity = self.averaged()
            for callback in self.arguments.callbacks if self.processes.main else ():
                callback(self.step, velocity, logs)

    def _agreed(self) -> bool:
        """Whether any of the processes has to stop: then all must, after the same step."""
        return self.processes.any(self.listener.asked is not None)

    def _logs(self) -> dict[str, float]:
        recent = self.processes.mean(self.losses[self.checked - self.first : self.step - self.first])
        check_losses(recent, self.checked, self.folder)
        self.checked = self.step
        seconds = time.perf_counter() - self.started
        return {
            "loss": float(recent.mean()),
            "learning_rate": learning_rate(self.config, self.step - 1),
            "images_per_second": (self.step - self.first) * self.config.batch_size / seconds,
            "seconds": seconds,
        }

    def _validate(self) -> float:
        model, found = self._averaged_network(), 0.0
        if self.processes.main:
            coupling, data = self.arguments.coupling, self.arguments.validation
            found = validation_loss(model, self.loss, data, self.config, precision=self.precision, coupling=coupling)
        self.processes.wait()
        return found

    def _save(self) -> None:
        """Check the parameters and write a checkpoint; in a sharded run every process contributes its shards."""
        check_parameters(self.live, self.step, self.folder, self.processes if self.sharded else None)
        main, scale = self.processes.main, said_by(self.model, "standardizer")
        if self.folder is not None and (self.sharded or main):
            tensors = {
                "weights": sharding.whole(self.live.state_dict(), main),
                "ema": sharding.whole(self.ema.model.state_dict(), main),
                "optimizer": sharding.whole(checkpoints.optimizer_tensors(self.optimizer), main),
            }
            if main:
                stored = checkpoints.Checkpoint(
                    step=self.step, config=self.config.as_dict(), model=models.describe(self.model),
                    recipe=self.arguments.recipe, ingredients=self.identity.ingredients, loss=self.loss.describe(),
                    trained_on=trained_on(self.model), classes=said_by(self.model, "classes"),
                    standardizer=None if scale is None else scale.as_dict(), **tensors,
                )  # fmt: skip
                checkpoints.save(self.folder / "checkpoints", stored)
                checkpoints.prune(self.folder / "checkpoints", self.config.keep_checkpoints)
        if self.folder is not None:
            self.written = checkpoints.path_of(self.folder / "checkpoints", self.step)
            self.processes.wait()

    def _preview(self) -> None:
        velocity = self.averaged()
        if self.log is not None and self.arguments.preview is not None:
            with evaluating(velocity), torch.no_grad():
                self.log.images(self.step, self.arguments.preview(velocity))

    def _averaged_network(self) -> nn.Module:
        if not self.sharded:
            return self.ema.model
        return sharding.filled(self.model, sharding.whole(self.ema.model.state_dict())).to(self.device)

    def averaged(self) -> nn.Module:
        """The velocity with averaged parameters (EMA), unsharded on every process."""
        return self.loss.velocity(self._averaged_network())

    def finish(self) -> TrainResult:
        """The result of the run."""
        seconds = time.perf_counter() - self.started
        if self.sharded:
            self.model.load_state_dict(sharding.whole(self.live.state_dict()))
            self.model.to(self.device).train()
        losses = self.losses[: max(0, self.step - self.first)].cpu()
        return TrainResult(self.averaged(), self.model, max(self.step, self.first), losses, seconds, self.written)


def _channels_last(model: nn.Module, config: TrainConfig) -> bool:
    """Whether images are stored channels last; a network from elsewhere may not support it."""
    if config.channels_last is not None:
        return config.channels_last
    return type(model) in models.CLASSES.values() and any(isinstance(part, nn.Conv2d) for part in model.modules())


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
