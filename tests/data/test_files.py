"""Own arrays from a file, with any condition, from Python and from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from flowbook import cli, data, recipes
from flowbook.condition import TrainedOn, trained_on
from flowbook.reflow import PairDataset
from flowbook.training import load

X = torch.linspace(-1, 1, 40).reshape(20, 2)
SPEED, TEXT = torch.linspace(0, 1, 60).reshape(20, 3), torch.linspace(-1, 1, 200).reshape(20, 2, 5)
ENDINGS = (".npz", ".safetensors", ".pt")


def write(path: Path, **arrays: torch.Tensor) -> Path:
    named = {name.replace("__", "."): array.contiguous() for name, array in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **{name: array.numpy() for name, array in named.items()})  # type: ignore[arg-type]
    elif path.suffix == ".pt":
        torch.save(named, path)
    else:
        save_file(named, path)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_arrays_come_back_as_fit_takes_them(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"mine{ending}"
    assert torch.equal(data.tensors(write(file, x1=X)), X)
    x1, y = data.tensors(write(file, x1=X, y=SPEED))
    assert torch.equal(x1, X) and torch.equal(y, SPEED) and torch.equal(data.condition(file), SPEED)
    x0, x1, y = data.tensors(write(file, x0=-X, x1=X, y__vector=SPEED, y__context=TEXT))
    assert torch.equal(x0, -X) and sorted(y) == ["context", "vector"] and torch.equal(y["context"], TEXT)
    x0, x1, y = data.tensors(write(file, x0=-X, x1=X))
    assert y is None and torch.equal(x0, -x1)
    assert sorted(data.condition(write(file, y__vector=SPEED))) == ["vector"]


def test_a_file_of_one_array_is_the_data(tmp_path: Path) -> None:
    torch.save(X, tmp_path / "alone.pt")
    np.save(tmp_path / "alone.npy", X.numpy())
    assert torch.equal(data.tensors(tmp_path / "alone.pt"), X) and torch.equal(data.tensors(tmp_path / "alone.npy"), X)


def test_other_files_and_names_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            data.tensors(path)

    refused(tmp_path / "none.npz", "path: .*none.npz does not exist")
    refused(write(tmp_path / "a.npz", y=SPEED), "path: expected an array x1 in .*; got y")
    refused(write(tmp_path / "b.npz", x1=X, y=SPEED, y__text=TEXT), "path: expected arrays x1, x0 and y, or y.NAME")
    refused(write(tmp_path / "c.npz", x1=X, labels=SPEED), "path: expected arrays x1, x0 and y, .*; got x1, labels")
    for ending in ENDINGS:
        (tmp_path / f"damaged{ending}").write_bytes(b"no such thing")
        refused(tmp_path / f"damaged{ending}", "path: .* is damaged")
    torch.save([X], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "path: .*")
    (tmp_path / "table.csv").write_text("1,2\n")
    refused(tmp_path / "table.csv", "path: expected a file .npz, .npy, .safetensors or .pt; got .*table.csv")
    with pytest.raises(ValueError, match="path: expected an array y in"):
        data.condition(write(tmp_path / "d.npz", x1=X))


def recipe(tmp_path: Path, model: dict[str, Any], file: Path, **more: Any) -> Path:
    content = {
        "model": model, "data": {"name": "tensors", "path": str(file)},
        "loss": {"name": "flow_matching", "condition_dropout": 0.2},
        "train": {"steps": 2, "batch_size": 4, "log_every": 1}, **more,
    }  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_shell_trains_and_makes_pairs_with_any_condition(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path / "mine.npz", x1=X, y=SPEED)
    run, pairs = tmp_path / "run", tmp_path / "pairs"
    assert (
        cli.main(
            ["train", str(recipe(tmp_path, {"name": "MLP", "dim": 2, "condition_dim": 3}, file)), "--out", str(run)]
        )
        == 0
    )
    assert trained_on(load(run)) == TrainedOn(something=True, nothing=True)
    common = ["--n", "30", "--solver", "euler:steps=2", "--guidance", "1.5"]
    assert cli.main(["pairs", str(run), "--out", str(pairs), "--conditions", str(file), *common]) == 0
    made = PairDataset(pairs)
    assert len(made) == 30 and torch.equal(made.labels, torch.cat([SPEED, SPEED[:10]]))
    assert (
        cli.main(
            [
                "distill",
                str(run),
                "--pairs",
                str(pairs),
                "--out",
                str(tmp_path / "student"),
                "train.steps=2",
                "train.batch_size=4",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert cli.main(["pairs", str(run), "--out", str(tmp_path / "more"), *common]) == 2
    assert "--guidance: expected conditions to guide toward; give them by --conditions" in capsys.readouterr().err


def test_the_shell_draws_a_grid_under_conditions(tmp_path: Path, capsys: Any) -> None:
    images = torch.zeros(20, 1, 8, 8)
    file = write(tmp_path / "mine.safetensors", x1=images, y__vector=SPEED, y__context=TEXT)
    model = {
        "name": "UNet", "channels": 1, "size": 8, "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4],
        "condition_dim": 3, "context_dim": 5,
    }  # fmt: skip
    preview = {"preview": {"solver": "euler:steps=1"}}
    run, few = tmp_path / "run", write(tmp_path / "few.npz", y__vector=SPEED[:3], y__context=TEXT[:3])
    path = recipe(tmp_path, model, file, **preview)
    assert cli.main(["train", str(path), "train.preview_every=2", "--out", str(run)]) == 0
    grid = ["sample", str(run), "--out", str(tmp_path / "grid.png"), "--n", "2", "--solver", "euler:steps=1"]
    assert cli.main([*grid, "--conditions", str(few), "--guidance", "2"]) == 0
    assert "6 samples, 2 evaluations each" in capsys.readouterr().out
    assert (
        cli.main(
            [
                *grid[:2],
                "--out",
                str(tmp_path / "folder"),
                "--n",
                "5",
                "--solver",
                "euler:steps=1",
                "--conditions",
                str(few),
            ]
        )
        == 0
    )
    capsys.readouterr()
    wrong = write(tmp_path / "wrong.npz", y__vector=SPEED[:3], y__context=TEXT[:2])
    for arguments, message in (
        ([*grid, "--conditions", str(wrong)], "--conditions.context: expected a row for each of 3 samples"),
        ([*grid, "--conditions", str(few), "--labels", "1"], "--labels: expected either labels or --conditions"),
        (["sample", "digits", "--out", "a.png", "--conditions", str(few)], "label"),
        (["train", str(path), "loss.condition_dropout=0", "--out", str(tmp_path / "r")], "preview: expected loss.con"),
        (["train", str(path), f"data.path={write(tmp_path / 'bare.npz', x1=images)}", "--out", str(tmp_path / "r")],
         "data: tensors has no conditions, but the model has condition_dim = 3, context_dim = 5"),
    ):  # fmt: skip
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert "tensors" in recipes.tables.DATA
