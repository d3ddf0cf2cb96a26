r"""How long does a step of training by maximum likelihood take, at the same error of its gradient?

    python benchmarks/likelihood_training.py

The velocities and points of ``log_prob.py``, fewer of them; float32, the exact trace. What is timed is the loss (mean
negative log-density) and its gradient by all weights. Four ways:

- flowbook: ``nll_loss(velocity, x1, method="rk4", steps=..., nodes=...)``, back through the solver's steps;
- flowbook, beside the state: the same without nodes;
- zuko: ``FreeFormJacobianTransform`` with the weights as its ``phi``, whose gradient is an adjoint's;
- FFJORD: torchdiffeq's ``odeint_adjoint``, dopri5, on the pair of state and log-density, the trace as a loop of D
  backward passes.

flow_matching's ``compute_likelihood`` gives no gradient by the weights. Equal on all sides is the error: for every way
the cheapest setting whose gradient is within one percent (of its length) of a float64 reference, as in ``log_prob.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import measure
import torch
import zuko.transforms
from log_prob import NODES, STEPS, TOLERANCES, Setting, Way, at_equal_error, standard_normal, trained
from networks import Counted
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from flowbook.cnf import nll_loss

BOUND = 0.01
BATCHES = {2: 256, 64: 32}


def gradient(velocity: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(velocity.parameters()))])


def on_nodes(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    def run(steps: int, nodes: int) -> Tensor:
        return gradient(velocity, nll_loss(velocity, x1, method="rk4", steps=steps, nodes=nodes))

    for nodes in NODES:
        yield [Setting(f"rk4, {nodes} nodes", n, lambda n=n, k=nodes: run(n, k), nodes) for n in STEPS]


def together(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    def run(method: str, steps: int) -> Tensor:
        return gradient(velocity, nll_loss(velocity, x1, method=method, steps=steps))

    for method in ("rk4", "heun"):
        yield [Setting(method, n, lambda n=n, m=method: run(m, n)) for n in STEPS]


def zuko_way(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    def run(tolerance: float) -> Tensor:
        flow = zuko.transforms.FreeFormJacobianTransform(
            lambda t, x: velocity(x, t), t0=0.0, t1=1.0, phi=velocity.parameters(), atol=tolerance, rtol=tolerance
        )
        latent, ladj = flow.inv.call_and_ladj(x1)
        return gradient(velocity, -(standard_normal(latent) + ladj).mean() / x1.shape[1])

    yield [Setting("dopri5", tol, lambda tol=tol: run(tol)) for tol in TOLERANCES]


class Pair(nn.Module):
    """d/dt of the state and of minus the log-density, as FFJORD writes them."""

    def __init__(self, velocity: nn.Module):
        super().__init__()
        self.velocity = velocity

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].requires_grad_()
            v = self.velocity(x, t)
            trace = torch.zeros(len(x), dtype=x.dtype)
            for i in range(x.shape[1]):
                trace = trace + torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i]
        return v, -trace


def ffjord_way(velocity: Counted, x1: Tensor) -> Iterator[list[Setting]]:
    def run(tolerance: float) -> Tensor:
        latent, change = odeint_adjoint(
            Pair(velocity), (x1.clone(), torch.zeros(len(x1))), torch.tensor([1.0, 0.0]), rtol=tolerance,
            atol=tolerance, method="dopri5",
        )  # fmt: skip
        return gradient(velocity, -(standard_normal(latent[-1]) - change[-1]).mean() / x1.shape[1])

    yield [Setting("dopri5", tol, lambda tol=tol: run(tol)) for tol in TOLERANCES]


WAYS: dict[str, Way] = {
    "flowbook": on_nodes,
    "flowbook, beside the state": together,
    "zuko": zuko_way,
    "FFJORD": ffjord_way,
}


def main() -> None:
    options = measure.parser(__doc__, rounds=11)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {}
    for dim, batch in BATCHES.items():
        network, points = trained(dim)
        velocity, x1 = Counted(network.requires_grad_(True)), points[:batch]
        exact = nll_loss(velocity.double(), x1.double(), method="dopri8", rtol=1e-9, atol=1e-9)
        reference = gradient(velocity, exact)
        velocity.float()
        length = float(reference.square().mean().sqrt())
        found, _ = at_equal_error(WAYS, velocity, x1, reference, BOUND * length, arguments.rounds)
        for told in found["chosen"].values():
            told["relative_error"] = told.pop("rmse") / length
        result[f"D={dim}"] = found | {"bound": BOUND}
        print(dim, result[f"D={dim}"], flush=True)
    if not arguments.dry:
        peers = ("zuko", "torchdiffeq")
        print(measure.save("likelihood_training", result, peers=peers, note=arguments.note))


if __name__ == "__main__":
    main()
