"""Parameters sharded over the processes of a run, each of which keeps a part (FSDP2, after Zhao et al. 2023)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

ON_CPUS = hasattr(torch.cpu.Stream, "record_event")
"""Whether FSDP2 of this torch runs on CPUs; in torch 2.6 it supports GPUs only."""


def shard(model: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """Shard the parameters of a module in place; each process keeps its own part of every tensor.

    The members of module lists, a network's blocks, are gathered and freed one after the other in a forward pass, and
    the rest as one. ``compiled`` compiles each block, since gathering breaks the graph of the whole network.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cpu" and not ON_CPUS:
        raise RuntimeError(
            f"parallel: torch {torch.__version__} shards parameters on GPUs only; use 'ddp' or a newer torch"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    blocks = [
        block
        for module in reversed(list(model.modules()))
        for block in (module if isinstance(module, nn.ModuleList) else ())
        if not isinstance(block, nn.ModuleList | nn.ModuleDict) and any(True for _ in block.parameters())
    ]
    for block in blocks:
        if compiled:
            block.forward = torch.compile(block.forward, dynamic=False)
        fully_shard(block, mesh=mesh)
    if compiled:
        from torch._dynamo import config

        # Blocks of different sizes share their code; beyond this limit the compiler would leave them uncompiled.
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.6
        setattr(config, limit, max(getattr(config, limit), 2 * len(blocks)))
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; importing that class takes half a second."""
    return hasattr(tensor, "to_local")


def whole(tensors: dict[str, Any], keep: bool = True) -> dict[str, Tensor]:
    """Gather the sharded tensors, one after the other, in CPU memory: a GPU may not hold them all.

    All processes must call it, in the same order; without ``keep`` a process gets an empty dict.
    """
    gathered = {}
    for name, tensor in tensors.items():
        one = tensor.detach().full_tensor().cpu() if is_sharded(tensor) else tensor.detach()
        if keep:
            gathered[name] = one
    return gathered


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this process keeps, in the same memory: all of it unless it is sharded."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def like(parameter: Any, value: Tensor) -> Tensor:
    """A whole tensor in the memory layout of the parameter, and sharded like it."""
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter).copy_(value)


def filled(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of an unsharded module with these unsharded parameters, in eval mode."""
    copied = copy.deepcopy(module).requires_grad_(False).eval()
    copied.load_state_dict(tensors)
    return copied
