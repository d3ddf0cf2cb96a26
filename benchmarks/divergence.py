r"""Is the exact divergence as fast as the fastest of the ways that users know?

    python benchmarks/divergence.py

The velocity and its exact divergence at one time, in D = 2, 64 and 784 dimensions, four ways:

- flowbook: ``divergence(velocity, x, t)``;
- flow_matching: ``ODESolver.compute_likelihood(..., exact_divergence=True)`` with one Euler step, which evaluates the
  augmented field once;
- zuko: ``FreeFormJacobianTransform.call_and_ladj``. Its solver is adaptive, so ``zuko.transforms.odeint`` is replaced
  for the measurement by one evaluation of the augmented field that zuko builds;
- torchcfm: its CNF tutorial takes the trace of ``torch.func.jacrev`` of one point under ``torch.vmap``; the package
  itself has no function for it.

And Hutchinson's estimate with one probe in 64 and 784 dimensions: flowbook's ``divergence(method="hutchinson")``,
flow_matching's ``exact_divergence=False``, zuko's ``exact=False``, each with probes of its own kind, drawn anew.

Equal on all sides: one multilayer perceptron (three layers of 128, SiLU, the time as an input), weights, points,
float32, no graph kept. All exact results are compared with each other before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import torch
import zuko.transforms
from flow_matching.solver import ODESolver
from networks import Velocity
from torch import Tensor

from flowbook.divergence import divergence, rademacher

BATCHES = {2: 4096, 64: 512, 784: 16}
TIME = 0.5


def ways(velocity: Velocity, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every way as a call without arguments that returns the divergence, shape (B,)."""
    t = torch.tensor(TIME)

    def flowbook() -> Tensor:
        return divergence(velocity, x, t)[1]

    # One Euler step from 1 to 0 evaluates the augmented field at t = 1 and returns log_p0 minus its divergence there.
    solver = ODESolver(velocity_model=lambda x, t: velocity(x, torch.full_like(t, TIME)))

    def flow_matching() -> Tensor:
        _, log_p = solver.compute_likelihood(
            x, log_p0=lambda z: torch.zeros(len(z)), step_size=1.0, method="euler", exact_divergence=True
        )
        return -log_p

    transform = zuko.transforms.FreeFormJacobianTransform(lambda t, x: velocity(x, t), t0=TIME)

    def zuko_way() -> Tensor:
        with torch.no_grad():
            return transform.call_and_ladj(x)[1]

    per_point = torch.vmap(lambda point: torch.trace(torch.func.jacrev(lambda p: velocity(p, t))(point)))

    def torchcfm() -> Tensor:
        with torch.no_grad():
            velocity(x, t)  # the tutorial evaluates the velocity once more, beside the Jacobian
            return per_point(x)

    return {"flowbook": flowbook, "flow_matching": flow_matching, "zuko": zuko_way, "torchcfm": torchcfm}


def estimates(velocity: Velocity, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every way to estimate it with one probe."""
    t = torch.tensor(TIME)
    solver = ODESolver(velocity_model=lambda x, t: velocity(x, torch.full_like(t, TIME)))
    transform = zuko.transforms.FreeFormJacobianTransform(lambda t, x: velocity(x, t), t0=TIME, exact=False)

    def zuko_way() -> Tensor:
        with torch.no_grad():
            return transform.call_and_ladj(x)[1]

    return {
        "flowbook": lambda: divergence(velocity, x, t, method="hutchinson", noise=rademacher(1, like=x))[1],
        "flow_matching": lambda: solver.compute_likelihood(
            x, log_p0=lambda z: torch.zeros(len(z)), step_size=1.0, method="euler", exact_divergence=False
        )[1],
        "zuko": zuko_way,
    }


def one_evaluation(field: Callable[..., Any], x: tuple[Tensor, ...], t0: float, *rest: Any) -> Any:
    """In place of zuko's solver: its augmented field once, at t0."""
    return field(torch.as_tensor(t0), *x)


def compared(ways: dict[str, Callable[[], Tensor]], rounds: int, repeats: int) -> dict[str, Any]:
    repeated = {name: (lambda way=way: [way() for _ in range(repeats)]) for name, way in ways.items()}
    timings = measure.interleaved(repeated, rounds)
    milliseconds = {name: 1e3 * timing.summary()["wall_s"] / repeats for name, timing in timings.items()}
    fastest = min((name for name in ways if name != "flowbook"), key=milliseconds.__getitem__)
    return {
        "ms": milliseconds, "fastest_peer": fastest,
        "over_flowbook": {
            name: measure.ratio(timing, timings["flowbook"]) for name, timing in timings.items() if name != "flowbook"
        },
    }  # fmt: skip


def main() -> None:
    options = measure.parser(__doc__, rounds=21)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    zuko.transforms.odeint = one_evaluation
    result = {}
    for dim, batch in BATCHES.items():
        torch.manual_seed(0)
        velocity, x = Velocity(dim).requires_grad_(False), torch.randn(batch, dim)
        contenders = ways(velocity, x)
        reference = contenders["torchcfm"]()
        for name, way in contenders.items():
            torch.testing.assert_close(way(), reference, rtol=1e-3, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023
        found = {f"exact divergence, D={dim}": compared(contenders, arguments.rounds, max(1, 64 // dim))}
        if dim > 2:
            found[f"one probe, D={dim}"] = compared(estimates(velocity, x), arguments.rounds, 32)
        result |= {name: {"batch": batch} | numbers for name, numbers in found.items()}
        print(found, flush=True)
    if not arguments.dry:
        peers = ("torchcfm", "flow-matching", "zuko")
        print(measure.save("divergence", result, peers=peers, note=arguments.note))


if __name__ == "__main__":
    main()
