"""From a folder of images to samples, scores and a student, by commands alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from flowbook import cli, data, metrics, models, recipes
from flowbook.training import load

SHORT = ["train.steps=2", "train.batch_size=4", "model.width=8", "train.device=cpu"]
FEW = ["--solver", "euler:steps=2"]


def draw(folder: Path, n: int = 6, mode: str = "RGB", size: tuple[int, int] = (10, 10)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        pixels = np.random.default_rng(k).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{k}.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(list(words)) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_the_command_alone_shows_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    way = said(capsys)
    for command in (
        "train --data FOLDER --size 64",
        "sample runs/FOLDER",
        "train runs/FOLDER train.steps=N",
        "recipes",
    ):
        assert f"flowbook {command}" in way
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == "flowbook 0.1.0\n"


def test_recipes_have_a_line_each_and_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "recipes").splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()
    assert all(len(line.split()) > 4 for line in lines)
    shown = said(capsys, "recipes", "--show", "digits")
    assert shown == recipes.text_of("digits") and recipes.override(recipes.read("digits"), []) is not None
    assert "is digits meant?" in said(capsys, "recipes", "--show", "digit", status=2)


# What is inferred -----------------------------------------------------------------------------------------------------


def test_a_folder_says_its_channels_and_its_classes(tmp_path: Path) -> None:
    draw(tmp_path / "gray", mode="L")
    recipe = recipes.own_data(tmp_path / "gray", 16)
    assert recipe["model"]["channels"] == recipe["data"]["channels"] == 1 and "num_classes" not in recipe["model"]
    assert recipe["loss"]["condition_dropout"] == 0 and recipe["data"]["labels"] is False
    assert recipes.own_data(tmp_path / "gray", 16, channels=3)["model"]["channels"] == 3
    for name in ("a", "b", "c"):
        draw(tmp_path / "classes" / name)
    recipe = recipes.own_data(tmp_path / "classes", "48x64")
    assert recipe["model"]["channels"] == 3 and recipe["model"]["num_classes"] == 3
    assert recipe["model"]["size"] == [48, 64] and recipe["loss"]["condition_dropout"] == 0.1
    draw(tmp_path / "one" / "only")
    assert "num_classes" not in recipes.own_data(tmp_path / "one", 16)["model"]


@pytest.mark.parametrize("size", [8, 12, 16, 28, 32, 48, 64, 100, 128, "48x64", "30x20", 7])
def test_the_network_fits_every_size(size: Any, tmp_path: Path) -> None:
    draw(tmp_path, n=1)
    recipe = recipes.override(recipes.own_data(tmp_path, size), [])
    with torch.device("meta"):
        network: Any = recipes.build_model(recipe)
        x = torch.zeros(1, *recipes.sample_shape(network))
        assert network(x, torch.zeros(())).shape == x.shape


def test_a_file_of_arrays_says_its_network(tmp_path: Path) -> None:
    def inferred(**arrays: Any) -> Any:
        np.savez(tmp_path / "mine.npz", **arrays)
        return recipes.own_data(tmp_path / "mine.npz")["model"]

    rows = np.random.default_rng(0).normal(size=(20, 5))
    assert inferred(x1=rows) == {"name": "MLP", "dim": 5}
    assert inferred(x1=rows, y=np.arange(20) % 4)["num_classes"] == 4
    assert inferred(x1=rows, y=rows[:, :3])["condition_dim"] == 3
    images = inferred(x1=rows.reshape(25, 1, 2, 2))
    assert (images["name"], images["channels"], images["size"]) == ("UNet", 1, 2)
    with pytest.raises(ValueError, match=r"expected rows \(N, D\) or images"):
        inferred(x1=rows.reshape(5, 4, 5))


# From start to end ----------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_run_samples_scores_and_a_student(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ants", "bees"):
        draw(here / "my photos #1" / name, n=60)
    out = said(capsys, "train", "--data", "my photos #1", "--size", "8", *SHORT)
    assert "color images of 8 x 8, 2 classes" in out and "UNet: " in out
    run = "runs/my photos #1"
    assert load(run).classes == ["ants", "bees"]
    assert "4 steps" in said(capsys, "train", run, "train.steps=4", "train.learning_rate=1e-5")
    assert "after step 4" in said(capsys, "train", run, "train.steps=5")
    assert "seed cannot change" in said(capsys, "train", run, "train.seed=1", status=2)
    (here / "my photos #1").rename(here / "moved")
    assert "is not a folder" in said(capsys, "train", run, "train.steps=6", status=2)
    assert "6 steps" in said(capsys, "train", run, "train.steps=6", "data.root=moved")

    assert "2 samples" in said(capsys, "sample", run, "--labels", "bees", "--n", "2", *FEW)
    assert "one of ants, bees; got 'wasps'" in said(capsys, "sample", run, "--labels", "wasps", status=2)
    pngs = ["sample", run, "--out", "made", "--format", "png", "--n", "7", "--batch-size", "3", *FEW]
    assert "7 images in made, 7 of them new" in said(capsys, *pngs)
    before = {file.name: file.read_bytes() for file in (here / "made").iterdir()}
    (here / "made" / "000004.png").unlink()
    assert "7 images in made, 1 of them new" in said(capsys, *pngs)
    assert before == {file.name: file.read_bytes() for file in (here / "made").iterdir()}
    assert len(list((here / "made").glob("*.png"))) == 7
    assert "made with other settings (seed was 0, is 5)" in said(capsys, *pngs, "--seed", "5", status=2)
    assert Image.open(here / "made" / "000000.png").size == (8, 8)

    scores = json.loads(said(capsys, "score", run, "--data", "moved", *FEW))
    assert scores["images"] == 120 and scores["frechet"] > scores["floor"]
    said(capsys, "export", run, "small.safetensors")
    teacher, quick = "small.safetensors", ["train.steps=2", "train.batch_size=4"]
    for command in (
        ["sample", teacher, "--n", "1", *FEW],
        ["pairs", teacher, "--n", "8", "--out", "pairs", *FEW],
        ["distill", teacher, "--pairs", "pairs", "--out", "student", *quick],
    ):
        said(capsys, *command)
    assert "1 evaluations" in said(capsys, "sample", "student", "--n", "1", "--solver", "euler:steps=1")


def test_classes_are_drawn_as_often_as_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, n in (("few", 10), ("many", 30)):
        draw(here / "images" / name, n=n)
    said(capsys, "train", "--data", "images", "--size", "8", *SHORT)
    said(capsys, "sample", "runs/images", "--n", "40", "--out", "made", *FEW)
    assert data.ImageShards("made").labels.bincount().tolist() == [10, 30]
    said(capsys, "pairs", "runs/images", "--n", "20", "--out", "pairs", *FEW)
    quick = ["train.steps=2", "train.batch_size=4"]
    said(capsys, "distill", "runs/images", "--pairs", "pairs", "--out", "student", *quick)
    assert load("student").classes == ["few", "many"]
    assert "1 samples" in said(capsys, "sample", "student", "--labels", "many", "--n", "1", *FEW)


def test_data_that_changed_go_on_when_it_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(here / "images", n=6)
    words = ["train", "--data", "images", "--size", "8", *SHORT]
    said(capsys, *words)
    (here / "images" / "0.png").unlink()
    again = ["train", "runs/images", "train.steps=3"]
    assert "data was '6 images" in said(capsys, *again, status=2)
    assert "3 steps" in said(capsys, *again, "--extend", "data")


def test_a_table_s_student_keeps_its_units(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(here / "mine.npz", x1=np.random.default_rng(0).normal(size=(50, 2)) * [20.0, 0.1] + [300.0, -5.0])
    quick = ["train.steps=2", "train.batch_size=8", "train.device=cpu"]
    said(capsys, "train", "--data", "mine.npz", *quick)
    said(capsys, "pairs", "runs/mine", "--n", "16", "--out", "pairs", *FEW)
    for steps in ("2", "3"):  # and after a resume
        said(capsys, "distill", "runs/mine", "--pairs", "pairs", "--out", "student", "train.schedule=constant",
             f"train.steps={steps}", "train.batch_size=8", "train.compile=false")  # fmt: skip
        assert load("student").standardizer == load("runs/mine").standardizer is not None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.array([-1, 1] * 10)}, "expected labels y from 0 to 1, without gaps; got -1, 1"),
        ({"y": np.array([1, 2] * 10)}, "expected labels y from 0 to 1, without gaps; got 1, 2"),
        ({"y": np.linspace(0, 1, 20)}, r"expected vectors y of shape (N, C); got shape (N,): store y[:, None]"),
        ({"x1": np.zeros((20, 8, 8, 3))}, "channels first; got shape (20, 8, 8, 3)"),
    ],
)
def test_arrays_that_would_be_misread_are_refused(arrays: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **{"x1": np.zeros((20, 2)), **arrays})
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.own_data(tmp_path / "mine.npz")


def test_home_is_understood_by_every_option(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert cli.main(["sample", "digits", "--n", "1", "--out", "~/a.png", *FEW]) == 0
    assert (here / "a.png").is_file() and not (here / "~").exists()


def test_a_training_goes_on_when_its_reader_has_seen_enough(here: Path) -> None:
    draw(here / "images", n=4)
    words = ["train", "--data", "images", "--size", "8", *SHORT, "train.steps=20", "train.log_every=1"]
    code = f"from flowbook.cli import main; raise SystemExit(main({words!r}))"
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.stdout is not None
    run.stdout.close()
    assert run.wait(120) == 0 and load("runs/images") is not None


def test_scores_of_features(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(here / "images", n=120)
    said(capsys, "train", "--data", "images", "--size", "8", *SHORT)
    scores = json.loads(said(capsys, "score", "runs/images", "--data", "images", *FEW))
    assert scores["images"] == 120 and scores["features"] == "pixels" and scores["frechet"] > scores["floor"] > 0

    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    torch.jit.script(Means()).save("means.pt")
    scores = json.loads(
        said(capsys, "score", "runs/images", "--data", "images", "--features", "means.pt", "--n", "50", *FEW)
    )
    assert scores["images"] == 50 and scores["features"] == "means.pt"
    assert "more than 96 images for 48 features; got 60" in said(
        capsys, "score", "runs/images", "--data", "images", "--n", "60", *FEW, status=2
    )
    assert "expected --data" in said(capsys, "score", "runs/images", "--features", "pixels", status=2)
    assert "give their folder by --data" in said(capsys, "score", "runs/images", status=2)
    (here / "no.pt").write_text("text")
    assert "no.pt is no TorchScript file" in said(
        capsys, "score", "runs/images", "--data", "images", "--features", "no.pt", *FEW, status=2
    )


def test_a_perfect_copy_scores_like_the_floor() -> None:
    images, _ = data.digits("train")
    scores = metrics.score_against(images[:600], images[600:1200])
    assert scores.frechet < 3 * scores.floor
    judge = models.load_classifier("digits")
    features = judge.features(images[:400])
    assert features.shape[0] == 400


def test_inception_asks_for_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"pip install 'flowbook\[fid\]'"):
        metrics.features_named("inception")


def test_a_table_is_standardized_and_comes_back_in_its_units(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2)) * [20.0, 0.1] + [300.0, -5.0]
    np.savez(here / "2024.npz", x1=rows)
    out = said(capsys, "train", "--data", "2024.npz", "train.steps=2", "train.batch_size=8", "train.device=cpu")
    assert "rows of 2 numbers, standardized" in out
    velocity = load("runs/2024")
    from flowbook import sample

    assert float(sample(velocity, torch.randn(50, 2), steps=4).x[:, 0].mean()) > 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "expected a recipe, the folder of a run, or --data FOLDER"),
        (["train", "--data", "none", "--size", "8"], "--data: none is neither a folder nor a file"),
        (["train", "--data", "images"], "--size: expected the size of the images to make"),
        (["train", "--data", "images", "--size", "big"], "--size: expected one number, or height x width"),
        (["train", "--data", "images", "--size", "8", "--channels", "2"], "--channels: expected one of 1, 3; got 2"),
        (["train", "mnist", "--data", "images", "--size", "8"], "expected data without a recipe; got both"),
        (["train", "mnist", "--size", "8"], "--size: is for --data"),
        (["train", "images"], "no complete checkpoint in images"),
        (["train", "--data", "notes.txt"], "expected a folder of images, or a file .npz"),
        (["sample", "mnist", "--format", "png"], "--format: is for folders"),
        (["sample", "mnist", "--labels", "x"], "--labels: expected numbers; got 'x'"),
    ],
)
def test_what_is_missing_is_said_in_a_line(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(here / "images", n=2)
    (here / "notes.txt").write_text("x")
    error = said(capsys, *words, status=2)
    assert message in error and error.count("\n") == 1


def test_paths_are_taken_as_they_are_written() -> None:
    for path in ("my photos #1", "2024", "~/x", "a: b", "[x]", "yes", "1e3"):
        assert recipes.override(recipes.read("photographs_ddpm"), [f"data.root={path}"])["data"]["root"] == path
    quoted = recipes.override(recipes.read("photographs_ddpm"), ["data.root='in quotes'"])
    assert quoted["data"]["root"] == "in quotes"


def test_warnings_are_notes_of_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(here / "images", n=4)
    (here / "images" / "notes.txt").write_text("x")
    words = ["train", "--data", "images", "--size", "8", *SHORT]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(words) == 0
        first = capsys.readouterr().err.splitlines()
        assert cli.main(words) == 0
        again = capsys.readouterr().err.splitlines()
    assert any(line.startswith("flowbook train: note: root: 1 entries of") for line in first)
    assert any("nothing is left to train" in line and line.startswith("flowbook train: note: ") for line in again)
    assert not any("warnings.warn" in line or ".py:" in line for line in first + again)


def test_labels_that_are_left_out_are_not_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        draw(here / "images" / name, n=4)
    words = ["train", "--data", "images", "--size", "8", *SHORT, "data.labels=false", "loss.condition_dropout=0"]
    assert "has no labels, but the model has num_classes = 2" in said(capsys, *words, status=2)


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    code = "from flowbook.cli import main; raise SystemExit(main(['recipes']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        assert run.wait(60) == 0 and b"Traceback" not in run.stderr.read()
