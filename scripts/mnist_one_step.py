"""Score the shipped student of MNIST, one evaluation for each image: ``python scripts/mnist_one_step.py``.

10,000 samples of seed 0 are the headline, against the test images and in the labels' proportions, as for the teacher
in ``scripts/mnist_scores.py``; nothing was chosen on that seed. For the figure, 1,000 samples of seed 1 of the student
and, by Euler's method, of the teacher. Needs no data, and a minute on two CPU cores. The networks run in bfloat16.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from flowbook import models
from flowbook.metrics import score_velocity
from flowbook.models import asset

STEPS = (1, 2, 4, 8, 16)


def main() -> None:
    student, teacher = (models.load_pretrained(name) for name in ("mnist_one_step", "mnist"))
    judge, reference = models.load_classifier("mnist"), models.load_moments("mnist")["test"]
    counts = json.loads(asset("mnist_floor.json").read_text())["class_counts_train"]

    def score(network: nn.Module, **options: Any) -> dict[str, Any]:
        velocity = models.Autocast(network)
        result = asdict(score_velocity(velocity, judge, reference, method="euler", class_counts=counts, **options))
        print(result, flush=True)
        return result

    headline = score(student, n=10_000, steps=1, seed=0)
    euler = [score(teacher, n=1_000, steps=steps, seed=1) for steps in STEPS]
    midpoint = json.loads(asset("mnist_scores.json").read_text())["by_nfe"]
    one = [score(student, n=1_000, steps=1, seed=1)]
    stored = {
        "headline": headline, "teacher, Euler": euler, "teacher, guided midpoint": midpoint, "student": one,
    }  # fmt: skip
    Path(asset("mnist_one_step.json")).write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
