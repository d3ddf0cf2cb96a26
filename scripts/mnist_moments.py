"""Write what generated MNIST digits are measured against: ``python scripts/mnist_moments.py``.

Means and covariances of real images in the judge's features, and the scores of real images themselves: the accuracy of
the judge on the test images, and the Frechet distance of training images to them, which is the floor for a model.
MNIST must be at hand (FLOWBOOK_DATA); the images themselves do not go into the files.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flowbook import data, metrics, models
from flowbook.models import asset


def main() -> None:
    judge = models.load_classifier("mnist")
    features, labels = {}, {}
    scores: dict[str, Any] = {}
    for split in ("train", "test"):
        images, labels[split] = data.mnist(split)
        features[split], seen = models.features_and_labels(judge, images)
        scores[f"judge_accuracy_{split}"] = float((seen == labels[split]).float().mean())
        scores[f"class_counts_{split}"] = labels[split].bincount(minlength=10).tolist()
    # 10,000 training images, drawn once: as many as there are to test on.
    order = torch.randperm(len(features["train"]), generator=torch.Generator().manual_seed(0))
    train = features["train"][order[:10_000]]
    moments = {"train": metrics.moments(train), "test": metrics.moments(features["test"])}
    for n in (1_000, 10_000):
        floors = [
            metrics.frechet_from_moments(
                metrics.moments(features["train"][order[k * n : (k + 1) * n]]), moments["test"]
            )
            for k in range(5)
        ]
        scores[f"frechet_floor_{n}"] = sorted(floors)[2]
        scores[f"frechet_floors_{n}"] = floors
    # What a set with every digit equally often scores, which MNIST's own proportions are not.
    balanced = torch.cat([order[labels["train"][order] == label][:1_000] for label in range(10)])
    scores["frechet_balanced_10000"] = metrics.frechet_from_moments(
        metrics.moments(features["train"][balanced]), moments["test"]
    )
    tensors = {f"{split}.mean": mean for split, (mean, _) in moments.items()}
    tensors |= {f"{split}.covariance": covariance for split, (_, covariance) in moments.items()}
    save_file(tensors, asset("mnist_moments.safetensors"))
    Path(asset("mnist_floor.json")).write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
