"""The network that the benchmarks share, and how its calls are counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Velocity(nn.Module):
    """v(x, t) of a multilayer perceptron: x (B, D) or (D,), t a 0-d tensor or one number for each sample."""

    def __init__(self, dim: int, hidden: int = 128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dim),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x, t[..., None].expand(*x.shape[:-1], 1)], dim=-1))


class Counted(nn.Module):
    """A velocity that counts its calls. Adaptive solvers may look beyond t = 1, which no network is trained for."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: Tensor, t: Tensor, **unused: object) -> Tensor:
        self.calls += 1
        return self.network(x, t.clamp(0.0, 1.0))
