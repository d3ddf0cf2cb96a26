"""Law 6: the exact divergence is the Jacobian's trace; Hutchinson's estimate scatters around it as the formula says."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers import MIXTURE, NAN, normal, randomized, seeded
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from flowbook import divergence as module
from flowbook.divergence import Mode, Trace, divergence, hutchinson, rademacher
from flowbook.models import MLP, UNet
from flowbook.paths import LinearPath


def small_mlp(dim: int) -> MLP:
    return randomized(MLP(dim, hidden=16, num_classes=3).double(), scale=0.4)  # type: ignore[return-value]


def small_unet() -> UNet:
    network = UNet(2, size=4, width=8, multipliers=(1, 2), blocks=1, attention=(4, 2), num_classes=3)
    return randomized(network.double())  # type: ignore[return-value]


CASES = {
    "one number per sample": (lambda x, t, y: torch.sin(x) * t.reshape(-1), (5,)),
    "MLP, loop over dimensions": (small_mlp(2), (5, 2)),
    "MLP, at the edge of the loop": (small_mlp(8), (3, 8)),
    "MLP, batched": (small_mlp(9), (3, 9)),
    "MLP, 64 dimensions": (small_mlp(64), (3, 64)),
    "U-Net with attention": (small_unet(), (2, 2, 4, 4)),
}
cases = pytest.mark.parametrize(("velocity", "shape"), CASES.values(), ids=CASES)


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    batch = shape[0]
    return normal(*shape), torch.linspace(0.1, 0.9, batch, dtype=torch.float64), torch.arange(batch) % 3


def jacobians(velocity: Any, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The Jacobian of each sample by itself, (B, D, D)."""
    return torch.stack([
        torch.autograd.functional.jacobian(lambda point, n=n: velocity(point, t[n : n + 1], y[n : n + 1]), x[n : n + 1])
        .reshape(x[n].numel(), x[n].numel())
        for n in range(len(x))
    ])  # fmt: skip


modes = pytest.mark.parametrize("mode", module.MODES)


@modes
@cases
def test_exact_is_the_trace_of_the_jacobian(velocity: Any, shape: tuple[int, ...], mode: Mode) -> None:
    x, t, y = inputs(shape)
    v, div = divergence(velocity, x, t, y=y, mode=mode)
    trace = jacobians(velocity, x, t, y).diagonal(dim1=1, dim2=2).sum(1)
    assert trace.abs().min() > 1e-4
    torch.testing.assert_close(div, trace, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(v, velocity(x, t, y).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 9, 64])
def test_exact_on_a_linear_field_is_the_trace_with_its_sign(dim: int) -> None:
    matrix = normal(dim, dim)
    _, div = divergence(lambda x, t: x @ matrix.T, normal(4, dim, seed=1), 0.3)
    torch.testing.assert_close(div, matrix.trace().expand(4))
    _, minus = divergence(lambda x, t: -x, normal(4, dim), 0.3)
    torch.testing.assert_close(minus, torch.full((4,), -float(dim), dtype=torch.float64))


def test_exact_takes_the_diagonal_and_not_the_first_column() -> None:
    scales = torch.tensor([1.0, 3.0, 9.0])
    assert divergence(lambda x, t: x * scales, torch.ones(2, 3), 0.5)[1].tolist() == [13.0, 13.0]


@modes
@cases
@pytest.mark.parametrize("elements", [1, 200])
def test_chunks_change_nothing(
    velocity: Any, shape: tuple[int, ...], elements: int, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, t, y = inputs(shape)
    whole = divergence(velocity, x, t, y=y, mode=mode)[1]
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", {"points": elements, "images": elements})
    torch.testing.assert_close(divergence(velocity, x, t, y=y, mode=mode)[1], whole, rtol=1e-12, atol=1e-12)


@cases
def test_loop_and_batched_products_agree(
    velocity: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, t, y = inputs(shape)
    values = []
    for limit in (0, 10_000):
        monkeypatch.setattr(module, "LOOP_UP_TO", limit)
        values.append(divergence(velocity, x, t, y=y)[1])
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


WEIGHT = torch.ones(1, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("velocity", [
    lambda x, t: torch.full_like(x, 2.0), lambda x, t: (WEIGHT * t).expand(x.shape), lambda x, t: torch.zeros_like(x),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(4, 2), (4, 3, 2, 2)])
@pytest.mark.parametrize("create_graph", [False, True])
@modes
def test_a_velocity_that_does_not_depend_on_x_has_none(
    velocity: Any, shape: tuple[int, ...], create_graph: bool, mode: Mode
) -> None:
    x = normal(*shape)
    ways: list[dict[str, Any]] = [{}, {"method": "hutchinson", "noise": rademacher(3, like=x)}]
    for extra in ways:
        _, div = divergence(velocity, x, 0.5, create_graph=create_graph, mode=mode, **extra)
        assert torch.equal(div, torch.zeros(4, dtype=torch.float64))


def test_the_gaussian_flow_spreads_as_its_density_says() -> None:
    # Along the flow of one component d log p / dt = -div, and the flow is linear: div = D * d log std / dt.
    t, y = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.arange(3)
    path = LinearPath()
    variance = path.alpha(t) ** 2 * MIXTURE.stds**2 + path.sigma(t) ** 2
    rate = 2 * (path.alpha(t) * path.alpha_dot(t) * MIXTURE.stds**2 + path.sigma(t) * path.sigma_dot(t)) / variance
    _, div = divergence(MIXTURE.as_velocity(path), normal(3, 2), t, y=y)
    torch.testing.assert_close(div, rate)


# Hutchinson -----------------------------------------------------------------------------------------------------------


def all_signs(dim: int, like: Tensor) -> Tensor:
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dim))).to(like)
    return signs[:, None].expand(-1, len(like), -1).reshape(-1, *like.shape)


def formula(jacobian: Tensor) -> Tensor:
    """The variance of one Rademacher probe: 2 ||off-diagonal of the symmetric part||_F^2."""
    symmetric = (jacobian + jacobian.transpose(1, 2)) / 2
    off = symmetric - torch.diag_embed(symmetric.diagonal(dim1=1, dim2=2))
    return 2 * off.square().sum((1, 2))


def test_over_all_signs_hutchinson_has_the_exact_mean_and_the_variance_of_the_formula() -> None:
    velocity, (x, t, y) = small_mlp(6), inputs((3, 6))
    _, estimates = hutchinson(velocity, x, t, y=y, noise=all_signs(6, x))
    assert estimates.shape == (64, 3)
    torch.testing.assert_close(estimates.mean(0), divergence(velocity, x, t, y=y)[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(estimates.var(0, correction=0), formula(jacobians(velocity, x, t, y)), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("velocity", "shape"), [(small_mlp(12), (2, 12)), (small_unet(), (2, 2, 4, 4))])
def test_drawn_probes_scatter_by_the_formula_s_standard_error(velocity: Any, shape: tuple[int, ...]) -> None:
    x, t, y = inputs(shape)
    probes = 1024
    noise = rademacher(probes, like=x, generator=seeded())
    _, estimates = hutchinson(velocity, x, t, y=y, noise=noise)
    exact, std = divergence(velocity, x, t, y=y)[1], formula(jacobians(velocity, x, t, y)).sqrt()
    assert ((estimates.mean(0) - exact).abs() < 4 * std / math.sqrt(probes)).all()
    torch.testing.assert_close(estimates.std(0), std, rtol=0.15, atol=0)


def test_probes_are_averaged_not_summed() -> None:
    x = normal(4, 3)
    for probes in (1, 2, 7):
        _, div = divergence(lambda x, t: 2 * x, x, 0.5, method="hutchinson", noise=rademacher(probes, like=x))
        torch.testing.assert_close(div, torch.full((4,), 6.0, dtype=torch.float64))


def test_the_same_probes_give_the_same_field() -> None:
    velocity, (x, t, y) = small_mlp(6), inputs((3, 6))
    noise = rademacher(1, like=x)
    state = torch.get_rng_state()
    first = divergence(velocity, x, t, y=y, method="hutchinson", noise=noise)[1]
    assert torch.equal(divergence(velocity, x, t, y=y, method="hutchinson", noise=noise)[1], first)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    per_probe = (noise[0] * torch.einsum("bij,bj->bi", jacobians(velocity, x, t, y), noise[0])).sum(1)
    torch.testing.assert_close(first, per_probe, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rademacher_draws_fair_signs(dtype: torch.dtype) -> None:
    noise = rademacher(100, like=torch.empty(10, 3, 4, dtype=dtype), generator=seeded())
    assert noise.shape == (100, 10, 3, 4) and noise.dtype == dtype
    assert torch.equal(noise.abs(), torch.ones_like(noise))
    assert abs(float(noise.float().mean())) < 4 / math.sqrt(12_000)
    assert torch.equal(noise, rademacher(100, like=torch.empty(10, 3, 4, dtype=dtype), generator=seeded()))


# Gradients of the divergence ------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
@pytest.mark.parametrize("dim", [2, 10])
def test_create_graph_gives_the_gradients_of_the_divergence(method: Trace, dim: int, mode: Mode) -> None:
    matrix, x = 0.5 * normal(dim, dim, seed=1), normal(3, dim)
    noise = rademacher(2, like=x, generator=seeded()) if method == "hutchinson" else None
    matrix.requires_grad_()
    x.requires_grad_()

    def both(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        return divergence(
            lambda x, t: torch.sin(x @ matrix.T), x, 0.5, method=method, noise=noise, create_graph=True, mode=mode
        )

    assert torch.autograd.gradcheck(both, (x, matrix))


@modes
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_create_graph_reaches_the_weights_of_a_unet_with_attention(method: Trace, mode: Mode) -> None:
    network, (x, t, y) = small_unet(), inputs((2, 2, 4, 4))
    noise = rademacher(1, like=x, generator=seeded()) if method == "hutchinson" else None
    weight: Any = network.outputs[-1].weight
    direction = normal(*weight.shape, seed=5)

    def total() -> Tensor:
        return divergence(network, x, t, y=y, method=method, noise=noise, create_graph=True, mode=mode)[1].sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    with torch.no_grad():
        weight += 1e-5 * direction
        above = float(total())
        weight -= 2e-5 * direction
        below = float(total())
    assert float((gradient * direction).sum()) == pytest.approx((above - below) / 2e-5, rel=1e-6)


@modes
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_detached_unless_asked_and_at_home_under_no_grad(method: Trace, mode: Mode) -> None:
    velocity, (x, t, y) = small_mlp(6), inputs((3, 6))
    noise = rademacher(1, like=x, generator=seeded()) if method == "hutchinson" else None
    x.requires_grad_()
    v, div = divergence(velocity, x, t, y=y, method=method, noise=noise, mode=mode)
    assert not v.requires_grad and not div.requires_grad
    with torch.no_grad():
        assert torch.equal(divergence(velocity, x, t, y=y, method=method, noise=noise, mode=mode)[1], div)
    assert all(p.grad is None for p in velocity.parameters())


@pytest.mark.parametrize("shape", [(0, 2), (0, 20), (1, 1), (1, 3, 1, 1)])
def test_empty_and_tiny_batches(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    torch.testing.assert_close(
        divergence(lambda x, t: 2 * x, x, 0.5)[1], torch.full((shape[0],), 2.0 * x.shape[1:].numel())
    )


@pytest.mark.parametrize("t", [0, 1, 1 + 1e-7, torch.tensor(0.5)])
def test_non_contiguous_states_and_every_form_of_time(t: Any) -> None:
    x = normal(9, 3).T
    velocity = small_mlp(9)
    torch.testing.assert_close(divergence(velocity, x, t)[1], divergence(velocity, x.contiguous(), t)[1])


class Frozen(torch.nn.Module):
    """A network that hides x from the gradient; its output still requires one, for its weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = small_mlp(dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x.detach(), t)


@torch.no_grad()
def without_grad(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x)


@modes
@pytest.mark.parametrize("dim", [2, 10])
@pytest.mark.parametrize("cut_off", [Frozen, lambda dim: without_grad, lambda dim: lambda x, t: 2 * x.detach()])
def test_a_velocity_cut_off_from_x_is_refused_and_not_taken_for_a_constant(dim: int, cut_off: Any, mode: Mode) -> None:
    x, velocity = normal(3, dim), cut_off(dim)
    if mode == "forward" and velocity is without_grad:  # forward derivatives do not pass through the graph at all
        torch.testing.assert_close(divergence(velocity, x, 0.5, mode=mode)[1], torch.cos(x).sum(1))
        return
    for probes in (None, 1, 3):
        noise = None if probes is None else rademacher(probes, like=x)
        with pytest.raises(RuntimeError, match="velocity: its value changes with x, but no gradient"):
            divergence(velocity, x, 0.5, method="exact" if noise is None else "hutchinson", noise=noise, mode=mode)


def test_inference_mode_is_refused_and_no_grad_is_not() -> None:
    x = normal(3, 2)
    call: Any
    with torch.inference_mode():
        for call in (
            lambda: divergence(lambda x, t: 2 * x, x, 0.5),
            lambda: hutchinson(lambda x, t: 2 * x, x, 0.5, noise=x[None]),
        ):
            with pytest.raises(RuntimeError, match=r"inference_mode\(\) allows no derivatives"):
                call()
    with torch.no_grad():
        assert divergence(lambda x, t: 2 * x, x, 0.5)[1].tolist() == [4.0] * 3


# Two modes, one number ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
@pytest.mark.parametrize(("make", "shape"), [(small_unet, (2, 2, 4, 4)), (lambda: small_mlp(9), (3, 9))])
def test_forward_mode_equals_reverse_mode_and_so_do_the_gradients(
    make: Any, shape: tuple[int, ...], method: Trace, create_graph: bool, dtype: torch.dtype, rtol: float
) -> None:
    network = make().to(dtype)
    x, t, y = inputs(shape)
    x, t = x.to(dtype), t.to(dtype)
    noise = rademacher(2, like=x, generator=seeded()) if method == "hutchinson" else None
    found = {}
    for mode in module.MODES:
        if method == "hutchinson":  # from the left and from the right a probe sees the same number: e.J e
            v, values = hutchinson(network, x, t, y=y, noise=noise, create_graph=create_graph, mode=mode)
        else:
            v, values = divergence(network, x, t, y=y, create_graph=create_graph, mode=mode)
        found[mode] = [v, values]
        if create_graph:
            (values.square().sum() + v.square().sum()).backward()
            found[mode].append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
            network.zero_grad()
    for forward, reverse in zip(found["forward"], found["reverse"], strict=True):
        torch.testing.assert_close(forward, reverse, rtol=rtol, atol=rtol * float(reverse.detach().abs().max()))


def attention(x: Tensor, t: Tensor | float) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(x, x, x)


def test_the_trap_of_the_fused_attention_kernel_which_has_no_such_derivatives() -> None:
    x = normal(2, 1, 6, 4)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with pytest.raises(NotImplementedError, match="forward AD"):
            torch.func.jvp(lambda x: attention(x, 0.5), (x,), (x,))
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(attention(leaf, 0.5).sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="is not implemented"):
            first.sum().backward()
        # Derivative code asks for the kernel of plain matrix products, whatever is asked for around it.
        reverse, forward = (divergence(attention, x, 0.5, mode=mode, create_graph=True)[1] for mode in module.MODES)
    torch.testing.assert_close(forward, reverse.detach(), rtol=1e-10, atol=1e-12)


@modes
def test_a_rotation_has_a_jacobian_though_its_trace_is_zero(mode: Mode) -> None:
    """Zero is no sign that a velocity does not depend on x: the check for that looks at the products."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert divergence(lambda x, t: x @ turn.T, normal(4, 2), 0.5, mode=mode)[1].tolist() == [0.0] * 4


@modes
@pytest.mark.parametrize("probes", [None, 256])
def test_the_squared_norm_is_frobenius_s(mode: Mode, probes: int | None) -> None:
    velocity, (x, t, y) = small_mlp(9), inputs((3, 9))
    norms = jacobians(velocity, x, t, y).square().sum((1, 2))
    noise = None if probes is None else rademacher(probes, like=x, generator=seeded())
    _, traces, squares = module.jacobian_terms(velocity, x, t, y, noise, mode=mode, squares=True)
    assert traces.shape == squares.shape == (probes or 1, 3)
    if probes is None:
        torch.testing.assert_close(squares[0], norms, rtol=1e-10, atol=0)
    else:
        standard_error = squares.std(0) / math.sqrt(probes)
        assert bool(((squares.mean(0) - norms).abs() < 4 * standard_error).all())


@modes
@pytest.mark.parametrize(
    ("make", "shape", "method", "create_graph", "backend"),
    [
        (small_unet, (2, 2, 4, 4), "exact", False, "eager"),
        (lambda: small_mlp(2), (3, 2), "exact", True, "aot_eager"),
        (lambda: small_mlp(9), (3, 9), "hutchinson", False, "aot_eager"),
        (lambda: Normalized(6).double(), (3, 6), "exact", True, "aot_eager"),
    ],
)
def test_torch_compile_takes_it_whole(
    make: Any, shape: tuple[int, ...], method: Trace, create_graph: bool, backend: str, mode: Mode
) -> None:
    if mode == "forward" and torch.__version__.startswith("2.6."):
        pytest.skip("torch.compile of torch 2.6 cannot take forward derivatives under vmap")
    network, (x, t, y) = make(), inputs(shape)
    noise = rademacher(2, like=x, generator=seeded()) if method == "hutchinson" else None

    def call(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return divergence(network, x, t, y=y, method=method, noise=noise, create_graph=create_graph, mode=mode)

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for result, expected in zip(compiled(x, t, y), call(x, t, y), strict=True):
        assert not result.requires_grad or create_graph
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


class Normalized(torch.nn.Module):
    """Layer norm and group norm, both with scales of their own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = randomized(torch.nn.Sequential(torch.nn.LayerNorm(dim), torch.nn.GroupNorm(2, dim)), scale=1.0)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.sin(self.layers(x))


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@modes
def test_the_memory_of_the_exact_trace_is_bounded_by_the_chunk_at_3072_dimensions(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, dim = 4, 3 * 32 * 32
    first, last = (torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, channels), (channels, 3)))
    x = torch.randn(1, 3, 32, 32, generator=seeded())
    largest, values = {}, []
    for chunk in (16, 64):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", {"points": chunk * dim, "images": chunk * dim})
        with Sizes() as sizes:
            values.append(divergence(lambda x, t: last(torch.tanh(first(x))), x, 0.5, mode=mode)[1])
        largest[chunk] = sizes.largest
        # The products of a chunk in the layer of most channels, and the buffers of a convolution's backward pass.
        assert largest[chunk] <= 3 * chunk * channels * 32 * 32
    assert largest[64] <= 4.1 * largest[16] < dim * dim / 20
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-3)


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: divergence(lambda x, t: x, X.long(), 0.5), TypeError, "x: .*int64"),
        (lambda: divergence(lambda x, t: x, X, 2.0), ValueError, "t: .*2"),
        (lambda: divergence(lambda x, t: x, X, NAN), ValueError, "t: .*nan"),
        (lambda: divergence(lambda x, t: x, X, torch.zeros(2)), ValueError, r"t: .*\(3,\).*\(2,\)"),
        (lambda: divergence(lambda x, t: x, X, 0.5, mode="back"), ValueError, "mode: .*'reverse'.*'back'"),  # type: ignore[arg-type]
        (lambda: divergence(lambda x, t: x, X, 0.5, method="trace"), ValueError, "method: .*'exact'.*'trace'"),  # type: ignore[arg-type]
        (
            lambda: divergence(lambda x, t: x, X, 0.5, noise=X[None]),
            ValueError,
            "noise: expected None with method='exact'",
        ),
        (lambda: divergence(lambda x, t: x, X, 0.5, method="hutchinson"), ValueError, "noise: .*rademacher"),
        (lambda: hutchinson(lambda x, t: x, X, 0.5, noise=X), ValueError, r"noise: .*\(P, 3, 2\).*\(3, 2\)"),
        (lambda: hutchinson(lambda x, t: x, X, 0.5, noise=X[None].double()), TypeError, "noise: .*float32.*float64"),
        (lambda: hutchinson(lambda x, t: x, X, 0.5, noise=X[None].int()), TypeError, "noise: .*int32"),
        (lambda: hutchinson(lambda x, t: x, X.int(), 0.5, noise=X[None]), TypeError, "x: .*int32"),
        (lambda: divergence(lambda x, t: x[:, :1], X, 0.5), ValueError, r"velocity\(x, t, y\): .*\(3, 2\).*\(3, 1\)"),
        (lambda: divergence(lambda x, t: None, X, 0.5), TypeError, r"velocity\(x, t, y\): .*NoneType"),  # type: ignore[arg-type]
        (lambda: divergence(lambda x, t: x, X, 0.5, probes=3), TypeError, "probes"),  # type: ignore[call-arg]
        (lambda: rademacher(0, like=X), ValueError, "probes: .*0"),
        (lambda: rademacher(1, like=X.long()), TypeError, "like: .*int64"),
        (lambda: rademacher(1, like=X, generator=0), TypeError, "generator: .*0"),  # type: ignore[arg-type]
        (lambda: divergence(lambda x, t: x.double(), X, 0.5), TypeError, r"velocity\(x, t, y\): .*float32.*float64"),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_slope_of_0_is_no_cut_graph() -> None:
    x = torch.zeros(2, 2)
    for mode in ("reverse", "forward"):
        assert torch.equal(divergence(lambda x, t: x**2, x, 0.5, mode=mode)[1], torch.zeros(2))
    with pytest.raises(RuntimeError, match="no gradient flows back to x"):
        divergence(lambda x, t: x.detach() ** 2, x, 0.5, mode="forward")
