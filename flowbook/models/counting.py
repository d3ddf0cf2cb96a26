"""What a network costs: parameters, operations of one evaluation, and memory of a training step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowbook._core import validate


@dataclass(frozen=True)
class Cost:
    """Made by :func:`cost`."""

    parameters: int
    """The number of trainable parameters."""
    flops: int
    """Floating-point operations of one forward pass for one sample; a training step takes three times as many."""
    activations: int
    """Bytes that one sample saves for the backward pass in float32. Under bf16 autocast it saves half as many at best,
    since a GPU's autocast computes norms in float32."""

    def memory(self, batch_size: int, precision: str = "fp32") -> int:
        """Bytes of a training step: 20 for each parameter, and the activations of the samples.

        The 20 are four each for the parameter, its gradient, Adam's two moments and the EMA. Under bf16 autocast there
        are copies of the parameters, two bytes each. A lower bound: temporary buffers of kernels and of the backward
        pass are not counted (on a CPU they made the total 1.5 to 2.1 times as large; benchmarks/scaling.py).

        Example:
            >>> Cost(parameters=1_000, flops=0, activations=500).memory(batch_size=10)
            25000
        """
        return self._fixed(precision) + batch_size * self._for_a_sample(precision)

    def fits(self, memory: int, precision: str = "fp32") -> int:
        """The largest batch size whose :meth:`memory` is at most ``memory`` bytes; 0 if the parameters do not fit.

        Example:
            >>> Cost(parameters=1_000, flops=0, activations=500).fits(25_499)
            10
        """
        return max(0, (memory - self._fixed(precision)) // self._for_a_sample(precision))

    def _fixed(self, precision: str) -> int:
        return (22 if precision == "bf16" else 20) * self.parameters

    def _for_a_sample(self, precision: str) -> int:
        return max(1, self.activations // (2 if precision == "bf16" else 1))

    def __str__(self) -> str:
        unit, size = ("GFLOP", 1e9) if self.flops >= 1e8 else ("MFLOP", 1e6)
        return f"{self.parameters:,} parameters, {self.flops / size:.3g} {unit} for each sample and evaluation"


def cost(model: nn.Module, x: Tensor) -> Cost:
    """Parameters, operations and memory of a model, counted in one evaluation on the meta device, without data.

    Operations are counted by torch: matrix products and convolutions, two for each multiply-add; the rest is a few
    percent. Memory is that of the tensors that autograd saves, each counted once.

    Args:
        model: ``v(x, t, y=None)``.
        x: one sample or more, shape (B, ...); only its shape and dtype are used.

    Example:
        >>> from flowbook import models
        >>> network = models.UNet(3, 32, width=128, multipliers=(1, 2, 2, 2), attention=(16,))
        >>> found = cost(network, torch.zeros(1, 3, 32, 32))
        >>> print(found)
        36,599,683 parameters, 12.4 GFLOP for each sample and evaluation
        >>> 7e9 < found.memory(128) < 8.1e9  # bytes for batches of 128; it depends a little on the version of torch
        True
    """
    from torch.utils.flop_counter import FlopCounterMode

    validate.instance("model", model, nn.Module, "MLP(2)")
    validate.float_tensor("x", x, min_dim=1)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    one = x.detach()[:1]
    shadow = copy.deepcopy(model).requires_grad_(False).to("meta")  # shapes without numbers: nothing is computed
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        try:
            shadow(one.to("meta"), torch.zeros(1, dtype=x.dtype, device="meta"))
        except TypeError as error:
            raise TypeError(
                f"model: expected v(x, t, y=None); got {type(model).__name__}, which does not take a time"
            ) from error
    return Cost(parameters, counter.get_total_flops(), _kept(shadow, one.to("meta")))


def _kept(shadow: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass saves for the backward pass, without the parameters."""
    shadow.requires_grad_(True).train()
    if x.dim() == 4:  # the memory format in which fit trains
        shadow, x = shadow.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    own = {tensor.untyped_storage()._cdata for tensor in (*shadow.parameters(), *shadow.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Fused():
        shadow(x, torch.zeros(1, dtype=x.dtype, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


class _Fused(TorchFunctionMode):
    """Attention as CPUs and GPUs compute it: without saving the attention matrix, as the meta device would."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return function(*args, **(kwargs or {}))


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        ctx.save_for_backward(query, key, value, result)
        return result
