"""Laws 1, 2 and 11 of inversion, and the traps of going back."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers import FIXED, INF, NAN, Recorder, needs_mnist, normal, options, randomized, seeded
from torch import Tensor

from flowbook import data, models
from flowbook.analytic import GaussianMixture
from flowbook.diffusion import NoiseSchedule, probability_flow
from flowbook.guidance import guided
from flowbook.inversion import choose_steps, edit, interpolate, invert, lerp, round_trip, slerp
from flowbook.models import MLP, UNet
from flowbook.paths import CosinePath, LinearPath, Path, VPPath
from flowbook.solvers import Method, sample, solve

F64 = torch.float64
methods = pytest.mark.parametrize("method", [*FIXED, "dopri5"])
shapes = pytest.mark.parametrize("shape", [(3, 2), (2, 1, 4, 4)])


def zero(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return torch.zeros_like(x)


def of_label(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A constant velocity for each label: the label itself."""
    return y.to(x).reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)


def smooth(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """Nonlinear, dependent on time, neither contracting nor expanding for long."""
    return torch.sin(2 * x + 3 * t) + torch.cos(3 * t) * x


# Law 1 ----------------------------------------------------------------------------------------------------------------


@methods
@shapes
def test_law_1_zero_velocity_is_the_identity(method: Method, shape: tuple[int, ...]) -> None:
    a, b, settings = normal(*shape), normal(*shape, seed=1), options(method)
    y = torch.zeros(len(a), dtype=torch.long)

    def same(x: Tensor, like: Tensor) -> None:
        torch.testing.assert_close(x, like, rtol=1e-13, atol=1e-13)

    same(invert(zero, a, **settings).x, a)
    trip = round_trip(zero, a, **settings)
    same(trip.latent, a)
    same(trip.reconstruction, a)
    assert float(trip.error.max()) <= (0.0 if method in FIXED else 1e-13)
    way = interpolate(zero, a, b, 5, **settings)
    same(way.x, way.latents)
    same(way.x[0], a)
    same(way.x[-1], b)
    for strength in (1.0, 0.3):
        same(edit(zero, a, y, y + 1, guidance=3.0, null=9, strength=strength, **settings).x, a)
    if method in FIXED:
        assert choose_steps(zero, a, 1e-9, method=method).tried == {4: 0.0}


@methods
@shapes
def test_law_1_a_constant_velocity_moves_by_minus_c_and_back_by_plus_c(method: Method, shape: tuple[int, ...]) -> None:
    a, b, settings = normal(*shape), normal(*shape, seed=1), options(method)
    y = torch.arange(len(a)) + 1
    c = of_label(a, torch.tensor(0.0), y)

    def same(x: Tensor, like: Tensor) -> None:
        torch.testing.assert_close(x, like, rtol=1e-12, atol=1e-12)

    same(invert(of_label, a, y=y, **settings).x, a - c)
    trip = round_trip(of_label, a, y=y, **settings)
    same(trip.latent, a - c)
    same(trip.reconstruction, a)
    way = interpolate(of_label, a, b, 4, y=y, **settings)
    same(way.latents[0], a - c)
    same(way.latents[-1], b - c)
    same(way.x, way.latents + c)
    for strength in (1.0, 0.25):
        edited = edit(of_label, a, y, y + 3, strength=strength, **settings)
        same(edited.state, a - strength * c)
        same(edited.x, a + 3 * strength)


# Law 2 ----------------------------------------------------------------------------------------------------------------


@methods
@shapes
def test_law_2_the_way_back_returns_within_the_tolerance_and_stays_inside(
    method: Method, shape: tuple[int, ...]
) -> None:
    x1, field = normal(*shape), Recorder(smooth)
    steps = {"euler": 4000, "midpoint": 400, "heun": 400, "rk4": 100, "ab3": 400}.get(method, 0)
    trip = round_trip(field, x1, **options(method, steps, 1e-6))
    assert float(trip.error.max()) < (5e-3 if method == "euler" else 2e-5)
    torch.testing.assert_close(trip.error, (trip.reconstruction - x1).abs().flatten(1).mean(1))
    assert not torch.allclose(trip.latent, x1, atol=0.1)
    assert trip.nfe == len(field.times) and min(field.times) >= 0 and max(field.times) <= 1
    assert field.times[0] == 1.0


@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VPPath()])
def test_law_2_the_latent_of_a_gaussian_is_its_standardised_data(path: Path) -> None:
    """The flow of one Gaussian is affine: quantile to quantile. Also says which end is which."""
    gaussian = GaussianMixture([[1.5, -0.5]], [0.4])
    x1 = gaussian.sample(6, seeded()).double()
    latent = invert(gaussian.as_velocity(path), x1, rtol=1e-9, atol=1e-9).x
    start = float(path.alpha(0.0)) * gaussian.means + (x1 - gaussian.means) / 0.4 * float(
        (path.alpha(0.0) ** 2 * 0.4**2 + path.sigma(0.0) ** 2).sqrt()
    )
    torch.testing.assert_close(latent, start, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "latent_order", "trip_order"),
    [("euler", 1, 1), ("midpoint", 2, 3), ("heun", 2, 3), ("rk4", 4, 5), ("ab3", 3, 3)],
)
def test_law_2_halving_the_step_divides_the_latent_s_error_and_the_round_trip_s_by_more(
    method: Method, latent_order: int, trip_order: int
) -> None:
    x1 = normal(20, 2)
    exact = invert(smooth, x1, rtol=1e-12, atol=1e-12, method="dopri8").x
    coarse, fine = (round_trip(smooth, x1, method=method, steps=steps) for steps in (100, 200))
    latents = [float((trip.latent - exact).abs().mean()) for trip in (coarse, fine)]
    trips = [float(trip.error.mean()) for trip in (coarse, fine)]
    assert math.log2(latents[0] / latents[1]) == pytest.approx(latent_order, abs=0.1)
    assert math.log2(trips[0] / trips[1]) == pytest.approx(trip_order, abs=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_labels_images_modes_and_counts(dtype: torch.dtype) -> None:
    network = randomized(UNet(1, 8, 8, (1, 2), blocks=1, num_classes=3), scale=0.05).to(dtype).train()
    x, y = normal(2, 1, 8, 8).to(dtype), torch.tensor([0, 2])
    settings: dict[str, Any] = {"method": "heun", "steps": 3}
    calls: list[tuple[int, tuple[int, ...]]] = []
    network.register_forward_pre_hook(lambda m, args: calls.append((len(args[0]), tuple(args[2].tolist()))))
    for results, sizes in (
        (lambda: round_trip(network, x, y=y, **settings), [2] * 12),
        (lambda: edit(network, x, y, 2 - y, **settings), [2] * 12),
        (lambda: edit(network, x, y, 2 - y, guidance=2.0, **settings), [2] * 18),
        (lambda: interpolate(network, x, -x, 5, y=y, **settings), [4] * 6 + [10] * 6),
    ):
        calls.clear()
        result = results()
        assert [size for size, _ in calls] == sizes and result.nfe == len(sizes)
        assert network.training
        assert all(value.dtype == dtype for value in vars(result).values() if isinstance(value, Tensor))


def test_a_network_inverts_in_eval_mode_and_gets_its_mode_back() -> None:
    network = randomized(UNet(1, 8, 8, (1, 2), blocks=1, dropout=0.5), scale=0.1)
    x = normal(2, 1, 8, 8).float()
    expected = invert(network.eval(), x, method="heun", steps=3).x
    torch.manual_seed(0)
    assert torch.equal(invert(network.train(), x, method="heun", steps=3).x, expected)
    assert all(module.training for module in network.modules())


def test_the_whole_trajectory_runs_from_data_to_the_latent() -> None:
    x1, times = normal(4, 2), (1.0, 0.6, 0.0)
    solution = invert(smooth, x1, method="rk4", steps=20, save_at=times)
    assert solution.trajectory is not None and solution.trajectory.shape == (3, 4, 2)
    assert torch.equal(solution.trajectory[0], x1) and torch.equal(solution.trajectory[-1], solution.x)
    between = solve(smooth, x1, 1.0, 0.6, method="rk4", steps=8).x
    torch.testing.assert_close(solution.trajectory[1], between, rtol=0, atol=1e-4)


def test_a_diffusion_model_is_inverted_by_its_probability_flow() -> None:
    schedule = NoiseSchedule.linear(1000)
    gaussian = GaussianMixture([[1.5, -0.5]], [0.4])
    flow = probability_flow(lambda x, i: x, schedule)  # its path is what is needed here
    path = flow.path

    def noise(x: Tensor, i: Tensor) -> Tensor:
        t = 1 - i / 999
        return path.convert(gaussian.denoised(x, t, path), x, t, source="data", target="noise")

    flow = probability_flow(noise, schedule)
    x1 = gaussian.sample(5, seeded()).double()
    trip = round_trip(flow, x1, rtol=1e-9, atol=1e-9)
    spreads = [float((path.alpha(t) ** 2 * 0.4**2 + path.sigma(t) ** 2).sqrt()) for t in (0.0, 1.0)]
    centers = [float(path.alpha(t)) * gaussian.means for t in (0.0, 1.0)]
    torch.testing.assert_close(trip.latent, centers[0] + (x1 - centers[1]) * spreads[0] / spreads[1], rtol=0, atol=1e-5)
    assert float(trip.error.max()) < 1e-5


@needs_mnist
def test_law_2_held_out_mnist_within_a_thousandth_at_200_evaluations() -> None:
    images, labels = data.mnist("test")
    trip = round_trip(models.load_pretrained("mnist"), images[:8], y=labels[:8], method="heun", steps=50)
    assert trip.nfe == 200 and float(trip.error.mean()) <= 1e-3


# Traps ----------------------------------------------------------------------------------------------------------------


def test_the_trap_of_a_loop_that_ends_at_1_and_starts_there() -> None:
    x1, c = normal(5, 2), 0.75

    def stops_at_one(x: Tensor, times: list[float]) -> Tensor:
        for t, following in itertools.pairwise(times):
            if t >= 1:  # right from 0 to 1, where the last velocity would be the data's
                break
            x = x + (following - t) * torch.full_like(x, c)
        return x

    grid = [n / 10 for n in range(11)]
    torch.testing.assert_close(stops_at_one(x1, grid), x1 + c)
    assert torch.equal(stops_at_one(x1, grid[::-1]), x1)  # its input
    torch.testing.assert_close(invert(lambda x, t: torch.full_like(x, c), x1, method="euler", steps=10).x, x1 - c)


def test_the_trap_of_normalizing_on_one_way_only() -> None:
    """Images from [0, 1] brought to [-1, 1], and not back: by 1 - x each, 0.75 for pixels of mean 0.25."""
    shown = torch.full((3, 1, 4, 4), 0.25, dtype=F64)
    shown[:, :, :, :2] = torch.tensor([0.5, 0.0], dtype=F64)
    trip = round_trip(zero, 2 * shown - 1, method="euler", steps=2)
    assert float((trip.reconstruction - shown).abs().mean()) == pytest.approx(1 - float(shown.mean()))
    assert float((trip.reconstruction - shown).abs().mean()) == pytest.approx(0.75)
    assert float(trip.error.max()) == 0  # nothing is normalized inside
    assert float(((trip.reconstruction + 1) / 2 - shown).abs().max()) == 0


def test_the_trap_of_a_tolerance_that_is_shared_by_many_dimensions() -> None:
    """One number moves and the rest stand still: the root mean square over all of them hides its error."""

    def one_moves(x: Tensor, t: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        v[:, 0] = 6 * torch.cos(6 * t) * (x[:, 0] + 3)
        return v

    def error(dims: int, tolerance: float) -> tuple[float, int]:
        x1 = torch.zeros(1, dims, dtype=F64)
        there = invert(one_moves, x1, rtol=tolerance, atol=tolerance)
        return abs(float(there.x[0, 0]) - 3 * (math.exp(-math.sin(6.0)) - 1)), there.nfe

    (alone, calls), (hidden, fewer) = error(1, 1e-4), error(4096, 1e-4)
    assert hidden > 10 * alone and fewer < calls
    assert error(4096, 1e-4 / math.sqrt(4096))[0] < 3 * alone


def test_the_trap_of_guidance_on_the_way_back() -> None:
    """Under guidance the way back is still an inverse, but not of the flow whose source is N(0, I)."""
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], [0.5, 0.5])
    field = mixture.as_velocity(LinearPath())

    def conditional(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return field(x, t, y) if int(y[0]) < 2 else field(x, t)

    x1, y = mixture.sample_labeled(4000, seeded())
    x1 = x1[y == 1].double()
    y = torch.ones(len(x1), dtype=torch.long)
    settings: dict[str, Any] = {"method": "rk4", "steps": 50}
    plain, strong = (
        round_trip(velocity, x1, y=y, **settings).latent for velocity in (conditional, guided(conditional, 4.0, 2))
    )
    assert float(plain.mean(0).abs().max()) < 0.06 and float((plain.std(0) - 1).abs().max()) < 0.06
    assert float(strong.mean(0)[0]) < -0.5


# The choice of steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FIXED)
def test_the_steps_chosen_meet_the_error_and_half_of_them_do_not(method: Method) -> None:
    x1, wanted, field = normal(10, 2), 1e-3, Recorder(smooth)
    choice = choose_steps(field, x1, wanted, method=method, limit=8192)
    assert float(choice.trip.error.max()) == choice.tried[choice.steps] <= wanted < choice.tried[choice.steps // 2]
    assert list(choice.tried) == [4 * 2**n for n in range(len(choice.tried))]
    assert choice.nfe == len(field.times)
    again = round_trip(smooth, x1, method=method, steps=choice.steps)
    assert torch.equal(again.latent, choice.trip.latent)


def test_an_error_that_floats_do_not_allow_is_refused_with_the_reason() -> None:
    x1 = normal(50, 2).float()
    with pytest.raises(ValueError, match=r"wanted: torch.float32 resolves .*; got 1e-08"):
        choose_steps(smooth, x1, 1e-8)
    with pytest.raises(RuntimeError, match=r"wanted: .*(no longer lowers|does not reach)"):
        choose_steps(smooth, x1, 1.3e-7, method="rk4", limit=256)
    assert choose_steps(smooth, x1.double(), 1.3e-7, method="rk4").steps <= 256


def test_an_error_that_steps_do_not_lower_is_refused_and_a_limit_named() -> None:
    class Uneven:  # one velocity on the way back and another forward
        last = 2.0

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            back, self.last = float(t) < self.last, float(t)
            return torch.full_like(x, 1.0 if back else 2.0)

    with pytest.raises(RuntimeError, match="doubling the steps no longer lowers the error"):
        choose_steps(Uneven(), torch.zeros(1, 1), 1e-3, method="euler")
    with pytest.raises(RuntimeError, match=r"euler does not reach 1e-06 within limit=32 steps, .* with 4, .* with 32"):
        choose_steps(smooth, normal(3, 2), 1e-6, method="euler", limit=32)


# Interpolation --------------------------------------------------------------------------------------------------------


@shapes
def test_slerp_turns_at_equal_angles_keeps_the_length_and_hits_its_ends(shape: tuple[int, ...]) -> None:
    a, b = normal(*shape), normal(*shape, seed=1)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).reshape(-1, *[1] * (a.dim() - 1))
    arc = slerp(a, b, torch.linspace(0, 1, 6))
    assert arc.shape == (6, *shape) and torch.equal(arc[0], a) and torch.equal(arc[-1], b)
    length = a.flatten(1).norm(dim=1)
    torch.testing.assert_close(arc.flatten(2).norm(dim=2), length.expand(6, -1))
    cosines = (arc[:-1] * arc[1:]).flatten(2).sum(2) / length**2
    torch.testing.assert_close(cosines, cosines[:1].expand_as(cosines))
    whole = torch.acos((a * b).flatten(1).sum(1) / length**2)
    torch.testing.assert_close(5 * torch.acos(cosines[0]), whole)
    torch.testing.assert_close(slerp(b, a, torch.linspace(0, 1, 6)).flip(0), arc)


def test_slerp_leads_lengths_evenly_and_samples_apart() -> None:
    a = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 3.0]], dtype=F64)
    b = torch.tensor([[0.0, 4.0], [5.0, 0.0], [1.0, 1.0]], dtype=F64)  # the last two are parallel: a line
    middle = slerp(a, b, [0.5])[0]
    expected = torch.tensor([[3 / math.sqrt(2), 3 / math.sqrt(2)], [3.0, 0.0], [2.0, 2.0]], dtype=F64)
    torch.testing.assert_close(middle, expected)
    nearly = a[:1] + torch.tensor([[0.0, 1e-9]], dtype=F64)
    torch.testing.assert_close(slerp(a[:1], nearly, [0.25])[0], a[:1] + torch.tensor([[0.0, 2.5e-10]]).double())


def test_the_straight_line_between_two_latents_leaves_the_sphere_and_the_arc_does_not() -> None:
    a, b = normal(5, 4000), normal(5, 4000, seed=1)
    for way, expected in ((slerp, 1.0), (lerp, math.sqrt(0.5))):
        length = way(a, b, [0.5]).square().mean(-1).sqrt()
        assert float((length - expected).abs().max()) < 0.03, way


@pytest.mark.parametrize("spherical", [True, False])
@shapes
def test_interpolation_ends_in_the_reconstructions(spherical: bool, shape: tuple[int, ...]) -> None:
    a, b = normal(*shape), normal(*shape, seed=1)
    settings: dict[str, Any] = {"method": "heun", "steps": 5}
    way = interpolate(smooth, a, b, 4, spherical=spherical, **settings)
    assert way.x.shape == way.latents.shape == (4, *shape)
    for end, like in ((0, a), (-1, b)):
        trip = round_trip(smooth, like, **settings)
        torch.testing.assert_close(way.x[end], trip.reconstruction, rtol=0, atol=1e-12)
        torch.testing.assert_close(way.latents[end], trip.latent, rtol=0, atol=1e-12)
    line = (slerp if spherical else lerp)(way.latents[0], way.latents[-1], torch.linspace(0, 1, 4, dtype=F64))
    torch.testing.assert_close(way.latents, line)
    for n in range(4):
        torch.testing.assert_close(way.x[n], sample(smooth, way.latents[n], **settings).x, rtol=0, atol=1e-12)


# Editing --------------------------------------------------------------------------------------------------------------


def test_an_edit_inverts_under_its_own_label_and_generates_under_the_new_one() -> None:
    field = Recorder(zero)
    y, new_y = torch.tensor([0, 1]), torch.tensor([5, 6])
    edit(field, normal(2, 2), y, new_y, guidance=2.0, null=9, method="euler", steps=4, strength=0.5)
    seen = [tuple(label.tolist()) for label in field.labels if label is not None]
    assert seen == [(0, 1)] * 4 + [(9, 9), (5, 6)] * 4  # no guidance on the way back
    assert field.times[:4] == [1.0, 0.875, 0.75, 0.625] and min(field.times) == 0.5


def test_an_edit_to_the_same_label_is_a_round_trip_and_to_another_moves_to_its_component() -> None:
    """With one Gaussian for each label an edit keeps the place within: x - old mean + new mean."""
    mixture = GaussianMixture([[-3.0, 0.0], [2.0, 1.0]], [0.5, 0.5])
    velocity = mixture.as_velocity(LinearPath())
    settings: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
    x1, y = mixture.sample_labeled(20, seeded())
    x1 = x1.double()
    torch.testing.assert_close(edit(velocity, x1, y, y, **settings).x, x1, rtol=0, atol=1e-6)
    expected = x1 - mixture.means[y] + mixture.means[1 - y]
    torch.testing.assert_close(edit(velocity, x1, y, 1 - y, **settings).x, expected, rtol=0, atol=1e-6)
    moved = [float((edit(velocity, x1, y, 1 - y, strength=s, **settings).x - x1).norm()) for s in (0.1, 0.5, 1.0)]
    assert moved == sorted(moved) and moved[0] < 0.3 * moved[-1]


def test_guidance_in_an_edit_finds_the_model_s_null() -> None:
    network = randomized(MLP(2, hidden=8, num_classes=3))
    x1, y = normal(4, 2).float(), torch.tensor([0, 1, 2, 0])
    settings: dict[str, Any] = {"method": "heun", "steps": 3}
    there = invert(network, x1, y=y, **settings)
    expected = sample(guided(network, 2.0, 3), there.x, y=2 - y, **settings).x
    assert torch.equal(edit(network, x1, y, 2 - y, guidance=2.0, **settings).x, expected)
    assert torch.equal(edit(network, x1, y, 2 - y, guidance=2.0, null=3, **settings).x, expected)


# Law 11 ---------------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 2), torch.tensor([0, 1])
ONES = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda v: invert(v, X, t0=1.0), TypeError, "t0: invert runs from 1 to 0"),  # type: ignore[call-arg]
        (lambda v: invert(v, X.long()), TypeError, "x1: expected a floating-point tensor"),
        (lambda v: invert(v, X * NAN), ValueError, "x1: expected finite numbers; got 4"),
        (lambda v: invert(v, X, y=Y[:1]), ValueError, "y: expected a row for each of 2"),
        (lambda v: invert(v, X, method="rk5"), ValueError, "method: expected one of 'dopri5'"),  # type: ignore[arg-type]
        (lambda v: invert(v, X, save_at=(0.0, 1.0)), ValueError, "save_at: expected times that start at t0 = 1"),
        (lambda v: invert(v, X, stepz=3), TypeError, "stepz"),  # type: ignore[call-arg]
        (lambda v: invert("v", X), TypeError, "velocity: expected a callable"),  # type: ignore[arg-type]
        (lambda v: round_trip(v, X, save_at=(1.0, 0.0)), TypeError, "save_at: a round trip keeps its ends only"),  # type: ignore[call-arg]
        (lambda v: round_trip(v, X, t1=0.5), TypeError, "t1: unexpected keyword argument"),  # type: ignore[call-arg]
        (lambda v: choose_steps(v, X, 0.0), ValueError, r"wanted: expected a number in \(0, inf\)"),
        (lambda v: choose_steps(v, X, 1e-3, method="dopri5"), ValueError, "method: expected one of 'euler'"),
        (lambda v: choose_steps(v, X, 1e-3, first=8, limit=4), ValueError, "limit: expected an integer of at least 8"),
        (lambda v: choose_steps(v, X[:0], 1e-3), ValueError, r"x1: expected at least one sample; got shape \(0, 2\)"),
        (lambda v: slerp(X, ONES, [0.5]), ValueError, "a, b: expected nonzero vectors"),
        (lambda v: slerp(ONES, -ONES, [0.5]), ValueError, "a, b: expected vectors that are not opposite"),
        (lambda v: slerp(ONES, ONES, [1.5]), ValueError, r"weights: expected a sequence of numbers in \[0, 1\]"),
        (lambda v: slerp(ONES, ONES, 0.5), ValueError, "weights: expected a sequence"),  # type: ignore[arg-type]
        (lambda v: slerp(ONES, ONES.double(), [0.5]), TypeError, "b: expected the dtype of a, torch.float32"),
        (lambda v: lerp(ONES, ONES[:1], [0.5]), ValueError, "b: expected the shape of a"),
        (lambda v: interpolate(v, ONES, X[:1], 3), ValueError, "b: expected the shape of a"),
        (lambda v: interpolate(v, ONES, X + INF, 3), ValueError, "b: expected finite numbers"),
        (lambda v: interpolate(v, ONES, ONES, 1), ValueError, "n: expected an integer of at least 2"),
        (lambda v: interpolate(v, ONES, ONES, 3, spherical=1), TypeError, "spherical: expected True or False"),  # type: ignore[arg-type]
        (lambda v: interpolate(v, ONES, ONES, 3, y=Y[:1]), ValueError, "y: expected a row for each of"),
        (lambda v: interpolate(v, ONES, ONES, 3, save_at=(1, 0)), TypeError, "save_at: interpolate"),  # type: ignore[call-arg]
        (lambda v: edit(v, X, Y, Y[:1]), ValueError, "new_y: expected a row for each of"),
        (lambda v: edit(v, X, "seven", Y), TypeError, "y: expected a tensor .* got 'seven'"),
        (lambda v: edit(v, X, Y, Y, strength=0.0), ValueError, r"strength: expected a number in \(0, 1\]"),
        (lambda v: edit(v, X, Y, Y, guidance=2.0), ValueError, "null: expected what stands for no condition"),
        (lambda v: edit(v, X, Y, Y, guidance="2"), TypeError, "guidance: expected a number"),  # type: ignore[arg-type]
        (lambda v: edit(v, X, Y, Y, t0=0.5), TypeError, "t0: edit changes direction"),  # type: ignore[call-arg]
        (lambda v: edit(guided(v, 2.0, 9), X, Y, Y), TypeError, "velocity: expected one without guidance"),
    ],
)
def test_law_11_bad_input_is_named_before_the_velocity_is_called(call: Any, error: type[Exception], match: str) -> None:
    field = Recorder(zero)
    with pytest.raises(error, match=match):
        call(field)
    assert field.times == []


def test_the_round_trip_of_nothing_is_nothing() -> None:
    trip = round_trip(lambda x, t: x, torch.zeros(0, 2), method="heun", steps=3)
    assert trip.reconstruction.shape == (0, 2) and trip.error.shape == (0,)
