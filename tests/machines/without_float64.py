"""The public interface on a device that refuses float64; run by test_machines.py in a process of its own.

Prints a line for each entry: its name, and "ok" or the error.
"""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from machines.stand_in import apple, register
from torch import Tensor

from flowbook import analytic, cnf, data, inversion, metrics, models, reflow
from flowbook.adapters import from_callable, from_edm, from_score, to_edm
from flowbook.couplings import OptimalTransport, couple_ahead
from flowbook.diffusion import (
    Diffusion,
    NoiseSchedule,
    StepModel,
    ddim_sample,
    ddpm_loss,
    ddpm_sample,
    probability_flow,
    variational_bound,
)
from flowbook.divergence import divergence, rademacher
from flowbook.flow_matching import FlowMatching
from flowbook.guidance import guided
from flowbook.paths import CosinePath, LinearPath, SubVPPath, VEPath, VPPath, as_velocity, change_path, retimed
from flowbook.reflow import OnlinePairs, Reflow
from flowbook.solvers import FIXED, METHODS, Solver, sample, solve
from flowbook.training import EMA, train_step

warnings.simplefilter("ignore")
torch.manual_seed(0)
SCHEDULE = NoiseSchedule.linear(20, rescale=True)
MIXTURE = analytic.two_gaussians(2.0, 0.5)
X, Y = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
NETWORK = models.MLP(2, hidden=16, num_classes=3)
SOLVERS = {method: Solver(method, steps=3 if method in FIXED else None) for method in METHODS}
IMAGES = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


class At:
    """Everything that an entry needs, on a device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.x, self.y, self.images = X.to(device), Y.to(device), IMAGES.to(device)
        self.network = models.MLP(2, hidden=16, num_classes=3)
        self.network.load_state_dict(NETWORK.state_dict())
        self.network.to(device)
        torch.manual_seed(0)
        self.unet = models.UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,)).to(device)
        self.dit = models.DiT(1, 8, width=16, depth=1, heads=2, condition_dim=3, context_dim=4).to(device)
        self.step = StepModel(self.network, SCHEDULE)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def steps(at: At) -> Tensor:
    optimizer = torch.optim.Adam(at.network.parameters(), fused=False, foreach=False)
    ema = EMA(at.network, batch_size=6)
    for loss in (FlowMatching(condition_dropout=0.2), Diffusion(SCHEDULE), Reflow(), cnf.MaximumLikelihood(steps=1)):
        torch.manual_seed(0)
        train_step(at.network, (at.x.flip(0), at.x, at.y), loss, optimizer, ema, gradient_clip=1.0)
    with torch.no_grad():
        return ema.model(at.x, 0.5, at.y)


def pairs(at: At) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        made = reflow.generate_pairs(at.network, (2,), 8, folder, y=torch.arange(8) % 3, steps=2)
        return made.batch(torch.arange(8))[1]


def exact(path: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: MIXTURE.denoised(x, t, path)


def drawn(kind: str) -> dict[str, Any]:
    return {"generator": draws()} if kind == "reconstruction" else {}


ENTRIES: dict[str, Any] = {
    **{
        f"solve by {method}": lambda at, solver=solver: solve(
            at.network, at.x, 0.1, 0.9, y=at.y, save_at=[0.1, 0.5, 0.9], solver=solver
        ).trajectory
        for method, solver in SOLVERS.items()
    },
    "sample by default": lambda at: sample(at.network, at.x, y=at.y).x,
    "log_prob": lambda at: cnf.log_prob(at.network, at.x, y=at.y, steps=2).log_prob,
    "log_prob by dopri5": lambda at: cnf.log_prob(at.network, at.x, method="dopri5", rtol=1e-3, atol=1e-3).log_prob,
    "log_prob on nodes": lambda at: cnf.log_prob(at.network, at.x, steps=4, nodes=3).log_prob,
    "log_prob by probes": lambda at: cnf.log_prob(
        at.network, at.x, steps=2, trace="hutchinson", probes=2, generator=draws()
    ).log_prob,
    "nll by backprop": lambda at: cnf.nll_loss(at.network, at.x, steps=2, kinetic=0.1, jacobian=0.1).detach(),
    "nll by recomputation": lambda at: cnf.nll_loss(at.network, at.x, steps=2, gradient="recompute").detach(),
    "nll by the adjoint": lambda at: cnf.nll_loss(at.network, at.x, gradient="adjoint", rtol=1e-3, atol=1e-3).detach(),
    "divergence": lambda at: divergence(at.unet, at.images, 0.5)[1],
    "divergence by probes": lambda at: divergence(
        at.unet, at.images, 0.5, method="hutchinson", noise=rademacher(2, at.images, draws())
    )[1],
    "bits of images": lambda at: cnf.bits_of_images(at.unet, at.images.sign(), levels=2, steps=1),
    "dequantize": lambda at: cnf.dequantize(at.images.sign(), 2, generator=draws()),
    "steps of training": steps,
    "transport": lambda at: OptimalTransport()(at.x, at.x.flip(0) + 1)[0],
    "transport by Sinkhorn": lambda at: OptimalTransport("sinkhorn", reg=0.5)(at.x, at.x.flip(0) + 1)[0],
    "transport by labels": lambda at: OptimalTransport(label_aware=True)(at.x, at.x.flip(0), at.y)[0],
    "transport by conditions": lambda at: OptimalTransport(condition_cost=2.0)(at.x, at.x.flip(0), at.x)[0],
    "transport ahead": lambda at: next(iter(couple_ahead([(at.x, at.x.flip(0), None)], OptimalTransport())))[0],
    "ddpm_loss": lambda at: ddpm_loss(at.step, at.x, SCHEDULE, at.y, i=at.y, noise=at.x).detach(),
    "ddpm_sample": lambda at: ddpm_sample(at.step, at.x, SCHEDULE, at.y, generator=draws()),
    "ddim_sample": lambda at: ddim_sample(at.step, at.x, SCHEDULE, 5, eta=0.5, y=at.y, generator=draws()),
    "variational bound": lambda at: variational_bound(at.step, at.x.sign(), SCHEDULE, levels=2, generator=draws()),
    "probability flow": lambda at: sample(probability_flow(at.step, SCHEDULE), at.x, y=at.y).x,
    "probability flow at whole steps": lambda at: sample(
        probability_flow(at.step, SCHEDULE, integer_steps=True), at.x, steps=2
    ).x,
    "guidance": lambda at: sample(guided(at.network, 2.0), at.x, y=at.y, steps=2).x,
    "retimed": lambda at: sample(retimed(at.network), at.x, steps=2).x,
    **{
        f"mixture on {path!r}": lambda at, path=path: sample(MIXTURE.as_velocity(path), at.x, steps=3).x
        for path in (LinearPath(), CosinePath(), VPPath(), SubVPPath(), VEPath())
    },
    **{
        f"conversion on {path!r}": lambda at, path=path: sample(as_velocity(exact(path), path, "data"), at.x, steps=3).x
        for path in (LinearPath(), CosinePath(), VPPath(), SubVPPath(), VEPath())
    },
    **{
        f"change to {path!r}": lambda at, path=path: sample(
            change_path(as_velocity(exact(VPPath()), VPPath(), "data"), path), at.x, steps=3
        ).x
        for path in (LinearPath(), CosinePath(), VEPath(rho=float("inf")))
    },
    "mixture's density": lambda at: MIXTURE.log_prob(at.x),
    "DiT with conditions": lambda at: at.dit(at.images, 0.5, {"vector": at.x[:2].repeat(1, 2)[:, :3]}),
    "generate_pairs": pairs,
    "online pairs": lambda at: OnlinePairs(at.network, (2,), Y, steps=2).sample(4, draws())[1],
    "encode": lambda at: reflow.encode(at.network, at.x, y=at.y),
    "invert": lambda at: inversion.invert(at.network, at.x, y=at.y).x,
    "round trip": lambda at: inversion.round_trip(at.network, at.x, steps=2).error,
    "choose_steps": lambda at: inversion.choose_steps(at.network, at.x, 1e-2).trip.latent,
    "edit": lambda at: inversion.edit(at.network, at.x, at.y, at.y.flip(0), guidance=2.0, steps=2).x,
    "interpolate": lambda at: inversion.interpolate(at.network, at.x, at.x.flip(0) + 2, 3, y=at.y, steps=2).x,
    "denoise": lambda at: inversion.denoise(at.network, at.x, noise_std=0.5).x,
    "denoise along the flow": lambda at: inversion.denoise(
        at.network, at.x, noise_std=at.x[:, 0].abs() + 0.1, estimate="ode", steps=2
    ).x,
    "estimate_noise": lambda at: inversion.estimate_noise(
        MIXTURE.as_velocity(LinearPath()), at.x, generator=draws()
    ),
    **{
        f"anomaly by {kind}": lambda at, kind=kind, options=options: inversion.anomaly_score(
            at.network, at.x, kind, **options, **drawn(kind)
        )
        for kind, options in {
            "likelihood": {"steps": 2}, "typicality": {"steps": 2, "reference": -2.0}, "latent_norm": {"steps": 2},
            "reconstruction": {},
        }.items()
    },
    "straightness": lambda at: metrics.straightness(at.network, at.x, y=at.y, steps=2),
    "transport_cost": lambda at: metrics.transport_cost(at.x, at.x.flip(0)),
    "wasserstein2": lambda at: metrics.wasserstein2(at.x, at.x + 1),
    "sliced_wasserstein": lambda at: metrics.sliced_wasserstein(at.x, at.x + 1, generator=draws()),
    "mmd": lambda at: metrics.mmd(at.x, at.x + 1),
    "nearest_neighbors": lambda at: metrics.nearest_neighbors(at.x, at.x.flip(0))[0],
    "moments": lambda at: metrics.moments(at.x)[1],
    "Frechet distance": lambda at: metrics.frechet_distance(at.x, at.x + 1),
    "a function of another convention": lambda at: sample(
        from_callable(lambda t, x: x * t, "t,x", time_scale=10.0, reverse=True, sign=-1), at.x, steps=2
    ).x,
    "a denoiser": lambda at: sample(from_edm(lambda x, s: 0.5 * x), 80 * at.x, method="heun", steps=4).x,
    "a score": lambda at: sample(from_score(lambda x, s: -x, "vp"), at.x, steps=2).x,
    "back to a denoiser": lambda at: to_edm(at.network)(at.x, at.x[:, 0].abs() + 0.1, at.y).detach(),
    "schedule": lambda at: SCHEDULE.add_noise(at.x, at.y, at.x.flip(0)),
    "schedule's posterior": lambda at: SCHEDULE.posterior(at.x, at.x.flip(0), at.y)[0],
    "images as bytes": lambda at: data.to_bytes(at.images).float(),
}  # fmt: skip


def as_numbers(value: Any) -> Tensor:
    value = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
    return (value if value.device.type == "cpu" else value.cpu()).double()


def main() -> None:
    register()
    expected = {name: as_numbers(entry(At(torch.device("cpu")))) for name, entry in ENTRIES.items()}
    with apple() as device:
        for name, entry in ENTRIES.items():
            try:
                found = as_numbers(entry(At(device)))
                torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4)
                print(f"{name}: ok", flush=True)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)
                ours = [
                    f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
                    for frame in where
                    if "flowbook/" in frame.filename
                ]
                print(f"{name}: {type(error).__name__} at {ours[-1:]}: {str(error)[:200]}", flush=True)


if __name__ == "__main__":
    main()
