"""Law 7: densities by the trace identity, against closed forms; and the traps of likelihoods."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import normal, randomized, seeded
from torch import Tensor, nn

from flowbook import cnf, data, models, recipes, solvers
from flowbook._core import keyed
from flowbook.analytic import GaussianMixture
from flowbook.cnf import Dequantized
from flowbook.divergence import Mode, Trace, divergence, rademacher
from flowbook.flow_matching import FlowMatching
from flowbook.guidance import Guided
from flowbook.paths import LinearPath, VPPath
from flowbook.training import TrainConfig, fit

F64 = torch.float64


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


@pytest.mark.parametrize("trace", [{"trace": "exact"}, {"trace": "hutchinson", "probes": 2}])
@pytest.mark.parametrize("solver", [{"method": "rk4", "steps": 3}, {"method": "dopri5"}])
@pytest.mark.parametrize("shift", [0.0, 0.75])
def test_law_1_a_constant_velocity_moves_the_density_and_zero_leaves_it(
    shift: float, solver: dict[str, Any], trace: dict[str, Any]
) -> None:
    x1 = normal(4, 1, 2, 2)
    result = cnf.log_prob(lambda x, t: torch.full_like(x, shift), x1, **trace, **solver)
    torch.testing.assert_close(result.latent, x1 - shift, rtol=0, atol=1e-12)
    exact = torch.distributions.Normal(shift, 1.0).log_prob(x1).flatten(1).sum(1)
    torch.testing.assert_close(result.log_prob, exact, rtol=0, atol=1e-12)
    assert not bool(result.std_err.any())


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


@pytest.mark.parametrize("nodes", [None, 8])
def test_law_7_a_value_does_not_depend_on_the_rest_of_the_batch(nodes: int | None) -> None:
    torch.manual_seed(0)
    velocity, x1 = models.MLP(2, hidden=16).double(), normal(40, 2)
    together = cnf.log_prob(velocity, x1, steps=10, nodes=nodes).log_prob
    alone = torch.cat([cnf.log_prob(velocity, x1[n : n + 1], steps=10, nodes=nodes).log_prob for n in range(5)])
    torch.testing.assert_close(together[:5], alone, rtol=0, atol=1e-12)


# The divergence on its own nodes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_n_nodes_integrate_a_divergence_of_degree_2n_minus_1_in_time_exactly(nodes: int) -> None:
    """v = p(t) x with p = 1 + 2 t + ... + 2n t^(2n - 1): the divergence is D p(t), and p integrates to 2n."""
    x1 = normal(6, 3)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * sum((power + 1) * t**power for power in range(2 * nodes)) * x

    result = cnf.log_prob(velocity, x1, nodes=nodes, steps=400)
    spread = math.exp(0.1 * 2 * nodes)
    exact = torch.distributions.Normal(torch.zeros(3, dtype=F64), spread).log_prob(x1).sum(1)
    torch.testing.assert_close(result.log_prob, exact, rtol=0, atol=1e-9)
    fewer = cnf.log_prob(lambda x, t: velocity(x, t) + 0.1 * t ** (2 * nodes) * x, x1, nodes=nodes, steps=400)
    spread *= math.exp(0.1 / (2 * nodes + 1))
    wrong = torch.distributions.Normal(torch.zeros(3, dtype=F64), spread).log_prob(x1).sum(1) - fewer.log_prob
    assert float(wrong.abs().min()) > 1e-9  # one degree more is not


@pytest.mark.parametrize("path", [LinearPath(), VPPath()])
@pytest.mark.parametrize("solver", [{"method": "rk4", "steps": 50}, {"method": "dopri5", "rtol": 1e-7, "atol": 1e-7}])
def test_law_7_log_prob_of_a_mixture_on_20_nodes(path: object, solver: dict[str, Any]) -> None:
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.7, 0.5], [0.3, 0.7])
    x1 = mixture.sample(300, torch.Generator().manual_seed(0)).double()
    result = cnf.log_prob(mixture.as_velocity(path), x1, nodes=20, **solver)  # type: ignore[arg-type]
    assert float((result.log_prob - mixture.log_prob(x1)).square().mean().sqrt()) < 0.01


def test_nodes_take_the_divergence_only_where_they_are() -> None:
    velocity, x1 = Linear(3), normal(4, 3)
    result = cnf.log_prob(velocity, x1, nodes=7, steps=5)
    assert (result.nfe, result.nfe_trace, velocity.calls) == (27, 7, 27)
    together = cnf.log_prob(velocity, x1, steps=5)
    assert (together.nfe, together.nfe_trace) == (20, 20)
    guided = cnf.log_prob(Guided(velocity, 2.0, null=1), x1, y=torch.zeros(4, dtype=torch.long), nodes=7, steps=5)
    assert (guided.nfe, guided.nfe_trace) == (54, 14)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 1, 2, 2)])
def test_nodes_and_the_joint_solve_agree_in_value_spread_and_gradient(trace: Trace, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = models.MLP(4, hidden=16).double()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return network(x.flatten(1), t).reshape(x.shape)

    x1 = normal(*shape)
    told: dict[str, Any] = {"trace": trace, "probes": 3} if trace == "hutchinson" else {}
    options: list[dict[str, Any]] = [{}, {"nodes": 30}]
    results = [cnf.log_prob(velocity, x1, steps=60, generator=seeded(), **told, **one) for one in options]
    torch.testing.assert_close(results[1].log_prob, results[0].log_prob, rtol=0, atol=1e-7)
    torch.testing.assert_close(results[1].std_err, results[0].std_err, rtol=0, atol=1e-7)
    assert torch.equal(results[1].latent, results[0].latent) and not results[1].log_prob.requires_grad
    gradients = []
    for one in options:
        loss = cnf.nll_loss(
            velocity, x1, kinetic=0.1, jacobian=0.2, steps=60, generator=seeded(), **told, **one
        )  # fmt: skip
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


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


# Traps ----------------------------------------------------------------------------------------------------------------
# Each is the mistake beside the right way, with the size of the damage.

MIXTURE = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.7, 0.5], [0.3, 0.7])


def mixture_errors(count: int = 2000, **options: Any) -> Tensor:
    x1 = MIXTURE.sample(count, seeded()).double()
    return cnf.log_prob(MIXTURE.as_velocity(LinearPath()), x1, **options).log_prob - MIXTURE.log_prob(x1)


def test_the_trap_of_one_probe_reported_as_if_exact() -> None:
    """One probe, a random linear field in 12 dimensions (entries of variance 1/12): the error has std 3.5."""
    spreads = []
    for seed in range(20):
        matrix = normal(12, 12, seed=seed) / math.sqrt(12)
        symmetric = 0.5 * (matrix + matrix.T)
        formula = math.sqrt(2 * float((symmetric - torch.diag(symmetric.diag())).square().sum()))
        x1 = normal(2000, 12)
        # The divergence is constant along a linear flow: one step has no error in it, and all the error is the probe's.
        result = cnf.log_prob(lambda x, t, m=matrix: x @ m.T, x1, trace="hutchinson", steps=1, generator=seeded(seed))
        exact = cnf.log_prob(lambda x, t, m=matrix: x @ m.T, x1, steps=1)
        error = result.log_prob - exact.log_prob
        assert float(error.std()) == pytest.approx(formula, rel=0.1)
        assert bool(result.std_err.isnan().all())  # one probe does not know its own error, and says so
        spreads.append(float(error.std()))
    assert min(spreads) < 3.55 < max(spreads) and 3.0 < sum(spreads) / 20 < 3.7


def test_the_trap_of_probes_summed_instead_of_averaged() -> None:
    velocity, x1, probes = Linear(3), normal(5, 3), 4
    joint = cnf.log_prob(velocity, x1, trace="hutchinson", probes=probes, steps=4, generator=seeded())
    noise = rademacher(probes, like=x1, generator=seeded())
    per_probe = torch.einsum("pbi,ij,pbj->pb", noise, velocity.matrix.detach(), noise)  # constant in time
    prior = -0.5 * (joint.latent.square().sum(1) + 3 * math.log(2 * math.pi))
    torch.testing.assert_close(joint.log_prob, prior - per_probe.mean(0), rtol=0, atol=1e-10)
    summed = prior - per_probe.sum(0)
    torch.testing.assert_close(summed - prior, probes * (joint.log_prob - prior), rtol=1e-8, atol=1e-8)


def evaluations(velocity: Any, x1: Tensor, redraw: bool, tolerance: float, limit: int = 3000) -> int | None:
    """Evaluations of an adaptive solve with one probe, kept or drawn anew each time; None beyond the limit."""
    generator, count = seeded(), 0
    kept = rademacher(1, like=x1, generator=generator)

    def joint(state: Tensor, t: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count > limit:
            raise OverflowError
        noise = rademacher(1, like=x1, generator=generator) if redraw else kept
        v, div = divergence(velocity, state[:, :-1], t, method="hutchinson", noise=noise)
        return torch.cat([v, div[:, None]], dim=1)

    start = torch.cat([x1, x1.new_zeros(len(x1), 1)], dim=1)
    try:
        return solvers.solve(joint, start, 1.0, 0.0, rtol=tolerance, atol=tolerance).nfe
    except (OverflowError, RuntimeError):
        return None


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_the_trap_of_probes_redrawn_inside_an_adaptive_solve(scale: float) -> None:
    matrix, x1 = scale * normal(12, 12, seed=3), normal(8, 12)
    kept, redrawn = (evaluations(lambda x, t: x @ matrix.T, x1, redraw, 1e-3) for redraw in (False, True))
    assert kept is not None and 14 <= kept <= 26
    assert redrawn is not None and 446 <= redrawn <= 1208 and redrawn > 20 * kept
    assert evaluations(lambda x, t: x @ matrix.T, x1, True, 1e-5) is None


def test_the_trap_of_one_euler_step() -> None:
    assert float(mixture_errors(method="euler", steps=1).abs().mean()) == pytest.approx(1.61, rel=0.2)
    assert float(mixture_errors(method="rk4", steps=50).abs().mean()) < 3e-5


def test_the_trap_of_the_sign_when_integrating_backward() -> None:
    linear, x1 = Linear(3), normal(4, 3)
    result = cnf.log_prob(linear, x1)
    trace = float(linear.matrix.detach().trace())
    prior = -0.5 * (result.latent.square().sum(1) + 3 * math.log(2 * math.pi))
    wrong = prior + trace  # the integral over [0, 1] with the sign of one from 1 to 0
    torch.testing.assert_close(wrong - result.log_prob, torch.full((4,), 2 * trace, dtype=F64), rtol=1e-9, atol=1e-9)


def test_the_trap_of_a_tolerance_that_only_the_mean_meets() -> None:
    loose = mixture_errors(8000, method="dopri5", rtol=1e-3, atol=1e-3)
    tight = mixture_errors(8000, method="dopri5", rtol=1e-5, atol=1e-5)
    assert float(loose.mean()) == pytest.approx(-0.0015, abs=3e-4)
    assert float(loose.abs().max()) > 200 * abs(float(loose.mean()))  # single points are off by half a nat and more
    assert float(tight.abs().max()) < 0.02


def test_the_trap_of_steps_shared_by_a_batch() -> None:
    velocity, x1 = MIXTURE.as_velocity(LinearPath()), MIXTURE.sample(512, seeded()).double()

    def apart(**options: Any) -> float:
        alone, among = (cnf.log_prob(velocity, x, **options).log_prob[:8] for x in (x1[:8], x1))
        return float((alone - among).abs().max())

    assert apart(method="dopri5", rtol=1e-2, atol=1e-2) > 0.05
    assert apart(method="rk4", steps=20) < 1e-12


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Linear(3, 128), nn.SiLU(), nn.Dropout(0.1), nn.Linear(128, 128), nn.SiLU(), nn.Dropout(0.1))
        self.layers = nn.Sequential(*layers, nn.Linear(128, 2)).double()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x, t.expand(len(x), 1)], dim=1))


def test_the_trap_of_dropout_left_on_in_an_adaptive_solve() -> None:
    network, x1 = Dropping().train(), normal(64, 2)
    options: dict[str, Any] = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
    right = cnf.log_prob(network, x1, **options)
    torch.manual_seed(1)
    # A function does not hide its module from eval mode, but dropout as a function cannot be switched off.
    behind = cnf.log_prob(lambda x, t: network(x, t), x1, **options)
    wrong = cnf.log_prob(lambda x, t: nn.functional.dropout(network(x, t), 0.1), x1, **options)
    assert right.nfe == behind.nfe <= 26 and wrong.nfe > 10 * right.nfe and network.training


class Contracting(nn.Module):
    """v = k (x + a tanh x): solved from 1 to 0 it draws everything together, and backward in time tears it apart."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([rate, 0.5], dtype=F64))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.weights[0] * (x + self.weights[1] * torch.tanh(x))


def gradient(network: nn.Module, x1: Tensor, **options: Any) -> Tensor:
    network.zero_grad()
    cnf.nll_loss(network, x1, **options).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_trap_of_the_adjoint_on_a_contracting_field() -> None:
    network, x1, loose = Contracting(20.0), normal(32, 2), {"rtol": 1e-3, "atol": 1e-3}
    truth = gradient(network, x1, steps=300)
    assert distance(gradient(network, x1, gradient="adjoint", **loose), truth) > 0.5
    assert distance(gradient(network, x1, method="dopri5", **loose), truth) < 0.01


def test_the_trap_of_a_diagonal_that_is_a_column() -> None:
    """Every D-th number of a flattened D x D matrix is its first column; the diagonal is every (D + 1)-th."""
    for matrix in (torch.diag(torch.tensor([1.0, 3.0, 9.0], dtype=F64)), normal(3, 3)):
        x1 = normal(2, 3)
        flat = torch.autograd.functional.jacobian(lambda x, m=matrix: m @ x, x1[0]).flatten()
        trace = divergence(lambda x, t, m=matrix: x @ m.T, x1, 0.5)[1][0]
        torch.testing.assert_close(flat[:: 3 + 1].sum(), trace)
        torch.testing.assert_close(flat[::3].sum(), matrix[:, 0].sum())
        assert abs(float(flat[::3].sum() - trace)) > 0.5


def test_the_trap_of_discrete_data_scored_without_dequantization() -> None:
    """A density may grow without bound on gray levels: fewer bits than none, and no probability."""
    x1 = torch.tensor([[-1.0], [1.0]], dtype=F64)
    narrow = GaussianMixture([[-1.0], [1.0]], 1e-3)
    assert float(cnf.bits_per_dim(narrow.log_prob(x1), dims=1, levels=2).max()) < 0
    honest = cnf.discrete_log_prob(narrow.log_prob, x1, levels=2, draws=200, generator=seeded())
    assert bool((honest < 0).all())


# Training -------------------------------------------------------------------------------------------------------------


def smooth_field() -> models.MLP:
    return randomized(models.MLP(2, hidden=16).double(), scale=0.3)  # type: ignore[return-value]


TERMS = {
    "likelihood": {},
    "RNODE": {"kinetic": 0.3, "jacobian": 0.2},
    "RNODE, one probe": {"kinetic": 0.3, "jacobian": 0.2, "trace": "hutchinson"},
}  # fmt: skip
terms = pytest.mark.parametrize("options", TERMS.values(), ids=TERMS)


def drawn(options: dict[str, Any]) -> dict[str, Any]:
    """The same probes in every call."""
    return {**options, "generator": seeded()} if "trace" in options else options


class Saved:
    """A tensor that a graph keeps; gone when the graph is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@terms
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_recomputation_changes_no_gradient_and_needs_less_memory(options: dict[str, Any], mode: Mode) -> None:
    network, x1 = smooth_field(), normal(20, 2)
    kept, gradients = {}, {}
    for way in ("backprop", "recompute"):
        stored: weakref.WeakSet[Saved] = weakref.WeakSet()

        def pack(tensor: Tensor, stored: weakref.WeakSet[Saved] = stored) -> Saved:
            saved = Saved(tensor)
            stored.add(saved)
            return saved

        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            loss = cnf.nll_loss(network, x1, steps=10, gradient=way, mode=mode, **drawn(options))
        kept[way] = sum(saved.tensor.numel() for saved in stored)  # what waits for the backward pass
        loss.backward()
        gradients[way] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients["recompute"], gradients["backprop"], rtol=1e-12, atol=1e-13)
    assert kept["recompute"] < 0.1 * kept["backprop"]


@terms
def test_the_adjoint_has_the_gradient_of_backpropagation_on_a_smooth_field(options: dict[str, Any]) -> None:
    network, x1 = smooth_field(), normal(20, 2)
    truth = gradient(network, x1, steps=40, **drawn(options))
    for tolerance in (1e-5, 1e-6):
        adjoint = gradient(network, x1, gradient="adjoint", rtol=tolerance, atol=tolerance, **drawn(options))
        assert distance(adjoint, truth) < 1e-3


def test_the_adjoint_is_refused_where_processes_would_wait_for_each_other(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        shared = nn.parallel.DistributedDataParallel(smooth_field())
        with pytest.raises(ValueError, match="gradient: 'adjoint' evaluates the velocity in the backward pass"):
            cnf.nll_loss(shared, normal(4, 2), gradient="adjoint")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", ["recompute", "adjoint"])
def test_what_runs_in_the_backward_pass_runs_in_eval_mode_too(way: str) -> None:
    network, x1 = Dropping().train(), normal(20, 2)
    options: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6} if way == "adjoint" else {"steps": 10}
    assert distance(gradient(network, x1, gradient=way, **options), gradient(network, x1, steps=10)) < 1e-3
    assert network.training


def penalty(name: str, velocity: Any, x1: Tensor, **options: Any) -> float:
    """The regularizer alone: what weight 1 adds to the loss."""
    with_it, without = (cnf.nll_loss(velocity, x1, **{name: weight}, **options) for weight in (1.0, 0.0))  # type: ignore[arg-type]
    return float((with_it - without).detach())


def test_the_kinetic_energy_of_a_constant_velocity_is_its_square() -> None:
    shift = torch.tensor([3.0, -4.0], dtype=F64)
    assert penalty("kinetic", lambda x, t: shift.expand_as(x), normal(5, 2), steps=3) == pytest.approx(25 / 2)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_the_jacobian_penalty_of_a_linear_field_is_frobenius_s(trace: Trace) -> None:
    velocity, x1 = Linear(3), normal(4000, 3)
    draws: dict[str, Any] = {"trace": trace, "generator": seeded()} if trace == "hutchinson" else {}
    with_it = cnf.nll_loss(velocity, x1, jacobian=1.0, steps=2, **draws)
    draws = {"trace": trace, "generator": seeded()} if trace == "hutchinson" else {}
    value = float((with_it - cnf.nll_loss(velocity, x1, steps=2, **draws)).detach())
    exact = float(velocity.matrix.detach().square().sum()) / 3
    assert value == pytest.approx(exact, rel=1e-10 if trace == "exact" else 0.05)


def test_the_penalties_are_integrals_along_the_flow() -> None:
    """For v = x the state at time t is x1 exp(t - 1), so the kinetic energy is |x1|^2 (1 - exp(-2)) / 2."""
    x1 = normal(50, 2)
    expected = float(x1.square().sum(1).mean()) * (1 - math.exp(-2)) / 2 / 2
    assert penalty("kinetic", lambda x, t: x, x1, steps=20) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("trace", "dim"), [("exact", 2), ("exact", 10), ("hutchinson", 10)])
def test_regularizing_calls_the_network_no_more_often(trace: Trace, dim: int) -> None:
    velocity, x1 = Linear(dim), normal(5, dim)
    cnf.nll_loss(velocity, x1, trace=trace, steps=6)
    assert velocity.calls == 24
    cnf.nll_loss(velocity, x1, trace=trace, steps=6, kinetic=0.1, jacobian=0.1)
    assert velocity.calls == 48


# Gradients, labels, sources -------------------------------------------------------------------------------------------


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


# Law 10 ---------------------------------------------------------------------------------------------------------------


def small_network() -> models.MLP:
    torch.manual_seed(0)
    return models.MLP(2, hidden=16)


def image_network() -> models.UNet:
    torch.manual_seed(0)
    return models.UNet(1, size=8, width=8, multipliers=(1,), blocks=1, attention=(), num_classes=10)


LOSSES = {
    "exact": (small_network, cnf.MaximumLikelihood(steps=3), data.pinwheel(), 1),
    "regularized, by one probe": (
        small_network, cnf.MaximumLikelihood("hutchinson", steps=3, kinetic=0.1, jacobian=0.1), data.moons(), 2,
    ),
    "recomputed": (small_network, cnf.MaximumLikelihood(steps=3, gradient="recompute"), data.moons(), 1),
    "adjoint": (small_network, cnf.MaximumLikelihood(gradient="adjoint", rtol=1e-3, atol=1e-3), data.moons(), 1),
    "gray levels": (
        image_network, cnf.MaximumLikelihood("hutchinson", method="midpoint", steps=1, levels=17),
        tuple(part[:64] for part in data.digits("test")), 1,
    ),
    "dequantized data, flow matching": (
        image_network, FlowMatching(), Dequantized(data.digits("test"), levels=17), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "loss", "source", "parts"), LOSSES.values(), ids=LOSSES)
def test_law_10_20_steps_are_10_and_a_resume_and_10_bit_for_bit(
    make: Any, loss: Any, source: Any, parts: int, tmp_path: Path
) -> None:
    config = TrainConfig(steps=20, batch_size=16, accumulate=parts, ema_half_life=100.0)
    whole = fit(make(), loss, source, config, out=tmp_path / "whole")
    first = fit(make(), loss, source, config, out=tmp_path / "cut", stop_after=10)
    torch.manual_seed(123)
    second = fit(make(), loss, source, config, out=tmp_path / "cut")
    assert torch.equal(torch.cat([first.losses, second.losses]), whole.losses)
    for left, right in ((whole.live, second.live), (whole.velocity, second.velocity)):
        assert all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


def test_probes_and_dequantization_belong_to_the_sample_whatever_its_part_of_the_batch() -> None:
    x1 = data.digits("test")[0][:8]
    with keyed.keyed(seed=0, step=3, first=0):
        whole = cnf.dequantize(x1, 17), rademacher(2, like=x1)
    with keyed.keyed(seed=0, step=3, first=4):
        half = cnf.dequantize(x1[4:], 17), rademacher(2, like=x1[4:])
    assert torch.equal(whole[0][4:], half[0]) and torch.equal(whole[1][:, 4:], half[1])


def test_the_loss_object_is_the_loss_with_its_options() -> None:
    velocity, x1 = Linear(3), normal(6, 3)
    loss = cnf.MaximumLikelihood("hutchinson", 2, steps=4, kinetic=0.1, jacobian=0.2, mode="forward")
    for batch in (x1, (x1, None), (normal(6, 3, seed=9), x1, None)):  # x0 is not used
        torch.manual_seed(0)
        value = loss(velocity, batch)
        torch.manual_seed(0)
        options: dict[str, Any] = {
            "trace": "hutchinson",
            "probes": 2,
            "kinetic": 0.1,
            "jacobian": 0.2,
            "mode": "forward",
        }
        torch.testing.assert_close(value, cnf.nll_loss(velocity, x1, steps=4, **options), rtol=1e-12, atol=1e-12)


def test_training_by_likelihood_approaches_the_entropy() -> None:
    """Cross entropy minus entropy is a Kullback-Leibler divergence: never below 0, and training lowers it."""
    mixture = GaussianMixture([[-1.5, 0.0], [1.5, 0.0]], 0.5)
    held_out = mixture.sample(2000, seeded(5))
    entropy = -float(mixture.log_prob(held_out).mean())

    def excess(network: nn.Module) -> float:
        return -float(cnf.log_prob(network, held_out, steps=20).log_prob.mean()) - entropy

    before = excess(small_network())
    config = TrainConfig(steps=150, batch_size=128, learning_rate=1e-2, ema_half_life=None)
    after = excess(fit(small_network(), cnf.MaximumLikelihood(steps=4), mixture, config).velocity)
    assert -0.02 < after < 0.3 * before


def test_a_recipe_can_ask_for_it(tmp_path: Path) -> None:
    file = tmp_path / "likelihood.yaml"
    file.write_text(
        "model: {name: MLP, dim: 2, hidden: 8}\ndata: {name: pinwheel}\n"
        "loss: {name: maximum_likelihood, steps: 2, kinetic: 0.01}\ntrain: {steps: 2, batch_size: 8}\n"
    )
    assert recipes.run(recipes.read(file), None).step == 2


# Discrete data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantized_values_stay_in_their_bins_and_fill_them(levels: int) -> None:
    k = torch.arange(levels).repeat(200, 1).double()
    x1 = 2 * k / (levels - 1) - 1
    x = cnf.dequantize(x1, levels, torch.Generator().manual_seed(0))
    assert torch.equal(torch.floor((x + 1) * levels / 2), k)
    assert float(x.min()) < -1 + 0.1 / levels and float(x.max()) > 1 - 0.1 / levels


def test_dequantized_data_are_the_data_with_their_labels_and_fresh_noise_in_every_draw() -> None:
    images, labels = data.digits("test")
    source = Dequantized((images, labels), levels=17)
    x1, y = source.sample(500, seeded())
    levels = torch.floor((x1 + 1) * 17 / 2).clamp(max=16) / 8 - 1  # a value in (-1, 1) back to its gray level
    matches = (levels[:, None] == images[None]).flatten(2).all(2)
    assert bool(matches.any(1).all())
    assert torch.equal(labels[matches.int().argmax(1)], y)
    again = source.sample(500, seeded(1))[0]
    assert not torch.equal(x1, again) and torch.equal(source.sample(500, seeded())[0], x1)
    assert isinstance(Dequantized(images, levels=17).sample(3), Tensor)


def test_a_uniform_density_has_log2_of_levels_bits() -> None:
    """The trap of the offset: 7 for data in [-1, 1], 8 for data in [0, 1]."""
    for levels in (2, 17, 256):
        bits = cnf.bits_per_dim(torch.tensor([-5 * math.log(2.0)], dtype=F64), dims=5, levels=levels)
        assert float(bits) == pytest.approx(math.log2(levels))


def test_more_dequantizations_close_the_gap_from_below() -> None:
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
        (lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), trace="approximate"), ValueError, "trace: expected one of"),  # type: ignore[arg-type]
        (
            lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), probes=3),
            ValueError,
            "probes: expected 1 with trace='exact'",
        ),
        (lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), method="rk5"), ValueError, "method"),  # type: ignore[arg-type]
        (lambda: cnf.log_prob(lambda x, t: x[:, :1], normal(4, 2)), ValueError, r"velocity\(x, t, y\)"),
        (lambda: cnf.log_prob(lambda x, t, y: x, normal(4, 2), y=torch.zeros(3, dtype=torch.long)), ValueError, "y:"),
        (
            lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), mode="back"),  # type: ignore[arg-type]
            ValueError,
            "mode: expected one of 'reverse'",
        ),
        (lambda: cnf.nll_loss(lambda x, t: x, normal(4, 2), kinetic=-1.0), ValueError, "kinetic: expected a number"),
        (lambda: cnf.nll_loss(lambda x, t: x, normal(4, 2), jacobian="1"), TypeError, "jacobian: expected a number"),  # type: ignore[arg-type]
        (
            lambda: cnf.nll_loss(Linear(2), normal(4, 2), gradient="back"),  # type: ignore[arg-type]
            ValueError,
            "gradient: .*'adjoint'; got 'back'",
        ),
        (
            lambda: cnf.nll_loss(lambda x, t: x, normal(4, 2), gradient="recompute"),
            TypeError,
            "velocity: expected a torch.nn.Module with gradient='recompute'",
        ),
        (
            lambda: cnf.nll_loss(Linear(2), normal(4, 2), gradient="adjoint", method="rk4"),
            ValueError,
            "method: expected an adaptive one",
        ),
        (
            lambda: cnf.nll_loss(Linear(2), normal(4, 2), gradient="adjoint", steps=5),
            ValueError,
            "method: expected an adaptive one",
        ),
        (lambda: cnf.nll_loss(Linear(2), normal(4, 2) * math.nan, gradient="adjoint"), ValueError, "x1: .*finite"),
        (lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), nodes=0), ValueError, "nodes"),
        (lambda: cnf.log_prob(lambda x, t: x, normal(4, 2), nodes=2.0), TypeError, "nodes"),  # type: ignore[arg-type]
        (lambda: cnf.nll_loss(Linear(2), normal(4, 2), gradient="recompute", nodes=8), ValueError, "nodes: .*backprop"),
        (lambda: cnf.MaximumLikelihood(gradient="adjoint", nodes=8), ValueError, "nodes: .*backprop"),
        (lambda: cnf.MaximumLikelihood("approximate"), ValueError, "trace: expected one of"),  # type: ignore[arg-type]
        (lambda: cnf.MaximumLikelihood(kinetic=math.nan), ValueError, "kinetic"),
        (lambda: cnf.MaximumLikelihood(levels=1), ValueError, "levels"),
        (lambda: cnf.MaximumLikelihood(steps=2, method="rk5"), ValueError, "method"),  # type: ignore[arg-type]
        (lambda: cnf.MaximumLikelihood(steps=0), ValueError, "steps"),
        (lambda: cnf.MaximumLikelihood(gradient="adjoint", method="rk4"), ValueError, "method: expected an adaptive"),
        (lambda: Dequantized(normal(4, 2), 17), ValueError, "x1: expected 17 equidistant values"),
        (lambda: Dequantized((torch.ones(4, 2), torch.zeros(3, dtype=torch.long)), 2), ValueError, "y: .*4"),
        (lambda: cnf.dequantize(torch.ones(4, 2), 2, generator=0), TypeError, "generator"),  # type: ignore[arg-type]
        (lambda: cnf.dequantize(normal(4, 2)), ValueError, "x1: expected 256 equidistant values"),
        (lambda: cnf.bits_per_dim(torch.zeros(1), dims=0), ValueError, "dims"),
    ],
)
def test_law_11_bad_input_is_named(call: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()  # type: ignore[operator]


def test_a_density_of_another_shape_is_refused() -> None:
    normal_of_one = torch.distributions.Normal(0.0, 1.0)
    for x in (torch.zeros(3, 1), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match=r"source: expected log_prob\(x\) of shape .*Independent"):
            cnf.log_prob(lambda x, t: 0 * x, x, source=normal_of_one, steps=2)
        with pytest.raises(ValueError, match="density: expected"):
            cnf.discrete_log_prob(normal_of_one.log_prob, x, levels=3)
    of_all = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    right = cnf.log_prob(lambda x, t: 0 * x, torch.ones(3, 2), source=of_all, steps=2).log_prob
    torch.testing.assert_close(right, cnf.log_prob(lambda x, t: 0 * x, torch.ones(3, 2), steps=2).log_prob)
