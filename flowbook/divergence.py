r"""The divergence of a velocity: the trace of its Jacobian, exact or by the Hutchinson estimator.

.. math:: \nabla\!\cdot v = \operatorname{tr} \frac{\partial v}{\partial x}
          = \sum_i e_i^\top \frac{\partial v}{\partial x}\, e_i
          = \mathbb{E}\big[\epsilon^\top \tfrac{\partial v}{\partial x}\, \epsilon\big],
          \qquad \mathbb{E}[\epsilon\epsilon^\top] = I

With D dimensions, the exact divergence costs D products of the Jacobian with a vector, and the Hutchinson estimator one
for each probe. Such a product is a VJP (vector-Jacobian product), computed by a backward pass (reverse mode), or a JVP
(Jacobian-vector product), computed along with the velocity itself (forward mode).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from flowbook._core import keyed, validate
from flowbook.condition import Condition, check_condition
from flowbook.velocity import Velocity, call, check_order

Mode = Literal["reverse", "forward"]
MODES: tuple[Mode, ...] = get_args(Mode)
Trace = Literal["exact", "hutchinson"]
TRACES: tuple[Trace, ...] = get_args(Trace)
LOOP_UP_TO = 8
"""Up to this many dimensions a plain loop of backward passes beats a batched one."""
CHUNK_ELEMENTS = {"points": 2**20, "images": 2**16}
"""Elements of the Jacobian products that are computed at once; this bounds the memory of the exact trace and keeps it
in a CPU's cache. Image networks hold many activations for each element of x, so their chunks are smaller."""
CHUNK_ROWS = 4096
"""Rows of points that are computed at once; networks on points are wider than x."""
# Batched VJPs of a group norm cannot be differentiated in torch 2.6 or 2.8; in 2.15 they can.
OLD_NORMS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)
GPU_CHUNKS = 64
"""A GPU computes this many such chunks at once, to stay busy."""


def divergence(
    velocity: Velocity,
    x: Tensor,
    t: Tensor | float,
    *,
    y: Condition = None,
    method: Trace = "exact",
    noise: Tensor | None = None,
    create_graph: bool = False,
    mode: Mode = "reverse",
) -> tuple[Tensor, Tensor]:
    """The velocity and its divergence at (x, t).

    Each sample's velocity must depend on that sample alone (no batch norm in training mode).

    Args:
        velocity: ``v(x, t, y=None)``, a tensor like x.
        x: the state, shape (B, ...).
        t: time in [0, 1], a scalar or shape (B,).
        y: the condition, passed on to the velocity; None calls it without one.
        method: "exact", D VJPs (in forward mode JVPs) in chunks of bounded memory; or "hutchinson", one for each probe.
        noise: the probes of "hutchinson", shape (P, B, ...): see :func:`rademacher`. Draw them once for a whole solve:
            fresh probes at every call make the field random, and an adaptive solver would stall.
        create_graph: keep the graph, to differentiate the result.
        mode: "reverse" calls the velocity once and takes VJPs, one backward pass for each product; "forward" takes
            JVPs (``torch.func.jvp`` under ``vmap``) and calls the velocity once for each chunk of them.
            ``torch.compile(fullgraph=True)`` supports both (in torch 2.6 only "reverse"). On one CPU core reverse mode
            is 1.4 to 1.8 times faster for multilayer perceptrons in 2 and 64 dimensions and 1.1 times for a U-Net on
            8 x 8 images; for gradients of the divergence the two take the same time, except for the U-Net, where
            forward mode is 1.7 times faster.

    Returns:
        v, shape (B, ...), and its divergence, shape (B,): with "hutchinson" the mean over the probes. Detached unless
        ``create_graph``.

    Raises:
        ValueError: for an unknown method or mode, or noise that is missing, unused or of the wrong shape.
        RuntimeError: in ``torch.inference_mode()``, and for a velocity whose values change with x while no gradient
            flows back to x (``torch.no_grad()`` or ``detach`` inside it): its divergence would come out as 0. Forward
            mode is correct under ``torch.no_grad()``, and detects ``detach`` on the CPU only.

    Example:
        >>> v, div = divergence(lambda x, t: x * torch.tensor([1.0, 3.0]), torch.ones(1, 2), 0.5)
        >>> div
        tensor([4.])
    """
    validate.one_of("method", method, TRACES)
    if method == "hutchinson":
        v, estimates = hutchinson(velocity, x, t, y=y, noise=noise, create_graph=create_graph, mode=mode)
        return v, estimates[0] if len(estimates) == 1 else estimates.mean(0)
    if noise is not None:
        raise ValueError("noise: expected None with method='exact'; got probes, which are for method='hutchinson'")
    _check(velocity, x, t, y, mode)
    v, traces, _ = jacobian_terms(velocity, x, t, y, create_graph=create_graph, mode=mode)
    return v, traces[0]


def hutchinson(
    velocity: Velocity,
    x: Tensor,
    t: Tensor | float,
    *,
    y: Condition = None,
    noise: Tensor | None = None,
    create_graph: bool = False,
    mode: Mode = "reverse",
) -> tuple[Tensor, Tensor]:
    """The velocity, and one estimate of its divergence for each probe, shape (P, B) (Hutchinson 1990).

    Arguments and errors as in :func:`divergence`. The standard deviation over the probes, divided by sqrt(P), is the
    standard error of their mean.

    Example:
        >>> x = torch.ones(2, 3)
        >>> v, estimates = hutchinson(lambda x, t: 2 * x, x, 0.5, noise=rademacher(4, like=x))
        >>> estimates.shape, float(estimates.min()), float(estimates.max())
        (torch.Size([4, 2]), 6.0, 6.0)
    """
    _check(velocity, x, t, y, mode)
    if noise is None:
        raise ValueError("noise: expected probes, drawn once per solve, such as rademacher(1, like=x); got None")
    validate.float_tensor("noise", noise)
    if noise.dtype != x.dtype:
        raise TypeError(f"noise: expected the dtype of x, {x.dtype}; got {noise.dtype}")
    if noise.dim() != x.dim() + 1 or noise.shape[1:] != x.shape:
        raise ValueError(f"noise: expected shape (P, {', '.join(map(str, x.shape))}); got {tuple(noise.shape)}")
    v, estimates, _ = jacobian_terms(velocity, x, t, y, noise, create_graph=create_graph, mode=mode)
    return v, estimates


def jacobian_terms(
    velocity: Velocity,
    x: Tensor,
    t: Tensor | float,
    y: Condition = None,
    noise: Tensor | None = None,
    *,
    create_graph: bool = False,
    mode: Mode = "reverse",
    squares: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The velocity, the trace of its Jacobian and, from the same products, the square of the Jacobian's Frobenius norm.

    A solver needs this at every evaluation, so the arguments are not validated again.

    Args:
        velocity, x, t, y, create_graph, mode: as in :func:`divergence`.
        noise: probes, shape (P, B, ...); None computes all D products.
        squares: also compute the squared norms; otherwise they are 0.

    Returns:
        v, shape (B, ...); the traces and the squared norms, both of shape (1, B) if exact, or (P, B) with one estimate
        for each probe.

    Example:
        >>> v, traces, norms = jacobian_terms(lambda x, t: 3 * x, torch.ones(1, 2), 0.5, squares=True)
        >>> traces, norms
        (tensor([[6.]]), tensor([[18.]]))
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.is_inference_mode_enabled():
        raise RuntimeError("divergence: torch.inference_mode() allows no derivatives; use torch.no_grad() instead")
    # The fused attention kernels support a single backward pass only: no forward mode, no second derivatives, no
    # batched passes. The plain matrix-product kernel supports all of them.
    once = noise is not None and len(noise) == 1 and mode == "reverse" and not create_graph and not compiling
    attention = contextlib.nullcontext() if once else sdpa_kernel(SDPBackend.MATH)
    with torch.set_grad_enabled(create_graph or mode == "reverse"), attention:
        products = (_backward if mode == "reverse" else _forward)(velocity, x, t, y, create_graph)
        v, traces, norms, found = _sum_up(products, x, noise, mode, squares)
    if not found:
        _check_constant(velocity, v, x, t, y)
    return (v, traces, norms) if create_graph else (v.detach(), traces.detach(), norms.detach())


def _sum_up(
    multiply: Multiply, x: Tensor, noise: Tensor | None, mode: Mode, squares: bool
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Velocity, traces and squared norms from the products, and whether any product was found to differ from 0."""
    # Separate from its caller because Dynamo on Python 3.13 does not support a loop inside two context managers.
    batch, dim = len(x), x.shape[1:].numel()
    traces = norms = x.new_zeros(1 if noise is None else len(noise), batch)
    found = False
    for start, vectors in _basis(x, mode) if noise is None else [(0, noise)]:
        v, products = multiply(vectors, noise is not None or start + len(vectors) == dim)
        if products is None:
            break
        found = found or mode == "reverse" or not validate.values_are_readable(v) or bool(products.any())
        products = products.reshape(len(vectors), batch, dim)
        if noise is None:
            diagonal = products[:, :, start : start + len(vectors)].diagonal(dim1=0, dim2=2)
            traces = traces + diagonal.sum(1)
        else:
            traces = torch.linalg.vecdot(products, noise.reshape(products.shape))
        if squares:
            norms = norms + products.square().sum((0, 2) if noise is None else 2)
    return v, traces, norms, found


def rademacher(probes: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Signs +1 and -1 with equal probability, shape (probes, \\*like.shape): the Hutchinson probes of least variance.

    Without a generator, inside ``fit``, each sample has its own probes, whichever process it is computed in.

    Example:
        >>> rademacher(2, like=torch.zeros(3, 4)).abs().sum()
        tensor(24.)
    """
    validate.positive_int("probes", probes)
    validate.float_tensor("like", like, min_dim=1)
    validate.generator(generator)
    if generator is None:
        draws = [keyed.randn_like(like) for _ in range(probes)]
        return torch.copysign(like.new_ones(()), draws[0][None] if probes == 1 else torch.stack(draws))
    bits = torch.randint(2, (probes, *like.shape), generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


Multiply = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]
"""Maps vectors (P, B, ...), and whether they are the last ones, to the velocity (B, ...) and the vectors' products with
its Jacobian, (P, B, ...)."""


def _backward(velocity: Velocity, x: Tensor, t: Tensor | float, y: Condition, create_graph: bool) -> Multiply:
    """VJPs, one backward pass each; None when no gradient flows from the velocity to x."""
    if torch.compiler.is_compiling():  # Dynamo does not support autograd.grad
        value, pull = torch.func.vjp(lambda x: _evaluate(velocity, x, t, y), x if create_graph else x.detach())[:2]
        return lambda vectors, last: (value, torch.vmap(pull)(vectors)[0])
    x = x if create_graph and x.requires_grad else x.detach().requires_grad_()
    with _ComposedNorms() if create_graph and OLD_NORMS else contextlib.nullcontext():
        v = _evaluate(velocity, x, t, y)

    def multiply(vectors: Tensor, last: bool) -> tuple[Tensor, Tensor | None]:
        if not v.requires_grad:
            return v, None
        single = len(vectors) == 1
        (products,) = torch.autograd.grad(
            v, x, vectors[0] if single else vectors, retain_graph=create_graph or not last, create_graph=create_graph,
            allow_unused=True, is_grads_batched=not single,
        )  # fmt: skip
        return v, products[None] if single and products is not None else products

    return multiply


def _forward(velocity: Velocity, x: Tensor, t: Tensor | float, y: Condition, create_graph: bool) -> Multiply:
    """JVPs, computed along with the velocity's own evaluation."""
    x = x if create_graph else x.detach()

    def evaluate(x: Tensor) -> Tensor:
        with _ComposedNorms() if torch.compiler.is_compiling() else contextlib.nullcontext():
            return _evaluate(velocity, x, t, y)

    def push(vector: Tensor) -> Any:
        return torch.func.jvp(evaluate, (x,), (vector,))

    # The velocity does not depend on the vector, so vmap evaluates it once, with one dropout mask for all products.
    pushed = torch.vmap(push, out_dims=(None, 0), randomness="same")  # type: ignore[arg-type]
    return lambda vectors, last: pushed(vectors)


class _ComposedNorms(TorchFunctionMode):
    """Group and layer norm as sums and products: torch.compile cannot compile the JVP of torch's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = {F.group_norm: _group_norm, F.layer_norm: _layer_norm}
        return ours.get(func, func)(*args, **(kwargs or {}))


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    h = _standardized(x.reshape(len(x), num_groups, -1), (2,), eps).reshape(x.shape)
    per_channel = (-1,) + (1,) * (x.dim() - 2)
    h = h if weight is None else h * weight.reshape(per_channel)
    return h if bias is None else h + bias.reshape(per_channel)


def _layer_norm(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    h = _standardized(x, tuple(range(-len(normalized_shape), 0)), eps)
    h = h if weight is None else h * weight
    return h if bias is None else h + bias


def _standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centered = x - x.mean(dims, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(dims, keepdim=True) + eps)


def _basis(x: Tensor, mode: str) -> Iterator[tuple[int, Tensor]]:
    """The unit vectors in chunks (P, B, ...) of bounded size, each with the index of its first vector."""
    batch, dim = len(x), x.shape[1:].numel()
    elements = CHUNK_ELEMENTS["images" if x.dim() > 2 else "points"]
    rows = CHUNK_ROWS if x.dim() <= 2 else elements
    if x.device.type != "cpu":
        elements, rows = GPU_CHUNKS * elements, GPU_CHUNKS * rows
    chunk = max(1, min(dim, elements // max(1, batch * dim), rows // max(1, batch)))
    if mode == "reverse" and dim <= LOOP_UP_TO:
        chunk = 1
    for start in range(0, dim, chunk):
        vectors = torch.zeros(min(chunk, dim - start), dim, dtype=x.dtype, device=x.device)
        vectors.diagonal(start).fill_(1.0)
        yield start, vectors[:, None].expand(-1, batch, -1).reshape(len(vectors), *x.shape)


def _check_constant(velocity: Velocity, v: Tensor, x: Tensor, t: Tensor | float, y: Condition) -> None:
    """No gradient flows from v to x: correct for a velocity that is constant in x, an error for a cut graph."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(v):
        return
    with torch.enable_grad():  # the JVPs of forward mode may be 0 without any cut
        z = x.detach().requires_grad_()
        again = call(velocity, z, t, y)
        if again.requires_grad and torch.autograd.grad(again.sum(), z, allow_unused=True)[0] is not None:
            return
    with torch.no_grad():
        elsewhere = call(velocity, 1.1 * x + 0.37, t, y)
    if not torch.allclose(v, elsewhere, rtol=0, atol=0, equal_nan=True):
        raise RuntimeError(
            "velocity: its value changes with x, but no gradient flows back to x, so its divergence would come out as "
            "0; expected a velocity without torch.no_grad(), detach() or item() inside"
        )


def _check(velocity: Velocity, x: Tensor, t: Tensor | float, y: Condition, mode: str) -> None:
    check_order(velocity)
    validate.one_of("mode", mode, MODES)
    validate.float_tensor("x", x, min_dim=1)
    validate.time("t", t, len(x))
    check_condition("y", y, len(x), velocity)


def _evaluate(velocity: Velocity, x: Tensor, t: Tensor | float, y: Condition) -> Tensor:
    v = call(velocity, x, t, y)
    validate.velocity_like(v, x)
    return v
