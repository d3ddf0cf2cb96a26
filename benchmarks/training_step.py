r"""What does a training step cost with each library, on equal networks?

    python benchmarks/training_step.py

Two networks at batch 256: a multilayer perceptron on points in the plane, and a U-Net on the 8 x 8 digits. A step
draws its batch, noise and times, computes the loss and its gradient, moves the weights and averages them. Each library
does so with what it has for the task:

- flowbook: ``fit``, as it is;
- torchcfm: ``ConditionalFlowMatcher(sigma=0)`` and the squared error of its tutorials;
- flow_matching: ``AffineProbPath(CondOTScheduler())`` and the squared error of its examples;
- rectified-flow-pytorch: ``RectifiedFlow(model)``, whose call is the loss;
- denoising-diffusion-pytorch: ``GaussianDiffusion(model)``, whose call is the loss (images only).

Equal on all sides: the network and its first weights, the data (in memory; a batch is drawn by random indices), fused
AdamW at one learning rate, and averaged weights after every step. flow_matching and torchcfm have no averaging of their
own and get PyTorch's ``AveragedModel`` with its fused update; the other two get ``ema_pytorch``, their trainers' own,
once as it comes (every 10th step) and with its update at every step. Nothing is compiled. Only steps are timed. zuko
trains by likelihood, which ``likelihood_training.py`` compares.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import measure
import torch
from denoising_diffusion_pytorch import GaussianDiffusion
from ema_pytorch import EMA
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler
from rectified_flow_pytorch import RectifiedFlow
from step_overhead import Clocks, fitted
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

from flowbook import data, models
from flowbook.training import TrainConfig

BATCH = 256
LEARNING_RATE = 1e-3
PEERS = ("torchcfm", "flow-matching", "rectified-flow-pytorch", "denoising-diffusion-pytorch", "ema-pytorch")


class ForDiffusion(nn.Module):
    """A U-Net with the attributes that GaussianDiffusion asks for; its times are whole numbers of a thousand."""

    channels = out_dim = 1
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, steps: Tensor, x_self_cond: None = None) -> Tensor:
        return self.unet(x, steps / 1000)


class WithTimes(nn.Module):
    """A velocity under the name that RectifiedFlow calls the time by."""

    def __init__(self, velocity: nn.Module):
        super().__init__()
        self.velocity = velocity

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        return self.velocity(x, times)


def of_torchcfm(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    matcher = ConditionalFlowMatcher(sigma=0.0)

    def loss(x1: Tensor) -> Tensor:
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        return (model(xt, t) - ut).square().mean()

    return model, loss


def of_flow_matching(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    path = AffineProbPath(scheduler=CondOTScheduler())

    def loss(x1: Tensor) -> Tensor:
        point = path.sample(t=torch.rand(len(x1)), x_0=torch.randn_like(x1), x_1=x1)
        return (model(point.x_t, point.t) - point.dx_t).square().mean()

    return model, loss


def of_rectified_flow(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    flow = RectifiedFlow(WithTimes(model), data_normalize_fn=None, data_unnormalize_fn=None)
    return flow, flow


def of_denoising_diffusion(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    diffusion = GaussianDiffusion(ForDiffusion(model), image_size=8, auto_normalize=False)
    return diffusion, diffusion


def pytorchs_average(model: nn.Module) -> Callable[[], None]:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    return lambda: average.update_parameters(model)


def ema_every(steps: int) -> Callable[[nn.Module], Callable[[], None]]:
    return lambda model: EMA(model, update_every=steps, update_after_step=0).update


Library = Callable[[nn.Module], tuple[nn.Module, Callable[[Tensor], Tensor]]]
LIBRARIES: dict[str, tuple[Library, Callable[[nn.Module], Callable[[], None]]]] = {
    "torchcfm": (of_torchcfm, pytorchs_average),
    "flow_matching": (of_flow_matching, pytorchs_average),
    "rectified-flow-pytorch": (of_rectified_flow, ema_every(1)),
    "rectified-flow-pytorch, average every 10th": (of_rectified_flow, ema_every(10)),
    "denoising-diffusion-pytorch": (of_denoising_diffusion, ema_every(1)),
    "denoising-diffusion-pytorch, average every 10th": (of_denoising_diffusion, ema_every(10)),
}


class Peer:
    """A library's training, which goes on from round to round."""

    def __init__(self, name: str, model: nn.Module, draw: Callable[[], Tensor]):
        library, averaging = LIBRARIES[name]
        self.module, self.loss = library(copy.deepcopy(model))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.average, self.draw = averaging(self.module), draw

    def train(self, steps: int) -> tuple[float, float]:
        """Wall-clock and CPU seconds from the first loss to the end of the last step, as for ``fit``."""
        clocks = Clocks()
        for _ in range(steps):
            x1 = self.draw()
            clocks.start()
            self.optimizer.zero_grad()
            self.loss(x1).backward()
            self.optimizer.step()
            self.average()
        return clocks.read()


def task(name: str) -> tuple[nn.Module, Any]:
    """A model, and its data as one tensor."""
    torch.manual_seed(0)
    if name == "mlp":
        return models.MLP(2), data.moons().sample(100_000)
    unet = models.UNet(channels=1, size=8, width=32, multipliers=(1, 2))
    return unet.to(memory_format=torch.channels_last), data.digits()[0]


def main() -> None:
    options = measure.parser(__doc__, rounds=11)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {}
    for name, steps in (("mlp", 300), ("unet", 6)):
        model, points = task(name)
        peers = {
            library: Peer(library, model, lambda: points[torch.randint(len(points), (BATCH,))])  # noqa: B023
            for library in LIBRARIES if name == "unet" or not library.startswith("denoising")
        }  # fmt: skip
        config = TrainConfig(steps=steps, batch_size=BATCH, learning_rate=LEARNING_RATE)
        run: dict[str, Callable[[], tuple[float, float]]] = {
            "flowbook": lambda: fitted(copy.deepcopy(model), points, config)  # noqa: B023
        }
        run |= {library: (lambda peer=peer: peer.train(steps)) for library, peer in peers.items()}  # noqa: B023
        timings = measure.clocked(run, arguments.rounds)
        milliseconds = {key: 1e3 * timing.summary()["wall_s"] / steps for key, timing in timings.items()}
        fastest = min(peers, key=milliseconds.__getitem__)
        result[name] = {
            "batch": BATCH, "parameters": sum(weights.numel() for weights in model.parameters()),
            "ms_per_step": milliseconds, "fastest_peer": fastest,
            "over_flowbook": {peer: measure.ratio(timings[peer], timings["flowbook"]) for peer in peers},
        }  # fmt: skip
        print(name, result[name], flush=True)
    if not arguments.dry:
        print(measure.save("training_step", result, peers=PEERS, note=arguments.note))


if __name__ == "__main__":
    main()
