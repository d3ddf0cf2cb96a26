"""The optimizer of a run and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from flowbook.training.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, config.beta2), weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: a linear warm-up, then constant or a half cosine that ends one step before 0.

    Example:
        >>> [round(learning_rate(TrainConfig(steps=4, learning_rate=1.0), step), 2) for step in range(4)]
        [1.0, 0.85, 0.5, 0.15]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
