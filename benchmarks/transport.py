r"""How long does one minibatch coupling by optimal transport take, with each library?

    python benchmarks/transport.py

Noise and digits (8 x 8, D = 64), and two clouds in the plane (D = 2), in batches of 128, 512 and 2,048. All of them
find the exact assignment that minimizes the sum of squared distances:

- flowbook: ``OptimalTransport()(x0, x1)``, which pairs every noise with one data point;
- torchcfm: ``OTPlanSampler(method="exact").sample_plan(x0, x1)``: the plan of POT's network simplex, then pairs drawn
  from it with replacement, its default;
- denoising-diffusion-pytorch: ``GaussianDiffusion.noise_assignment``, SciPy's assignment of plain distances (what its
  ``immiscible=True`` does; rectified-flow-pytorch does the same inside its loss).

The costs of the assignments are compared before anything is timed: torchcfm's must cost as much as flowbook's in the
mean, and the third, which minimizes another cost, no less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion
from torch import Tensor
from torchcfm.optimal_transport import OTPlanSampler
from training_step import ForDiffusion

from flowbook import data, models
from flowbook.couplings import OptimalTransport

BATCHES = (128, 512, 2048)
PEERS = ("torchcfm", "pot", "denoising-diffusion-pytorch")
Pairs = tuple[Tensor, Tensor]


def ways(x0: Tensor, x1: Tensor) -> dict[str, Callable[[], Pairs]]:
    """Every way as a call that returns coupled noise and data."""
    transport, sampler = OptimalTransport(), OTPlanSampler(method="exact")
    unet = models.UNet(channels=1, size=8, width=8, multipliers=(1,))
    diffusion = GaussianDiffusion(ForDiffusion(unet), image_size=8, auto_normalize=False)
    return {
        "flowbook": lambda: transport(x0, x1)[:2],
        "torchcfm": lambda: sampler.sample_plan(x0, x1),
        "denoising-diffusion-pytorch": lambda: (x0[diffusion.noise_assignment(x1, x0)], x1),
    }


def cost(pairs: Pairs) -> float:
    return float((pairs[0] - pairs[1]).flatten(1).square().sum(1).mean())


def main() -> None:
    options = measure.parser(__doc__, rounds=11)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    digits = data.digits()[0]
    result: dict[str, Any] = {}
    for batch in BATCHES:
        rows = torch.randint(len(digits), (batch,), generator=generator)
        plane = data.eight_gaussians().sample(batch, generator), data.moons().sample(batch, generator)
        images = torch.randn(batch, 1, 8, 8, generator=generator), digits[rows]
        for name, (x0, x1) in (("D=2", plane), ("D=64", images)):
            np.random.seed(0)  # torchcfm draws its pairs with NumPy
            contenders = ways(x0, x1)
            costs = {way: cost(run()) for way, run in contenders.items()}
            assert abs(costs["torchcfm"] / costs["flowbook"] - 1) < 0.2, costs  # pairs drawn with replacement scatter
            assert costs["denoising-diffusion-pytorch"] > 0.999 * costs["flowbook"], costs
            repeats = max(1, 512 // batch)
            timings = measure.interleaved(
                {way: (lambda run=run, n=repeats: [run() for _ in range(n)]) for way, run in contenders.items()},
                arguments.rounds,
            )
            milliseconds = {way: 1e3 * timing.summary()["wall_s"] / repeats for way, timing in timings.items()}
            fastest = min((way for way in contenders if way != "flowbook"), key=milliseconds.__getitem__)
            result[f"{name}, batch {batch}"] = {
                "ms": milliseconds, "cost": costs, "fastest_peer": fastest,
                "over_flowbook": {
                    way: measure.ratio(timing, timings["flowbook"])
                    for way, timing in timings.items() if way != "flowbook"
                },
            }  # fmt: skip
            print(name, batch, result[f"{name}, batch {batch}"], flush=True)
    if not arguments.dry:
        print(measure.save("transport", result, peers=PEERS, note=arguments.note))


if __name__ == "__main__":
    main()
