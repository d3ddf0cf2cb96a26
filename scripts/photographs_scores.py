"""Scores of the photographs recipe: ``python scripts/photographs_scores.py RUN TRAIN TEST``.

RUN is the folder of ``flowbook train photographs_ddpm``, TRAIN and TEST are folders with one subfolder of photographs
per class; TEST was not trained on. Written to ``flowbook/assets``: a grid of samples, and the scores. No network here
knows photographs, so the samples are compared in the space of pixels: the sliced Wasserstein distance to test
photographs, next to that of as many training photographs. It sees colors and layout, not what things are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from flowbook import data, diffusion, metrics, training
from flowbook.models import asset

SAMPLES, BOUND = 400, 32


def photographs(folder: str, n: int) -> torch.Tensor:
    """n photographs, drawn without replacement, (n, 3, 64, 64)."""
    images = data.image_folder(folder, size=64, labels=False)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]  # type: ignore[arg-type]
    return torch.stack([images[int(index)] for index in chosen])


@torch.no_grad()
def main(run: str, train: str, test: str) -> None:
    velocity = training.load(run)
    assert isinstance(velocity, diffusion.ProbabilityFlow)
    model, schedule = velocity.model, velocity.schedule
    seen, unseen = photographs(train, SAMPLES), photographs(test, SAMPLES)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, 3, 64, 64, generator=generator)
    drawn = torch.cat(
        [diffusion.ddim_sample(model, part, schedule, 50, clip=1.0, generator=generator) for part in noise.split(100)]
    )
    grid = diffusion.ddpm_sample(model, noise[:40], schedule, clip=1.0, generator=generator)
    save_image(
        make_grid(grid.clamp(-1, 1), nrow=10, normalize=True, value_range=(-1, 1)), asset("photographs_ddpm.png")
    )

    def sliced(images: torch.Tensor) -> float:
        directions = torch.Generator().manual_seed(1)
        return metrics.sliced_wasserstein(images.flatten(1), unseen.flatten(1), generator=directions)

    losses = {
        name: float(
            torch.stack([
                diffusion.ddpm_loss(model, images, schedule, i=torch.arange(SAMPLES) % schedule.steps,
                                    noise=torch.randn(images.shape, generator=torch.Generator().manual_seed(2)))
            ]).mean()
        )
        for name, images in (("train", seen), ("test", unseen))
    }  # fmt: skip
    least = torch.zeros(BOUND, dtype=torch.long)  # step 0
    slightly = schedule.add_noise(unseen[:BOUND], least, torch.randn(unseen[:BOUND].shape, generator=generator))
    error = (model(slightly, least) - unseen[:BOUND]).square().mean().sqrt()
    bits = diffusion.variational_bound(model, unseen[:BOUND], schedule, generator=torch.Generator().manual_seed(3))
    log = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    scores = {
        "weights": sum(p.numel() for p in velocity.network.parameters()),
        "steps": log[-1]["step"],
        "hours": log[-1]["seconds"] / 3600,
        "samples": SAMPLES,
        "sliced_wasserstein_ddim_50": sliced(drawn),
        "sliced_wasserstein_train": sliced(seen),
        "sliced_wasserstein_noise": sliced(noise),
        "noise_at_step_0": float(schedule.amplitudes(0, noise)[1]),
        "rms_error_of_the_data_at_step_0": float(error),
        "loss_train": losses["train"],
        "loss_test": losses["test"],
        "bits_per_dim_bound_test": float(bits.mean()),
        "bits_per_dim_bound_std_err": float(bits.std() / BOUND**0.5),
    }
    asset("photographs_ddpm.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} RUN TRAIN TEST")
    main(*sys.argv[1:])
