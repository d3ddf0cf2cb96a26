"""Every wrong implementation gets the name of its fault, and every right one passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowbook import data, laws, models
from flowbook.cli import main
from flowbook.couplings import OptimalTransport
from flowbook.diffusion import Diffusion, NoiseSchedule, SchedulePath
from flowbook.flow_matching import FlowMatching
from flowbook.laws import Violation
from flowbook.paths import CosinePath, LinearPath, VPPath
from laws import wrong

CHECKS: dict[str, Callable[..., str]] = {
    "loss": laws.check_loss, "velocity": laws.check_velocity, "sampler": laws.check_sampler,
    "log_prob": laws.check_log_prob, "path": laws.check_path,
}  # fmt: skip
WRONG = [
    pytest.param(CHECKS[kind], fault, function, convention, id=f"{kind}{n}-{fault}")
    for kind, cases in (
        ("loss", wrong.LOSSES), ("velocity", wrong.VELOCITIES), ("sampler", wrong.SAMPLERS),
        ("log_prob", wrong.DENSITIES), ("path", wrong.PATHS),
    )
    for n, (fault, function, convention) in enumerate(cases)
]  # fmt: skip


@pytest.mark.parametrize(("check", "fault", "function", "convention"), WRONG)
def test_the_fault_is_named(check: Callable[..., str], fault: str, function: Any, convention: dict[str, Any]) -> None:
    with pytest.raises(Violation) as raised:
        check(function, **convention)
    assert raised.value.fault == fault, str(raised.value)
    name, _, said = str(raised.value).partition(": ")
    assert name and len(said) > 10


def test_there_are_many_of_them() -> None:
    faults = {param.values[1] for param in WRONG}
    assert len(WRONG) >= 100 and len(faults) >= 50


@pytest.mark.parametrize(
    ("kind", "function", "convention"),
    [pytest.param(kind, function, words, id=f"{kind} {name}") for kind, name, function, words in wrong.RIGHT],
)
def test_what_is_right_passes(kind: str, function: Any, convention: dict[str, Any]) -> None:
    assert CHECKS[kind](function, **convention).startswith("right: ")


@pytest.mark.parametrize("seed", range(5))
def test_neither_verdict_depends_on_the_seed(seed: int) -> None:
    assert laws.check_loss(wrong.loss(), seed=seed).startswith("right")
    assert laws.check_loss(wrong.loss(), seed=seed, shape=(2,)).startswith("right")
    assert laws.check_sampler(wrong.ancestral(), seed=seed, path=wrong.SCHEDULE).startswith("right")
    assert laws.check_log_prob(wrong.density(probes=wrong.signs, steps=10), seed=seed, probes=1).startswith("right")
    for fault, function in (("noise redrawn", wrong.LOSSES[9][1]), ("time reversed", wrong.LOSSES[1][1])):
        with pytest.raises(Violation) as raised:
            laws.check_loss(function, seed=seed)
        assert raised.value.fault == fault
    with pytest.raises(Violation, match="forgets where it came from"):
        laws.check_sampler(wrong.ancestral(fresh=True), seed=seed, path=wrong.SCHEDULE)


def test_this_package_s_losses_are_what_they_say() -> None:
    schedule = NoiseSchedule.linear(100, rescale=True)
    assert laws.check_loss(FlowMatching()).startswith("right")
    assert laws.check_loss(FlowMatching(coupling=OptimalTransport())).startswith("right")
    assert laws.check_loss(FlowMatching(path=CosinePath()), path=CosinePath()).startswith("right")
    assert laws.check_loss(Diffusion(schedule), path=SchedulePath(schedule), output="noise").startswith("right")


@pytest.mark.parametrize("path", [LinearPath(), LinearPath(0.1), CosinePath(), VPPath()], ids=repr)
def test_this_package_s_paths_are_paths(path: Any) -> None:
    assert laws.check_path(path, expected=path).startswith("right")


def test_a_trained_network_is_held_against_its_data() -> None:
    digits, (images, _) = models.load_pretrained("digits"), data.digits("train")
    assert laws.check_velocity(digits, images).startswith(
        "right: the velocity of its data, with a relative error of 0.0"
    )
    with pytest.raises(Violation, match="noise and data are exchanged"):
        laws.check_velocity(lambda x, t: -digits(x, 1 - t), images)
    with pytest.raises(Violation, match=r"is t used, and is it trained\?"):
        laws.check_velocity(models.UNet(1, 8, width=8, multipliers=(1, 2)).eval(), images)


def test_a_path_that_agrees_with_another_only_at_its_ends() -> None:
    with pytest.raises(Violation, match="xt: off by up to"):
        laws.check_path(CosinePath(), expected=LinearPath())
    angle = wrong.HALF_PI
    squared = wrong.path(
        lambda x0, x1, t: (angle * t).cos() ** 2 * x0 + (angle * t).sin() ** 2 * x1,
        lambda x0, x1, t, xt: angle * (2 * angle * t).sin() * (x1 - x0),
    )
    with pytest.raises(Violation, match="the roots are missing"):
        laws.check_path(squared, expected=CosinePath())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: laws.check_loss(3), TypeError, "loss: expected"),  # type: ignore[arg-type]
        (
            lambda: laws.check_loss(wrong.loss(), shape=(0,)),
            ValueError,
            "shape: expected an integer of at least 1; got 0",
        ),
        (lambda: laws.check_loss(wrong.loss(), order="x"), ValueError, "order: expected one of"),  # type: ignore[arg-type]
        (lambda: laws.check_loss(wrong.loss(), signs=1), TypeError, "convention: unknown signs"),  # type: ignore[call-arg]
        (lambda: laws.check_loss(wrong.loss(), sign=2.0), ValueError, "sign: expected one of"),
        (lambda: laws.check_loss(wrong.loss(), time_scale=-1.0), ValueError, "time_scale: expected a positive number"),
        (lambda: laws.check_velocity(wrong.EXACT, "mnist"), TypeError, "data: expected"),  # type: ignore[arg-type]
        (lambda: laws.check_velocity(wrong.EXACT, tolerance=0.0), ValueError, "tolerance: expected"),
        (lambda: laws.check_path(lambda x0, x1, t: x0), TypeError, r"path: expected \(xt, velocity\)"),
        (lambda: laws.check_log_prob(wrong.density(), probes=0), ValueError, "probes: expected"),
        (lambda: laws.check_path(LinearPath(), reverse=1), TypeError, "reverse: expected"),  # type: ignore[arg-type]
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# From the shell -------------------------------------------------------------------------------------------------------

MINE = """
import torch

def loss(model, x1):
    x0, t = torch.randn_like(x1), torch.rand(len(x1))[:, None]
    return (model((1 - t) * x0 + t * x1, 1000 * t) - (x0 - x1)).square().mean()

def walk(model, x):
    for k in range(50):
        x = x + model(torch.tensor(k / 50), x) / 50
    return x

def velocity(x, t):
    return 3 - x

class Net:
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MINE)
    torch.save({"x1": torch.randn(50, 2)}, tmp_path / "points.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_the_shell_names_the_fault_and_takes_the_convention(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", f"{mine}:loss"]) == 1
    assert re.fullmatch(
        r"wrong: t: expected times from 0 to 1; got \d\.?\d* to 99\d: they are scaled \(else say time_scale=1000\)\n",
        capsys.readouterr().out,
    )
    assert main(["laws", f"{mine}:loss", "time_scale=1000", "sign=-1", "shape=[16]"]) == 0
    assert capsys.readouterr().out.startswith("right: a regression on the velocity along LinearPath")
    assert main(["laws", f"{mine}:walk", "--as", "sampler", "order=t,x"]) == 0
    assert main(["laws", f"{mine}:velocity", "data=points.pt"]) == 1
    assert "relative error" in capsys.readouterr().out
    assert main(["laws", f"{mine}:loss", "path={name: cosine}", "time_scale=1000"]) == 1
    assert main(["laws", f"{mine}:loss", "schedule={name: linear, steps: 100, rescale: true}"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{mine}"], "name: expected MODULE:NAME, such as mine:velocity"),
        (["nowhere:loss"], "name: No module named 'nowhere'"),
        (["{mine}:los"], "has no los"),
        (["{mine}:walk"], "--as: expected one of velocity, loss, sampler, path, log_prob"),
        (["{mine}:Net", "--as", "loss"], "is a class"),
        (["{mine}:loss", "sign"], "argument: expected key=value; got 'sign'"),
        (["{mine}:loss", "path=cosin"], "path.name: expected one of 'linear', 'cosine', 'vp'; got 'cosin'"),
        (["{mine}:loss", "probes=1"], "convention: unknown probes"),
    ],
)
def test_a_misspelled_command_says_what_is_expected(
    mine: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["laws", *(word.format(mine=mine) if "{mine}" in word else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_exercises_and_laws_share_their_diagnoses() -> None:
    from flowbook.book import checks

    def flipped(x0: Tensor, x1: Tensor, t: Tensor, sigma_min: float) -> tuple[Tensor, Tensor]:
        path = LinearPath(sigma_min)
        return path.interpolate(x0, x1, t), -path.velocity(x0, x1, t)

    with pytest.raises(Violation, match="target: sign flipped"):
        checks.target_with_sigma_min(flipped)
