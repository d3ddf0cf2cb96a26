r"""How good does a recipe get in so many minutes?

    python benchmarks/gpu_training.py mnist          # eight minutes, then class accuracy and Frechet distance
    python benchmarks/gpu_training.py photographs    # eight minutes of the data set that it names, and a grid
    python benchmarks/gpu_training.py digits --minutes 0.5 train.device=cpu

A few steps are timed first, compilation not counted, and the recipe is run with as many steps as fit, its cosine decay
over all of them, without previews and with one checkpoint at the end. Other settings as ``flowbook train`` takes them,
after the name. A grid of samples goes to ``results/``; of MNIST, whose classifier is shipped, a score of 10,000 samples
too.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import measure
import torch
from torchvision.utils import make_grid, save_image

from flowbook import data, metrics, models, recipes
from flowbook.training import TrainConfig
from flowbook.training.precision import choose_device


def seconds_per_step(name: str, changes: list[str]) -> float:
    """Of steps 21 to 60 of a short run, as its log tells."""
    few = ["train.steps=60", "train.warmup_steps=0", "train.log_every=20"]
    with TemporaryDirectory() as folder:
        recipes.run(recipes.read(name, [*changes, *few]), folder, progress=False)
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return (seconds[60] - seconds[20]) / 40


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("recipe")
    options.add_argument("overrides", nargs="*", help="section.key=value")
    options.add_argument("--minutes", type=float, default=8.0)
    arguments, rest = options.parse_known_args()
    quiet = ["train.checkpoint_every=null", "train.preview_every=null"]
    changes = ["train.device=auto", *quiet, *arguments.overrides, *rest]
    each = seconds_per_step(arguments.recipe, changes)
    steps = max(10, int(60 * arguments.minutes / each))
    recipe = recipes.read(arguments.recipe, [*changes, f"train.steps={steps}"])
    print(recipes.announce(recipe), flush=True)
    trained = recipes.run(recipe, Path("runs") / f"{arguments.recipe}_{steps}_steps", resume=False)
    config, device = TrainConfig(**recipe["train"]), choose_device(TrainConfig(**recipe["train"]))
    result = {
        "recipe": arguments.recipe, "changes": changes, "steps": trained.step, "batch": config.batch_size,
        "seconds": trained.seconds, "images_per_second": trained.step * config.batch_size / trained.seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else measure.cpu_model(),
        "loss_of_the_last_100": float(trained.losses[-100:].mean()),
    }  # fmt: skip
    preview = recipes.build_preview(recipe, trained.velocity)
    if preview is not None:
        with torch.no_grad():
            images = preview(trained.velocity).cpu()
        grid = make_grid(data.to_unit_interval(images.float()).clamp(0, 1), nrow=10)
        save_image(grid, measure.RESULTS / f"gpu_{arguments.recipe}.png")

    def store() -> None:
        if not arguments.dry:
            print(measure.save(f"gpu_{arguments.recipe}", result, note=arguments.note), flush=True)

    store()
    if arguments.recipe == "mnist":
        judge, reference = models.load_classifier("mnist"), models.load_moments("mnist")["test"]
        counts = json.loads(models.pretrained.asset("mnist_floor.json").read_text())["class_counts_train"]
        score = metrics.score_velocity(trained.velocity, judge, reference, guidance=1.25, class_counts=counts)
        result["score"] = dataclasses.asdict(score)
        store()
    print(result)


if __name__ == "__main__":
    main()
