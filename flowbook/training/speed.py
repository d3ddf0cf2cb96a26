"""How fast a recipe trains on this machine, and where the time goes: ``flowbook bench RECIPE``."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowbook import _validate, keyed, models
from flowbook.training import recipes
from flowbook.training.average import AveragedWeights
from flowbook.training.batches import map_batch
from flowbook.training.config import TrainConfig
from flowbook.training.optimizer import make_optimizer
from flowbook.training.precision import autocast, choose_device, float32_products, resolve_precision

PARTS = ("forward", "backward", "optimiser", "averaging")


@dataclass(frozen=True)
class Bench:
    """Made by :func:`bench`."""

    machine: str
    """Device, torch's version, precision, and whether the model was compiled."""
    cost: models.Cost
    """Of the network."""
    batch_size: int
    """Samples of a step."""
    parts: dict[str, float]
    """Seconds of each part of a step, medians, with the device waited for after each."""
    step: float
    """Seconds of a whole step, the median of five rows of steps, with the device waited for after each row."""
    matrix_rate: float
    """Operations a second of one large matrix product in the same precision, measured in the same run."""
    memory: int
    """The most bytes that torch has held on a GPU, or on the CPU the process."""

    @property
    def images_per_second(self) -> float:
        """Samples a second."""
        return self.batch_size / self.step

    @property
    def utilisation(self) -> float:
        """How much of the matrix rate the model's own operations reach, forward and twice that backward."""
        return 3 * self.cost.flops * self.images_per_second / self.matrix_rate

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in self.parts.items())
        return (
            f"{self.machine}\n{self.cost}\n"
            f"{self.images_per_second:.4g} samples a second; "
            f"a step of {self.batch_size} takes {1000 * self.step:.4g} ms\n"
            f"parts: {parts}\n"
            f"{100 * self.utilisation:.3g}% of a matrix product's {self.matrix_rate / 1e12:.3g} TFLOP a second\n"
            f"memory: {self.memory / 2**30:.3g} GiB at most"
        )


def bench(recipe: recipes.Recipe, steps: int = 10, warmup: int = 3) -> Bench:
    """Train on random numbers for a few steps, as ``fit`` would, and time it.

    Args:
        recipe: its model, loss and training settings count; its data are not read.
        steps: steps that are timed part by part; and as a whole, in five rows of a fifth of them each. A GPU, which
            is waited for after each row, takes 20 or more in a row.
        warmup: steps before; compilation falls into them.

    Raises:
        ValueError: for a model that learns no velocity.
        RuntimeError: in one of several processes: it times one.

    Example:
        >>> result = bench(recipes.read("digits", ["train.batch_size=8"]), steps=2, warmup=1)
        >>> 0 < result.utilisation < 1, sorted(result.parts) == sorted(PARTS)
        (True, True)
    """
    _validate.positive_int("steps", steps)
    _validate.positive_int("warmup", warmup, at_least=0)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RuntimeError("bench: it times one process on one device; call it without torchrun")
    config = TrainConfig(**recipe["train"])
    device = choose_device(config)
    precision = resolve_precision(config.precision, device)
    torch.manual_seed(config.seed)
    model = recipes.build_model(recipe)
    if not hasattr(model, "null_label"):
        raise ValueError(f"model: expected one that learns a velocity; got {type(model).__name__}")
    shape = (model.dim,) if isinstance(model, models.MLP) else (model.channels, model.size, model.size)
    model = model.to(device)
    if len(shape) == 3:
        model = model.to(memory_format=torch.channels_last)
    x1 = torch.randn(config.batch_size, *shape, device=device)
    y = None if model.null_label is None else torch.randint(model.null_label, (len(x1),), device=device)  # type: ignore[call-overload]
    trained = torch.compile(model) if config.compile else model
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    x0 = torch.randn_like(x1) if recipe["loss"]["name"] == "reflow" else None
    batch = (x1, y) if x0 is None else (x0, x1, y)
    step = _Step(trained, model, recipes.build_loss(recipe), batch, config, precision, device)

    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    with float32_products(precision, device):
        for _ in range(warmup):
            step()
        row = max(1, steps // 5) if device.type == "cpu" else max(20, steps)
        whole = statistics.median(step.average_of(row) for _ in range(5))
        for _ in range(steps):
            step(lambda name, seconds: parts[name].append(seconds))
        memory = _memory(device)
        rate = matrix_rate(device, precision)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Bench(
        f"{name}; torch {torch.__version__}; {precision}{', compiled' if config.compile else ''}",
        models.cost(model, x1[:1].cpu()), config.batch_size,
        {name: statistics.median(times) for name, times in parts.items()}, whole,
        rate, memory,
    )  # fmt: skip


@dataclass
class _Step:
    """One step of training, in the parts of ``fit``."""

    trained: Any
    model: nn.Module
    loss: Any
    batch: Any
    config: TrainConfig
    precision: str
    device: torch.device

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.model, self.config, self.device)
        self.average = AveragedWeights(self.model, self.config.average_half_life, self.config.average_ramp)
        self.parameters, self.seen = list(self.model.parameters()), 0

    def average_of(self, steps: int) -> float:
        """Seconds of a step when the device is not waited for between them, as in a run."""
        started = self.now()
        for _ in range(steps):
            self()
        return (self.now() - started) / steps

    def __call__(self, note: Callable[[str, float], None] | None = None) -> None:
        """With ``note``, called with the seconds of each part, the device is waited for after each."""
        started = 0.0 if note is None else self.now()
        spent = dict.fromkeys(PARTS, 0.0)

        def done(part: str) -> None:
            nonlocal started
            if note is not None:
                now = self.now()
                spent[part] += now - started
                started = now

        for parameter in self.parameters:
            parameter.grad = None
        rows = self.config.batch_size // self.config.accumulate
        for first in range(0, self.config.batch_size, rows):
            piece = map_batch(lambda x: x[first : first + rows], self.batch)  # noqa: B023
            with autocast(self.precision, self.device), keyed.keyed(0, self.seen, first):
                value: Tensor = self.loss(self.trained, piece)
            done("forward")
            (value / self.config.accumulate).backward()
            done("backward")
        if self.config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        self.optimizer.step()
        done("optimiser")
        self.seen += self.config.batch_size
        self.average.update(self.config.batch_size, self.seen)
        done("averaging")
        if note is not None:
            for part, seconds in spent.items():
                note(part, seconds)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def matrix_rate(device: torch.device, precision: str) -> float:
    """Operations a second of a product of square matrices, the best of five: what the hardware gives in practice.

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
