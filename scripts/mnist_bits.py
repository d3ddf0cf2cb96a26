"""Bits per dimension of the shipped ``mnist_dequantized`` on MNIST's test images: ``python scripts/mnist_bits.py``.

FLOWBOOK_DATA says where MNIST is. Written to ``flowbook/assets/mnist_bits.json``: the mean over the first 1,000 test
images with its standard error, which counts images, dequantization and probes alike; the first few one by one, to be
checked again; what a finer solver changes, and what steps of equal length would. Labels are left out: the density is
that of an image, not of an image given its digit.
"""

from __future__ import annotations

import json
import math

from torch import Tensor

from flowbook import data, models
from flowbook.cnf import bits_of_images
from flowbook.models import asset
from flowbook.paths import retimed

IMAGES, FEW, STEPS, LEVELS, POWER = 1000, 100, 20, 256, 3


def spread(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "std_err": float(values.std() / math.sqrt(len(values)))}


def main() -> None:
    shipped = models.load_pretrained("mnist_dequantized")
    velocity = retimed(shipped, POWER)
    images, _ = data.mnist("test")
    bits = bits_of_images(velocity, images[:IMAGES], LEVELS, steps=STEPS)
    equal = bits_of_images(shipped, images[:FEW], LEVELS, steps=STEPS)
    finer = bits_of_images(velocity, images[:FEW], LEVELS, steps=2 * STEPS)
    scores = {
        "images": IMAGES, "levels": LEVELS, "method": "rk4", "steps": STEPS, "power": POWER, "probes": 1, "draws": 1,
        "bits_per_dim": spread(bits), "first": bits[:16].tolist(),
        "change_with_twice_the_steps": spread(finer - bits[:FEW]),
        "change_with_equal_steps_of_t": spread(equal - bits[:FEW]),
    }  # fmt: skip
    asset("mnist_bits.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
