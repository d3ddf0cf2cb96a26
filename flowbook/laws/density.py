"""Is a log-density that of the flow?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.seeding import seeded
from flowbook.cnf import log_prob
from flowbook.laws.convention import Convention, ConventionOptions, StandIn
from flowbook.laws.diagnosis import Violation
from flowbook.laws.target import mixture
from flowbook.solvers import sample
from flowbook.velocity import Velocity

POINTS, DIMS = 64, 2
MATRIX = torch.tensor([[0.9, 1.0], [0.6, 0.3]], dtype=torch.float64)
"""Of a linear velocity, whose log-density is known, and so is the variance of an estimate by probes."""
REPEATS = 400


def check_log_prob(
    function: Callable[..., Tensor],
    *,
    probes: int | None = None,
    tolerance: float = 0.05,
    seed: int = 0,
    **convention: Unpack[ConventionOptions],
) -> str:
    r"""Hold a log-density against the closed form, and say what is wrong with it.

    Args:
        function: ``function(model, x1) -> (B,)``, in nats, where it calls ``model(x, t)``; data x1 (B, 2).
        probes: for an estimate of the divergence by random probes: how many are averaged. None for the exact one.
        tolerance: the root mean square of the error that is allowed, in nats.
        seed: of the data and probes.
        convention: ``order``, ``time_scale``, ``reverse``, ``sign``, ``output``, ``path``, as in
            :func:`~flowbook.adapters.from_callable`.

    Returns:
        A sentence with the error.

    Raises:
        Violation: with the mistake that explains it.

    Example:
        >>> from flowbook import log_prob
        >>> check_log_prob(lambda model, x: log_prob(model, x, method="rk4", steps=40).log_prob)
        'right: the log-density in nats, with an error of 0.0000'
    """
    validate.function("function", function, "function(model, x1)")
    validate.number("tolerance", tolerance, 0, math.inf, low_open=True)
    if probes is not None:
        validate.positive_int("probes", probes)
    agreed = Convention.of(convention)
    if probes is not None:
        return _check_estimate(function, agreed, probes, tolerance, seed)
    exact = mixture().as_velocity(agreed.path)
    x = mixture().sample(POINTS, torch.Generator().manual_seed(seed)).float()
    got = _evaluate(function, agreed, exact, x, seed)
    few = _evaluate(function, agreed, exact, x[:5], seed)
    right = mixture().log_prob(x.double())
    off = _rms(got - right)
    if off <= tolerance:
        if float((few - got[:5]).abs().max()) > tolerance:
            raise Violation("batch mates matter", "log_prob: a row depends on the others of its batch")
        return f"right: the log-density in nats, with an error of {off:.4f}"
    for (fault, words), value in _mistakes(exact, agreed, x.double(), right).items():
        if value.shape == got.shape and _rms(got - value) <= tolerance:
            raise Violation(fault, f"log_prob: {words}")
    if bool((_evaluate(function, agreed, exact, x, seed + 1) != got).any()):
        raise Violation(
            "estimate", "log_prob: it differs from call to call; say probes=1 for an estimate by random probes"
        )
    raise Violation("unknown", f"log_prob: its error is {off:.3g} nats, and no known mistake explains it")


def _evaluate(function: Callable[..., Any], agreed: Convention, velocity: Velocity, x: Tensor, seed: int) -> Tensor:
    starts: list[float] = []

    class Model(StandIn):
        def answer(self, *given: Any, **named: Any) -> Tensor:
            state, t = agreed.called(x.shape, *given, **named)
            starts.append(float(t.detach()[0]))
            scale, low, high = agreed.time_scale, float(t.detach().min()), float(t.detach().max())
            from_data = starts[0] > 0.5 * scale  # beyond the other end, adaptive solvers may look
            beyond = high > scale * (1 + 1e-3) if from_data else low < -1e-3 * scale
            if beyond:
                raise Violation("time outside", f"t: expected times from 0 to {scale:g}; got {low:g} to {high:g}")
            return agreed.spoken(velocity, state, t.expand(len(state)))

    with seeded(seed):
        value = function(Model(), x.clone())
    if not isinstance(value, Tensor) or value.shape not in ((len(x),), (len(x), 1)):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Violation("shape", f"log_prob: expected one number for each of {len(x)} points; got {shape}")
    return value.detach().double().reshape(-1)


def _mistakes(velocity: Velocity, agreed: Convention, x: Tensor, right: Tensor) -> dict[tuple[str, str], Tensor]:
    """What the known mistakes give."""
    of_noise = agreed.path.source((DIMS,))
    back = log_prob(velocity, x, method="rk4", steps=100, source=of_noise)
    prior, dims = of_noise.log_prob(back.latent), x.shape[1]
    gain = back.log_prob - prior  # minus the integral of the divergence from noise to data
    forward = sample(velocity, x, method="rk4", steps=100).x
    return {
        ("log-determinant's sign", "the sign of the divergence's integral is flipped: where points spread, the density "
         "falls"): prior - gain,
        ("no log-determinant", "the divergence's integral is missing: this is the noise's density"): prior,
        ("no prior", "the density of the noise is missing"): gain,
        ("no constant", "the constant of the Gaussian is missing: half of log(2 pi) for each dimension"): right
        + 0.5 * dims * math.log(2 * math.pi),
        ("wrong direction", "it is solved from noise to data, starting at the data: solve from t = 1 to 0"):
            of_noise.log_prob(forward),
        ("prior of the data", "the density of the noise is taken at the data, not at their latents"):
            of_noise.log_prob(x) + gain,
        ("averaged over dimensions", "a mean over the dimensions where a sum belongs"): right / dims,
        ("sign flipped", "this is minus the log-density, a loss"): -right,
        ("bits", "these are bits, not nats"): right / math.log(2),
        ("bits", "these are bits per dimension, not nats"): -right / (dims * math.log(2)),
        ("no logarithm", "this is the density, not its logarithm"): right.exp(),
        ("divergence halved", "half of the divergence is missing: a trace has a term for each dimension"): prior
        + gain / dims,
        ("divergence per dimension", "the divergence is counted once for each dimension"): prior + gain * dims,
    }  # fmt: skip


def _check_estimate(function: Callable[..., Any], agreed: Convention, probes: int, tolerance: float, seed: int) -> str:
    """An estimate by probes: its mean and its variance, under a linear velocity for which both are known."""

    def velocity(x: Tensor, t: Any, y: None = None) -> Tensor:
        return x @ MATRIX.to(x).T

    x = torch.tensor([[0.5, -1.0]]).expand(REPEATS, DIMS).clone()
    latent = torch.linalg.solve(torch.matrix_exp(MATRIX), x[0].double())
    right = float(agreed.path.source((DIMS,)).log_prob(latent[None]) - MATRIX.trace())
    got = _evaluate(function, agreed, velocity, x, seed)
    off_diagonal = float((MATRIX[0, 1] + MATRIX[1, 0]) ** 2) / probes  # of signs
    all_of_it = off_diagonal + 2 * float(MATRIX.diagonal().square().sum()) / probes  # of normal numbers
    mean, variance = float(got.mean()), float(got.var())
    margin = tolerance + 5 * (all_of_it / REPEATS) ** 0.5
    if float(got.std()) < 1e-6 and abs(mean - right) > tolerance:
        raise Violation("one probe for all", "log_prob: all rows share a probe; draw one for each")
    if abs(mean - right) > margin:
        for (fault, words), value in {
            ("log-determinant's sign", "the sign of the divergence's integral is flipped"): right
            + 2 * float(MATRIX.trace()),
            ("no constant", "the constant of the Gaussian is missing"): right + 0.5 * DIMS * math.log(2 * math.pi),
            ("no log-determinant", "the divergence's integral is missing"): right + float(MATRIX.trace()),
        }.items():
            if abs(mean - value) <= margin:
                raise Violation(fault, f"log_prob: {words}")
        raise Violation("biased", f"log_prob: the mean of its estimates is {mean:.3g}; expected {right:.3g}")
    if (
        variance < 1e-8
        and len(got.unique()) < 3
        and not torch.equal(got, _evaluate(function, agreed, velocity, x, seed))
    ):
        raise Violation("not repeatable", "log_prob: it differs from call to call with the same seeds")
    if variance < 1e-8:
        return "right: the exact log-density; no probes are drawn"
    if variance < 0.6 * off_diagonal:
        raise Violation(
            "probes redrawn", f"log_prob: the variance of its estimates is {variance:.3g}, and {off_diagonal:.3g} or "
            f"more for {probes} probes that are kept: are they drawn anew in each evaluation, which an adaptive solver "
            "cannot follow? (else say probes=)",
        )  # fmt: skip
    if variance > 1.6 * all_of_it:
        raise Violation("fewer probes", f"log_prob: the variance of its estimates is {variance:.3g}; expected at most "
                        f"{all_of_it:.3g} for {probes} probes")  # fmt: skip
    return f"right: an estimate without bias, of standard deviation {variance**0.5:.3f}, with {probes} probes kept"


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
