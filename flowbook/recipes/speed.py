"""How fast a recipe trains on this machine, and where the time goes: ``flowbook bench RECIPE``."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowbook import models
from flowbook._core import keyed, validate
from flowbook.recipes.building import build_loss, build_model, sample_shape
from flowbook.recipes.reading import Recipe
from flowbook.training import EMA, StepContext, TrainConfig, train_step
from flowbook.training.optimizer import make_optimizer
from flowbook.training.precision import Precision, choose_device

PARTS = ("forward", "backward", "optimizer", "ema")
TOKENS = 77
"""The tokens of a context, as many as a prompt of CLIP has."""


@dataclass(frozen=True)
class Bench:
    """Made by :func:`bench`."""

    machine: str
    """Device, torch's version, precision, and whether the model was compiled."""
    cost: models.Cost
    """The cost of the network."""
    batch_size: int
    """Samples per step."""
    parts: dict[str, float]
    """Median seconds of each part of a step, with the device synchronized after each part."""
    step: float
    """Seconds of a whole step, the median of five runs of steps, with the device synchronized after each."""
    matrix_rate: float
    """Operations per second of one large matrix product in the same precision, measured in the same run."""
    memory: int
    """Peak memory in bytes, of torch on a GPU, or of the process on the CPU."""

    @property
    def images_per_second(self) -> float:
        """Samples per second."""
        return self.batch_size / self.step

    @property
    def utilization(self) -> float:
        """The fraction of the matrix rate that the model's operations reach, the backward pass counted twice."""
        return 3 * self.cost.flops * self.images_per_second / self.matrix_rate

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in self.parts.items())
        return (
            f"{self.machine}\n{self.cost}\n"
            f"{self.images_per_second:.4g} samples a second; "
            f"a step of {self.batch_size} takes {1000 * self.step:.4g} ms\n"
            f"parts: {parts}\n"
            f"{100 * self.utilization:.3g}% of a matrix product's {self.matrix_rate / 1e12:.3g} TFLOP a second\n"
            f"memory: {self.memory / 2**30:.3g} GiB at most"
        )


def bench(recipe: Recipe, steps: int = 10, warmup: int = 3) -> Bench:
    """Train on random numbers for a few steps, as ``fit`` would, and time it.

    Args:
        recipe: its model, loss and training settings are used; its data are not read.
        steps: number of steps timed part by part; whole steps are timed in five runs of a fifth of them each, on a GPU,
            which is synchronized after each run, of 20 or more.
        warmup: steps before the timing, which include compilation.

    Raises:
        ValueError: for a model that does not learn a velocity.
        RuntimeError: when started as one of several processes, since it times one.

    Example:
        >>> from flowbook.recipes import read
        >>> result = bench(read("digits", ["train.batch_size=8"]), steps=2, warmup=1)
        >>> 0 < result.utilization < 1, sorted(result.parts) == sorted(PARTS)
        (True, True)
    """
    validate.positive_int("steps", steps)
    validate.positive_int("warmup", warmup, at_least=0)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RuntimeError("bench: it times one process on one device; call it without torchrun")
    step = _Steps(recipe)
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    with step.precision.products():
        for _ in range(warmup):
            step()
        row = max(1, steps // 5) if step.device.type == "cpu" else max(20, steps)
        whole = statistics.median(step.average_of(row) for _ in range(5))
        for _ in range(steps):
            for name, seconds in step.in_parts().items():
                parts[name].append(seconds)
        memory = _memory(step.device)
        rate = matrix_rate(step.device, str(step.precision))
    medians = {name: statistics.median(times) for name, times in parts.items()}
    cost = models.cost(step.model, step.x1[:1].cpu())
    return Bench(step.machine(), cost, step.config.batch_size, medians, whole, rate, memory)


class _Steps:
    """The training step of a recipe, on one batch of random numbers."""

    def __init__(self, recipe: Recipe):
        self.config = config = TrainConfig(**recipe["train"])
        self.device = choose_device(config)
        self.precision = Precision(config.precision, self.device)
        torch.manual_seed(config.seed)
        model: Any = build_model(recipe)
        self.loss = build_loss(recipe)
        if not getattr(self.loss, "trains_velocity", True):
            raise ValueError(f"model: expected one that learns a velocity; got {type(model).__name__}")
        self.model = model.to(self.device)
        shape = sample_shape(model)
        if len(shape) == 3:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.x1 = torch.randn(config.batch_size, *shape, device=self.device)
        y = _condition(model, len(self.x1), self.device)
        x0 = torch.randn_like(self.x1) if recipe["loss"]["name"] == "reflow" else None
        self.batch: Any = (self.x1, y) if x0 is None else (x0, self.x1, y)
        self.trained = torch.compile(self.model) if config.compile else self.model
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.optimizer: Any = make_optimizer(self.model, config, self.device)
        self.ema: Any = EMA(self.model, config.batch_size, config.ema_half_life, config.ema_ramp)

    def __call__(self, loss: Any = None, optimizer: Any = None, ema: Any = None) -> None:
        train_step(
            self.trained,
            self.batch,
            loss or self.loss,
            optimizer or self.optimizer,
            ema or self.ema,
            accumulate=self.config.accumulate,
            gradient_clip=self.config.gradient_clip,
            context=_Context(self.precision),
        )

    def average_of(self, steps: int) -> float:
        """Seconds per step without synchronization of the device between steps, as in a run."""
        started = self.now()
        for _ in range(steps):
            self()
        return (self.now() - started) / steps

    def in_parts(self) -> dict[str, float]:
        """Seconds of each part of a step, with the device synchronized around each; backward is the remainder."""
        spent = dict.fromkeys(PARTS, 0.0)
        started = self.now()
        self(
            _Timed(self.loss, "__call__", "forward", spent, self.now),
            _Timed(self.optimizer, "step", "optimizer", spent, self.now),
            _Timed(self.ema, "update", "ema", spent, self.now),
        )
        spent["backward"] = self.now() - started - sum(spent.values())
        return spent

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def machine(self) -> str:
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
        compiled = ", compiled" if self.config.compile else ""
        return f"{name}; torch {torch.__version__}; {self.precision}{compiled}"


def _condition(model: Any, n: int, device: torch.device) -> Any:
    """A condition of every kind that a network of this package takes, or None."""
    made: dict[str, Callable[[], Tensor]] = {
        "label": lambda: torch.randint(model.num_classes, (n,), device=device),
        "vector": lambda: torch.randn(n, model.condition_dim, device=device),
        "context": lambda: torch.randn(n, TOKENS, model.context_dim, device=device),
    }
    y = {kind: made[kind]() for kind in model.kinds}
    return y.get(model.kinds[0]) if len(y) == 1 else y or None


class _Context(StepContext):
    """The context of a run: its precision, and random numbers that belong to the sample."""

    def __init__(self, precision: Precision):
        self.precision = precision

    @contextlib.contextmanager
    def forward(self, part: int) -> Iterator[None]:
        with keyed.keyed(0, 0, 0), self.precision.autocast():
            yield


class _Timed:
    """An object with one timed method."""

    def __init__(self, inner: Any, method: str, part: str, spent: dict[str, float], now: Callable[[], float]):
        self._inner, self._method, self._part, self._spent, self._now = inner, method, part, spent, now

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._run if name == self._method else value

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def _run(self, *arguments: Any) -> Any:
        started = self._now()
        result = getattr(self._inner, self._method)(*arguments)
        self._spent[self._part] += self._now() - started
        return result


def matrix_rate(device: torch.device, precision: str) -> float:
    """Operations per second of a product of square matrices, the best of five: what the hardware reaches in practice.

    Example:
        >>> matrix_rate(torch.device("cpu"), "fp32") > 1e8
        True
    """
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * n**3 / min(times[1:])


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
