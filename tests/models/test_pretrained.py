"""Weights that come with the package, their files, and the scores they are shipped with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import needs_mnist
from torch import Tensor, nn

from flowbook import cnf, data, metrics, models
from flowbook.models import pretrained
from flowbook.paths import retimed

NAMES = (
    "digits.safetensors", "mnist.safetensors", "mnist_dequantized.safetensors", "mnist_one_step.safetensors",
    "mnist_classifier.safetensors", "digits_classifier.safetensors",
)  # fmt: skip
RECIPES = {"mnist_one_step": "distill"}  # the others are named after what they make


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_is_small_finite_and_says_what_made_it(name: str) -> None:
    path = pretrained.asset(name)
    assert path.stat().st_size <= 3_000_000
    model = pretrained.read_exported(path)
    assert not model.training
    assert all(bool(torch.isfinite(p).all()) and p.dtype == torch.float32 for p in model.parameters())
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert notes["recipe"]["train"]["steps"] == notes["step"]


@pytest.mark.parametrize("name", [name.removesuffix(".safetensors") for name in NAMES])
def test_the_recipe_of_the_package_is_the_one_that_made_the_weights(name: str) -> None:
    from safetensors import safe_open

    from flowbook import recipes

    with safe_open(pretrained.asset(f"{name}.safetensors"), framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
    stored, now = notes["recipe"], recipes.read(RECIPES.get(name, name))
    for section in ("model", "init", "data", "loss", "train"):
        assert stored.get(section) == now.get(section)


def test_a_written_model_is_read_back_to_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.UNet(channels=1, size=8, width=8, multipliers=(1, 2), blocks=1, num_classes=3)
    again = pretrained.read_exported(models.export(model, tmp_path / "unet.safetensors", step=5))
    assert models.describe(again) == models.describe(model)
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.half().float(), theirs)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: expected one of flowbook\.models"):
        models.export(nn.Linear(2, 2), tmp_path / "linear.safetensors")
    model = models.MLP(2, hidden=4)
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    with pytest.raises(ValueError, match="half precision"):
        models.export(model, tmp_path / "large.safetensors")


def test_a_missing_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pretrained.read_exported(tmp_path / "nowhere.safetensors")
    whole = models.export(models.MLP(2, hidden=4), tmp_path / "mlp.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        pretrained.read_exported(tmp_path / "cut.safetensors")
    from safetensors.torch import save_file

    other = {"name": "MLP", "arguments": {"dim": 3}}
    odd = other | {"arguments": 3}
    for metadata in (
        None,
        {"model": "{}"},
        {"model": json.dumps(other)},
        {"model": json.dumps(odd)},
    ):
        save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match="was not written by flowbook"):
            pretrained.read_exported(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("load", [models.load_pretrained, models.load_classifier, models.load_moments])
def test_an_unknown_name_is_refused_with_the_known_ones(load: Any) -> None:
    with pytest.raises(ValueError, match=r"name: expected one of .*'mnist'"):
        load("imagenet")


def test_the_shipped_scores_meet_what_the_book_promises() -> None:
    stored = json.loads(pretrained.asset("mnist_scores.json").read_text())
    floors = json.loads(pretrained.asset("mnist_floor.json").read_text())
    best = stored["headline"]
    assert floors["judge_accuracy_test"] >= 0.99
    assert best["samples"] == 10_000
    assert best["nfe"] <= 50
    assert best["class_accuracy"] >= 0.98
    assert best["frechet"] <= 2 * floors["frechet_floor_10000"]
    moments = models.load_moments("mnist")
    assert metrics.frechet_from_moments(moments["train"], moments["test"]) == pytest.approx(
        floors["frechet_floors_10000"][0]
    )


def test_the_shipped_model_draws_what_it_is_asked_for_and_not_what_it_is_not() -> None:
    velocity, judge = models.load_pretrained("mnist"), models.load_classifier("mnist")
    noise = torch.randn(70, 1, 28, 28, generator=torch.Generator().manual_seed(11))
    y = torch.arange(70) % 10
    from flowbook.solvers import sample

    drawn = sample(velocity, noise, y=y, method="midpoint", steps=4).x
    reference = models.load_moments("mnist")["test"]
    assert metrics.score_images(drawn, y, judge, reference).class_accuracy > 0.9
    assert metrics.score_images(drawn, (y + 1) % 10, judge, reference).class_accuracy < 0.1


def test_a_score_does_not_depend_on_the_batch_size() -> None:
    judge = models.load_classifier("digits")
    images, _ = data.digits("test")
    reference = metrics.moments(models.features_and_labels(judge, images)[0])
    model = models.UNet(channels=1, size=8, width=8, multipliers=(1, 2), blocks=1, num_classes=10).eval()
    small = metrics.score_velocity(model, judge, reference, n=80, steps=2, batch_size=20)
    large = metrics.score_velocity(model, judge, reference, n=80, steps=2, batch_size=80)
    assert small.nfe == large.nfe == 4
    assert small.frechet == pytest.approx(large.frechet, rel=1e-4)
    with pytest.raises(ValueError, match="batch_size: expected an integer of at least 1; got 0"):
        metrics.score_velocity(model, judge, reference, n=80, batch_size=0)


def test_the_evaluations_of_a_score_are_the_mean_over_its_samples() -> None:
    judge = models.load_classifier("digits")
    reference = metrics.moments(models.features_and_labels(judge, data.digits("test")[0])[0])
    seen: list[int] = []

    def steeper(x: torch.Tensor, t: Any, y: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(len(x))
        return x * (30.0 if len(x) < 40 else 1.0)

    found = metrics.score_velocity(steeper, judge, reference, n=90, batch_size=40, method="dopri5")
    assert found.nfe == pytest.approx(sum(seen) / 90)
    assert sum(size < 40 for size in seen) > sum(size == 40 for size in seen) / 2  # the last batch took more


def test_labels_come_in_the_proportions_asked_for_everywhere_in_the_order() -> None:
    counts = [10, 0, 30, 60]
    y = metrics.labels_like(counts, 1000)
    assert y.bincount(minlength=4).tolist() == [100, 0, 300, 600]
    assert y[:100].bincount(minlength=4).tolist() == [10, 0, 30, 60]
    assert torch.equal(metrics.labels_like([1] * 10, 25), torch.arange(25) % 10)
    for bad in ([], [0, 0], [1, -1], [[1, 2]]):
        with pytest.raises(ValueError, match="class_counts"):
            metrics.labels_like(bad, 10)  # type: ignore[arg-type]


@needs_mnist
def test_the_judge_reads_mnists_test_images() -> None:
    images, labels = data.mnist("test")
    judge = models.load_classifier("mnist")
    features, seen = models.features_and_labels(judge, images)
    assert float((seen == labels).float().mean()) >= 0.99
    mean, covariance = models.load_moments("mnist")["test"]
    torch.testing.assert_close(features.double().mean(0), mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.cov(features.double().T), covariance, rtol=1e-2, atol=1e-2)


def test_bits_of_images_belong_to_the_image_whatever_its_batch() -> None:
    def velocity(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.tanh(x) * (1 - t) + (0 if y is None else 0.1 * y.reshape(-1, 1, 1, 1))

    images, labels = (part[:10] for part in data.digits("test"))
    whole = cnf.bits_of_images(velocity, images, 17, y=labels, steps=3)
    parts = cnf.bits_of_images(velocity, images, 17, y=labels, steps=3, batch_size=3)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert not torch.allclose(cnf.bits_of_images(velocity, images, 17, y=labels, steps=3, seed=1), whole)
    assert not torch.allclose(cnf.bits_of_images(velocity, images, 17, y=1 - labels, steps=3), whole)
    with pytest.raises(ValueError, match=r"batch_size: .*0"):
        cnf.bits_of_images(velocity, images, 17, batch_size=0)
    with pytest.raises(ValueError, match="y: expected a row for each of"):
        cnf.bits_of_images(velocity, images, 17, y=labels[:5])


def test_bits_of_images_have_the_mean_of_the_exact_density() -> None:
    """The flow of v = A x, image by image: A is not symmetric, so that single probes scatter."""
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) / 3

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    images = torch.randint(5, (4000, 1, 2, 2), generator=torch.Generator().manual_seed(1)).float() / 2 - 1
    bits = cnf.bits_of_images(velocity, images, 5, batch_size=1000)
    x = cnf.dequantize(images, 5, torch.Generator().manual_seed(2))
    exact = cnf.bits_per_dim(cnf.log_prob(velocity, x, steps=20).log_prob, 4, 5)
    error = float((bits.var() + exact.var()).sqrt()) / 4000**0.5
    assert abs(float(bits.mean() - exact.mean())) < 4 * error
    assert bits.std() > 1.2 * exact.std()


@needs_mnist
def test_the_bits_of_the_shipped_model_are_the_stored_ones() -> None:
    stored = json.loads(pretrained.asset("mnist_bits.json").read_text())
    images = data.mnist("test")[0][: len(stored["first"])]
    velocity = retimed(models.load_pretrained("mnist_dequantized"), stored["power"])
    bits = cnf.bits_of_images(velocity, images, steps=stored["steps"])
    torch.testing.assert_close(bits, torch.tensor(stored["first"]), rtol=0, atol=2e-3)
    few = torch.tensor(stored["first"])
    mean, error = stored["bits_per_dim"]["mean"], float(few.std()) / len(few) ** 0.5
    assert abs(float(few.mean()) - mean) < 4 * error


def test_the_student_draws_in_one_evaluation_as_well_as_was_stored_and_keeps_what_was_promised() -> None:
    stored = json.loads(pretrained.asset("mnist_one_step.json").read_text())
    headline, (short,) = stored["headline"], stored["student"]
    teacher = json.loads(pretrained.asset("mnist_scores.json").read_text())["headline"]
    assert headline["nfe"] == short["nfe"] == 1 and headline["samples"] == 10_000
    assert headline["class_accuracy"] >= 0.95 and headline["frechet"] <= 3 * teacher["frechet"]
    counts = json.loads(pretrained.asset("mnist_floor.json").read_text())["class_counts_train"]
    again = metrics.score_velocity(
        models.load_pretrained("mnist_one_step"), models.load_classifier("mnist"), models.load_moments("mnist")["test"],
        n=short["samples"], method="euler", steps=1, seed=short["seed"], class_counts=counts,
    )  # fmt: skip
    assert abs(again.class_accuracy - short["class_accuracy"]) < 0.005  # in float32, not bfloat16
    assert abs(again.frechet / short["frechet"] - 1) < 0.05


def test_the_small_model_draws_the_digits_that_are_asked_for() -> None:
    judge, (images, _) = models.load_classifier("digits"), data.digits("test")
    reference = metrics.moments(models.features_and_labels(judge, images)[0])
    result = metrics.score_velocity(models.load_pretrained("digits"), judge, reference, n=360, steps=8)
    training = models.features_and_labels(judge, data.digits("train")[0][:360])[0]
    floor = metrics.frechet_from_moments(metrics.moments(training), reference)
    assert result.class_accuracy > 0.95 and result.frechet < 1.5 * floor
