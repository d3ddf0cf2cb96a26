r"""What does one evaluation of the network cost while sampling, with each library, on equal networks?

    python benchmarks/sampling.py

Two trained networks: a multilayer perceptron (eight Gaussians) on 256 points in the plane, whose evaluation is so short
that the solver shows, and the package's small U-Net of digits on 64 images. Two questions.

Fixed steps, time per evaluation, 64 evaluations each: 32 midpoint steps of

- flowbook: ``sample(method="midpoint", steps=32)``, and the same with the network under ``torch.compile``;
- flow_matching: ``ODESolver.sample(method="midpoint", step_size=1/32)``;
- torchcfm: its tutorials' ``torchdyn.NeuralODE(solver="midpoint")`` along 33 times;
- rectified-flow-pytorch: ``RectifiedFlow.sample(steps=33)``, midpoint by default;
- denoising-diffusion-pytorch: 64 steps of its DDIM (images only; another sampler, as many evaluations).

They are compared before anything is timed: flow by flow the same points come out (DDIM's are others).

Equal error, time of the whole: for each library the cheapest setting (of method and steps, or of dopri5's tolerance)
whose samples are within a bound (0.001 for points of size 5, 0.01 for images in [-1, 1]; root mean square) of a float64
reference: flowbook, flow_matching and torchdyn with rk4 or dopri5, and zuko with its ``odeint``, which is adaptive.
flowbook has three settings more: rk4 on a ``grid`` whose steps become shorter towards the data, and "ab3", which takes
one evaluation for a step, with equal steps and on this grid.

Equal on all sides: the network, its time held in [0, 1], the noise, float32, no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import measure
import torch
import zuko.utils
from denoising_diffusion_pytorch import GaussianDiffusion
from flow_matching.solver import ODESolver
from log_prob import Setting, cheapest, trained
from networks import Counted
from rectified_flow_pytorch import RectifiedFlow
from torch import Tensor, nn
from torchdyn.core import NeuralODE
from training_step import ForDiffusion, WithTimes

from flowbook import models
from flowbook.solvers import sample

STEPS = 32
BOUNDS = {"mlp": 1e-3, "unet": 1e-2}
ACCURATE_STEPS = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 50)
TOLERANCES = tuple(10.0 ** (-n / 2) for n in range(2, 13))
PEERS = ("flow-matching", "torchdyn", "rectified-flow-pytorch", "denoising-diffusion-pytorch", "zuko")


class Labeled(nn.Module):
    """A class-conditional velocity with its labels fixed, so that every library can call it."""

    def __init__(self, velocity: nn.Module, labels: Tensor):
        super().__init__()
        self.velocity, self.labels = velocity, labels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.velocity(x, t, self.labels)


def fixed(network: Counted, x0: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every way with 64 evaluations as a call that returns the samples."""
    compiled = torch.compile(network.network)
    solver = ODESolver(velocity_model=network)
    ode = NeuralODE(OfTorchdyn(network), solver="midpoint")
    flow = RectifiedFlow(WithTimes(network), time_cond_kwarg="times", data_normalize_fn=None, data_unnormalize_fn=None)
    ways: dict[str, Callable[[], Tensor]] = {
        "flowbook": lambda: sample(network, x0, method="midpoint", steps=STEPS).x,
        "flowbook, compiled": lambda: sample(compiled, x0, method="midpoint", steps=STEPS).x,
        "flow_matching": lambda: solver.sample(x0, step_size=1 / STEPS, method="midpoint"),
        "torchdyn": lambda: ode.trajectory(x0, torch.linspace(0, 1, STEPS + 1))[-1],
        "rectified-flow-pytorch": lambda: flow.sample(
            batch_size=len(x0), steps=STEPS + 1, noise=x0, data_shape=tuple(x0.shape[1:])
        ),
    }
    if x0.dim() == 4:
        diffusion = GaussianDiffusion(ForDiffusion(network), image_size=8, sampling_timesteps=2 * STEPS)
        ways["denoising-diffusion-pytorch"] = lambda: diffusion.sample(batch_size=len(x0))
    return ways


class OfTorchdyn(nn.Module):
    """torchdyn calls a vector field with its time first."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        return self.network(x, t.squeeze())  # which may come with shape (1,)


def accurate(network: Counted, x0: Tensor) -> dict[str, Iterator[list[Setting]]]:
    """Every way's settings from cheap to dear, method by method."""
    solver = ODESolver(velocity_model=network)

    def torchdyn_fixed(steps: int) -> Tensor:
        ode = NeuralODE(OfTorchdyn(network), solver="rk4")
        return ode.trajectory(x0, torch.linspace(0, 1, steps + 1))[-1]

    def torchdyn_adaptive(tolerance: float) -> Tensor:
        ode = NeuralODE(OfTorchdyn(network), solver="dopri5", atol=tolerance, rtol=tolerance)
        return ode.trajectory(x0, torch.linspace(0, 1, 2))[-1]

    def settings(rk4: Callable[[int], Tensor] | None, dopri5: Callable[[float], Tensor]) -> Iterator[list[Setting]]:
        if rk4 is not None:
            yield [Setting("rk4", steps, lambda n=steps: rk4(n)) for steps in ACCURATE_STEPS]
        yield [Setting("dopri5", tol, lambda tol=tol: dopri5(tol)) for tol in TOLERANCES]

    def on_grid(method: str, steps: int) -> Tensor:
        grid = 1 - (1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64)) ** 1.5
        return sample(network, x0, method=method, grid=grid).x

    def ours() -> Iterator[list[Setting]]:
        yield [Setting("dopri5", tol, lambda tol=tol: sample(network, x0, rtol=tol, atol=tol).x) for tol in TOLERANCES]
        for method in ("rk4", "ab3"):
            yield [
                Setting(method, steps, lambda m=method, n=steps: sample(network, x0, method=m, steps=n).x)
                for steps in ACCURATE_STEPS
            ]
            yield [
                Setting(f"{method} on a grid", steps, lambda m=method, n=steps: on_grid(m, n))
                for steps in ACCURATE_STEPS
            ]

    return {
        "flowbook": ours(),
        "flow_matching": settings(
            lambda n: solver.sample(x0, step_size=1 / n, method="rk4"),
            lambda tol: solver.sample(x0, step_size=None, method="dopri5", rtol=tol, atol=tol),
        ),
        "torchdyn": settings(torchdyn_fixed, torchdyn_adaptive),
        "zuko": settings(
            None, lambda tol: zuko.utils.odeint(lambda t, x: network(x, t), x0, 0.0, 1.0, rtol=tol, atol=tol)
        ),
    }


def per_evaluation(
    ways: dict[str, Callable[[], Tensor]], network: Counted, rounds: int, repeats: int
) -> dict[str, Any]:
    """Milliseconds of an evaluation, after it was seen that all of the ways lead to the same points."""
    reference = ways["flowbook"]()
    for name, way in ways.items():
        network.calls = 0
        samples = way()
        assert network.calls == 2 * STEPS or "compiled" in name, (name, network.calls)
        if not name.startswith("denoising"):
            torch.testing.assert_close(samples, reference, rtol=0, atol=1e-3, msg=lambda text: f"{name}: {text}")  # noqa: B023
    timings = measure.interleaved(
        {name: (lambda way=way: [way() for _ in range(repeats)]) for name, way in ways.items()}, rounds
    )
    return told(timings, 1e3 / (2 * STEPS * repeats), "ms_per_evaluation")


def told(timings: dict[str, measure.Timing], scale: float, name: str) -> dict[str, Any]:
    milliseconds = {way: scale * timing.summary()["wall_s"] for way, timing in timings.items()}
    peers = [way for way in timings if not way.startswith("flowbook")]
    return {
        name: milliseconds, "fastest_peer": min(peers, key=milliseconds.__getitem__),
        "over_flowbook": {
            way: measure.ratio(timing, timings["flowbook"]) for way, timing in timings.items() if way != "flowbook"
        },
    }  # fmt: skip


def equal_error(network: Counted, x0: Tensor, bound: float, rounds: int, repeats: int) -> dict[str, Any]:
    reference = sample(network.double(), x0.double(), method="dopri8", rtol=1e-9, atol=1e-9).x
    network.float()
    contenders, chosen = {}, {}
    for name, ways in accurate(network, x0).items():
        setting, chosen[name] = cheapest(ways, network, reference, bound=bound)
        contenders[name] = lambda run=setting.run: [run() for _ in range(repeats)]
    return {"bound": bound, "chosen": chosen} | told(measure.interleaved(contenders, rounds), 1e3 / repeats, "ms")


def networks() -> Iterator[tuple[str, Counted, Tensor, int]]:
    """Name, network, noise, and how often a round repeats a call."""
    generator = torch.Generator().manual_seed(0)
    yield "mlp", Counted(trained(2)[0]), torch.randn(256, 2, generator=generator), 10
    digits, labels = models.load_pretrained("digits"), torch.arange(64) % 10
    network = Labeled(digits, labels)
    yield "unet", Counted(network), torch.randn(64, 1, 8, 8, generator=generator), 1


def main() -> None:
    options = measure.parser(__doc__, rounds=11)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {}
    for name, network, x0, repeats in networks():
        network.eval().requires_grad_(False)
        with torch.no_grad():
            found = {
                f"{name}, fixed": per_evaluation(fixed(network, x0), network, arguments.rounds, repeats),
                f"{name}, equal error": equal_error(network, x0, BOUNDS[name], arguments.rounds, repeats),
            }
        print(found, flush=True)
        result |= found
    if not arguments.dry:
        print(measure.save("sampling", result, peers=PEERS, note=arguments.note))


if __name__ == "__main__":
    main()
