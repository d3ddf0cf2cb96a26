"""A network under ``torch.compile`` for batches of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook._core.tree import map_condition
from flowbook.condition import Condition
from flowbook.velocity import Wrapper, call


class Compiled(Wrapper):
    """A velocity compiled once, for sampling with batches of any size.

    Smaller batches are padded to ``batch_size`` and larger ones are split, so that one graph serves all of them; on a
    GPU it is recorded as a CUDA graph and replayed without Python.

    Args:
        velocity: ``v(x, t, y=None)``; each sample's velocity must depend on that sample alone.
        batch_size: the batch size of the graph.

    Raises:
        RuntimeError: when gradients with respect to x are needed, which a recorded graph does not have.

    Example:
        >>> from flowbook import models, solvers
        >>> velocity = Compiled(models.MLP(2, hidden=16), batch_size=4)
        >>> with torch.no_grad():
        ...     velocity(torch.zeros(6, 2), torch.tensor(0.5)).shape
        torch.Size([6, 2])
    """

    _transparent = True

    def __init__(self, velocity: nn.Module, batch_size: int):
        super().__init__()
        validate.instance("velocity", velocity, nn.Module, "MLP(2)")
        validate.positive_int("batch_size", batch_size)
        self.velocity, self.batch_size = velocity, batch_size
        self._graphs: dict[str, Any] = {}  # by device type

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": {}}  # a copy has its own parameters, and records its own graph

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("Compiled is for sampling and has no gradient with respect to x; use the plain velocity")
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        parts = []
        for start in range(0, len(x), self.batch_size):
            rows = slice(start, start + self.batch_size)
            part = map_condition(lambda whole: self._padded(whole[rows]), y)  # noqa: B023 (called at once)
            v = self._graph(x.device)(self._padded(x[rows]), self._padded(t[rows]) if t.dim() else t, part)
            parts.append(v[: len(x[rows])].clone())  # the next replay writes to the same memory
        return torch.cat(parts) if parts else torch.empty_like(x)

    def _padded(self, tensor: Tensor) -> Tensor:
        missing = self.batch_size - len(tensor)
        return tensor if missing == 0 else torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])

    def _graph(self, device: torch.device) -> Any:
        if device.type not in self._graphs:
            mode = "reduce-overhead" if device.type == "cuda" else None
            compiled = torch.compile(lambda x, t, y: call(self.velocity, x, t, y), mode=mode, dynamic=False)

            def run(x: Tensor, t: Tensor, y: Condition) -> Tensor:
                with torch.no_grad():
                    torch.compiler.cudagraph_mark_step_begin()
                    return compiled(x, t, y)

            self._graphs[device.type] = run
        return self._graphs[device.type]
