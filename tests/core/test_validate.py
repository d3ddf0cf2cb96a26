"""Law 11: an error names the argument, what came and what was expected; checks stay out of compiled and mapped code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import INF, NAN

from flowbook import cnf, diffusion, guidance, paths, solvers
from flowbook._core import validate

X = torch.zeros(3, 2)
STILL: Any = lambda x, t, y=None: torch.zeros_like(x)  # noqa: E731
NOISE: Any = lambda x, i, y=None: torch.zeros_like(x)  # noqa: E731
LINEAR = diffusion.NoiseSchedule.linear(10)


def test_numpy_s_numbers_are_numbers() -> None:
    validate.positive_int("n", np.int64(3))
    validate.number("a", np.float32(0.5), 0, 1)
    validate.time("t", np.float64(0.5))
    for value in (np.bool_(True), np.float64(3.0), np.array([3])):
        with pytest.raises(TypeError, match="n: "):
            validate.positive_int("n", value)


@pytest.mark.parametrize("t", [0, 1, 0.5, -1e-7, 1 + 1e-7, torch.tensor(0.5), torch.zeros(3), torch.empty(0)])
def test_times_that_are_right(t: Any) -> None:
    batch = None if isinstance(t, torch.Tensor) and t.numel() == 0 else 3
    assert validate.time("t", t, batch) is None  # type: ignore[func-returns-value]  # it raises otherwise


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: validate.time("t", 1 + 1e-5), ValueError, r"^t: expected times in \[0, 1\].*; got 1\.00001"),
        (lambda: validate.time("t", -INF), ValueError, "^t: .*-inf"),
        (lambda: validate.time("t", torch.tensor([0.5, 2.0])), ValueError, "^t: .*got 0.5 to 2"),
        (lambda: validate.time("t", torch.tensor([0.5, NAN])), ValueError, "^t: .*nan"),
        (lambda: validate.time("t", None), TypeError, "^t: .*NoneType"),
        (lambda: validate.time("t", False), TypeError, "^t: .*bool"),
        (
            lambda: validate.float_tensor("x", X.bool()),
            TypeError,
            "^x: expected a floating-point tensor; got dtype torch.bool",
        ),
        (lambda: validate.float_tensor("x", X + 1j), TypeError, "^x: .*complex"),
        (lambda: validate.float_tensor("x", X * NAN, finite=True), ValueError, "^x: .*6 of 6 NaN or infinite"),
        (lambda: validate.labels("y", torch.tensor([True, False]), 2), TypeError, "^y: .*bool"),
        (lambda: validate.labels("y", torch.tensor([0, -1]), 2, classes=3), ValueError, "^y: .*0 to 2; got -1 to 0"),
        (lambda: validate.labels("y", torch.tensor([[0]]), 1), ValueError, r"^y: .*\(1,\); got \(1, 1\)"),
        (lambda: validate.positive_int("n", 0), ValueError, "^n: expected an integer of at least 1; got 0"),
        (lambda: validate.positive_int("n", 1.0), TypeError, "^n: .*got 1.0"),
        (lambda: validate.positive_int("n", True), TypeError, "^n: .*got True"),
        (
            lambda: validate.number("a", 1.0, 0, 1, high_open=True),
            ValueError,
            r"^a: expected a number in \[0, 1\); got 1.0",
        ),
        (
            lambda: validate.number("a", 0.0, 0, 1, low_open=True),
            ValueError,
            r"^a: expected a number in \(0, 1\]; got 0.0",
        ),
        (lambda: validate.number("a", NAN, 0, 1), ValueError, "^a: .*nan"),
        (lambda: validate.number("a", None, 0, 1), TypeError, "^a: expected a number; got None"),
        (lambda: validate.one_of("m", "c", ("a", "b")), ValueError, "^m: expected one of 'a', 'b'; got 'c'"),
        (
            lambda: validate.same_shape("a", X, "b", X[:1]),
            ValueError,
            r"^a: expected the shape of b, \(1, 2\); got \(3, 2\)",
        ),
        (lambda: validate.same_shape("a", 3, "b", X), TypeError, "^a: .*int"),
        (lambda: validate.boolean("b", "yess"), TypeError, "^b: expected True or False; got 'yess'"),
        (lambda: validate.boolean("b", 1), TypeError, "^b: .*got 1"),
        (
            lambda: validate.instance("g", 0, int, "3") or validate.instance("g", int, int, "3"),  # type: ignore[func-returns-value]
            TypeError,
            "^g: expected a int such as 3; got the class int itself",
        ),
        (lambda: validate.function("f", dict, "len"), TypeError, "^f: .*such as len; got the class dict itself"),
        (lambda: validate.function("f", X, "len"), TypeError, "^f: .*got a Tensor"),
        (lambda: validate.generator(0), TypeError, "^generator: .*torch.Generator or None; got 0"),
    ],
)
def test_errors_name_the_argument_what_came_and_what_was_expected(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_values_are_not_looked_at_under_vmap() -> None:
    times = torch.tensor([0.5, 7.0])  # wrong, but reading it would break the map
    torch.vmap(lambda t: (validate.time("t", t), t)[1])(times)  # type: ignore[func-returns-value]
    with pytest.raises(ValueError, match="t: "):
        validate.time("t", times)


def test_values_are_not_looked_at_in_a_compiled_graph() -> None:
    def checked(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        validate.float_tensor("x", x, finite=True)
        validate.time("t", t, len(x))
        validate.labels("y", y, len(x), classes=2)
        return x + 1

    compiled = torch.compile(checked, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X, torch.full((3,), 7.0), torch.tensor([5, 5, 5])), X + 1)


def test_values_on_another_device_are_not_looked_at() -> None:
    assert validate.values_are_readable(X)
    assert not validate.values_are_readable(X.to("meta"))
    validate.time("t", torch.full((3,), 7.0, device="meta"), 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: cnf.log_prob(STILL, torch.tensor([[NAN, 0.0]])), ValueError, "x1: .*1 of 2"),
        (lambda: cnf.nll_loss(STILL, torch.tensor([[NAN, 0.0]])), ValueError, "x1: .*1 of 2"),
        (lambda: diffusion.variational_bound(NOISE, torch.zeros(1, 2).long(), LINEAR), TypeError, "x1: "),
        (lambda: diffusion.ddpm_sample(NOISE, [1.0], LINEAR), TypeError, "x: expected a torch.Tensor"),  # type: ignore[arg-type]
        (lambda: diffusion.ddpm_sample(NOISE, torch.zeros(1, 2), "linear"), TypeError, "schedule: expected a NoiseS"),  # type: ignore[arg-type]
        (lambda: diffusion.ddim_sample(NOISE, torch.zeros(1, 2), "linear", 2), TypeError, "schedule: expected a Noi"),  # type: ignore[arg-type]
        (lambda: solvers.Solver().times(0.0, 1.0), ValueError, "times: dopri5 chooses its own steps"),
        (lambda: solvers.solve(STILL, torch.zeros(1, 2), save_at=[0, "a", 1]), TypeError, "save_at: expected numbers"),  # type: ignore[list-item]
        (lambda: guidance.guided(STILL, INF, 3), ValueError, "scale: expected a finite number; got inf"),
        (lambda: guidance.guided(STILL, NAN, 3), ValueError, "scale: expected a finite number; got nan"),
        (lambda: guidance.guided("a", 2.0, 3), TypeError, "velocity: "),  # type: ignore[arg-type]
        (lambda: paths.retimed(STILL)(torch.zeros(1, 2), t=2.0), ValueError, "t: "),
    ],
)  # fmt: skip
def test_an_error_names_the_argument_that_the_caller_gave(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        call()
