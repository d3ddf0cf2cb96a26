r"""How long does a log-density take, at the same error, beside the ways that users know?

    python benchmarks/log_prob.py

One velocity, a multilayer perceptron trained by flow matching: on eight Gaussians (D = 2), on the digits (D = 64). The
same points, float32, the exact trace, no graph kept. Four ways:

- flowbook: ``log_prob(velocity, x1, method=..., steps=..., nodes=...)``, the divergence beside the state or on nodes of
  its own;
- flow_matching: ``ODESolver.compute_likelihood(..., exact_divergence=True)``;
- zuko: ``FreeFormJacobianTransform.inv.call_and_ladj``, whose solver is adaptive;
- FFJORD: torchdiffeq's dopri5 on the pair of state and log-density, the trace as a loop of D backward passes.

Equal on all sides is the error: for every way the cheapest setting is taken (of method and steps where it lets its user
choose, of tolerance where it is adaptive) whose root mean square distance from a float64 reference is below the bound.
The settings are tried from cheap to dear, until one is within the bound or needs twice the evaluations of the best one
of another method; between the methods of a way the shorter time decides. A profile says what flowbook's time is spent
on: the network itself, the D Jacobian-vector products, and the rest, which is the solver. ``flowbook, beside the
state`` is the best of flowbook's own settings without nodes, to show what they are worth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import measure
import torch
import zuko.transforms
from flow_matching.solver import ODESolver
from networks import Counted, Velocity
from torch import Tensor
from torchdiffeq import odeint

from flowbook import data
from flowbook.cnf import log_prob
from flowbook.divergence import jacobian_terms
from flowbook.flow_matching import FlowMatching
from flowbook.training import TrainConfig, fit

BOUND = 1e-3
BATCHES = {2: 1024, 64: 128}
STEPS = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 400, 800)
NODES = (6, 8, 12, 16, 20, 24, 32)
TOLERANCES = tuple(10.0 ** (-n / 2) for n in range(2, 15))


@dataclass(frozen=True)
class Setting:
    """One way to compute the log-densities: ``run() -> (B,)``."""

    method: str
    accuracy: float  # steps, or the tolerance
    run: Callable[[], Tensor]
    nodes: int | None = None  # where the divergence is taken, if not in every evaluation


def flowbook_way(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    def on_nodes(steps: int, nodes: int) -> Tensor:
        return log_prob(velocity, x1, method="rk4", steps=steps, nodes=nodes).log_prob

    for method in ("rk4", "heun"):
        yield [
            Setting(method, n, lambda n=n, m=method: log_prob(velocity, x1, method=m, steps=n).log_prob) for n in STEPS
        ]
    yield [
        Setting("dopri5", tol, lambda tol=tol: log_prob(velocity, x1, method="dopri5", rtol=tol, atol=tol).log_prob)
        for tol in TOLERANCES
    ]
    for nodes in NODES:
        yield [Setting(f"rk4, {nodes} nodes", n, lambda n=n, k=nodes: on_nodes(n, k), nodes) for n in STEPS]


def flow_matching_way(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    solver = ODESolver(velocity_model=lambda x, t: velocity(x, t))

    def run(method: str, step_size: float | None, tolerance: float) -> Tensor:
        return solver.compute_likelihood(
            x1.clone(), log_p0=standard_normal, step_size=step_size, method=method, atol=tolerance, rtol=tolerance,
            exact_divergence=True,
        )[1].detach()  # fmt: skip

    for method in ("rk4", "midpoint", "euler"):  # the best first: the others stop at twice its evaluations
        yield [Setting(method, n, lambda n=n, m=method: run(m, 1 / n, 1e-5)) for n in STEPS]
    yield [Setting("dopri5", tol, lambda tol=tol: run("dopri5", None, tol)) for tol in TOLERANCES]


def zuko_way(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    def run(tolerance: float) -> Tensor:
        flow = zuko.transforms.FreeFormJacobianTransform(
            lambda t, x: velocity(x, t), t0=0.0, t1=1.0, atol=tolerance, rtol=tolerance
        )
        with torch.no_grad():
            latent, ladj = flow.inv.call_and_ladj(x1)
            return standard_normal(latent) + ladj

    yield [Setting("dopri5", tol, lambda tol=tol: run(tol)) for tol in TOLERANCES]


def ffjord_way(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    def joint(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            v = velocity(x, t)
            trace = torch.zeros(len(x))
            for i in range(x.shape[1]):
                trace = trace + torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i]
        return v.detach(), -trace.detach()

    def run(tolerance: float) -> Tensor:
        start = (x1, torch.zeros(len(x1)))
        latent, change = odeint(joint, start, torch.tensor([1.0, 0.0]), rtol=tolerance, atol=tolerance, method="dopri5")
        return standard_normal(latent[-1]) - change[-1]

    yield [Setting("dopri5", tol, lambda tol=tol: run(tol)) for tol in TOLERANCES]


def together_way(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    for settings in flowbook_way(velocity, x1):
        if settings[0].nodes is None:
            yield settings


WAYS = {
    "flowbook": flowbook_way, "flowbook, beside the state": together_way, "flow_matching": flow_matching_way,
    "zuko": zuko_way, "FFJORD": ffjord_way,
}  # fmt: skip


Way = Callable[[Counted, Tensor], Iterator[list[Setting]]]


def standard_normal(x: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)


def trained(dim: int) -> tuple[Velocity, Tensor]:
    """The velocity, and points on which it is scored."""
    torch.manual_seed(0)
    velocity = Velocity(dim)
    if dim == 2:
        source: Any = data.eight_gaussians()
        points = source.sample(BATCHES[dim], torch.Generator().manual_seed(1))
    else:
        source = data.digits("train")[0].flatten(1)
        noise = torch.randn(BATCHES[dim], dim, generator=torch.Generator().manual_seed(1))
        points = data.digits("test")[0].flatten(1)[: BATCHES[dim]] + 0.1 * noise
    result = fit(velocity, FlowMatching(), source, TrainConfig(steps=3000, batch_size=256, ema_half_life=None))
    return result.velocity.requires_grad_(False), points  # type: ignore[return-value]


def cheapest(
    ways: Iterator[list[Setting]], velocity: Counted, reference: Tensor, bound: float = BOUND
) -> tuple[Setting, dict[str, Any]]:
    """Of every method the cheapest setting within the bound; of those the fastest."""
    best: tuple[float, Setting, dict[str, Any]] | None = None
    for settings in ways:
        for setting in settings:
            velocity.calls = 0
            result = setting.run()
            calls = velocity.calls
            if best is not None and calls > 2 * best[2]["calls"]:
                print(f"  {setting.method}: too dear at {setting.accuracy:g}, {calls} calls")
                break
            error = float((result.double() - reference).square().mean().sqrt())
            if error < bound:
                seconds = min(timed(setting.run) for _ in range(3))
                print(f"  {setting.method} {setting.accuracy:g}: {calls} calls, error {error:.1e}, {seconds:.3f} s")
                if best is None or seconds < best[0]:
                    told = {"method": setting.method, "accuracy": setting.accuracy, "calls": calls, "rmse": error}
                    told["products"] = setting.nodes or calls
                    best = seconds, setting, told
                break
        else:
            print(f"  {settings[0].method}: never within the bound")
    assert best is not None, "no setting is within the bound"
    return best[1], best[2]


def at_equal_error(
    ways: dict[str, Way], velocity: Counted, x1: Tensor, reference: Tensor, bound: float, rounds: int
) -> tuple[dict[str, Any], dict[str, Callable[[], Tensor]]]:
    """Every way's cheapest setting, their times in turns, and the settings' calls."""
    contenders, chosen = {}, {}
    for name, way in ways.items():
        print(f"D={x1.shape[1]} {name}", flush=True)
        setting, chosen[name] = cheapest(way(velocity, x1), velocity, reference, bound)
        contenders[name] = setting.run
    timings = measure.interleaved(contenders, rounds)
    found = {
        "batch": len(x1), "chosen": chosen,
        "ms": {name: 1e3 * timing.summary()["wall_s"] for name, timing in timings.items()},
        "over_flowbook": {
            name: measure.ratio(timing, timings["flowbook"]) for name, timing in timings.items() if name != "flowbook"
        },
    }  # fmt: skip
    return found, contenders


def timed(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def profile(velocity: Counted, x1: Tensor, chosen: dict[str, Any], run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of one log_prob that go into the network, into the Jacobian-vector products, and into the rest."""
    calls, products = chosen["calls"], chosen["products"]
    t = torch.tensor(0.5)

    @torch.no_grad()
    def forward() -> Tensor:
        return velocity(x1, t)

    def median(function: Callable[[], Any]) -> float:
        return statistics.median(timed(function) for _ in range(15))

    network, both, whole = median(forward), median(lambda: jacobian_terms(velocity, x1, t)), median(run)
    return {
        "network": 1e3 * calls * network,
        "products": 1e3 * products * (both - network),
        "solver": 1e3 * (whole - calls * network - products * (both - network)),
    }


def main() -> None:
    options = measure.parser(__doc__, rounds=11)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {}
    for dim in BATCHES:
        network, x1 = trained(dim)
        velocity = Counted(network)
        reference = log_prob(velocity.double(), x1.double(), method="dopri8", rtol=1e-9, atol=1e-9).log_prob
        velocity.float()
        found, contenders = at_equal_error(WAYS, velocity, x1, reference, BOUND, arguments.rounds)
        spent = profile(velocity, x1, found["chosen"]["flowbook"], contenders["flowbook"])
        result[f"D={dim}"] = found | {"bound_nats": BOUND, "profile_ms": spent}
        print(dim, result[f"D={dim}"], flush=True)
    if not arguments.dry:
        peers = ("flow-matching", "zuko", "torchdiffeq")
        print(measure.save("log_prob", result, peers=peers, note=arguments.note))


if __name__ == "__main__":
    main()
