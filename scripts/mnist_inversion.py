"""Round trips of MNIST test images through the shipped model: ``python scripts/mnist_inversion.py``.

Twelve images, each inverted under its label and generated again, by every solver and with 10 to 1000 evaluations, both
ways together. Needs the test images of MNIST, and a few minutes on two CPU cores.
"""

import json
from pathlib import Path
from typing import Any

from flowbook import data, models
from flowbook.inversion import RoundTrip, round_trip
from flowbook.models import asset
from flowbook.solvers import FIXED

IMAGES = 12
EVALUATIONS = (10, 20, 40, 100, 200, 400, 1000)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)


def main() -> None:
    velocity = models.load_pretrained("mnist")
    images, labels = (part[:IMAGES] for part in data.mnist("test"))

    def measured(**options: Any) -> dict[str, float]:
        trip: RoundTrip = round_trip(velocity, images, y=labels, **options)
        row = {
            "nfe": trip.nfe,
            "mean": float(trip.error.mean()),
            "worst": float(trip.error.max()),
            "latent_rms": float(trip.latent.square().mean().sqrt()),
        }
        print(options, row, flush=True)
        return row

    fixed = {
        name: [
            measured(method=name, steps=total // (2 * method.calls))
            for total in EVALUATIONS
            if total >= 2 * method.calls
        ]
        for name, method in FIXED.items()
        if not method.memory  # which takes a call more to start
    }
    adaptive = [{"tolerance": tol, **measured(rtol=tol, atol=tol)} for tol in TOLERANCES]
    stored = {"images": IMAGES, "fixed": fixed, "dopri5": adaptive}
    Path(asset("mnist_inversion.json")).write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
