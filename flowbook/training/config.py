"""The settings of a training run, in one dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from flowbook._core import validate

LearningRateSchedule = Literal["cosine", "constant"]
PrecisionName = Literal["auto", "fp32", "tf32", "bf16"]
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class TrainConfig:
    """The settings of :func:`flowbook.training.fit`. All counts refer to global batches, for any number of processes.

    Example:
        >>> TrainConfig(steps=100, batch_size=32).images
        3200
    """

    steps: int = 1000  # optimizer steps
    batch_size: int = 128  # samples per step, over all processes and micro-batches
    accumulate: int = 1  # micro-batches into which a process splits its rows of the batch, to save memory
    learning_rate: float = 1e-3  # Adam's, after the warm-up
    warmup_steps: int = 0  # linear rise of the learning rate from 0
    schedule: LearningRateSchedule = "cosine"  # after the warm-up: "cosine" decay toward 0, or "constant"
    weight_decay: float = 0.0  # decoupled (AdamW)
    beta2: float = 0.999  # decay of Adam's second moment
    gradient_clip: float | None = None  # largest norm of the gradient; None disables clipping
    ema_half_life: float | None = 10_000.0  # of the EMA, in images; None keeps the live parameters
    ema_ramp: float = 0.05  # the half-life is at most this fraction of the images seen so far
    # "bf16" autocast; "fp32"; "tf32", float32 products whose factors a GPU rounds to 10 bits, as it may also do with
    # the products that stay in float32 under "bf16"; "auto" is bf16 on a CUDA GPU and fp32 elsewhere
    precision: PrecisionName = "auto"
    compile: bool = False  # torch.compile the model
    parallel: Parallel = "ddp"  # with several processes, each keeps all parameters ("ddp") or a shard of them ("fsdp")
    device: str = "cpu"  # "cpu"; "auto" for the accelerator if there is one; or one of them, such as "cuda:1"
    channels_last: bool | None = None  # the memory layout of images; None: for the networks of this package
    workers: int = 0  # processes that prefetch a Dataset; 0 reads in the loop. Tensors need none
    seed: int = 0  # of data order, noise, times and dropout
    log_every: int = 100  # steps between two lines of the log
    checkpoint_every: int | None = None  # steps between two checkpoints; None writes only the last
    keep_checkpoints: int = 2  # older ones are removed once a newer one is in place
    preview_every: int | None = None  # steps between two grids of samples
    validation_every: int = 1000  # steps between two evaluations on the validation data, if there are any

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep_checkpoints", "validation_every"):
            validate.positive_int(name, getattr(self, name))
        for name in ("checkpoint_every", "preview_every"):
            if getattr(self, name) is not None:
                validate.positive_int(name, getattr(self, name))
        validate.positive_int("warmup_steps", self.warmup_steps, at_least=0)
        validate.positive_int("seed", self.seed, at_least=0)
        validate.positive_int("workers", self.workers, at_least=0)
        validate.number("learning_rate", self.learning_rate, 0, float("inf"), low_open=True, high_open=True)
        validate.number("weight_decay", self.weight_decay, 0, float("inf"), high_open=True)
        validate.number("beta2", self.beta2, 0, 1, high_open=True)
        validate.number("ema_ramp", self.ema_ramp, 0, float("inf"), low_open=True)
        for name in ("gradient_clip", "ema_half_life"):
            if getattr(self, name) is not None:
                validate.number(name, getattr(self, name), 0, float("inf"), low_open=True, high_open=True)
        validate.boolean("compile", self.compile)
        if self.channels_last is not None:
            validate.boolean("channels_last", self.channels_last)
        validate.one_of("schedule", self.schedule, get_args(LearningRateSchedule))
        validate.one_of("precision", self.precision, get_args(PrecisionName))
        validate.one_of("parallel", self.parallel, get_args(Parallel))
        if self.device != "auto":
            _check_device(self.device)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size: expected a multiple of accumulate = {self.accumulate}; got {self.batch_size}"
            )
        for name, value in vars(self).items():  # JSON, and so a checkpoint, cannot store NumPy's numbers
            if validate.is_number(value):
                object.__setattr__(self, name, int(value) if validate.is_integer(value) else float(value))

    @property
    def images(self) -> int:
        """The number of samples that the whole run draws."""
        return self.steps * self.batch_size

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _check_device(name: str) -> None:
    try:
        torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected 'cpu', 'auto' or an accelerator such as 'cuda:1'; got {name!r}") from error


# Settings that may differ between a run and its continuation: data, noise and times stay the same. Sums over other
# micro-batches round differently, and dropout masks are drawn for each micro-batch.
NOT_PART_OF_THE_RESULT = {
    "log_every", "checkpoint_every", "keep_checkpoints", "preview_every", "validation_every", "workers", "parallel",
    "accumulate", "channels_last",
}  # fmt: skip
