"""The step that the loop, the timing command and the book share, and what `fit` does around it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Forked, seeded
from torch import Tensor, nn

from flowbook import cnf, data, models
from flowbook.couplings import Independent, OptimalTransport
from flowbook.diffusion import Diffusion, NoiseSchedule, ProbabilityFlow
from flowbook.flow_matching import FlowMatching
from flowbook.models import MLP, UNet
from flowbook.training import (
    EMA,
    Interrupted,
    StepContext,
    TrainConfig,
    fit,
    keyed,
    load,
    micro_batches,
    train_step,
)
from flowbook.training import checkpoint as checkpoints
from flowbook.training.loss import CompleteLoss

X = torch.randn(64, 2, generator=seeded())


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP(2, hidden=16)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 6, "batch_size": 16, "log_every": 2, **settings})


# The step -------------------------------------------------------------------------------------------------------------


def squares(model: Any, batch: Any) -> Tensor:
    return (model(batch, torch.zeros(len(batch))) - 1).square().mean()


@pytest.mark.parametrize("accumulate", [1, 2, 8])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_step_is_the_one_written_by_hand(accumulate: int, clip: float | None) -> None:
    ours, theirs = mlp(), mlp()
    ema = EMA(ours, batch_size=16, half_life=50.0)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (ours, theirs)]
    average = [p.detach().clone() for p in theirs.parameters()]
    for n in range(4):
        batch = X[16 * n : 16 * n + 16]
        loss = train_step(ours, batch, squares, optimizers[0], ema, accumulate=accumulate, gradient_clip=clip)
        optimizers[1].zero_grad()
        value = squares(theirs, batch)
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        optimizers[1].step()
        weight = 1 - 0.5 ** (16 / min(50.0, 16 * (n + 1) * 0.05))
        for mean, p in zip(average, theirs.parameters(), strict=True):
            mean.lerp_(p.detach(), weight)
        torch.testing.assert_close(loss, value.detach())
    for a, b, mean, kept in zip(ours.parameters(), theirs.parameters(), average, ema.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(kept, mean)


class FromTensor:
    """A loss whose description cannot be stored."""

    def __call__(self, velocity: Any, batch: Tensor) -> Tensor:
        return (velocity(batch, torch.tensor(0.5)) - batch).square().mean()

    def describe(self) -> dict[str, Any]:
        return {"weight": torch.tensor(2.0)}


class Doubling(nn.Module):
    """A velocity in double precision, whatever its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(x, t).double()
        return out


def test_labels_may_be_missing_from_a_pair_of_data_and_labels() -> None:
    runs = []
    for given in (X, (X, None)):
        torch.manual_seed(0)
        runs.append(fit(mlp(), FlowMatching(), given, config()).losses)
    assert torch.equal(*runs)


def test_micro_batches_are_the_batch_with_its_labels() -> None:
    y = torch.arange(12)
    parts = list(micro_batches((X[:12], y), 3))
    assert torch.equal(torch.cat([part[0] for part in parts]), X[:12])
    assert torch.equal(torch.stack([data.unpack(part)[2] for part in parts]), y.reshape(3, 4))
    assert next(micro_batches(X, 1)) is X


def test_the_context_surrounds_every_micro_batch() -> None:
    class Noting(StepContext):
        def passes(self, part: int) -> Any:
            noted.append(("passes", part))
            return super().passes(part)

        def forward(self, part: int) -> Any:
            noted.append(("forward", part))
            return super().forward(part)

    noted: list[tuple[str, int]] = []
    model = mlp()
    train_step(model, X[:4], squares, torch.optim.SGD(model.parameters()), accumulate=2, context=Noting())
    assert noted == [("passes", 0), ("forward", 0), ("passes", 1), ("forward", 1)]


@pytest.mark.parametrize("loss", [lambda model, batch: model(batch, torch.zeros(len(batch))), lambda model, batch: 1.0])
def test_law_11_a_loss_that_is_no_scalar_is_refused_and_leaves_the_network(loss: Any) -> None:
    model, before = mlp(), mlp()
    with pytest.raises(ValueError, match=r"loss: expected a scalar, the mean over the batch; got (shape|float)"):
        fit(model, loss, X, config())
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


# The loss protocol ----------------------------------------------------------------------------------------------------


class Halved(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return 0.5 * self.network(x, t)


class Telling:
    """A loss of a reader's own that says all that a loss can."""

    def __init__(self, scale: float = 1.0):
        self.scale, self.checked = scale, []  # type: ignore[var-annotated]

    def __call__(self, model: Any, batch: Any) -> Tensor:
        return self.scale * FlowMatching()(model, batch)

    def velocity(self, network: nn.Module) -> nn.Module:
        return Halved(network)

    def check(self, network: nn.Module, data: Any) -> None:
        self.checked.append((network, data))

    def describe(self) -> dict[str, Any]:
        return {"scale": self.scale}


def test_a_loss_of_one_s_own_is_asked_for_its_velocity_its_check_and_its_description(tmp_path: Path) -> None:
    model, loss = mlp(), Telling()
    result = fit(model, loss, X, config(), out=tmp_path, stop_after=3)
    assert isinstance(result.velocity, Halved) and loss.checked == [(model, X)]
    with pytest.raises(
        ValueError, match=r"loss: .* was trained with .*Telling, .*load\(\.\.\., loss=Telling\(\.\.\.\)\)"
    ):
        load(tmp_path)
    again = load(tmp_path, loss=Telling())
    x, t = X[:4], torch.tensor(0.5)
    torch.testing.assert_close(again(x, t), result.velocity(x, t))
    with pytest.raises(ValueError, match=r"loss was Telling\(scale=1\.0\), is Telling\(scale=2\.0\)"):
        fit(mlp(), Telling(2.0), X, config(), out=tmp_path)


def test_a_function_is_a_loss_with_every_default() -> None:
    loss, network = CompleteLoss(squares), mlp()
    assert loss.velocity(network) is network and loss.describe() is None
    assert loss.one_call and loss.trains_velocity
    loss.check(network, X)


def test_the_package_s_losses_say_what_they_are(tmp_path: Path) -> None:
    assert not CompleteLoss(cnf.MaximumLikelihood(steps=2)).one_call
    assert not CompleteLoss(models.CrossEntropy()).trains_velocity
    schedule = NoiseSchedule.cosine(20)
    for prediction in ("noise", "data", "v"):
        loss = Diffusion(schedule, prediction)
        described = CompleteLoss(loss).describe()
        assert described is not None and described["class"] == "flowbook.diffusion.loss.Diffusion"
        again = Diffusion.from_description(json.loads(json.dumps(described["arguments"])))
        assert torch.equal(again.schedule.betas, schedule.betas) and again.prediction == prediction
    result = fit(mlp(), Diffusion(schedule), X, config(), out=tmp_path)
    loaded = load(tmp_path)
    assert isinstance(result.velocity, ProbabilityFlow) and isinstance(loaded, ProbabilityFlow)
    torch.testing.assert_close(loaded(X[:3], 0.5), result.velocity(X[:3], 0.5))


def test_a_checkpoint_names_no_code_outside_of_the_package(tmp_path: Path) -> None:
    fit(mlp(), Diffusion(NoiseSchedule.cosine(20)), X, config(), out=tmp_path)
    path = checkpoints.locate(tmp_path) / "state.json"
    state = json.loads(path.read_text())
    state["loss"]["class"] = "os.system"
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"loss: .* was trained with os\.system"):
        load(tmp_path)
    state["loss"]["class"] = "flowbook.diffusion.Nothing"
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="describes a loss that cannot be rebuilt"):
        load(tmp_path)


def test_random_numbers_of_a_loss_of_one_s_own_can_belong_to_the_sample() -> None:
    from flowbook.training import rand, randn_like

    def loss(model: Any, batch: Tensor) -> Tensor:
        x0, t = randn_like(batch), rand(len(batch), like=batch)
        v = model(t[:, None] * batch + (1 - t[:, None]) * x0, t)
        return (v - (batch - x0)).square().mean()

    whole = fit(mlp(), loss, X, config()).losses
    parts = fit(mlp(), loss, X, config(accumulate=4)).losses
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)
    with keyed(0, 1, 0):
        first = randn_like(X)
    with keyed(0, 1, 0):
        assert torch.equal(randn_like(X), first)


# The trial ------------------------------------------------------------------------------------------------------------


class PerSample(nn.Module):
    """Trains, and cannot be sampled: it does not take one time for all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.layer(torch.cat([x, t[:, None]], dim=1))


def test_a_network_that_cannot_be_sampled_is_refused_before_the_first_step() -> None:
    model = PerSample()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(
        ValueError, match=r"velocity: expected a network that takes t of shape \(\) as well as \(B,\).*expand"
    ):
        fit(model, FlowMatching(), X, config(steps=10_000_000))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_what_fails_with_any_time_says_so_itself() -> None:
    class Wrong(PerSample):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            raise RuntimeError("the network's own trouble")

    with pytest.raises(RuntimeError, match=r"^the network's own trouble$"):
        fit(Wrong(), FlowMatching(), X, config())


def test_a_velocity_of_another_shape_is_refused_before_the_first_step() -> None:
    class Narrow(PerSample):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return self.layer(torch.cat([x, t.expand(len(x))[:, None]], dim=1))[:, :1]

    with pytest.raises(ValueError, match=r"velocity\(x, t, y\): expected the shape of x, \(2, 2\); got \(2, 1\)"):
        fit(Narrow(), squares, X, config())


def test_the_trial_leaves_numbers_modes_and_random_state_alone() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer, self.drop = nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return self.drop(self.layer(self.norm(x)))

    torch.manual_seed(0)
    model: Any = Normed()
    fit(model, FlowMatching(), X, config(steps=1))
    assert int(model.norm.num_batches_tracked) == 1 and model.training


def test_a_preview_that_is_no_image_is_refused_before_the_first_step(tmp_path: Path) -> None:
    calls = []

    def preview(velocity: Any) -> Any:
        calls.append(velocity)
        return [1, 2, 3]

    model = mlp()
    with pytest.raises(TypeError, match=r"preview\(velocity\): expected a torch.Tensor; got list"):
        fit(model, FlowMatching(), X, config(), out=tmp_path, preview=preview)
    assert checkpoints.available(tmp_path / "checkpoints") == []


def test_a_preview_costs_no_evaluation_before_the_first_step(tmp_path: Path) -> None:
    evaluated = []

    class Noting(UNet):
        def forward(self, x: Tensor, t: Any, y: Any = None) -> Tensor:
            evaluated.append(len(x))
            return super().forward(x, t, y)

    model = Noting(1, 8, width=8, multipliers=(1, 2), blocks=1)
    images = torch.zeros(8, 1, 8, 8)
    fit(
        model,
        FlowMatching(),
        images,
        TrainConfig(steps=1, batch_size=4),
        preview=lambda v: v(images, torch.tensor(0.0)),
    )
    assert evaluated == [2, 4]  # the trial on two rows, the step; the preview saw a velocity that stands still


# Stopping -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a program has it; pytest's own workers ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(after: int) -> Any:
    calls = []

    def loss(model: Any, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return FlowMatching()(model, batch)

    return loss


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_the_averaged_model_and_the_same_call_goes_on(tmp_path: Path) -> None:
    with pytest.raises(
        Interrupted, match=f"stopped by Ctrl-C at step 3; the same call resumes from {tmp_path}"
    ) as stopped:
        fit(mlp(), interrupting(3), X, config(), out=tmp_path)
    assert stopped.value.result.step == 3 and len(stopped.value.result.losses) == 3
    assert isinstance(stopped.value, KeyboardInterrupt) and stopped.value._render_traceback_() == [str(stopped.value)]
    assert checkpoints.read(checkpoints.locate(tmp_path)).step == 3
    after = fit(mlp(), FlowMatching(), X, config(), out=tmp_path, extend=["loss"])
    whole = fit(mlp(), FlowMatching(), X, config())
    assert torch.equal(after.losses, whole.losses[3:])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_without_a_folder_keeps_the_velocity_in_the_exception() -> None:
    with pytest.raises(Interrupted, match=r"the exception's \.result has the velocity") as stopped:
        fit(mlp(), interrupting(2), X, config())
    assert stopped.value.result.checkpoint is None
    assert stopped.value.result.velocity(X, torch.tensor(0.5)).shape == X.shape


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_acts_at_once() -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step goes on")

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(mlp(), loss, X, config())
    assert not isinstance(stopped.value, Interrupted)


def test_a_program_that_handles_ctrl_c_keeps_its_handler() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGINT, mine)
    try:
        fit(mlp(), FlowMatching(), X, config(steps=2))
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.faults
def test_ctrl_c_ends_the_command_with_one_line_and_status_130(tmp_path: Path) -> None:
    recipe = "model: {name: MLP, dim: 2, hidden: 16}\ndata: {name: moons}\nloss: {name: flow_matching}\n"
    (tmp_path / "plane.yaml").write_text(recipe + "train: {steps: 1000000, batch_size: 32, checkpoint_every: 3}\n")
    code = "import sys; from flowbook import cli; sys.exit(cli.main())"
    process = Forked(
        code, ["train", str(tmp_path / "plane.yaml"), "--out", str(tmp_path / "run")], {}, tmp_path / "errors"
    )
    for _ in range(4000):
        if list((tmp_path / "run" / "checkpoints").glob("step_*")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.errors.read_text().strip().splitlines()[-1].startswith("flowbook train: stopped by Ctrl-C at step")


# What a run tells -----------------------------------------------------------------------------------------------------


def test_callbacks_get_step_velocity_and_the_numbers_of_the_log(tmp_path: Path) -> None:
    seen = []

    def note(step: int, velocity: nn.Module, logs: dict[str, float]) -> None:
        seen.append((step, velocity(X, torch.tensor(0.5)).shape, logs["loss"]))

    fit(mlp(), FlowMatching(), X, config(), out=tmp_path, callbacks=[note, lambda *given: None])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(step, loss) for step, _, loss in seen] == [(line["step"], line["loss"]) for line in lines]
    assert [step for step, *_ in seen] == [2, 4, 6]
    with pytest.raises(TypeError, match="callbacks: expected a function"):
        fit(mlp(), FlowMatching(), X, config(), callbacks=["print"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "held_out", [X[:40], (X[:40], torch.zeros(40, dtype=torch.long)), data.moons()], ids=["x", "xy", "moons"]
)
def test_the_validation_loss_is_in_the_log_always_with_the_same_noise(held_out: Any, tmp_path: Path) -> None:
    settings = config(steps=4, validation_every=2, ema_half_life=None, learning_rate=1e-12)
    network = MLP(2, hidden=16, num_classes=3)
    fit(network, FlowMatching(), X, settings, out=tmp_path, validation=held_out)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    values = [line["validation_loss"] for line in lines]
    assert len(values) == 2 and values[0] == pytest.approx(values[1], rel=1e-5)  # of a network that hardly moves
    without = fit(MLP(2, hidden=16), FlowMatching(), X, config(steps=4)).losses
    torch.manual_seed(0)
    same = fit(mlp(), FlowMatching(), X, config(steps=4)).losses
    looked = fit(mlp(), FlowMatching(), X, config(steps=4, validation_every=1), validation=X).losses
    assert torch.equal(same, looked) and len(without) == 4  # looking changes no bit of the run


def test_an_error_in_a_callback_loses_no_step(tmp_path: Path) -> None:
    def misspelt(step: int, velocity: nn.Module, logs: dict[str, float]) -> None:
        if step == 6:
            print(logs["los"])

    with pytest.raises(KeyError, match="los"):
        fit(mlp(), FlowMatching(), X, config(), out=tmp_path, callbacks=[misspelt])
    assert [path.name for path in checkpoints.available(tmp_path / "checkpoints")] == ["step_00000006"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"validation": X[:0]}, ValueError, "validation: expected at least one sample"),
        ({"data": torch.tensor(1.0)}, ValueError, "data: expected at least one sample"),
        ({"loss": FromTensor()}, TypeError, r"loss: describe\(\) returns numbers and strings"),
        ({"velocity": Doubling()}, ValueError, "velocity.*expected the dtype of x, torch.float32; got torch.float64"),
    ],
)
def test_what_would_fail_after_the_last_step_is_refused_before_the_first(
    arguments: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"velocity": mlp(), "loss": FlowMatching(), "data": X} | arguments
    with pytest.raises(kind, match=message):
        fit(**given, config=config(), out=tmp_path, callbacks=[lambda *logs: pytest.fail("a step was taken")])


def test_the_validation_loss_has_the_coupling_of_the_training_loss(tmp_path: Path) -> None:
    class Lengths:
        """The mean squared length of the lines, whatever the network."""

        def __call__(self, velocity: Any, batch: Any) -> Tensor:
            x0, x1, _ = data.unpack(batch)
            return (x1 - x0).square().sum(1).mean() + 0.0 * velocity(x1, torch.tensor(0.5)).sum()  # type: ignore[operator]

    found = {}
    for coupling in (Independent(), OptimalTransport()):
        out = tmp_path / type(coupling).__name__
        fit(mlp(), Lengths(), X, config(steps=2), out=out, coupling=coupling, validation=X)
        line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        found[type(coupling)] = line["loss"], line["validation_loss"]
    assert all(validation == pytest.approx(loss, rel=0.4) for loss, validation in found.values())
    assert found[OptimalTransport][1] < 0.7 * found[Independent][1]


def test_plain_lines_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    fit(mlp(), FlowMatching(), X, config(), progress="lines", validation=X)
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6"]
    assert "validation" in lines[-1] and "images/s" in lines[-1]
    fit(mlp(), FlowMatching(), X, config())
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="progress: expected one of None, True, False, 'lines'"):
        fit(mlp(), FlowMatching(), X, config(), progress="bar")  # type: ignore[arg-type]


def test_a_run_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    from flowbook.couplings import OptimalTransport

    def fails(model: Any, batch: Any) -> Tensor:
        raise ZeroDivisionError

    fit(mlp(), FlowMatching(), X, config(steps=1), out=tmp_path / "warm")  # tensorboard's own are there by now
    before = set(threading.enumerate())
    for n in range(3):
        with pytest.raises(ZeroDivisionError):
            fit(mlp(), fails, X, config(), coupling=OptimalTransport(), out=tmp_path / str(n))
    left = [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]
    assert left == []


def test_the_board_keeps_the_step_at_which_a_run_goes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stop in (2, 6):
        fit(mlp(), FlowMatching(), X, config(), out=tmp_path, stop_after=stop)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [2, 4, 6]


# Where and how --------------------------------------------------------------------------------------------------------


class Flattening(nn.Module):
    """A network of a reader's own, which needs its images as torch makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.layer = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 64)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.convolution(x)
        return self.layer(h.view(len(h), -1)).view(x.shape)


def test_only_the_package_s_networks_are_laid_out_channels_last() -> None:
    images, settings = torch.randn(8, 1, 8, 8, generator=seeded()), TrainConfig(steps=2, batch_size=4)
    own = fit(Flattening(), FlowMatching(), images, settings).live
    assert own.convolution.weight.is_contiguous()  # type: ignore[operator, union-attr]
    unet = UNet(1, 8, width=8, multipliers=(1, 2), blocks=1)
    fit(unet, FlowMatching(), images, settings)
    weight = next(p for p in unet.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    off = UNet(1, 8, width=8, multipliers=(1, 2), blocks=1)
    fit(off, FlowMatching(), images, TrainConfig(steps=2, batch_size=4, channels_last=False))
    assert all(p.is_contiguous() for p in off.parameters())


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device: {device} is not available; this machine has no accelerator"):
        fit(mlp(), FlowMatching(), X, config(device=device))


def test_a_device_beyond_those_that_are_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowbook.training.precision import choose_device

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert choose_device(config(device="cuda:1")) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device: cuda:2 is not available; this machine has 2 of type cuda"):
        choose_device(config(device="cuda:2"))


# What load reads ------------------------------------------------------------------------------------------------------


def test_load_reads_a_run_a_checkpoint_an_exported_file_and_a_shipped_name_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = fit(mlp(), FlowMatching(), X, config(), out=tmp_path / "run").velocity
    models.export(trained, tmp_path / "small.safetensors")
    x, t = X[:4], torch.tensor(0.3)
    for source in (tmp_path / "run", checkpoints.locate(tmp_path / "run"), str(tmp_path / "run")):
        assert torch.equal(load(source)(x, t), trained(x, t))
    torch.testing.assert_close(load(tmp_path / "small.safetensors")(x, t), trained(x, t), rtol=1e-2, atol=1e-2)
    assert load("digits").num_classes == 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").symlink_to(tmp_path / "run")  # a folder of one's own comes first
    assert isinstance(load("digits"), MLP)


def test_a_checkpoint_of_the_first_format_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    fit(mlp(), FlowMatching(), X, config(), out=tmp_path)
    folder = checkpoints.locate(tmp_path)
    (folder / "ema.safetensors").rename(folder / "average.safetensors")
    for call in (
        lambda: load(tmp_path),
        lambda: load(folder),
        lambda: fit(mlp(), FlowMatching(), X, config(), out=tmp_path),
    ):
        with pytest.raises(ValueError, match="has format 1, of an earlier version of flowbook") as said:
            call()
        assert "\n" not in str(said.value)


# What it costs --------------------------------------------------------------------------------------------------------


def test_the_loop_imports_no_loss() -> None:
    code = "import sys, flowbook.training; print(sorted(n for n in sys.modules if n.startswith('flowbook.')))"
    import subprocess

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for chapter in ("diffusion", "cnf", "flow_matching", "reflow", "inversion"):
        assert f"flowbook.{chapter}" not in loaded
