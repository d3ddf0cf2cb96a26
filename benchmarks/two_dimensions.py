"""How close does the second half of chapter 3 come to the data, with and without optimal transport?

    python benchmarks/two_dimensions.py

The chapter's own training, eight Gaussians to moons, with its settings and seed; then 2-Wasserstein distances of 4,096
samples to as many fresh data, on 30 draws instead of the chapter's 5, next to the floor: two fresh draws of the data.
The median of 5 draws moves by a tenth and more from seed to seed, for every model alike, since a percent of the mass on
the other moon counts for much; so the result holds the median of all draws, that of each five, and the ratio of the
root mean squares.
"""

from __future__ import annotations

import statistics
from typing import Any

import measure
import torch

from flowbook import data, models
from flowbook.couplings import OptimalTransport
from flowbook.flow_matching import FlowMatching
from flowbook.metrics import wasserstein2
from flowbook.solvers import sample
from flowbook.training import TrainConfig, fit

SOURCE, MOONS = data.eight_gaussians(), data.moons()
SETTINGS: dict[str, Any] = {
    "steps": 4000, "batch_size": 512, "learning_rate": 0.02, "warmup_steps": 100, "ema_half_life": 100_000.0,
}  # fmt: skip
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "independent, dopri5": ("independent", {}),
    "optimal transport, dopri5": ("optimal transport", {}),
    "optimal transport, one Euler step": ("optimal transport", {"method": "euler", "steps": 1}),
}


def train(given: Any) -> Any:
    torch.manual_seed(0)
    return fit(models.MLP(2, hidden=128, depth=3), FlowMatching(), given, TrainConfig(**SETTINGS)).velocity


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--draws", type=int, default=30, help="a multiple of 5")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(1)
    coupled = [OptimalTransport()(SOURCE.sample(2048, generator), MOONS.sample(2048, generator)) for _ in range(12)]
    pairs = tuple(torch.cat([pair[side] for pair in coupled]) for side in (0, 1))  # type: ignore[misc]
    velocities = {"independent": train(data.Unpaired(SOURCE, MOONS)), "optimal transport": train((*pairs, None))}

    generator = torch.Generator().manual_seed(100)
    distances: dict[str, list[float]] = {name: [] for name in ("floor", *RUNS)}
    for _ in range(arguments.draws):
        x0, x1, fresh = SOURCE.sample(4096, generator), MOONS.sample(4096, generator), MOONS.sample(4096, generator)
        distances["floor"].append(wasserstein2(fresh, x1))
        for name, (model, how) in RUNS.items():
            distances[name].append(wasserstein2(sample(velocities[model], x0, **how).x, x1))
        print({name: round(values[-1], 3) for name, values in distances.items()}, flush=True)

    def summary(name: str) -> dict[str, Any]:
        own, floor = distances[name], distances["floor"]
        fives = [slice(first, first + 5) for first in range(0, len(own), 5)]
        return {
            "median": statistics.median(own),
            "median_over_floor": statistics.median(own) / statistics.median(floor),
            "rms_over_floor": (sum(d**2 for d in own) / sum(d**2 for d in floor)) ** 0.5,
            "median_over_floor_of_fives": [statistics.median(own[s]) / statistics.median(floor[s]) for s in fives],
        }

    result = {"settings": SETTINGS, "draws": arguments.draws} | {name: summary(name) for name in distances}
    print(result)
    if not arguments.dry:
        print(measure.save("two_dimensions", result, note=arguments.note))


if __name__ == "__main__":
    main()
