r"""The divergence of a velocity: the trace of its Jacobian, exactly or by Hutchinson's estimate.

.. math:: \nabla\!\cdot v = \operatorname{tr} \frac{\partial v}{\partial x}
          = \sum_i e_i^\top \frac{\partial v}{\partial x}\, e_i
          = \mathbb{E}\big[\epsilon^\top \tfrac{\partial v}{\partial x}\, \epsilon\big],
          \qquad \mathbb{E}[\epsilon\epsilon^\top] = I

Exactly it costs D derivative products, with D the number of dimensions; each probe of the estimate costs one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowbook import _validate
from flowbook._model import Velocity, call

LOOP_UP_TO = 8
"""Up to this many dimensions a plain loop of backward passes beats a batched one."""
CHUNK_ELEMENTS = 2**18
"""Elements of the derivative products that are computed at once; this bounds the memory of the exact trace, and keeps
it in a CPU's cache (2^22 takes up to twice as long)."""
GPU_CHUNKS = 64
"""A GPU computes this many such chunks at once, to be busy."""


def divergence(
    velocity: Velocity,
    x: Tensor,
    t: Tensor | float,
    *,
    y: Tensor | None = None,
    method: str = "exact",
    noise: Tensor | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """The velocity and its divergence at (x, t).

    Each sample's velocity must depend on that sample alone (no batch norm in training mode).

    Args:
        velocity: ``v(x, t, y=None)``, a tensor like x.
        x: the state, shape (B, ...).
        t: time in [0, 1], a scalar or shape (B,).
        y: labels, shape (B,), passed on to the velocity.
        method: "exact", D derivative products in chunks of bounded memory; or "hutchinson", one for each probe.
        noise: the probes of "hutchinson", shape (P, B, ...): see :func:`rademacher`. Draw them once for a whole solve;
            fresh ones at every call make the field random, and an adaptive solver will not get through it.
        create_graph: keep the graph, to differentiate the result.

    Returns:
        v, shape (B, ...), and its divergence, shape (B,): with "hutchinson" the mean over the probes. Detached unless
        ``create_graph``.

    Raises:
        ValueError: for an unknown method, or noise that is missing, superfluous or of the wrong shape.
        RuntimeError: in ``torch.inference_mode()``, and for a velocity whose values change with x while no gradient
            leads back to x (``torch.no_grad()`` or ``detach`` inside it): its divergence would come out as 0.

    Example:
        >>> v, div = divergence(lambda x, t: x * torch.tensor([1.0, 3.0]), torch.ones(1, 2), 0.5)
        >>> div
        tensor([4.])
    """
    _validate.one_of("method", method, ("exact", "hutchinson"))
    _check(x, t, y)
    if method == "hutchinson":
        per_probe = hutchinson(velocity, x, t, y=y, noise=noise, create_graph=create_graph)
        return per_probe[0], per_probe[1].mean(0)
    if noise is not None:
        raise ValueError("noise: the exact divergence takes none; use method='hutchinson'")
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = _leaf(x, create_graph)
        v = _evaluate(velocity, x, t, y)
        div = _exact(v, x, create_graph) if v.requires_grad else None
        if div is None:
            _check_constant(velocity, v, x, t, y)
            div = v.new_zeros(len(x))
    return (v, div) if create_graph else (v.detach(), div.detach())


def hutchinson(
    velocity: Velocity,
    x: Tensor,
    t: Tensor | float,
    *,
    y: Tensor | None = None,
    noise: Tensor | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """The velocity, and one estimate of its divergence for each probe, shape (P, B) (Hutchinson 1990).

    Arguments and errors as in :func:`divergence`. The probes' spread over sqrt(P) is the standard error of their mean.

    Example:
        >>> x = torch.ones(2, 3)
        >>> v, estimates = hutchinson(lambda x, t: 2 * x, x, 0.5, noise=rademacher(4, like=x))
        >>> estimates.shape, float(estimates.min()), float(estimates.max())
        (torch.Size([4, 2]), 6.0, 6.0)
    """
    _check(x, t, y)
    if noise is None:
        raise ValueError("noise: hutchinson needs probes, for example rademacher(1, like=x), drawn once for a solve")
    _validate.float_tensor("noise", noise)
    if noise.dtype != x.dtype:
        raise TypeError(f"noise: expected the dtype of x, {x.dtype}; got {noise.dtype}")
    if noise.dim() != x.dim() + 1 or noise.shape[1:] != x.shape:
        raise ValueError(f"noise: expected shape (P, {', '.join(map(str, x.shape))}); got {tuple(noise.shape)}")
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = _leaf(x, create_graph)
        v = _evaluate(velocity, x, t, y)
        products = _vector_jacobian(v, x, noise, create_graph) if v.requires_grad else None
        if products is None:
            _check_constant(velocity, v, x, t, y)
            products = torch.zeros_like(noise)
        estimates = (products * noise).flatten(2).sum(2)
    return (v, estimates) if create_graph else (v.detach(), estimates.detach())


def rademacher(probes: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Signs +1 and -1 with equal probability, shape (probes, \\*like.shape): Hutchinson's noise of least variance.

    Example:
        >>> rademacher(2, like=torch.zeros(3, 4)).abs().sum()
        tensor(24.)
    """
    _validate.positive_int("probes", probes)
    _validate.float_tensor("like", like, min_dim=1)
    _validate.generator(generator)
    device = like.device if generator is None else generator.device
    bits = torch.randint(2, (probes, *like.shape), generator=generator, device=device)
    return (2 * bits - 1).to(like)


def _exact(v: Tensor, x: Tensor, create_graph: bool) -> Tensor | None:
    """The trace, or None when no gradient leads from v back to x."""
    batch, dim = len(x), x.shape[1:].numel()
    columns = v.reshape(batch, dim)
    if dim <= LOOP_UP_TO:
        # Sample n's velocity depends on x[n] alone, so the gradient of a sum over the batch holds every sample's row.
        total = x.new_zeros(batch)
        for i in range(dim):
            (row,) = torch.autograd.grad(
                columns[:, i].sum(), x, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
            if row is None:
                return None
            total = total + row.reshape(batch, dim)[:, i]
        return total
    elements = CHUNK_ELEMENTS * (1 if x.device.type == "cpu" else GPU_CHUNKS)
    chunk = max(1, min(dim, elements // max(1, batch * dim)))
    total = x.new_zeros(batch)
    for start in range(0, dim, chunk):
        index = torch.arange(start, min(start + chunk, dim), device=x.device)
        basis = torch.nn.functional.one_hot(index, dim).to(x)[:, None].expand(-1, batch, -1)
        products = _vector_jacobian(v, x, basis.reshape(len(index), *x.shape), create_graph)
        if products is None:
            return None
        rows = products.reshape(len(index), batch, dim)
        total = total + rows.gather(2, index[:, None, None].expand(-1, batch, 1)).sum((0, 2))
    return total


def _vector_jacobian(v: Tensor, x: Tensor, vectors: Tensor, create_graph: bool) -> Tensor | None:
    """vectors (P, B, ...) times the Jacobian of v at x, shape (P, B, ...); None when no gradient leads back to x."""
    if len(vectors) == 1:
        (product,) = torch.autograd.grad(
            v, x, vectors[0], retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        return None if product is None else product[None]
    (products,) = torch.autograd.grad(
        v, x, vectors, retain_graph=True, create_graph=create_graph, allow_unused=True, is_grads_batched=True
    )
    return products


def _check_constant(velocity: Velocity, v: Tensor, x: Tensor, t: Tensor | float, y: Tensor | None) -> None:
    """No gradient leads from v to x: right for a velocity that is constant in x, wrong for one that is cut off."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(v):
        return
    with torch.no_grad():
        elsewhere = call(velocity, 1.1 * x + 0.37, t, y)
    if not torch.allclose(v, elsewhere, rtol=0, atol=0, equal_nan=True):
        raise RuntimeError(
            "velocity: its value changes with x, but no gradient leads back to x, so its divergence would come out as "
            "0; expected a velocity without torch.no_grad(), detach() or item() inside"
        )


def _check(x: Tensor, t: Tensor | float, y: Tensor | None) -> None:
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise RuntimeError("divergence: torch.inference_mode() allows no derivatives; use torch.no_grad() instead")
    _validate.float_tensor("x", x, min_dim=1)
    _validate.time("t", t, len(x))
    if y is not None:
        _validate.labels("y", y, len(x))


def _leaf(x: Tensor, create_graph: bool) -> Tensor:
    return x if create_graph and x.requires_grad else x.detach().requires_grad_()


def _evaluate(velocity: Velocity, x: Tensor, t: Tensor | float, y: Tensor | None) -> Tensor:
    v = call(velocity, x, t, y)
    _validate.velocity_like(v, x)
    return v
