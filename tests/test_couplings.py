"""Law 4: couplings are permutations; the exact one is the cheapest, and labels need their own."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import NAN, normal, seeded
from torch import Tensor

from flowbook.couplings import Independent, OptimalTransport, couple_ahead

COUPLINGS = [
    Independent(), OptimalTransport(), OptimalTransport("sinkhorn"), OptimalTransport(label_aware=True),
    OptimalTransport("sinkhorn", label_aware=True),
]  # fmt: skip
METHODS = ["exact", "sinkhorn"]

couplings = pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
methods = pytest.mark.parametrize("method", METHODS)


def cost(x0: Tensor, x1: Tensor) -> float:
    return float((x1.double() - x0.double()).square().sum())


def pairs(n: int, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    x0, x1 = normal(n, *shape, seed=seed), normal(n, *shape, seed=seed + 1) + 1.0
    return x0, x1, torch.randint(3, (n,), generator=seeded(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_exact_transport_costs_no_more_than_any_of_720_permutations(seed: int, dim: int) -> None:
    x0, x1, _ = pairs(6, dim, seed=seed)
    best = min(cost(x0[list(order)], x1) for order in itertools.permutations(range(6)))
    assert cost(OptimalTransport()(x0, x1)[0], x1) == pytest.approx(best, rel=1e-12)


@couplings
@pytest.mark.parametrize("shape", [(1,), (2,), (784,), (1, 4, 4)])
def test_every_source_and_every_target_is_used_exactly_once(coupling: Any, shape: tuple[int, ...]) -> None:
    x0, x1, y = pairs(64, *shape)
    coupled0, coupled1, coupled_y = coupling(x0, x1, y)
    assert coupled1 is x1 and coupled_y is y
    assert sorted(coupled0.flatten(1).tolist()) == sorted(x0.flatten(1).tolist())


@couplings
@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_batches(coupling: Any, n: int) -> None:
    x0, x1, y = pairs(n, 2)
    assert coupling(x0, x1, y)[0].shape == (n, 2)


@couplings
def test_equal_points_are_still_permuted(coupling: Any) -> None:
    x0, y = torch.full((7, 2), 0.1), torch.zeros(7, dtype=torch.long)
    assert torch.equal(coupling(x0, torch.full((7, 2), 0.3), y)[0], x0)


def test_on_a_line_transport_sorts() -> None:
    x0, x1, _ = pairs(50, 1)
    coupled, _, _ = OptimalTransport()(x0, x1)
    assert torch.equal(coupled.flatten().argsort(), x1.flatten().argsort())


@methods
def test_transport_lowers_the_cost_in_the_right_direction(method: str) -> None:
    x0, x1, _ = pairs(256, 2)
    coupled, _, _ = OptimalTransport(method)(x0, x1)
    # The inverse permutation, applied to the noise, is as bad as random pairing.
    order = torch.cdist(coupled, x0).argmin(1)
    assert cost(coupled, x1) < 0.5 * cost(x0, x1)
    assert cost(x0[order.argsort()], x1) > 0.9 * cost(x0, x1)


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_sinkhorn_with_a_small_reg_is_nearly_exact(dim: int) -> None:
    x0, x1, _ = pairs(64, dim)
    exact = cost(OptimalTransport()(x0, x1)[0], x1)
    near = cost(OptimalTransport("sinkhorn", reg=0.01)(x0, x1)[0], x1)
    assert exact * (1 - 1e-12) <= near <= exact * 1.03


@pytest.mark.parametrize("reg", [0.02, 0.05, 1.0])
def test_sinkhorn_in_784_dimensions_neither_underflows_nor_turns_uniform(reg: float) -> None:
    noise = normal(64, 784)
    x1 = 0.8 * noise[torch.randperm(64, generator=seeded())] + 0.6 * normal(64, 784, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coupled, _, _ = OptimalTransport("sinkhorn", reg=reg)(noise, x1)
    assert torch.equal(coupled, OptimalTransport()(noise, x1)[0])


def test_sinkhorn_says_when_it_has_not_converged() -> None:
    x0, x1, _ = pairs(64, 2)
    with pytest.warns(UserWarning, match=r"Sinkhorn stopped after .*reg"):
        OptimalTransport("sinkhorn", reg=1e-5)(x0, x1)


@methods
@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6])
def test_float32_far_from_the_origin_loses_nothing(method: str, offset: float) -> None:
    # Points on a grid of 1/8 stay exact in float32 out to 1e6; distances by x^2 - 2xy + y^2 in float32 would not.
    x0, x1 = ((8 * x).round().float() / 8 for x in pairs(64, 2)[:2])
    near = OptimalTransport(method)(x0, x1)
    far = OptimalTransport(method)(x0 + offset, x1 - offset)
    assert cost(far[0] - offset, x1) == pytest.approx(cost(near[0], x1), rel=1e-6 if method == "exact" else 0.02)


def two_classes(n: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.arange(n) % 2
    return normal(n, 2), torch.stack([6.0 * y - 3.0, torch.zeros(n)], 1) + 0.1 * normal(n, 2, seed=1), y


@methods
def test_transport_blind_to_labels_gives_each_label_a_shifted_source(method: str) -> None:
    x0, _, y = OptimalTransport(method)(*two_classes())
    assert float(x0[y == 0, 0].mean()) == pytest.approx(-0.80, abs=0.1)
    assert float(x0[y == 1, 0].mean()) == pytest.approx(+0.80, abs=0.1)


@methods
def test_label_aware_transport_gives_each_label_the_source_s_own_noise(method: str) -> None:
    before, x1, labels = two_classes()
    x0, _, y = OptimalTransport(method, label_aware=True)(before, x1, labels)
    for label in (0, 1):
        own = x0[y == label]
        assert own.mean(0).abs().max() < 4 / 256**0.5  # four standard errors of 256 draws
        # within the label the pairing is transport's own
        alone, _, _ = OptimalTransport(method)(before[labels == label], x1[labels == label])
        assert torch.equal(own, alone)


@couplings
def test_gradients_and_memory_layout_pass_through(coupling: Any) -> None:
    x0, x1, y = pairs(8, 3)
    x0.requires_grad_()
    coupled, _, _ = coupling(x0, x1, y)
    coupled.sum().backward()
    assert x0.grad is not None and torch.equal(x0.grad, torch.ones_like(x0))
    transposed = x0.detach().T.contiguous().T
    assert torch.equal(coupling(transposed, x1, y)[0], coupled)


@couplings
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_kept(coupling: Any, dtype: torch.dtype) -> None:
    x0, x1, y = pairs(8, 3)
    assert coupling(x0.to(dtype), x1.to(dtype), y)[0].dtype == dtype


def stream(n: int = 5) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [pairs(16, 2, seed=10 * k) for k in range(n)]


@couplings
def test_coupling_ahead_gives_what_coupling_now_gives(coupling: Any) -> None:
    ahead: list[Any] = list(couple_ahead(stream(), coupling))
    assert len(ahead) == 5
    for batch, coupled in zip(stream(), ahead, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(coupling(*batch), coupled, strict=True))


def test_coupling_ahead_works_in_another_thread_one_batch_ahead() -> None:
    drawn, threads = [], set()

    def batches() -> Iterator[Any]:
        for n, batch in enumerate(stream()):
            drawn.append((n, threading.get_ident()))
            yield batch

    def coupling(x0: Any, x1: Any, y: Any) -> Any:
        threads.add(threading.get_ident())
        return x0, x1, y

    for n, _ in enumerate(couple_ahead(batches(), coupling)):
        assert len(drawn) == min(n + 2, 5)
    assert {thread for _, thread in drawn} == {threading.get_ident()}
    assert threads and threading.get_ident() not in threads


def test_an_error_in_the_background_reaches_the_caller_after_the_good_batches() -> None:
    def coupling(x0: Any, x1: Any, y: Any) -> Any:
        if float(x0[0, 0]) == float(stream()[2][0][0, 0]):
            raise ArithmeticError("no coupling today")
        return x0, x1, y

    got = []
    with pytest.raises(ArithmeticError, match="no coupling today"):
        for batch in couple_ahead(stream(), coupling):
            got.append(batch)
    assert len(got) == 2


def test_an_error_in_the_batches_reaches_the_caller() -> None:
    def batches() -> Iterator[Any]:
        yield from stream(2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(couple_ahead(batches(), Independent()))


X, Y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)


@couplings
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.int(), X, Y), TypeError, "x0: .*int32"),
        ((X, "x1", Y), TypeError, "x1: .*str"),
        ((X, X[:3], Y), ValueError, r"x0: .*\(3, 2\).*\(4, 2\)"),
        ((torch.tensor(0.0), torch.tensor(0.0)), ValueError, "x0: .*dimensions"),
        ((X, X, Y[:2]), ValueError, r"y: expected a row for each of 4 samples; got shape \(2,\)"),
    ],
)
def test_misuse_names_the_argument(
    coupling: Any, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        coupling(*arguments)


@methods
@pytest.mark.parametrize("name", ["x0", "x1"])
def test_nan_is_named(method: str, name: str) -> None:
    batch = {"x0": X.clone(), "x1": X.clone()}
    batch[name][1, 1] = NAN
    with pytest.raises(ValueError, match=f"{name}: .*finite"):
        OptimalTransport(method)(**batch)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: OptimalTransport("emd"), ValueError, "method: .*'exact'.*'emd'"),
        (lambda: OptimalTransport("sinkhorn", reg=0.0), ValueError, "reg: .*0.0"),
        (lambda: OptimalTransport(label_aware=1), TypeError, "label_aware: .*1"),  # type: ignore[arg-type]
        (lambda: OptimalTransport(reg="small"), TypeError, "reg: .*'small'"),  # type: ignore[arg-type]
        (lambda: OptimalTransport(label_awere=True), TypeError, "label_awere"),  # type: ignore[call-arg]
        (lambda: OptimalTransport(label_aware=True)(X, X), ValueError, "y: .*label_aware.*None"),
    ],
)
def test_misuse_of_transport_names_the_argument(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
