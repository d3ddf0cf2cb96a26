"""Bits per dimension of a velocity on MNIST's test images: ``python scripts/mnist_bits.py CHECKPOINT``.

CHECKPOINT is the folder of ``flowbook train mnist_dequantized``, whose images were dequantised as those here are.
FLOWBOOK_DATA says where MNIST is. Written to ``flowbook/assets/mnist_bits.json``: the mean over the first 1,000 test
images with its standard error, which counts images and probes alike; what a finer solver changes; and what more
dequantisation draws change. Labels are left out: the density is that of an image, not of an image given its digit.
"""

from __future__ import annotations

import json
import math
import sys

import torch
from torch import Tensor

from flowbook import data, training
from flowbook.cnf import log_prob
from flowbook.dequantization import bits_per_dim, dequantize, discrete_log_prob
from flowbook.models.pretrained import asset

IMAGES, FEW, STEPS, LEVELS = 1000, 100, 20, 256


def main(checkpoint: str) -> None:
    velocity = training.load(checkpoint)
    images, _ = data.mnist("test")
    dims = images[0].numel()

    def density(x: Tensor, steps: int = STEPS, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        parts = [
            log_prob(velocity, part, trace="hutchinson", generator=generator, method="rk4", steps=steps).log_prob
            for part in x.split(100)
        ]
        return torch.cat(parts)

    def spread(values: Tensor) -> dict[str, float]:
        return {"mean": float(values.mean()), "std_err": float(values.std() / math.sqrt(len(values)))}

    x = dequantize(images[:IMAGES], LEVELS, torch.Generator().manual_seed(1))
    bits = bits_per_dim(density(x), dims, LEVELS)
    finer = bits_per_dim(density(x[:FEW], 2 * STEPS), dims, LEVELS) - bits_per_dim(density(x[:FEW]), dims, LEVELS)
    draws = {
        str(n): -discrete_log_prob(density, images[:FEW], LEVELS, n, torch.Generator().manual_seed(2))
        / (dims * math.log(2))
        for n in (1, 4)
    }
    scores = {
        "images": IMAGES, "method": "rk4", "steps": STEPS, "probes": 1, "bits_per_dim": spread(bits),
        "change_with_twice_the_steps": spread(finer),
        "by_draws": {n: spread(values) for n, values in draws.items()},
    }  # fmt: skip
    asset("mnist_bits.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} CHECKPOINT")
    main(sys.argv[1])
