"""Law 7: densities by the trace identity, against closed forms; and the traps of likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flowbook import cnf, models, solvers
from flowbook.analytic import GaussianMixture
from flowbook.paths import LinearPath, VPPath

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Linear(nn.Module):
    """v = A x + b: the flow is a matrix exponential and the divergence the trace of A."""

    def __init__(self, dim: int, scale: float = 0.4, seed: int = 0):
        super().__init__()
        self.matrix = nn.Parameter(scale * normal(dim, dim, seed=seed))
        self.shift = nn.Parameter(normal(dim, seed=seed + 1))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        return (x.flatten(1) @ self.matrix.T + self.shift).reshape(x.shape)

    def exact_log_prob(self, x1: Tensor) -> Tensor:
        dim = len(self.shift)
        generator = torch.zeros(dim + 1, dim + 1, dtype=F64)
        generator[:dim, :dim], generator[:dim, dim] = self.matrix.detach(), self.shift.detach()
        flow = torch.linalg.matrix_exp(generator)
        matrix, shift = flow[:dim, :dim], flow[:dim, dim]
        normal_ = torch.distributions.MultivariateNormal(shift, matrix @ matrix.T)
        return normal_.log_prob(x1.flatten(1))


# Law 7 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "steps"), [((5, 3), 50), ((4, 1, 2, 3), 50)])
def test_law_7_log_prob_of_a_linear_flow_is_right_to_1e_9(shape: tuple[int, ...], steps: int) -> None:
    velocity, x1 = Linear(math.prod(shape[1:]), scale=0.15), normal(*shape, seed=5)
    result = cnf.log_prob(velocity, x1, steps=4 * steps)
    torch.testing.assert_close(result.log_prob, velocity.exact_log_prob(x1), rtol=0, atol=1e-9)
    assert not bool(result.std_err.any()) and result.nfe == velocity.calls == 16 * steps
    assert result.latent.shape == x1.shape


@pytest.mark.parametrize("path", [LinearPath(), VPPath()])
def test_law_7_log_prob_of_a_mixture_within_a_hundredth_of_a_nat(path: object) -> None:
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.7, 0.5], [0.3, 0.7])
    x1 = mixture.sample(300, torch.Generator().manual_seed(0)).double()
    result = cnf.log_prob(mixture.as_velocity(path), x1, method="rk4", steps=50)  # type: ignore[arg-type]
    error = (result.log_prob - mixture.log_prob(x1)).square().mean().sqrt()
    assert float(error) < 0.01


def test_law_7_the_integrated_trace_is_the_slogdet_of_the_flow_map() -> None:
    torch.manual_seed(0)
    velocity = models.MLP(2, hidden=16).double()
    x1 = normal(6, 2)
    result = cnf.log_prob(velocity, x1, steps=100)
    for n in range(len(x1)):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: solvers.solve(
                velocity, x[None], 1.0, 0.0, method="rk4", steps=100, differentiable=True
            ).x[0], x1[n],
        )  # fmt: skip
        prior = -0.5 * (result.latent[n].square().sum() + 2 * math.log(2 * math.pi))
        torch.testing.assert_close(result.log_prob[n] - prior, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-6)


def test_law_7_a_value_does_not_depend_on_the_rest_of_the_batch() -> None:
    torch.manual_seed(0)
    velocity, x1 = models.MLP(2, hidden=16).double(), normal(40, 2)
    together = cnf.log_prob(velocity, x1, steps=10).log_prob
    alone = torch.cat([cnf.log_prob(velocity, x1[n : n + 1], steps=10).log_prob for n in range(5)])
    torch.testing.assert_close(together[:5], alone, rtol=0, atol=1e-12)


# The estimator --------------------------------------------------------------------------------------------------------


def test_probes_are_averaged_drawn_once_and_their_spread_is_the_standard_error() -> None:
    velocity, x1 = Linear(12, scale=0.3), normal(2000, 12)
    exact = cnf.log_prob(velocity, x1, steps=10).log_prob
    calls = velocity.calls
    result = cnf.log_prob(
        velocity, x1, trace="hutchinson", probes=8, steps=10, generator=torch.Generator().manual_seed(0)
    )
    assert velocity.calls == 2 * calls == 80  # one evaluation serves all probes
    z = (result.log_prob - exact) / result.std_err
    assert abs(float(z.mean())) < 0.1  # unbiased: Student's t with 7 degrees of freedom, over 2,000 samples
    assert float((result.log_prob - exact).std()) == pytest.approx(
        float(result.std_err.square().mean().sqrt()), rel=0.1
    )
    again = cnf.log_prob(
        velocity, x1, trace="hutchinson", probes=8, steps=10, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(again.log_prob, result.log_prob)


def test_the_trap_of_one_probe_reported_as_if_exact() -> None:
    """One probe for a linear field: the error's variance is that of the estimator, and its size is not known."""
    velocity, x1 = Linear(12, scale=1.0, seed=3), normal(4000, 12)
    symmetric = 0.5 * (velocity.matrix + velocity.matrix.T).detach()
    formula = math.sqrt(2 * float((symmetric - torch.diag(symmetric.diag())).square().sum()))
    result = cnf.log_prob(
        velocity, x1, trace="hutchinson", probes=1, steps=4, generator=torch.Generator().manual_seed(0)
    )
    exact = cnf.log_prob(velocity, x1, steps=4)
    assert float((result.log_prob - exact.log_prob).std()) == pytest.approx(formula, rel=0.05)
    assert bool(result.std_err.isnan().all())


def test_the_trap_of_one_euler_step_and_of_the_wrong_sign() -> None:
    mixture = GaussianMixture([[0.0, 0.0]], 0.2)
    velocity, x1 = mixture.as_velocity(LinearPath()), 0.2 * normal(100, 2)
    truth = mixture.log_prob(x1)
    one = (cnf.log_prob(velocity, x1, method="euler", steps=1).log_prob - truth).abs().mean()
    fifty = (cnf.log_prob(velocity, x1, method="rk4", steps=50).log_prob - truth).abs().mean()
    assert float(one) > 1.0 and float(fifty) < 1e-4
    linear = Linear(3)
    right = cnf.log_prob(linear, normal(4, 3)).log_prob
    trace = float(linear.matrix.detach().trace())
    result = cnf.log_prob(linear, normal(4, 3))
    prior = -0.5 * (result.latent.square().sum(1) + 3 * math.log(2 * math.pi))
    wrong = prior + trace  # the sign of the forward integral, on a backward one
    torch.testing.assert_close(wrong - right, torch.full((4,), 2 * trace, dtype=F64), rtol=1e-9, atol=1e-9)


# Training, labels, sources --------------------------------------------------------------------------------------------


def test_the_loss_has_the_gradient_of_finite_differences() -> None:
    velocity, x1 = Linear(2), normal(10, 2)
    cnf.nll_loss(velocity, x1, steps=5).backward()
    gradient, h = velocity.matrix.grad, 1e-6
    assert gradient is not None
    with torch.no_grad():
        velocity.matrix[0, 1] += h
        up = cnf.nll_loss(velocity, x1, steps=5)
        velocity.matrix[0, 1] -= 2 * h
        down = cnf.nll_loss(velocity, x1, steps=5)
    assert float((up - down) / (2 * h)) == pytest.approx(float(gradient[0, 1]), rel=1e-5)


def test_a_result_carries_no_graph_unless_asked_for() -> None:
    velocity, x1 = Linear(2), normal(3, 2).requires_grad_()
    assert not cnf.log_prob(velocity, x1, steps=2).log_prob.requires_grad
    assert cnf.log_prob(velocity, x1, steps=2, differentiable=True).log_prob.requires_grad


def test_labels_and_another_source() -> None:
    mixture = GaussianMixture([[-2.0], [2.0]], 0.5)
    x1, y = normal(20, 1), torch.arange(20) % 2
    result = cnf.log_prob(mixture.as_velocity(LinearPath()), x1, y=y, steps=100)
    single = torch.distributions.Normal(torch.where(y == 0, -2.0, 2.0).double(), 0.5)
    torch.testing.assert_close(result.log_prob, single.log_prob(x1[:, 0]), rtol=0, atol=1e-3)
    source = GaussianMixture([[1.0], [3.0]], 0.3)
    shifted = cnf.log_prob(lambda x, t: torch.full_like(x, 2.0), x1, source=source, steps=2)
    torch.testing.assert_close(shifted.log_prob, source.log_prob(x1 - 2.0))


def test_dropout_is_off_and_its_mode_comes_back() -> None:
    velocity = nn.Sequential(nn.Dropout(0.5)).train()
    x1 = normal(5, 2)

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = velocity

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(x)

    dropping = Dropping().train()
    torch.testing.assert_close(
        cnf.log_prob(dropping, x1).log_prob, cnf.log_prob(lambda x, t: x, x1).log_prob, rtol=0, atol=0
    )
    assert velocity.training and dropping.training


# Discrete data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_values_stay_in_their_bins_and_fill_them(levels: int) -> None:
    k = torch.arange(levels).repeat(200, 1).double()
    x1 = 2 * k / (levels - 1) - 1
    x = cnf.dequantize(x1, levels, torch.Generator().manual_seed(0))
    assert torch.equal(torch.floor((x + 1) * levels / 2), k)
    assert float(x.min()) < -1 + 0.1 / levels and float(x.max()) > 1 - 0.1 / levels


def test_a_uniform_density_has_log2_of_levels_bits() -> None:
    """The trap of the offset: 7 for data in [-1, 1], 8 for data in [0, 1]."""
    for levels in (2, 17, 256):
        bits = cnf.bits_per_dim(torch.tensor([-5 * math.log(2.0)], dtype=F64), dims=5, levels=levels)
        assert float(bits) == pytest.approx(math.log2(levels))


def test_more_dequantisations_close_the_gap_from_below() -> None:
    density = torch.distributions.Normal(torch.tensor(0.0, dtype=F64), 0.3)
    x1 = torch.tensor([[-1.0], [-1 / 3], [1 / 3], [1.0]], dtype=F64)
    edges = torch.linspace(-1, 1, 5, dtype=F64)
    exact = (density.cdf(edges[1:]) - density.cdf(edges[:-1])).log()

    def bound(draws: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        tries = [
            cnf.discrete_log_prob(lambda x: density.log_prob(x[:, 0]), x1, 4, draws, generator) for _ in range(400)
        ]
        return torch.stack(tries).mean(0)

    one, sixteen = exact - bound(1), exact - bound(16)
    assert bool((one > 0.02).all()) and bool((sixteen < 0.3 * one).all())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: cnf.log_prob(lambda x, t: x, normal(4)), ValueError, "x1: expected at least 2 dimensions"),
        (lambda: cnf.log_prob(lambda x, t: x, normal(4, 2) * math.nan), ValueError, "finite"),
        (lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), trace="approximate"), ValueError, "trace: expected one of"),
        (
            lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), probes=3),
            ValueError,
            "probes: the exact trace takes none",
        ),
        (lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), method="rk5"), ValueError, "method"),
        (lambda: cnf.log_prob(lambda x, t: x[:, :1], normal(4, 2)), ValueError, r"velocity\(x, t, y\)"),
        (lambda: cnf.log_prob(lambda x, t, y: x, normal(4, 2), y=torch.zeros(3, dtype=torch.long)), ValueError, "y:"),
        (lambda: cnf.dequantize(normal(4, 2)), ValueError, "x1: expected 256 equidistant values"),
        (lambda: cnf.bits_per_dim(torch.zeros(1), dims=0), ValueError, "dims"),
    ],
)
def test_law_11_bad_input_is_named(call: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()  # type: ignore[operator]
