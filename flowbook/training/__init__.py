"""The training loop of every chapter and of every GPU run."""

from flowbook.training.checkpoint import load
from flowbook.training.config import TrainConfig
from flowbook.training.loop import TrainResult, fit

__all__ = ["TrainConfig", "TrainResult", "fit", "load"]
