"""What people have as data goes into a training as it is: arrays, tables, loaders, dicts, pairs, any scale."""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

from flowbook import data, invert, log_prob, round_trip, sample
from flowbook.flow_matching import FlowMatching
from flowbook.inversion import denoise, edit, estimate_noise, interpolate
from flowbook.models import MLP, export, read_exported
from flowbook.reflow import Reflow, distill, generate_pairs, rectify
from flowbook.training import TrainConfig, fit, load

CONFIG = TrainConfig(steps=2, batch_size=8)
X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


class Table:
    """As much of a DataFrame as is used, for machines without pandas."""

    def __init__(self, **columns: Any):
        self.columns, self.values = list(columns), {name: np.asarray(part) for name, part in columns.items()}
        self.shape = (len(next(iter(self.values.values()))), len(columns))

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(to_numpy=lambda: self.values[name])

    def to_numpy(self) -> Any:
        return np.stack(list(self.values.values()), axis=1)


class Dicts(Dataset[Any]):
    def __init__(self, **keys: Any):
        self.keys = keys

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return {name: part[index] for name, part in self.keys.items()}


def trained(source: Any, classes: int | None = None, loss: Any = None, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = FlowMatching() if loss is None else loss
        return fit(MLP(2, hidden=8, depth=1, num_classes=classes), loss, source, CONFIG, **options).velocity


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


PLAIN = [
    X.numpy(),
    X.numpy().astype(np.float64),
    X.double(),
    (X.numpy(),),
    {"x1": X},
    {"x1": X.numpy()},
    Table(a=X[:, 0], b=X[:, 1]),
]
LABELED = [
    (X.numpy(), Y.numpy()),
    {"x1": X, "y": Y},
    (X.tolist(), Y.tolist()),
    (X.numpy(), Y.numpy().astype(np.uint16)),
    {"x1": X.numpy(), "y": Y.tolist()},
    (Table(a=X[:, 0], b=X[:, 1]), Y),
]
SETS = [
    TensorDataset(X, Y),
    DataLoader(TensorDataset(X, Y), batch_size=3),
    Dicts(x1=X, y=Y),
    data.Columns(Dicts(points=X, kind=Y, more=Y), x1="points", y="kind"),
    Subset(TensorDataset(X, Y), range(40)),
]


@pytest.mark.parametrize("source", PLAIN, ids=lambda one: type(one).__name__)
def test_arrays_and_tables_train_as_tensors_do(source: Any) -> None:
    assert same(trained(source), trained(X))


@pytest.mark.parametrize("source", LABELED, ids=lambda one: type(one).__name__)
def test_so_do_arrays_with_labels(source: Any) -> None:
    assert same(trained(source, 3), trained((X, Y), 3))


@pytest.mark.parametrize("source", SETS, ids=lambda one: type(one).__name__)
def test_so_do_data_sets_loaders_and_items_that_are_dicts(source: Any) -> None:
    assert same(trained(source, 3), trained((X, Y), 3))


def test_pandas_tables_are_such() -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas, for a table of it")
    table = pandas.DataFrame(X.numpy(), columns=["a", "b"])
    assert same(trained(table), trained(X))
    assert same(trained((table, pandas.Series(Y.numpy())), 3), trained((X, Y), 3))
    with pytest.raises(TypeError, match="expected columns of numbers; got other values in name"):
        data.as_data(table.assign(name="x"))


def test_conversions_are_said() -> None:
    with pytest.warns(
        UserWarning, match="data: converted from torch.float64 to torch.float32, the dtype of the network"
    ):
        fit(MLP(2), FlowMatching(), X.double(), CONFIG)
    with pytest.warns(
        UserWarning, match="data: fit reads the loader's Dataset; batch size, order and workers are those"
    ):
        fit(MLP(2), FlowMatching(), DataLoader(TensorDataset(X), batch_size=4), CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(MLP(2).double(), FlowMatching(), X.double(), CONFIG)
        fit(MLP(2), FlowMatching(), X, CONFIG, validation=X[:8])
    with pytest.warns(UserWarning, match="validation: converted from torch.float64"):
        fit(MLP(2), FlowMatching(), X, CONFIG, validation=X.double())


# Pairs ----------------------------------------------------------------------------------------------------------------


def test_pairs_from_a_data_set() -> None:
    pairs = TensorDataset(X, X + 1)
    assert same(trained(pairs, loss=Reflow()), trained((X, X + 1, None), loss=Reflow()))
    assert same(trained(data.Paired(pairs)), trained((X, X + 1, None)))
    with_labels = TensorDataset(X, X + 1, Y)
    assert same(trained(data.Paired(with_labels), 3), trained((X, X + 1, Y), 3))
    with pytest.raises(ValueError, match=r"items of two tensors are data and condition; data\.Paired makes them pairs"):
        fit(MLP(2), FlowMatching(), pairs, CONFIG)
    with pytest.raises(ValueError, match=r"data: expected pairs of the same shape; got \(2,\) and \(1,\)"):
        data.Paired(TensorDataset(X, X[:, :1]))
    with pytest.raises(TypeError, match=r"data: expected items \(x0, x1\) or \(x0, x1, y\)"):
        data.Paired(TensorDataset(X))


def test_two_sets_of_different_size_without_pairs() -> None:
    unpaired = data.Unpaired(X[:7], (X + 5).numpy())
    x0, x1, y = unpaired.sample(100, torch.Generator().manual_seed(0))
    assert y is None and {tuple(row) for row in x0.tolist()} <= {tuple(row) for row in X[:7].tolist()}
    assert len({tuple(row) for row in x1.tolist()}) > 30
    assert trained(unpaired) is not None
    with pytest.raises(ValueError, match="samples: expected at least one"):
        data.Unpaired(X[:0], X)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({"image": X}, TypeError, "data: expected a dict with x1, and x0 and y where there are any; got image"),
        (Table(a=X[:, 0], city=["Ulm"] * 40), TypeError, "expected columns of numbers; got other values in city"),
        (np.array(["a", "b"]), TypeError, "data: expected an array of numbers; got dtype <U1"),
        (
            Dicts(image=X, label=Y),
            TypeError,
            r"expected items with x1; got image, label: name them, .*Columns\(dataset",
        ),
        (DataLoader(TensorDataset(X), collate_fn=list), TypeError, "cannot use the loader's collate_fn"),
        ("mnist", TypeError, "data: expected a tensor"),
        (np.ma.masked_array(X.numpy(), X.numpy() > 0), TypeError, "data: expected an array without a mask"),
        ((X, ["a", "b"]), TypeError, r"data\[1\]: expected numbers, one for each sample; got a list with 'a'"),
        (
            DataLoader(TensorDataset(X), sampler=SubsetRandomSampler(range(5))),
            TypeError,
            "data: .* cannot use the loader's SubsetRandomSampler; give it a Dataset",
        ),
    ],
)
def test_what_is_no_data_says_what_is(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(MLP(2), FlowMatching(), source, CONFIG)


# Scale ----------------------------------------------------------------------------------------------------------------

STD = torch.tensor([20.0, 0.01])
MEAN = torch.tensor([300.0, -0.5])
LARGE = MEAN + STD * X


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LARGE, "data: their root mean square is .*, that of the noise 1; data.standardized brings them there"),
        (X * 1e-3, "data: their root mean square is 0.00"),
        (torch.rand(16, 3, 8, 8), "data: expected images from -1 to 1; got .* to .*: 2 x - 1 takes 0 to 1 there"),
        (torch.rand(16, 1, 8, 8) * 255, "data: expected images from -1 to 1; got .* to 25"),
    ],
)
def test_data_of_another_scale_warn(source: Tensor, message: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.weight * x

    with pytest.warns(UserWarning, match=message):
        fit(Net(), FlowMatching(), source, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Net(), FlowMatching(), 2 * torch.rand(16, 3, 8, 8) - 1, CONFIG)
        fit(Net(), FlowMatching(), data.eight_gaussians(), CONFIG)


class Flow(nn.Module):
    """The exact velocity of N(0, I), in standard units: it stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, y: Any = None) -> Tensor:
        t = torch.as_tensor(t).reshape(-1, *[1] * (x.dim() - 1))
        return (2 * t - 1) / (t**2 + (1 - t) ** 2) * x + 0 * self.weight


def standardized_flow(tmp_path: Path | None = None) -> nn.Module:
    source = data.standardized(LARGE)
    return fit(Flow(), lambda v, batch: (v.weight**2).sum(), source, CONFIG, out=tmp_path).velocity


def test_samples_latents_and_densities_are_in_the_units_of_the_data() -> None:
    velocity = standardized_flow()
    mean, std = LARGE.mean(0), LARGE.std(0)
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    x = sample(velocity, z, method="rk4", steps=20).x
    torch.testing.assert_close(x, mean + std * z, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(invert(velocity, x, method="rk4", steps=20).x, z, rtol=1e-3, atol=1e-3)
    expected = torch.distributions.Normal(mean, std).log_prob(x[:50]).sum(1)
    torch.testing.assert_close(log_prob(velocity, x[:50]).log_prob, expected, rtol=0, atol=0.01)
    assert float(round_trip(velocity, x[:5], method="rk4", steps=20).error.max()) < 0.05
    between = interpolate(velocity, x[:1], x[1:2], 3, method="rk4", steps=20)
    torch.testing.assert_close(between.x[[0, -1]].flatten(0, 1), x[:2], rtol=1e-3, atol=1e-2)
    y = torch.zeros(3)
    torch.testing.assert_close(edit(velocity, x[:3], y, y, method="rk4", steps=20).x, x[:3], rtol=1e-3, atol=1e-3)
    whole = sample(velocity, z[:3], method="rk4", steps=4, save_at=[0.0, 0.5, 1.0])
    assert whole.trajectory is not None
    assert torch.equal(whole.trajectory[-1], whole.x)


def test_the_standardizer_goes_with_checkpoints_exports_and_wrappers(tmp_path: Path) -> None:
    source = data.standardized((LARGE, Y))
    loss = FlowMatching(condition_dropout=0.1)
    run = fit(MLP(2, num_classes=3), loss, source, CONFIG, out=tmp_path / "run")
    scale = source.standardizer
    assert run.velocity.standardizer == scale == load(tmp_path / "run").standardizer
    export(run.velocity, tmp_path / "small.safetensors")
    assert read_exported(tmp_path / "small.safetensors").standardizer == scale
    from flowbook import guided

    steered = sample(guided(run.velocity, 2.0), X, y=Y, steps=2).x
    assert float(steered.mean(0)[0]) > 100
    _, x1, _ = generate_pairs(run.velocity, (2,), 8, tmp_path / "pairs", y=Y[:8], steps=2).batch(torch.arange(8))
    assert float(x1.abs().max()) < 50  # in the units of the network: a student learns from them


def test_images_are_standardized_by_channel_and_constant_columns_are_named() -> None:
    images = torch.rand(20, 3, 4, 4) * torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    found = data.standardized(images)
    assert found.standardizer.mean.shape == (3, 1, 1)
    torch.testing.assert_close(found.data.std((0, 2, 3)), torch.ones(3), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"columns that vary; 1 .counted from 0. never change"):
        data.standardized(torch.stack([X[:, 0], torch.full((40,), 7.0)], 1))
    with pytest.raises(TypeError, match=r"data: expected x1 or \(x1, y\), as arrays; got"):
        data.standardized(TensorDataset(X))
    with pytest.raises(ValueError, match="x1: expected at least 2 samples; got 1"):
        data.standardized(X[:1])
    scale = data.Standardizer.of(X)
    assert math.isclose(scale.log_volume(X), float(X.double().std(0).log().sum()))
    assert data.Standardizer.from_dict(scale.as_dict()) == scale


class Augmented(Dataset[Any]):
    """As people augment: by torch, by NumPy, by Python's random."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        return X[index] + torch.randn(2) + float(np.random.randn()) + random.random()


@pytest.mark.parametrize("workers", [1, 2])
def test_augmentation_does_not_depend_on_the_process_that_reads(workers: int) -> None:
    def weights(workers: int) -> list[Tensor]:
        torch.manual_seed(0)
        config = dataclasses.replace(CONFIG, workers=workers)
        return list(fit(MLP(2, hidden=8, depth=1), FlowMatching(), Augmented(), config).live.parameters())

    before = np.random.get_state()[1].copy()  # type: ignore[index]
    assert all(torch.equal(a, b) for a, b in zip(weights(0), weights(workers), strict=True))
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_empty_batches_stay_empty() -> None:
    from flowbook.inversion import interpolate

    nothing = torch.zeros(0, 2)

    def still(x: Tensor, t: Any) -> Tensor:
        return 0 * x

    assert sample(still, nothing, steps=1).x.shape == (0, 2)
    assert round_trip(still, nothing, steps=1).error.shape == (0,)
    assert interpolate(still, nothing, nothing, 3, steps=1).x.shape[-1] == 2
    assert log_prob(still, nothing, steps=1).log_prob.shape == (0,)


def test_whole_numbers_are_data_too() -> None:
    table = torch.randint(-3, 4, (40, 2), generator=torch.Generator().manual_seed(0))
    assert same(trained(table.numpy()), trained(table.float()))


def test_held_out_data_come_into_the_units_of_the_training() -> None:
    source, seen = data.standardized(LARGE), list[float]()
    config = dataclasses.replace(CONFIG, validation_every=1, log_every=1)

    def note(step: int, velocity: nn.Module, logs: dict[str, float]) -> None:
        seen.append(logs["validation_loss"])

    for held_out in (LARGE[:8], LARGE[:8].numpy(), data.Standardized(source.data[:8], source.standardizer)):
        fit(MLP(2), FlowMatching(), source, config, validation=held_out, callbacks=[note])
    assert max(seen) < 10
    with pytest.raises(ValueError, match="validation: expected the units of the training data"):
        fit(MLP(2), FlowMatching(), source, config, validation=data.standardized(LARGE[:8]))
    with pytest.raises(TypeError, match=r"validation: expected x1 or \(x1, y\), as arrays"):
        fit(MLP(2), FlowMatching(), source, config, validation=TensorDataset(LARGE))


def test_a_run_is_not_resumed_on_data_of_other_units(tmp_path: Path) -> None:
    whole = (64 * LARGE).round() / 64
    given = data.standardized(whole)
    fit(MLP(2), FlowMatching(), given, CONFIG, out=tmp_path, stop_after=1)
    for other in (data.Standardized(given.data, data.Standardizer(2 * MEAN, STD)), given.data):
        with pytest.raises(ValueError, match=r"SHA-256 of the data was .*extend=\['data'\]"):
            fit(MLP(2), FlowMatching(), other, CONFIG, out=tmp_path)
    assert fit(MLP(2), FlowMatching(), given.data, CONFIG, out=tmp_path, extend=["data"]).step == 2


def test_students_keep_the_units_of_their_teacher(tmp_path: Path) -> None:
    teacher = fit(MLP(2, hidden=8), FlowMatching(), data.standardized(LARGE), CONFIG).velocity
    pairs = generate_pairs(teacher, (2,), 16, tmp_path, steps=1)
    (flow,) = rectify(teacher, (2,), 1, CONFIG, n=16, steps=1)
    for student in (distill(teacher, pairs, CONFIG), flow):
        assert student.standardizer == teacher.standardizer is not None
    for judge in (lambda: denoise(teacher, LARGE, noise_std=0.1), lambda: estimate_noise(teacher, LARGE)):
        with pytest.raises(ValueError, match="velocity: expected one in the units of its data"):
            judge()


def test_two_folders_or_data_sets_without_pairs() -> None:
    unpaired = data.Unpaired(TensorDataset(X[:7], Y[:7]), TensorDataset(X + 5))
    x0, x1, _ = unpaired.sample(20, torch.Generator().manual_seed(0))
    assert x0.shape == x1.shape == (20, 2) and float(x1.mean()) > 3
