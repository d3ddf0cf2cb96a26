"""The command line: a recipe trains, goes on, is overridden or refused, and its checkpoint draws a grid."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import randomized
from PIL import Image
from torchvision.utils import save_image

from flowbook import cli, models, recipes, solvers
from flowbook.couplings import OptimalTransport
from flowbook.diffusion import NoiseSchedule, ProbabilityFlow
from flowbook.flow_matching import FlowMatching
from flowbook.models import UNet, pretrained
from flowbook.paths import VPPath
from flowbook.reflow import LPIPS, ClassifierDistance, PairDataset
from flowbook.training import checkpoint as checkpoints
from flowbook.training import load

DIGITS: dict[str, Any] = {
    "model": {"name": "UNet", "channels": 1, "size": 8, "width": 8, "multipliers": [1], "blocks": 1, "num_classes": 10},
    "data": {"name": "digits", "split": "test"},
    "loss": {"name": "flow_matching", "condition_dropout": 0.1},
    "train": {"steps": 4, "batch_size": 16, "log_every": 2, "preview_every": 4},
    "preview": {"solver": "midpoint:steps=2", "guidance": 2.0},
}
PLANE: dict[str, Any] = {
    "model": {"name": "MLP", "dim": 2, "hidden": 16},
    "data": {"name": "moons"},
    "loss": {"name": "flow_matching", "path": {"name": "vp"}},
    "coupling": {"name": "optimal_transport"},
    "train": {"steps": 4, "batch_size": 16},
}


def shell(line: str) -> int:
    """The exit status of ``flowbook`` with the arguments of a line."""
    return cli.main(shlex.split(line))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(DIGITS))
    return path


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


DENOISER: dict[str, Any] = {
    **DIGITS,
    "loss": {
        "name": "diffusion",
        "schedule": {"name": "linear", "steps": 40, "rescale": True},
        "condition_dropout": 0.1,
    },
}


def test_a_run_that_learned_diffusion_is_a_velocity_and_draws_by_every_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "tiny.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(DENOISER))
    assert cli.main(["train", str(file), "--out", str(run)]) == 0
    assert (run / "previews" / "step_00000004.png").is_file()
    velocity = load(run)
    assert isinstance(velocity, ProbabilityFlow) and not velocity.training
    assert torch.equal(velocity.schedule.betas, NoiseSchedule.linear(40, rescale=True).betas)
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 10])
    assert velocity(x, 0.5, y).shape == x.shape and velocity.null == 10
    for solver, evaluations in (("ddpm", 40), ("ddim:steps=5", 5), ("euler:steps=5", 5)):
        method = solver.partition(":")[0]
        options = ["--solver", solver, "--n", "1", "--out", str(tmp_path / f"{method}.png")]
        assert cli.main(["sample", str(run), *options]) == 0
        assert f"10 samples, {evaluations} evaluations each" in capsys.readouterr().out
    assert len({(tmp_path / f"{method}.png").read_bytes() for method in ("ddpm", "ddim", "euler")}) == 3


def test_a_recipe_dequantizes_its_data(tmp_path: Path) -> None:
    source = recipes.build_data({"data": {"name": "digits", "split": "test", "levels": 17}})
    x1, y = source.sample(100)
    grid = (x1 + 1) * 8
    assert float((grid - grid.round()).abs().mean()) > 0.1 and y.shape == (100,)  # a quarter, if spread evenly
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**DIGITS, "data": {"name": "digits", "split": "test", "levels": 17}}))
    assert cli.main(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    assert steps_of(tmp_path / "run") == [2, 4]


def test_what_only_a_diffusion_model_can_do_is_refused_to_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "grid.png")]
    assert cli.main(["sample", "mnist", "--solver", "ddim:steps=5", *out]) == 2
    assert "--solver ddim: expected the checkpoint of a diffusion model" in capsys.readouterr().err


def test_a_recipe_trains_and_its_checkpoint_draws_a_grid(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, picture = tmp_path / "run", tmp_path / "pictures" / "grid.png"
    assert cli.main(["train", str(recipe), "--out", str(run)]) == 0
    assert "4 steps" in capsys.readouterr().out and steps_of(run) == [2, 4]
    assert Image.open(run / "previews" / "step_00000004.png").size == (10 * 10 + 2, 10 * 10 + 2)
    assert checkpoints.read(checkpoints.locate(run)).recipe == DIGITS
    options = ["--n", "3", "--solver", "midpoint:steps=2", "--guidance", "1.5", "--out", str(picture)]
    assert cli.main(["sample", str(run), *options]) == 0
    assert "30 samples, 8 evaluations each" in capsys.readouterr().out  # Heun's 2 x 2 steps, twice for the guidance
    assert Image.open(picture).size == (3 * 10 + 2, 10 * 10 + 2)
    assert cli.main(["sample", str(run), "--labels", "7", "1", *options]) == 0
    assert Image.open(picture).size == (3 * 10 + 2, 2 * 10 + 2)


def test_the_seed_decides_the_grid(recipe: Path, tmp_path: Path) -> None:
    cli.main(["train", str(recipe), "--out", str(tmp_path / "run")])
    pictures = []
    for n, seed in enumerate(("0", "0", "1")):
        path = tmp_path / f"{n}.png"
        shell(f"sample {tmp_path / 'run'} --n 1 --solver midpoint:steps=1 --seed {seed} --out {path}")
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_training_goes_on_where_it_was_and_fresh_refuses(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(recipe), "train.schedule=constant", "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, "train.steps=2"]) == 0
    assert cli.main([*arguments, "train.steps=6"]) == 0
    assert steps_of(tmp_path / "run") == [2, 4, 6]
    assert cli.main([*arguments, "train.steps=6", "--fresh"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    cli.main([*arguments[:-1], str(tmp_path / "whole"), "train.steps=6"])
    ours, theirs = (load(tmp_path / name).state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_fields_are_overridden_from_the_shell(recipe: Path, tmp_path: Path) -> None:
    overrides = [
        "model.width=4",
        "train.learning_rate=2e-3",
        "train.gradient_clip=1.0",
        "loss.condition_dropout=0",
        "train.steps=1",
    ]
    assert cli.main(["train", str(recipe), *overrides, "--out", str(tmp_path / "run")]) == 0
    stored = checkpoints.read(checkpoints.locate(tmp_path / "run"))
    assert stored.model is not None and stored.model["arguments"]["width"] == 4
    assert (stored.config["learning_rate"], stored.config["gradient_clip"], stored.step) == (2e-3, 1.0, 1)


NUMBERS = [("1e-3", 1e-3), ("2.0e-3", 2e-3), ("-1E5", -1e5), ("5", 5), ("null", None), ("[1, 2]", [1, 2]), ("1e", "1e")]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_values_are_read_as_people_write_them(recipe: Path, text: str, number: Any) -> None:
    assert recipes.read(recipe, [f"train.seed={text}"])["train"]["seed"] == number


def test_a_recipe_builds_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = recipes.build_loss({**PLANE, "loss": {"name": "flow_matching", "path": {"name": "vp", "beta_max": 10.0}}})
    assert loss == FlowMatching(path=VPPath(beta_max=10.0))
    result = recipes.run(PLANE, None, progress=False)
    assert result.step == 4 and result.checkpoint is None
    coupled = {**PLANE, "coupling": {"name": "optimal_transport", "method": "sinkhorn", "reg": 0.1}}
    seen = []
    monkeypatch.setattr("flowbook.recipes.building.fit", lambda *_, coupling, **__: seen.append(coupling))
    recipes.run(coupled, None)
    assert seen == [OptimalTransport("sinkhorn", reg=0.1)]


@pytest.mark.parametrize("name", recipes.names())
def test_the_package_s_own_recipes_are_valid(name: str) -> None:
    recipe = recipes.read(name)
    weights = sum(p.numel() for p in recipes.build_model(recipe).parameters())
    assert f"{weights:,} parameters" in recipes.announce(recipe)
    recipes.build_loss(recipe)


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == recipes.names() and "mnist" in listed


WRONG = [
    (["train.stepps=3"], "train has no key stepps; it has .*steps"),
    (["model.widht=3"], "model has no key widht"),
    (["data.noise=3"], "data has no key noise"),
    (["loss.dropout=3"], "loss has no key dropout"),
    (["trian.steps=3"], "recipe section: .*'train'.*'trian'"),
    (["preview.grid=3"], "preview key: .*'grid'"),
    (["model.name=Unet"], "model.name: .*'UNet'.*'Unet'"),
    (["data.levels=16"], "x1: expected 16 equidistant values"),
    (["data.name=imagenet"], "data.name: .*'mnist'.*'imagenet'"),
    (["loss.name=mse"], "loss.name: .*'flow_matching'.*'mse'"),
    (["loss.path=vp"], "loss.path is a section.*'vp'"),
    (["loss.path={name: vpp}"], "loss.path.name: .*'vp'.*'vpp'"),
    (["loss.path={name: vp, sigma_min: 1}"], "loss.path has no key sigma_min"),
    (["loss.name=diffusion", "loss.schedule=cosine"], "loss.schedule is a section.*'cosine'"),
    (["loss.name=diffusion", "loss.schedule={name: sigmoid}"], "loss.schedule.name: .*'cosine'.*'sigmoid'"),
    (
        ["loss.name=diffusion", "loss.schedule={name: cosine, steps: 9, rescale: true}"],
        "loss.schedule has no key rescale",
    ),
    (["loss.name=diffusion"], "loss lacks schedule"),
    (["coupling.name=ot"], "coupling.name: .*'optimal_transport'.*'ot'"),
    (["coupling.name=independent", "coupling.reg=1"], "coupling has no key reg"),
    (["train.learning_rate=fast"], "learning_rate: expected a number; got 'fast'"),
    (["train.steps=0"], "steps: .*0"),
    (["train.steps=1.5"], "steps: .*1.5"),
    (["train.name=x"], "train has no key name; it has (?!.*name,)"),
    (["train.compile=yess"], "compile: expected True or False; got 'yess'"),
    (["loss.coupling=ot"], "loss has no key coupling; it has condition_dropout, name, path"),
    (["model.width=abc"], "width: .*'abc'"),
    (["model.num_classes=9"], "y: expected labels from 0 to 8, and -1 where there is none; got 0 to 9"),
    (["preview.solver=euler:steps=few"], "solver: expected a number for steps; got 'few'"),
    (["preview.solver=rk45"], "method: .*'rk45'"),
    (["model.size=7", "model.multipliers=[1, 2]"], "size: .*multiple of 2, .*; got 7"),
    (["steps=3"], "override: expected section.key=value; got 'steps=3'"),
    (["train.steps"], "override: .*'train.steps'"),
    (["train.steps=[1"], "recipe: expected YAML"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[" ".join(o) for o, _ in WRONG])
def test_a_wrong_field_ends_with_one_line_and_nothing_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert cli.main(["train", str(recipe), *overrides, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowbook train: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sections"), ("- a\n- b", "holds no sections"), ("model: {", "expected YAML"),
        ("model: UNet", "'model' holds no keys"),
        (yaml.safe_dump({**DIGITS, "train": None}), "'train' holds no keys"),
        (yaml.safe_dump({key: DIGITS[key] for key in ("model", "data", "loss")}), "'train' is missing"),
        (yaml.safe_dump({**PLANE, "preview": {"guidance": 2.0}}), "preview: expected a model of images; got MLP"),
    ],
)  # fmt: skip
def test_a_malformed_recipe_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert cli.main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with untrained but nonzero weights, as a checkpoint alone."""
    arguments = {key: value for key, value in DIGITS["model"].items() if key != "name"}
    model = randomized(UNet(**arguments))
    weights = model.state_dict()
    checkpoints.save(tmp_path / "run" / "checkpoints", checkpoints.Checkpoint(
        1, {}, {"name": "UNet", "arguments": arguments}, None, weights, weights, {},
    ))  # fmt: skip
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "11"], "--labels: .*0 to 9.*11"),
        (["--labels", "10"], "--labels: .*0 to 9.*10"),
        (["--labels", "-1"], "--labels: .*-1"),
        (["--labels"], "--labels: .*at least one.*none"),
        (["--n", "0"], "--n: .*0"),
        (["--solver", "euler:steps=0"], "steps: .*0"),
        (["--solver", "rk45"], "method: .*'rk45'"),
    ],
)
def test_wrong_options_of_sample_end_with_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["sample", str(run_folder), *options, "--out", str(tmp_path / "grid.png")]) == 2
    with pytest.raises(ValueError, match="flowbook sample: " + message):
        raise ValueError(capsys.readouterr().err)
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("name", ["grid.pngg", "grid.txt"])
def test_sample_refuses_a_file_that_is_no_picture_before_it_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(["sample", "nowhere", "--out", str(tmp_path / name)]) == 2
    assert (
        f"--out: expected an image file, such as samples.png, or a folder without an extension; got {tmp_path / name}"
        in (capsys.readouterr().err)
    )


def test_score_and_export_say_what_they_expect(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert cli.main(arguments) == 2
        return capsys.readouterr().err

    recipes.run(PLANE, tmp_path / "plane", progress=False)
    assert "expected a generative model of images; got MLP" in error("score", str(tmp_path / "plane"))
    assert "= (1, 28, 28, 10); got (1, 8, 8, 10)" in error("score", str(run_folder))
    assert "got 'mnist' (shipped weights are exported already)" in error("export", "mnist", str(tmp_path / "x"))
    out = tmp_path / "deep" / "down" / "weights.safetensors"
    assert cli.main(["export", str(run_folder), str(out)]) == 0 and out.is_file()


def test_files_that_cannot_be_used_end_with_one_line_and_status_1(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["export", str(run_folder), str(tmp_path / "file" / "weights.safetensors")]) == 1
    assert capsys.readouterr().err.startswith("flowbook export: ")
    (tmp_path / "folder.safetensors").mkdir()
    assert cli.main(["export", str(run_folder), str(tmp_path / "folder.safetensors")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("option", ["--precision bf16", "--compile", "--batch-size 3", "--shard-size 4"])
def test_a_grid_refuses_the_options_of_folders(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert shell(f"sample {run_folder} --out {tmp_path / 'a.png'} {option}") == 2
    assert f"sample: {option.split()[0]}: is for folders; got it with a grid" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_a_key_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "model: {name: MLP, dim: 2}\ndata: {name: moons}\nloss: {name: flow_matching}\n"
    (tmp_path / "twice.yaml").write_text(recipe + "train: {steps: 5, steps: 6}\n")
    assert shell(f"train {tmp_path / 'twice.yaml'} --out {tmp_path / 'run'}") == 2
    assert "the key 'steps' is given twice" in capsys.readouterr().err


# Pairs and students ---------------------------------------------------------------------------------------------------

FEW = ["--solver", "euler:steps=2", "--batch-size", "8", "--shard-size", "16"]
QUICK = ["train.steps=2", "train.batch_size=8", "train.compile=false", "train.precision=fp32"]


def test_a_checkpoint_makes_pairs_and_a_student_learns_from_them(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, student = tmp_path / "pairs", tmp_path / "student"
    assert cli.main(["pairs", str(run_folder), "--n", "40", "--out", str(folder), *FEW]) == 0
    assert "40 pairs, 2 evaluations each" in capsys.readouterr().out
    pairs = PairDataset(folder)
    x0, x1, y = pairs.batch(torch.arange(40))
    assert y is not None and y.bincount().tolist() == [4] * 10  # as frequent as in the data: alike, for digits
    wanted = solvers.sample(load(run_folder), x0, y=y, method="euler", steps=2).x
    torch.testing.assert_close(x1, wanted)
    arguments = ["distill", str(run_folder), "--pairs", str(folder), "--steps", "2", *QUICK, "--out", str(student)]
    assert cli.main(arguments) == 0 and "2 steps" in capsys.readouterr().out
    stored = checkpoints.read(checkpoints.locate(student))
    assert stored.recipe is not None and stored.recipe["loss"] == {
        "name": "reflow", "times": 2, "distance": "l2", "eps": 0.0,
    }  # fmt: skip
    assert stored.recipe["init"] == {"checkpoint": str(run_folder)}
    teacher, learned = load(run_folder).state_dict(), load(student).state_dict()
    assert all((teacher[name] - learned[name]).abs().max() < 1e-3 for name in teacher)  # it started there
    assert cli.main([*arguments, "--fresh"]) == 2 and "already holds a run" in capsys.readouterr().err
    arguments[arguments.index("--steps") + 1] = "3"
    assert cli.main(arguments) == 2 and "loss.times was 2, is 3" in capsys.readouterr().err


def test_guidance_is_part_of_the_pairs(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pairs", str(run_folder), "--n", "16", "--out", str(tmp_path / "pairs"), *FEW]
    assert cli.main([*arguments, "--guidance", "2"]) == 0
    assert "16 pairs, 4 evaluations each" in capsys.readouterr().out
    assert cli.main(arguments) == 2
    assert "velocity was" in capsys.readouterr().err


def test_pairs_in_bf16_are_those_of_fp32_to_a_hundredth_and_another_folder_s(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = []
    for precision in ("fp32", "bf16"):
        arguments = ["pairs", str(run_folder), "--n", "16", "--precision", precision, *FEW, "--out"]
        assert cli.main([*arguments, str(tmp_path / precision)]) == 0
        _, x1, y = PairDataset(tmp_path / precision).batch(torch.arange(16))
        assert y is not None and x1.dtype == torch.float32
        ends.append(x1)
    assert not torch.equal(*ends)
    torch.testing.assert_close(*ends, rtol=0, atol=0.03)
    assert cli.main([*arguments, str(tmp_path / "fp32")]) == 2 and "velocity was" in capsys.readouterr().err


def test_pairs_of_mnist_have_its_labels_proportions(tmp_path: Path) -> None:
    arguments = ["--n", "60", "--solver", "euler:steps=1", "--batch-size", "30", "--out", str(tmp_path)]
    assert cli.main(["pairs", "mnist", *arguments]) == 0
    labels = PairDataset(tmp_path).labels
    counts = json.loads(pretrained.asset("mnist_floor.json").read_text())["class_counts_train"]
    assert labels is not None
    shares = torch.tensor(counts) / sum(counts) * 60
    assert (labels.bincount() - shares).abs().max() < 1 and len(set(labels.bincount().tolist())) > 1


def test_points_of_the_plane_have_pairs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes.run(PLANE, tmp_path / "plane", progress=False)
    out = ["--out", str(tmp_path / "pairs")]
    assert (
        cli.main(["pairs", str(tmp_path / "plane"), "--n", "20", "--solver", "dopri5:rtol=1e-3,atol=1e-3", *out]) == 0
    )
    pairs = PairDataset(tmp_path / "pairs")
    assert pairs.shape == (2,) and pairs.labels is None and pairs.manifest["solver"] == "dopri5:rtol=0.001,atol=0.001"
    assert cli.main(["pairs", str(tmp_path / "plane"), "--n", "20", "--guidance", "2", *out]) == 2
    assert "--guidance: this model was trained without labels" in capsys.readouterr().err


def test_the_reflow_recipe_trains_on_a_folder_of_pairs_from_the_weights_it_names(
    run_folder: Path, tmp_path: Path
) -> None:
    assert cli.main(["pairs", str(run_folder), "--n", "16", "--out", str(tmp_path / "pairs"), *FEW]) == 0
    recipe = recipes.read("reflow_digits", [f"data.root={tmp_path / 'pairs'}", f"init.checkpoint={run_folder}", *QUICK])
    recipe["model"] = DIGITS["model"]
    run = recipes.run(recipe, tmp_path / "student", progress=False)
    assert run.step == 2
    moved = recipes.override(recipe, ["init.checkpoint=mnist"])
    with pytest.raises(ValueError, match=r"init: expected the parameters of UNet; .* do not fit in name or shape"):
        recipes.run(moved, None)
    moved = recipes.override(recipe, [f"init.checkpoint={tmp_path / 'student'}"])
    with pytest.raises(ValueError, match=r"init\.checkpoint was .*, is "):
        recipes.run(moved, tmp_path / "student")
    shutil.rmtree(tmp_path / "pairs")
    assert cli.main(["pairs", str(run_folder), "--n", "16", "--seed", "1", "--out", str(tmp_path / "pairs"), *FEW]) == 0
    with pytest.raises(ValueError, match=r"data was 'PairDataset .*', is 'PairDataset "):
        recipes.run(recipe, tmp_path / "student")


def test_a_recipe_names_its_perceptual_distance(tmp_path: Path) -> None:
    section = {"name": "classifier", "weights": "digits"}
    overrides = ["loss.times=t0", "loss.distance=lpips+l2", f"loss.perceptual={section}"]
    loss = recipes.build_loss(recipes.read("reflow_digits", overrides))
    assert isinstance(loss.perceptual, ClassifierDistance)
    section = {"name": "lpips", "weights": "random"}
    loss = recipes.build_loss(recipes.read("reflow_digits", [*overrides[:2], f"loss.perceptual={section}"]))
    assert isinstance(loss.perceptual, LPIPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pairs", "RUN", "--n", "0", "--out", "OUT"], "--n: .*0"),
        (["pairs", "RUN", "--solver", "rk45", "--out", "OUT"], "method: .*'rk45'"),
        (["pairs", "RUN", "--solver", "euler", "--out", "OUT"], "steps: euler takes fixed steps"),
        (["pairs", "nowhere", "--out", "OUT"], "checkpoint: nowhere does not exist"),
        (["distill", "RUN", "--pairs", "nowhere", "--out", "OUT"], "folder: nowhere holds no pairs"),
        (["distill", "RUN", "--pairs", "nowhere", "--steps", "0", "--out", "OUT"], "--steps: .*0"),
        (["distill", "RUN", "--pairs", "nowhere", "--out", "OUT", "loss.time=t1"], "loss has no key time"),
        (["train", "reflow_mnist", "--out", "OUT", "data.root=nowhere"], "folder: nowhere holds no pairs"),
        (
            ["train", "reflow_mnist", "--out", "OUT", "init.weights=x"],
            "init has the keys checkpoint and, if you like, strict",
        ),
        (["train", "reflow_mnist", "--out", "OUT", "loss.times=t2"], "times: .*'t2'"),
        (["train", "reflow_mnist", "--out", "OUT", "loss.distance=lpips"], "times: distance='lpips'"),
    ],
)
def test_what_is_wrong_with_pairs_and_students_ends_with_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"RUN": str(run_folder), "OUT": str(tmp_path / "out")}
    assert cli.main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match=f"flowbook {arguments[0]}: .*{message}"):
        raise ValueError(error)
    assert not (tmp_path / "out").exists()


def test_a_student_does_not_start_from_a_denoiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes.run(DENOISER, tmp_path / "run", progress=False)
    folder = ["--pairs", str(tmp_path / "pairs")]
    assert cli.main(["pairs", str(tmp_path / "run"), "--n", "16", "--out", folder[1], *FEW]) == 0
    assert cli.main(["distill", str(tmp_path / "run"), *folder, "--out", str(tmp_path / "student")]) == 2
    assert "expected one of flowbook.models, for a student to start from; got ProbabilityFlow" in (
        capsys.readouterr().err
    )


def test_a_model_with_classes_needs_labeled_data(tmp_path: Path) -> None:
    unlabeled = {**PLANE, "model": {**PLANE["model"], "num_classes": 2}}
    with pytest.raises(ValueError, match="data: moons has no labels, but the model has num_classes = 2"):
        recipes.run(unlabeled, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_whole_numbers_may_be_written_as_floats(recipe: Path) -> None:
    read = recipes.read(recipe, ["train.steps=1e3", "model.width=8.0", "train.checkpoint_every=1e2"])
    assert [repr(number) for number in (read["train"]["steps"], read["model"]["width"])] == ["1000", "8"]
    assert repr(read["train"]["checkpoint_every"]) == "100"


@pytest.mark.parametrize("solver", ["euler:steps=25", "dopri5"])
def test_sample_takes_fixed_and_adaptive_methods(run_folder: Path, tmp_path: Path, solver: str) -> None:
    out = tmp_path / "grid.png"
    assert (
        cli.main(["sample", str(run_folder), "--solver", solver, "--n", "2", "--labels", "3", "--out", str(out)]) == 0
    )
    assert Image.open(out).size == (2 * 10 + 2, 10 + 2)


def test_sample_says_when_there_is_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(tmp_path / "none"), "--out", str(tmp_path / "grid.png")]) == 2
    assert "does not exist" in capsys.readouterr().err
    recipes.run(PLANE, tmp_path / "plane", progress=False)
    assert cli.main(["sample", str(tmp_path / "plane"), "--out", str(tmp_path / "grid.png")]) == 2
    assert "model of images" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["trian"], ["sample"], ["train", "mnist", "--epochs", "3"]])
def test_a_misspelt_command_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and "usage: flowbook" in capsys.readouterr().err


SMALLER = {"cifar10_unet": ["model.width=32"], "cifar10_dit": ["model.width=48", "model.depth=2"]}


@pytest.mark.parametrize("name", SMALLER)
def test_the_large_recipes_cost_what_they_say_and_train_on_a_folder_of_64_x_64_as_they_say(
    tmp_path: Path, name: str
) -> None:
    recipe = recipes.read(name)
    said = (Path(recipes.__file__).parents[1] / "recipes" / f"{name}.yaml").read_text().split("\n\n")[0]
    said = " ".join(said.replace("#", " ").split())
    million, giga = (float(re.search(rf"([\d.]+) {unit}", said)[1]) for unit in ("million weights", "GFLOP"))  # type: ignore[index]
    with torch.device("meta"):
        cost = models.cost(recipes.build_model(recipe), torch.zeros(1, 3, 32, 32, device="meta"))
    assert cost.parameters / 1e6 == pytest.approx(million, abs=0.05) and cost.flops / 1e9 == pytest.approx(
        giga, abs=0.05
    )

    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for n in range(2):
            save_image(torch.rand(3, 70, 90), tmp_path / "images" / label / f"{n}.png")
    sizes = [word for word in said.replace("FOLDER", str(tmp_path / "images")).split() if "=" in word]
    assert "model.size=64" in sizes and "data.size=64" in sizes
    small = ["train.steps=1", "train.batch_size=2", "train.precision=fp32", "train.compile=false", "train.device=cpu"]
    changes = [size.rstrip(".").replace("=K", "=2") for size in sizes] + SMALLER[name] + small
    run = ["train", name, *changes, "train.warmup_steps=0", "--out", str(tmp_path / "run")]
    assert cli.main(run) == 0
    assert shell(f"sample {tmp_path / 'run'} --n 1 --solver midpoint:steps=1 --out {tmp_path / 'a.png'}") == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (68, 134)  # two labels, one below the other, two pixels between
