"""Every solution in the book is run, and ends in a line of praise from its check."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch import Tensor

from flowbook import inversion
from flowbook.book import checks
from flowbook.cnf import log_prob
from flowbook.diffusion import NoiseSchedule
from flowbook.divergence import divergence
from flowbook.metrics import straightness
from flowbook.solvers import solve

BOOK = Path(__file__).resolve().parents[2] / "book"
DETAILS = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n\n</details>", re.S)
CODE = re.compile(r"```python\n(.*?)```", re.S)


def solutions() -> list[tuple[str, str]]:
    """(exercise, code) of every folded solution, in the order of the book."""
    found = []
    for path in sorted(BOOK.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "markdown" or "<details>" not in cell.source:
                continue
            numbers = re.findall(r"^\*\*(\d\.\d+) \(", cell.source, re.M)
            blocks = [CODE.findall(text) for text in DETAILS.findall(cell.source)]
            assert len(numbers) == len(blocks), f"{path.name}: each of {numbers} needs one folded solution"
            for number, code in zip(numbers, blocks, strict=True):
                assert len(code) == 1, f"{path.name}: solution {number} needs one block of code"
                found.append((number, code[0]))
    return found


@pytest.mark.parametrize("chapter", sorted({number[0] for number, _ in solutions()}))
def test_a_chapter_has_at_least_five_exercises(chapter: str) -> None:
    assert sum(number.startswith(f"{chapter}.") for number, _ in solutions()) >= 5


def trained_for_minutes(number: str, code: str) -> Any:
    """Exercise 1.6 trains two networks: `make test-faults` has the time."""
    return pytest.param(number, code, id=number, marks=[pytest.mark.faults] if number == "1.6" else [])


@pytest.mark.parametrize(("number", "code"), [trained_for_minutes(*solution) for solution in solutions()])
def test_the_solution_passes_its_check(number: str, code: str) -> None:
    torch.manual_seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"solution {number}", "exec"), {})
    *measured, said = printed.getvalue().splitlines()
    assert said.startswith("right: ") and "checks." in code
    if number == "1.6":  # its text quotes what it measures
        assert {line.split()[0]: float(line.split()[1]) for line in measured} == pytest.approx(
            {"noise": 2.5, "v": 2.2}, rel=0.1
        )


def straightness_from_the_start(velocity: Any, x0: Tensor, steps: int) -> Any:
    still = [velocity(x0, n / steps) for n in range(steps)]
    way = sum(still) / steps
    return float(sum((way - v).square().sum(1).mean() for v in still) / steps)


def unit(a: Tensor) -> Any:
    return torch.nn.functional.normalize(a, dim=1)


def wrong_target(x0: Tensor, x1: Tensor, t: Any, sigma_min: float) -> Any:
    xt = t[:, None] * x1 + (1 - (1 - sigma_min) * t[:, None]) * x0
    return xt, -(x1 - (1 - sigma_min) * x0)


def euler(velocity: Any, x: Tensor, steps: int) -> Any:
    for n in range(steps):
        x = x + velocity(x, torch.tensor(n / steps)) / steps
    return x


def backward_heun(velocity: Any, x: Tensor, steps: int) -> Any:
    for n in range(steps):
        t = 1 - n / steps
        first = velocity(x, torch.tensor(t))
        x = x - (first + velocity(x - first / steps, torch.tensor(t - 1 / steps))) / (2 * steps)
    return x


def inverse_pairing(x0: Tensor, x1: Tensor, y: Any) -> Any:
    from scipy.optimize import linear_sum_assignment

    paired = x0.clone()
    for label in y.unique():
        members = (y == label).nonzero().squeeze(1)
        _, source = linear_sum_assignment(torch.cdist(x1[members], x0[members]).square().numpy())
        paired[members] = x0[members[torch.as_tensor(source).argsort()]]
    return paired


POWERS = torch.arange(3)
MOMENTS = 1 / (POWERS + 1.0).double()
BETAS = torch.linspace(1e-4, 0.02, 50)


def posterior_with_index_minus_one(x: Tensor, x1: Tensor, i: Any, betas: Tensor) -> Any:
    abar = (1 - betas).cumprod(0)
    of_data = abar[i - 1].sqrt() * betas[i] / (1 - abar[i])
    of_state = (1 - betas[i]).sqrt() * (1 - abar[i - 1]) / (1 - abar[i])
    return of_data * x1 + of_state * x, (1 - abar[i - 1]) / (1 - abar[i]) * betas[i]


def ddim_that_ends_in(last: int) -> Any:
    def walk(model: Any, x: Tensor, abar: Tensor, visited: Any) -> Any:
        for i, after in zip(visited, [*visited[1:], last], strict=True):
            noise = model(x, i)
            data = (x - (1 - abar[i]).sqrt() * noise) / abar[i].sqrt()
            x = abar[after].sqrt() * data + (1 - abar[after]).sqrt() * noise
        return x

    return walk


def jacobians(velocity: Any, x: Tensor, t: Any) -> Any:
    return torch.stack([torch.autograd.functional.jacobian(lambda z: velocity(z[None], t)[0], point) for point in x])


def gradient_of_the_sum(velocity: Any, x: Tensor, t: Any) -> Any:
    x = x.requires_grad_()
    return torch.autograd.grad(velocity(x, t).sum(), x)[0].sum(1)


def midpoint_density(
    velocity: Any,
    x: Tensor,
    steps: int,
    sign: float = 1,
    step: float = 1.0,
    back: bool = True,
    prior_at_data: bool = False,
) -> Any:
    total: Any = 0.0
    h, start = 1 / steps, x
    for n in range(steps):
        t = torch.tensor(1 - n * h if back else n * h)
        way = -h if back else h
        middle = x + way / 2 * divergence(velocity, x, t)[0]
        v, div = divergence(velocity, middle, t + way / 2)
        x, total = x + way * v, total + step * h * div
    at = start if prior_at_data else x
    return -0.5 * (at.square().sum(1) + 3 * math.log(2 * math.pi)) - sign * total


def probe_products(velocity: Any, x: Tensor, t: Any, noise: Tensor) -> Any:
    return torch.einsum("pbi,bij->pbj", noise, jacobians(velocity, x, t))


def symmetric(matrix: torch.Tensor) -> torch.Tensor:
    return (matrix + matrix.T) / 2


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix - torch.diag(matrix.diagonal())


def midpoint_from(start: float, end: float, sign: float = 1.0) -> Any:
    return lambda v, x, n: solve(lambda x, t: sign * v(x, t), x, start, end, method="midpoint", steps=n).x


def unshrunk(velocity: Any, x: Tensor, s: Any) -> Any:
    t = 1 / (1 + s)
    return x + (1 - t[:, None]) * velocity(x, t)


def at_one_minus_s(velocity: Any, x: Tensor, s: Any) -> Any:
    state = (1 - s)[:, None] * x
    return state + s[:, None] * velocity(state, 1 - s)


def noise_behind(velocity: Any, x: Tensor, s: Any) -> Any:
    t = 1 / (1 + s)
    return t[:, None] * (x - velocity(t[:, None] * x, t))


def arc_without_length(a: Tensor, b: Tensor, w: Any) -> Any:
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    angle = torch.acos((a * b).sum(1, keepdim=True))
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)


MISTAKES = [
    (lambda: checks.amplitude_left(float((1 - BETAS).prod())), "fraction of the variance"),
    (lambda: checks.amplitude_left(0.99), "the last step alone"),
    (lambda: checks.posterior_step(posterior_with_index_minus_one), "not abar[-1]"),
    (
        lambda: checks.posterior_step(lambda x, x1, i, betas: (NoiseSchedule(betas).posterior(x, x1, i)[0], betas[i])),
        "right for data from N(0, I)",
    ),
    (lambda: checks.ddim(ddim_that_ends_in(0)), "the last jump ends at step 0"),
    (lambda: checks.ddim(ddim_that_ends_in(-1)), "the last jump goes to abar[-1]"),
    (lambda: checks.renoised_std(0.125), "this is the variance"),
    (lambda: checks.noise_floor(0.8), "the fraction of the noise that is explained"),
    (lambda: checks.noise_from_velocity(lambda v, x, abar: (1 - abar) ** 0.5 * x - abar**0.5 * v), "sign flipped"),
    (lambda: checks.density_at_the_origin(-1.5 * math.log(2 * math.pi) - 6), "sign: a flow that squeezes"),
    (lambda: checks.density_at_the_origin(-1.5 * math.log(2 * math.pi) + 2), "three axes"),
    (lambda: checks.density_at_the_origin(6.0), "the density of the noise is missing"),
    (lambda: checks.exact_divergence(lambda v, x, t: jacobians(v, x, t).flatten(1)[:, ::3].sum(1)), "stride D + 1"),
    (lambda: checks.exact_divergence(gradient_of_the_sum), "all entries of the Jacobian"),
    (lambda: checks.exact_divergence(lambda v, x, t: jacobians(v, x, t)[:, 0].sum(1)), "first rows"),
    (lambda: checks.exact_divergence(lambda v, x, t: divergence(v, x, t)[1].sum()), "expected shape"),
    (lambda: checks.midpoint_log_prob(lambda v, x, n: midpoint_density(v, x, n, sign=-1)), "minus the integral"),
    (lambda: checks.midpoint_log_prob(lambda v, x, n: midpoint_density(v, x, n, step=n)), "without their length"),
    (lambda: checks.midpoint_log_prob(lambda v, x, n: midpoint_density(v, x, n, prior_at_data=True)), "at the latent"),
    (lambda: checks.midpoint_log_prob(lambda v, x, n: midpoint_density(v, x, n, back=False)), "time runs from 0 to 1"),
    (
        lambda: checks.midpoint_log_prob(lambda v, x, n: midpoint_density(v, x, n, back=False, sign=-1)),
        "time runs from 0",
    ),
    (
        lambda: checks.midpoint_log_prob(lambda v, x, n: log_prob(v, x, method="heun", steps=n).log_prob),
        "Heun's method",
    ),
    (lambda: checks.midpoint_log_prob(lambda v, x, n: log_prob(v, x, method="euler", steps=n).log_prob), "Euler's"),
    (lambda: checks.hutchinson_estimate(lambda *a: (probe_products(*a) * a[3]).sum((0, 2))), "summed, not averaged"),
    (lambda: checks.hutchinson_estimate(lambda *a: probe_products(*a).sum(2).mean(0)), "not multiplied by eps again"),
    (lambda: checks.hutchinson_estimate(lambda *a: (probe_products(*a) * a[3])[0].sum(1)), "only the first probe"),
    (
        lambda: checks.hutchinson_variance(
            lambda a: (2 * off_diagonal(a).square().sum(), 2 * symmetric(a).square().sum())
        ),
        "Rademacher: the matrix must be made symmetric",
    ),
    (lambda: checks.hutchinson_variance(lambda a: (2 * symmetric(a).square().sum(),) * 2), "adds no variance"),
    (
        lambda: checks.hutchinson_variance(lambda a: (2 * off_diagonal(symmetric(a)).square().sum(),) * 2),
        "Gaussian: the variance of eps_i^2",
    ),
    (lambda: checks.bits(lambda p, d, k: -p / (d * math.log(2)) + math.log2(k)), "one bit too much"),
    (lambda: checks.bits(lambda p, d, k: -p / (d * math.log(2))), "the offset is missing"),
    (lambda: checks.bits(lambda p, d, k: -p / d + math.log(k / 2)), "these are nats"),
    (lambda: checks.target_with_sigma_min(wrong_target), "sign flipped"),
    (lambda: checks.target_with_sigma_min(lambda x0, x1, t, s: (t * x1 + (1 - (1 - s) * t) * x0, x1)), "last axis"),
    (lambda: checks.one_euler_step((1.5, 0.5)), "std: 0.5 is the standard deviation of the data"),
    (lambda: checks.one_euler_step((0.0, 0.0)), "mean"),
    (lambda: checks.heun_solver(euler), "Euler's method"),
    (lambda: checks.heun_solver(backward_heun), "time runs from 1 to 0"),
    (lambda: checks.loss_floor(1.25), "the unconditional variance"),
    (lambda: checks.loss_floor(0.0), "not 0 at the best velocity"),
    (lambda: checks.pairing(inverse_pairing), "inverse permutation"),
    (lambda: checks.pairing(lambda x0, x1, y: x0), "nothing was permuted"),
    (lambda: checks.pairing(lambda x0, x1, y: x0[[0] * len(x0)]), "are lost"),
    (
        lambda: checks.guidance(
            lambda v, x, t, y, s, null: v(x, t, y) + s * (v(x, t, y) - v(x, t, torch.full_like(y, null)))
        ),
        "the paper's w",
    ),
    (lambda: checks.adams_weights(lambda places: torch.tensor([23.0, -16.0, 5.0]).double() / 12), "of equal steps"),
    (lambda: checks.adams_weights(lambda s: torch.linalg.solve(s[:, None] ** POWERS, MOMENTS)), "transposed"),
    (
        lambda: checks.adams_weights(lambda s: torch.linalg.solve(s ** POWERS[:, None], (-1) ** POWERS * MOMENTS)),
        "over the previous step",
    ),
    (lambda: checks.rectified_cost(3.5), "independent pairs"),
    (lambda: checks.rectified_cost(2.25), "the squared distance of the means"),
    (lambda: checks.rectified_cost(1.0), "what is saved"),
    (lambda: checks.straightness_by_euler(lambda v, x, n: n * straightness(v, x, steps=n)), "summed over the steps"),
    (lambda: checks.straightness_by_euler(lambda v, x, n: straightness(v, x, steps=n) / 2), "over the dimensions"),
    (lambda: checks.straightness_by_euler(straightness_from_the_start), "at x0 throughout"),
    (lambda: checks.distillation_times(lambda k, batch: torch.randint(1, k + 1, (batch,)) / k), "no step starts there"),
    (lambda: checks.distillation_times(lambda k, batch: torch.randint(k, (batch,)) / (k - 1)), "k starts"),
    (lambda: checks.distillation_times(lambda k, batch: torch.rand(batch)), "a whole interval"),
    (lambda: checks.distillation_times(lambda k, batch: torch.randint(k, (batch, 1)) / k), "expected shape"),
    (lambda: checks.distillation_times(lambda k, batch: torch.rand(batch).square().mul(k).floor() / k), "equally"),
    (lambda: checks.one_step_encoder(lambda v, x: x + v(x, 1.0)), "sign flipped"),
    (lambda: checks.one_step_encoder(lambda v, x: x - v(x, 0.0)), "evaluated at t = 0; data lie"),
    (lambda: checks.one_step_encoder(lambda v, x: x - (v(x, 1.0) + v(x, 0.5)) / 2), "evaluations: expected one"),
    (lambda: checks.half_the_sum(784), "the half is missing"),
    (lambda: checks.half_the_sum(1 / 392), "upside down"),
    (lambda: checks.break_even(1_280_000 / 47), "the training has a cost"),
    (lambda: checks.break_even(1_536_000 / 47), "the pairs have a cost"),
    (lambda: checks.break_even(2_176_000 / 47), "guidance calls the network twice"),
    (lambda: checks.break_even(1_792_000 / 47), "counts three times"),
    (lambda: checks.break_even(2_816_000), "divide by what each sample saves"),
    (lambda: checks.layer_distance(lambda a, b: (a - b).square().sum(1).mean((1, 2))), "unit length"),
    (
        lambda: checks.layer_distance(lambda a, b: (unit(a) - unit(b)).square().mean((1, 2, 3))),
        "mean over the channels",
    ),
    (lambda: checks.layer_distance(lambda a, b: (unit(a) - unit(b)).square().sum((1, 2, 3))), "sum over the positions"),
    (lambda: checks.layer_distance(lambda a, b: (unit(a) - unit(b)).norm(dim=1).mean((1, 2))), "square is missing"),
    (lambda: checks.latent_of_a_gaussian(2.625), "the forward solve"),
    (lambda: checks.latent_of_a_gaussian(0.75), "the spread is missing"),
    (lambda: checks.midpoint_inversion(lambda v, x, n: x), "the loop ended before its first step"),
    (lambda: checks.midpoint_inversion(midpoint_from(0.0, 1.0)), "this is sampling"),
    (lambda: checks.midpoint_inversion(midpoint_from(1.0, 0.0, -1.0)), "a sign too many"),
    (lambda: checks.midpoint_inversion(midpoint_from(0.0, 1.0, -1.0)), "its own time"),
    (
        lambda: checks.midpoint_inversion(lambda v, x, n: solve(v, x, 1.0, 0.0, method="heun", steps=n).x),
        "Heun's method",
    ),
    (lambda: checks.midpoint_inversion(midpoint_from(1.0, 0.5)), "no known mistake explains it"),
    (lambda: checks.posterior_mean(unshrunk), "x is not shrunk"),
    (lambda: checks.posterior_mean(at_one_minus_s), "t = 1 - s is where sigma is s; the noise level is sigma / alpha"),
    (lambda: checks.posterior_mean(noise_behind), "this is the noise"),
    (lambda: checks.posterior_mean(lambda v, x, s: x / (1 + s) + s / (1 + s) * v(x / (1 + s), 1 / (1 + s))), "(B, 1)"),
    (lambda: checks.error_of_the_ode(0.5), "the least possible"),
    (lambda: checks.error_of_the_ode(1.0), "of the observation itself"),
    (lambda: checks.slerp(lambda a, b, w: (1 - w) * a + w * b), "the straight line, which leaves the sphere"),
    (lambda: checks.slerp(lambda a, b, w: inversion.slerp(b, a, [w])[0]), "a and b are swapped"),
    (lambda: checks.slerp(arc_without_length), "these are unit vectors"),
    (lambda: checks.likelier_than_samples(784.0), "|x|^2 / 2"),
    (lambda: checks.likelier_than_samples(0.0), "784 on average"),
]


@pytest.mark.parametrize(("attempt", "diagnosis"), MISTAKES, ids=[diagnosis for _, diagnosis in MISTAKES])
def test_the_check_says_what_is_wrong(attempt: Any, diagnosis: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(diagnosis)):
        attempt()
