"""The training loop of every chapter and of every GPU run."""

from flowbook.training.checkpoint import load
from flowbook.training.config import TrainConfig
from flowbook.training.loop import TrainResult, fit
from flowbook.training.preemption import EXIT_STATUS, Preempted

__all__ = ["EXIT_STATUS", "Preempted", "TrainConfig", "TrainResult", "fit", "load"]
