r"""How long until a model of digits is as good as torchcfm's tutorial recipe leaves it?

    python benchmarks/time_to_quality_digits.py

The 8 x 8 digits with their classes, and the package's small U-Net (151,137 weights) on both sides, from the same first
weights. torchcfm trains it as its tutorials of images do: its ConditionalFlowMatcher with sigma 0, Adam at 1e-3, batch
128, no averaging, for 2,000 steps (178 passes through the 1,437 images). The Frechet distance that it ends with is the
target. flowbook trains with ``fit`` for more and more steps, each time a complete run with its own cosine decay, until
a run ends at the target or below and the next longer one does so too; the first one's time counts.

The distance is between the features of the package's classifier of digits, of 1,437 samples (12 midpoint steps, labels
as frequent as in the data) and of the training images, the median over three draws. Equal on both sides: what is
scored and how, one thread, and what is timed: training, from the first step to the last. Within a seed the two are
trained in turns. flowbook's settings are those of its recipe `digits`, which were chosen on other seeds.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import measure
import torch
from time_to_quality import compared
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

from flowbook import data, metrics, models
from flowbook.flow_matching import FlowMatching
from flowbook.solvers import sample
from flowbook.training import TrainConfig, fit

SEEDS = (11, 12, 13)
STEPS = (800, 1600, 3200, 6400)  # of flowbook's attempts
SETTINGS: dict[str, Any] = {
    "batch_size": 64, "learning_rate": 4e-3, "warmup_steps": 50, "gradient_clip": 1.0, "beta2": 0.99,
    "ema_half_life": 10_000.0,
}  # fmt: skip  # of the recipe `digits`
IMAGES, LABELS = data.digits("train")
JUDGE = models.load_classifier("digits")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    unet = models.UNet(channels=1, size=8, width=16, multipliers=(1, 2), blocks=1, num_classes=10)
    return unet.to(memory_format=torch.channels_last)


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    return models.features_and_labels(JUDGE, images)[0]


def distance(velocity: nn.Module) -> float:
    """The median Frechet distance of three draws to the training images."""
    distances = []
    for draw in range(3):
        x0 = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1_000_000 + draw))
        images = sample(velocity, x0, y=LABELS, method="midpoint", steps=12).x
        distances.append(metrics.frechet_distance(features(images), features(IMAGES)))
    return statistics.median(distances)


def tutorial(seed: int, steps: int) -> dict[str, float]:
    """torchcfm's recipe for images, through torchcfm's own matcher."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters())
    matcher = ConditionalFlowMatcher(sigma=0.0)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        rows = torch.randint(len(IMAGES), (128,))
        x1, y = IMAGES[rows], LABELS[rows]
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = (model(xt, t, y) - ut).square().mean()
        loss.backward()
        optimizer.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"steps": steps, "wall_s": wall, "cpu_s": cpu, "frechet": distance(model)}


def flowbook(seed: int, steps: int, **changes: Any) -> dict[str, float]:
    """A complete run of ``fit`` with so many steps."""
    model = copy.deepcopy(network(seed))
    config = TrainConfig(steps=steps, seed=seed, **(SETTINGS | changes))
    wall, cpu = time.perf_counter(), time.process_time()
    trained = fit(model, FlowMatching(condition_dropout=0.0), (IMAGES, LABELS), config)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"steps": steps, "wall_s": wall, "cpu_s": cpu, "frechet": distance(trained.velocity)}


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options.add_argument("--tutorial-steps", type=int, default=2_000, help="fewer only to try the script")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    half = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(0))
    floor = metrics.frechet_distance(features(IMAGES[half[::2]]), features(IMAGES[half[1::2]]))
    result = {"distance": "Frechet", "distance_of_halves": floor, "flowbook_settings": SETTINGS} | compared(
        arguments.seeds, lambda seed: tutorial(seed, arguments.tutorial_steps), flowbook, STEPS, "frechet"
    )
    if not arguments.dry:
        print(measure.save("time_to_quality_digits", result, peers=("torchcfm",), note=arguments.note))


if __name__ == "__main__":
    main()
