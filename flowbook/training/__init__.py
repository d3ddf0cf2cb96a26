"""The training loop of every chapter and every GPU run: its settings, its step, its checkpoints.

A custom loss may draw its random numbers with :func:`randn_like` and :func:`rand`: then each sample gets the same
numbers whatever the number of processes and micro-batches.
"""

from flowbook._core.keyed import keyed, rand, randn_like
from flowbook.training.arguments import Callback, Progress
from flowbook.training.config import TrainConfig
from flowbook.training.ema import EMA
from flowbook.training.loading import load, start_from
from flowbook.training.loop import fit
from flowbook.training.loss import Loss
from flowbook.training.preemption import EXIT_STATUS, Interrupted, Preempted
from flowbook.training.result import TrainResult
from flowbook.training.step import StepContext, micro_batches, train_step

__all__ = [
    "EMA",
    "EXIT_STATUS",
    "Callback",
    "Interrupted",
    "Loss",
    "Preempted",
    "Progress",
    "StepContext",
    "TrainConfig",
    "TrainResult",
    "fit",
    "keyed",
    "load",
    "micro_batches",
    "rand",
    "randn_like",
    "start_from",
    "train_step",
]
