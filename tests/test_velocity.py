"""What a velocity says about itself, and what is inside it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowbook.diffusion import NoiseSchedule, StepModel, probability_flow
from flowbook.flow_matching import FlowMatching
from flowbook.guidance import guided
from flowbook.inversion import interpolate
from flowbook.models import MLP, Autocast, Compiled
from flowbook.paths import CosinePath, VPPath, as_velocity, change_path, path_of, retimed
from flowbook.reflow import distill
from flowbook.solvers import sample
from flowbook.training import TrainConfig, fit
from flowbook.velocity import check_order, device_of, dtype_of, evaluating, modules_of, said_by

NETWORK = MLP(2, num_classes=3)
X = torch.zeros(4, 2)


def by_name(x: Tensor, t: Tensor) -> Tensor:
    return NETWORK(x, t)


def through_another(x: Tensor, t: Tensor) -> Tensor:
    return by_name(x, t)


class Holder:
    def __init__(self) -> None:
        self.network = NETWORK

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)


def closed_over() -> Any:
    inner = NETWORK
    return lambda x, t: inner(x, t)


AROUND: dict[str, Any] = {
    "itself": NETWORK,
    "a global of a function": by_name,
    "a function of a function": through_another,
    "a variable of a lambda": closed_over(),
    "a default": lambda x, t, net=NETWORK: net(x, t),
    "a partial": functools.partial(lambda net, x, t: net(x, t), NETWORK),
    "an object that is called": Holder(),
    "a method": Holder().velocity,
    "a module with a function": probability_flow(
        lambda x, i: NETWORK(x, i / 99), NoiseSchedule.linear(100, rescale=True)
    ),
}


@pytest.mark.parametrize("velocity", AROUND.values(), ids=AROUND)
def test_the_network_inside_is_found_and_put_in_eval_mode(velocity: Any) -> None:
    assert NETWORK in [part for module in modules_of(velocity) for part in module.modules()]
    NETWORK.train()
    with evaluating(velocity):
        assert not NETWORK.training
    assert NETWORK.training
    assert device_of(velocity) == torch.device("cpu") and dtype_of(velocity) == torch.float32


def test_functions_without_a_network_and_circles_end() -> None:
    def circle(x: Tensor, t: Tensor) -> Tensor:
        return circle(x, t)

    assert modules_of(circle) == modules_of(torch.sin) == modules_of(lambda x, t: -x) == []
    assert dtype_of(circle) is None and device_of(circle) == torch.device("cpu")


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        Autocast,
        lambda network: Compiled(network, 4),
        retimed,
        change_path,
        lambda network: guided(network, 2.0),
        lambda network: as_velocity(network, VPPath()),
        lambda network: StepModel(network, NoiseSchedule.linear(1000)),
        torch.compile,
    ],
)
def test_what_a_network_says_is_heard_through_every_wrapper(wrap: Any) -> None:
    assert (said_by(wrap(NETWORK), "null"), said_by(wrap(NETWORK), "num_classes")) == (3, 3)


def test_a_velocity_s_own_path_is_known() -> None:
    class Own(nn.Module):
        path = CosinePath()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x

    assert path_of(Own()) == path_of(nn.DataParallel(Own())) == path_of(guided(Own(), 2.0, 0)) == CosinePath()

    class Other(nn.Module):
        path = "a folder"

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x

    assert repr(path_of(Other())) == "LinearPath(sigma_min=0.0)"


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x, t.expand(len(x))[:, None]], dim=1))


class Method:
    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    "velocity", [lambda t, x: t * x, lambda time, xt: xt, TimeFirst(), Method().velocity, lambda sigma, sample: sample]
)
def test_a_velocity_with_the_time_first_is_refused_with_the_remedy(velocity: Any) -> None:
    message = r'velocity: expected v\(x, t\), .*from_callable\(velocity, order="t,x"\) turns it round'
    with pytest.raises(TypeError, match=message):
        sample(velocity, X, steps=2)
    if isinstance(velocity, nn.Module):
        with pytest.raises(TypeError, match=message):
            fit(velocity, FlowMatching(), X, TrainConfig(steps=1, batch_size=4))


def test_every_other_order_and_name_passes() -> None:
    for velocity in (
        lambda x, t: x, lambda a, b: a, lambda x, sigma, y=None: x, lambda *a: a[0], torch.add, NETWORK,
        functools.partial(lambda x, t: x),
    ):  # fmt: skip
        assert check_order(velocity) is None  # type: ignore[func-returns-value]


def test_a_student_needs_parameters_of_its_own() -> None:
    flow = probability_flow(lambda x, i: NETWORK(x, i / 99), NoiseSchedule.linear(100, rescale=True))
    with pytest.raises(ValueError, match="velocity: expected trainable parameters; got a module without any"):
        distill(flow, (X, X, None), TrainConfig(steps=1, batch_size=4))


def test_an_adaptive_method_is_refused_where_values_are_hidden() -> None:
    def end(x: Tensor, **options: Any) -> Tensor:
        return sample(lambda x, t: -x, x[None], **options).x[0]

    with pytest.raises(ValueError, match="method: dopri5 decides by the values of its states"):
        torch.vmap(end)(torch.randn(4, 2))
    assert torch.vmap(lambda x: end(x, method="rk4", steps=2))(torch.randn(4, 2)).shape == (4, 2)


def test_nothing_is_interpolated_between_no_points() -> None:
    empty = torch.zeros(0, 2)
    assert interpolate(lambda x, t: x, empty, empty, 3, steps=2).x.shape == (3, 0, 2)
