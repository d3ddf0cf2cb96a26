"""Implementations as people write them, right and wrong, with the fault that the checks are to name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from flowbook import laws
from flowbook.cnf import log_prob
from flowbook.diffusion import NoiseSchedule, ddim_sample, ddpm_sample
from flowbook.paths import CosinePath, LinearPath
from flowbook.solvers import sample

SCHEDULE = NoiseSchedule.linear(50, rescale=True)
ABAR = SCHEDULE.alphas_cumprod.float()
HALF_PI = math.pi / 2
MIXTURE = laws.mixture()
EXACT = MIXTURE.as_velocity(LinearPath())


def column(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (x.dim() - 1))


# Losses ---------------------------------------------------------------------------------------------------------------


def loss(
    *,
    mix: Callable[..., Tensor] = lambda x0, x1, t: (1 - t) * x0 + t * x1,
    target: Callable[..., Tensor] = lambda x0, x1, xt, t: x1 - x0,
    time: Callable[[Tensor], Tensor] = lambda t: t,
    draw: Callable[[int], Tensor] = torch.rand,
    reduce: Callable[[Tensor], Tensor] = lambda error: error.square().mean(),
) -> Callable[..., Tensor]:
    """Flow matching in a plain loop, with one part of it replaced."""

    def function(model: Any, x1: Tensor) -> Tensor:
        x0, t = torch.randn_like(x1), draw(len(x1)).expand(len(x1))
        xt = mix(x0, x1, column(t, x1))
        return reduce(model(xt, time(t)) - target(x0, x1, xt, column(t, x1)))

    return function


def ddpm_loss(*, state: int = 0, root: bool = True, scale: float = 1.0, target: str = "noise") -> Callable[..., Tensor]:
    """The simple loss of DDPM, with one part of it replaced."""

    def function(model: Any, x1: Tensor) -> Tensor:
        i, noise = torch.randint(len(ABAR), (len(x1),)), torch.randn_like(x1)
        a = column(ABAR[(i + state).clamp(0, len(ABAR) - 1)], x1)
        x = a.sqrt() * x1 + (1 - a).sqrt() * noise if root else a * x1 + (1 - a) * noise
        return (model(x, i * scale) - {"noise": noise, "data": x1, "minus": -noise}[target]).square().mean()

    return function


def broadcast_over_the_last_axis(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn_like(x1), torch.rand(len(x1))
    return (model((1 - t) * x0 + t * x1, t) - (x1 - x0)).square().mean()


def over_the_rows(model: Any, x1: Tensor) -> Tensor:
    """Written for vectors, used for images."""
    x0, t = torch.randn_like(x1), torch.rand(len(x1))
    return (model((1 - t[:, None]) * x0 + t[:, None] * x1, t) - (x1 - x0)).square().mean()


def seeded_inside(model: Any, x1: Tensor) -> Tensor:
    torch.manual_seed(0)
    return loss()(model, x1)


def one_noise_for_all_channels(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn(len(x1), 1, *x1.shape[2:]).expand_as(x1), torch.rand(len(x1))
    xt = (1 - column(t, x1)) * x0 + column(t, x1) * x1
    return (model(xt, t) - (x1 - x0)).square().mean()


def uniform(x0: Tensor) -> Tensor:
    """Noise of the right mean and deviation, but with another distribution, made from the same draws."""
    return (torch.special.ndtr(x0) - 0.5) * 12**0.5


def single_alphas(model: Any, x1: Tensor) -> Tensor:
    i, noise = torch.randint(len(ABAR), (len(x1),)), torch.randn_like(x1)
    a = column((1 - SCHEDULE.betas).float()[i], x1)
    return (model(a.sqrt() * x1 + (1 - a).sqrt() * noise, i) - noise).square().mean()


def squeezed(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn_like(x1), torch.rand(len(x1), 1)
    return (model((1 - t) * x0 + t * x1, t).squeeze(-1) - (x1 - x0)).square().mean()


def changes_its_data(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn_like(x1), torch.rand(len(x1))[:, None]
    x1.mul_(2).sub_(1)
    return (model((1 - t) * x0 + t * x1, t) - (x1 - x0)).square().mean()


def twice_called(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn_like(x1), torch.rand(len(x1))[:, None]
    xt = (1 - t) * x0 + t * x1
    model(xt, t)
    return (model(xt, t) - (x1 - x0)).square().mean()


def from_numpy(model: Any, x1: Tensor) -> Tensor:
    import numpy as np

    x0 = torch.from_numpy(np.random.default_rng().standard_normal(x1.shape)).float()
    t = torch.rand(len(x1))[:, None]
    return (model((1 - t) * x0 + t * x1, t) - (x1 - x0)).square().mean()


REVERSED: dict[str, Any] = {"mix": lambda x0, x1, t: (1 - t) * x1 + t * x0}
LOSSES: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("sign flipped", loss(target=lambda x0, x1, xt, t: x0 - x1), {}),
    ("time reversed", loss(**REVERSED), {}),
    ("time reversed", loss(time=lambda t: 1 - t), {}),
    ("noise and data exchanged", loss(**REVERSED, target=lambda x0, x1, xt, t: x0 - x1), {}),
    ("noise instead of velocity", loss(target=lambda x0, x1, xt, t: x0), {}),
    ("data instead of velocity", loss(target=lambda x0, x1, xt, t: x1), {}),
    ("velocity instead of noise", loss(), {"output": "noise"}),
    ("not divided", loss(target=lambda x0, x1, xt, t: x1 - xt), {}),
    ("scaled", loss(target=lambda x0, x1, xt, t: 1000 * (x1 - x0)), {}),
    ("noise redrawn", loss(target=lambda x0, x1, xt, t: x1 - torch.randn_like(x1)), {}),
    ("noise redrawn", loss(mix=lambda x0, x1, t: (1 - t) * torch.randn_like(x0) + t * x1), {}),
    ("target of another path", loss(mix=lambda x0, x1, t: (HALF_PI * t).cos() * x0 + (HALF_PI * t).sin() * x1), {
        "path": CosinePath()}),
    ("target of another path", loss(target=lambda x0, x1, xt, t: HALF_PI * ((HALF_PI * t).cos() * x1 - (
        HALF_PI * t).sin() * x0)), {}),
    ("target of another path", loss(mix=lambda x0, x1, t: (1 - 0.9 * t) * x0 + t * x1), {"path": LinearPath(0.1)}),
    ("another path", loss(), {"path": CosinePath()}),
    ("weights exchanged", loss(**REVERSED, target=lambda x0, x1, xt, t: x1 - 3 * x0), {}),
    ("no noise", loss(mix=lambda x0, x1, t: x1), {}),
    ("noise not normal", loss(mix=lambda x0, x1, t: (1 - t) * 2 * x0 + t * x1,
                              target=lambda x0, x1, xt, t: x1 - 2 * x0), {}),
    ("time not scaled", loss(), {"time_scale": 1000.0}),
    ("time scaled", loss(time=lambda t: 1000 * t), {}),
    ("time scaled twice", loss(time=lambda t: 1e6 * t), {"time_scale": 1000.0}),
    ("time outside", loss(time=lambda t: t - 0.2), {}),
    ("one time for all", loss(draw=lambda n: torch.rand(1)), {}),
    ("few times", loss(draw=lambda n: 0.2 * torch.rand(n)), {}),
    ("time broadcast", broadcast_over_the_last_axis, {}),
    ("time broadcast", over_the_rows, {"shape": (1, 12, 8)}),
    ("targets averaged", squeezed, {"shape": (1,)}),
    ("summed over the batch", loss(reduce=lambda error: error.square().sum()), {}),
    ("summed over the batch", loss(reduce=lambda error: error.square().mean(1).sum()), {}),
    ("averaged twice", loss(reduce=lambda error: error.square().mean() / len(error)), {}),
    ("loss negated", loss(reduce=lambda error: -error.square().mean()), {}),
    ("no squared error", loss(reduce=lambda error: error.abs().mean()), {}),
    ("no scalar", loss(reduce=lambda error: error.square().mean(1)), {}),
    ("samples mixed", loss(reduce=lambda error: error.mean(0).square().sum()), {}),
    ("detached", loss(reduce=lambda error: error.detach().square().mean()), {}),
    ("data changed", changes_its_data, {}),
    ("calls", twice_called, {}),
    ("not repeatable", from_numpy, {}),
    ("arguments exchanged", lambda model, x1: loss()(lambda x, t: model(t, x), x1), {}),
    ("same draws", seeded_inside, {}),
    ("noise shared", one_noise_for_all_channels, {"shape": (3, 8, 8)}),
    ("noise not normal", loss(mix=lambda x0, x1, t: (1 - t) * uniform(x0) + t * x1,
                              target=lambda x0, x1, xt, t: x1 - uniform(x0)), {}),
    ("few times", loss(draw=lambda n: 0.6 * torch.rand(n)), {}),
    ("few times", loss(draw=lambda n: torch.randint(0, 2, (n,)).float()), {}),
    ("roots missing", loss(mix=lambda x0, x1, t: (HALF_PI * t).cos() ** 2 * x0 + (HALF_PI * t).sin() * x1),
     {"path": CosinePath()}),
    ("alphas not multiplied", single_alphas, {"path": SCHEDULE}),
    ("step off by one", ddpm_loss(state=1), {"path": SCHEDULE}),
    ("step off by one", ddpm_loss(state=-1), {"path": SCHEDULE}),
    ("roots missing", ddpm_loss(root=False), {"path": SCHEDULE}),
    ("sign flipped", ddpm_loss(target="minus"), {"path": SCHEDULE}),
    ("data instead of noise", ddpm_loss(target="data"), {"path": SCHEDULE}),
    ("time not scaled", ddpm_loss(scale=1 / 50), {"path": SCHEDULE}),
]  # fmt: skip


# Velocities -----------------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.dropout(EXACT(x, t))


class Normalizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return EXACT(self.norm(x), t)


def steps_of(f: Callable[..., Tensor], scale: float) -> Callable[..., Tensor]:
    """A network whose times run to another number; outside of them it knows nothing."""
    return lambda x, t: f(x, (t / scale).clamp(0, 1))


PATH = LinearPath()
VELOCITIES: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("time reversed", lambda x, t: EXACT(x, 1 - t), {}),
    ("sign flipped", lambda x, t: -EXACT(x, t), {}),
    ("noise and data exchanged", lambda x, t: -EXACT(x, 1 - t), {}),
    ("time not scaled", steps_of(EXACT, 1000.0), {}),
    ("time scaled twice", steps_of(EXACT, 1 / 1000), {}),
    ("time scaled twice", steps_of(EXACT, 1.0), {"time_scale": 1000.0}),
    ("data instead of velocity", lambda x, t: MIXTURE.denoised(x, t, PATH), {}),
    ("score instead of velocity", lambda x, t: MIXTURE.score(x, t, PATH), {}),
    ("noise instead of velocity", lambda x, t: -(1 - t).reshape(-1, 1) * MIXTURE.score(x, t, PATH), {}),
    ("another path", MIXTURE.as_velocity(CosinePath()), {}),
    ("not deterministic", Dropping(), {}),
    ("batch mates matter", Normalizing(), {}),
    ("batch mates matter", lambda x, t: EXACT(x, t) - EXACT(x, t).mean(0), {}),
    ("time broadcast", lambda x, t: EXACT(x, t) * (1 if t.dim() else 2), {}),
    ("not finite", lambda x, t: EXACT(x, t) / 0, {}),
    ("shape", lambda x, t: EXACT(x, t)[:, :1], {}),
    ("time ignored", lambda x, t: torch.sin(9 * x), {}),
    ("unknown", lambda x, t: torch.sin(9 * x * (1 + t.reshape(-1, 1))), {}),
    ("scaled", lambda x, t: 0.7 * EXACT(x, t), {}),
    ("scaled", lambda x, t: 1.5 * EXACT(x, t), {}),
    ("not finite", lambda x, t: EXACT(x, t) * (t / t).reshape(-1, 1), {}),
    ("call failed", lambda s, z: EXACT(z, s), {}),
]


# Samplers -------------------------------------------------------------------------------------------------------------


def euler(
    *,
    steps: int = 50,
    first: int = 0,
    last: int | None = None,
    length: float | None = None,
    sign: float = 1.0,
    time: Callable[[float], float] = lambda t: t,
) -> Callable[..., Tensor]:
    """Euler's method in a plain loop, with one part of it replaced."""

    def sampler(model: Any, x: Tensor) -> Tensor:
        for k in range(first, steps if last is None else last):
            x = x + sign * (1 / steps if length is None else length) * model(x, torch.tensor(time(k / steps)))
        return x

    return sampler


def ancestral(
    *, told: int = 0, fresh: bool = False, end: bool = False, power: float = 0.5, start: int | None = None
) -> Any:
    """DDPM's sampler in a plain loop, with one part of it replaced."""
    abar, betas, top = SCHEDULE.alphas_cumprod, SCHEDULE.betas, SCHEDULE.steps - 1

    def sampler(model: Any, x: Tensor) -> Tensor:
        for i in range(top if start is None else start, -1, -1):
            noise = model(x, torch.full((len(x),), min(max(i + told, 0), top)))
            a, before = abar[i], abar[i - 1] if i else torch.tensor(1.0)
            data = (x - (1 - a).sqrt() * noise) / a.sqrt()
            z = torch.randn_like(x)
            if fresh:
                x = (before.sqrt() * data + (1 - before).sqrt() * z).float()
                continue
            mean = (before.sqrt() * betas[i] * data + (1 - betas[i]).sqrt() * (1 - before) * x) / (1 - a)
            variance = betas[i] if end else (1 - before) / (1 - a) * betas[i]
            x = (mean + (variance**power * z if i or end else 0)).float()
        return x

    return sampler


def ddim(*, last: float = 1.0, root: bool = True) -> Callable[..., Tensor]:
    """DDIM over every fifth step in a plain loop, with one part of it replaced."""
    visited = [*range(49, -1, -5), 0]

    def sampler(model: Any, x: Tensor) -> Tensor:
        for n, i in enumerate(visited):
            noise, a = model(x, torch.full((len(x),), i)), ABAR[i]
            data = (x - (1 - a).sqrt() * noise) / a.sqrt()
            after = ABAR[visited[n + 1]] if n + 1 < len(visited) else torch.tensor(last)
            x = after.sqrt() * data + ((1 - after).sqrt() if root else 1 - after) * noise
        return x

    return sampler


def forgetful(model: Any, x: Tensor) -> Tensor:
    euler()(model, x)
    return x


def its_own_noise(model: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return euler()(model, torch.randn_like(x))


def stretched(model: Any, x: Tensor) -> Tensor:
    for t in torch.linspace(0, 1, 50):
        x = x + model(x, t) / 50
    return x


SAMPLERS: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("a step missing", euler(first=1), {}),
    ("a step missing", euler(last=49), {}),
    ("a step too many", euler(length=1 / 49), {}),
    ("step off by one", euler(first=1, last=51), {}),
    ("sign flipped", euler(sign=-1), {}),
    ("time reversed", euler(time=lambda t: 1 - t), {}),
    ("time reversed", euler(sign=-1, time=lambda t: 1 - t), {}),
    ("time scaled", euler(time=lambda t: 1000 * t), {}),
    ("time not scaled", euler(), {"time_scale": 1000.0}),
    ("time outside", euler(time=lambda t: t - 0.2), {}),
    ("time constant", euler(time=lambda t: 0.0), {}),
    ("wrong step", euler(length=1.0), {}),
    ("wrong step", euler(length=0.001), {}),
    ("no motion", forgetful, {}),
    ("no calls", lambda model, x: x, {}),
    ("not straight", lambda model, x: euler()(model, x) * 1.1, {}),
    ("not finite", lambda model, x: euler()(model, x) / 0, {}),
    ("shape", lambda model, x: euler()(model, x)[0], {}),
    ("arguments exchanged", lambda model, x: euler()(lambda x, t: model(t, x), x), {}),
    ("unknown", euler(steps=3), {}),
    ("step off by one", stretched, {}),
    ("noise ignored", its_own_noise, {}),
    ("batch mates matter", lambda model, x: euler()(model, x - x[:1]) + x[:1], {}),
    ("not straight", lambda model, x: euler()(model, x).clamp(-1, 1), {}),
    ("re-noised", ancestral(fresh=True), {"path": SCHEDULE}),
    ("step off by one", ancestral(told=1), {"path": SCHEDULE}),
    ("step off by one", ancestral(told=-1), {"path": SCHEDULE}),
    ("noise left", ancestral(end=True), {"path": SCHEDULE}),
    ("variance for deviation", ancestral(power=1.0), {"path": SCHEDULE}),
    ("starts too late", ancestral(start=20), {"path": SCHEDULE}),
    ("noise left", ddim(last=float(ABAR[0])), {"path": SCHEDULE}),
    ("noise left", ddim(last=float(ABAR[-1])), {"path": SCHEDULE}),
    ("roots missing", ddim(root=False), {"path": SCHEDULE}),
]


# Densities ------------------------------------------------------------------------------------------------------------


def density(
    *,
    combine: Callable[..., Tensor] = lambda prior, integral, latent, x: prior - integral,
    constant: bool = True,
    forward: bool = False,
    probes: Callable[[Tensor], Tensor] | None = None,
    redraw: bool = False,
    steps: int = 40,
) -> Callable[..., Tensor]:
    """A continuous normalizing flow's log-density by Heun's method in a plain loop, with one part of it replaced."""

    def rate(model: Any, x: Tensor, t: float, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        v = model(x, torch.tensor(t))
        if noise is not None:
            (product,) = torch.autograd.grad((v * noise).sum(), x)
            return v.detach(), (product * noise).sum(1)
        rows = [torch.autograd.grad(v[:, k].sum(), x, retain_graph=True)[0][:, k] for k in range(x.shape[1])]
        return v.detach(), torch.stack(rows).sum(0)

    def function(model: Any, x1: Tensor) -> Tensor:
        x, integral = x1, torch.zeros(len(x1))
        noise = None if probes is None else probes(x1)
        for k in range(steps):
            t, after = (k / steps, (k + 1) / steps) if forward else (1 - k / steps, 1 - (k + 1) / steps)
            h = after - t
            noise = probes(x1) if redraw and probes is not None else noise
            v, rate_here = rate(model, x, t, noise)
            noise = probes(x1) if redraw and probes is not None else noise
            v_after, rate_after = rate(model, x + h * v, max(after, 0.0), noise)
            x = x + h * (v + v_after) / 2
            integral = integral - h * (rate_here + rate_after) / 2
        prior = -0.5 * x.square().sum(1) - (0.5 * x.shape[1] * math.log(2 * math.pi) if constant else 0)
        return combine(prior, -integral if forward else integral, x, x1)

    return function


def signs(x: Tensor) -> Tensor:
    return torch.randn_like(x).sign()


def standard_normal(x: Tensor) -> Tensor:
    return -0.5 * x.square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


DENSITIES: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("log-determinant's sign", density(combine=lambda prior, integral, z, x: prior + integral), {}),
    ("no log-determinant", density(combine=lambda prior, integral, z, x: prior), {}),
    ("no prior", density(combine=lambda prior, integral, z, x: -integral), {}),
    ("no constant", density(constant=False), {}),
    ("wrong direction", density(combine=lambda prior, integral, z, x: prior, forward=True), {}),
    ("prior of the data", density(combine=lambda prior, integral, z, x: standard_normal(x) - integral), {}),
    ("averaged over dimensions", density(combine=lambda prior, integral, z, x: (prior - integral) / 2), {}),
    ("sign flipped", density(combine=lambda prior, integral, z, x: integral - prior), {}),
    ("bits", density(combine=lambda prior, integral, z, x: (prior - integral) / math.log(2)), {}),
    ("no logarithm", density(combine=lambda prior, integral, z, x: (prior - integral).exp()), {}),
    ("divergence halved", density(combine=lambda prior, integral, z, x: prior - integral / 2), {}),
    ("batch mates matter", lambda model, x: density()(model, x) + 0.2 * (len(x) < 10), {}),
    ("shape", lambda model, x: density()(model, x).mean(), {}),
    ("estimate", density(probes=signs), {}),
    ("probes redrawn", density(probes=signs, redraw=True), {"probes": 1}),
    ("one probe for all", density(probes=lambda x: signs(x[:1]).expand_as(x)), {"probes": 1}),
    ("log-determinant's sign", density(probes=signs, combine=lambda prior, integral, z, x: prior + integral),
     {"probes": 1}),
    ("fewer probes", density(probes=signs), {"probes": 16}),
    ("time outside", lambda model, x: density()(lambda x, t: model(x, t + 0.5), x), {}),
]  # fmt: skip


# Paths ----------------------------------------------------------------------------------------------------------------


def path(mix: Callable[..., Tensor], slope: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def function(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        c = column(t, x1)
        xt = mix(x0, x1, c)
        return xt, slope(x0, x1, c, xt)

    return function


def straight(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    return (1 - t) * x0 + t * x1


def broadcasting(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    t = t[: x1.shape[1]] if len(t) >= x1.shape[1] else t.expand(x1.shape[1])
    return (1 - t) * x0 + t * x1, x1 - x0


PATHS: list[tuple[str, Any, dict[str, Any]]] = [
    ("sign flipped", path(straight, lambda x0, x1, t, xt: x0 - x1), {}),
    ("not divided", path(straight, lambda x0, x1, t, xt: x1 - xt), {}),
    ("scaled", path(straight, lambda x0, x1, t, xt: 1000 * (x1 - x0)), {}),
    ("noise and data exchanged", path(lambda x0, x1, t: straight(x1, x0, t), lambda x0, x1, t, xt: x0 - x1), {}),
    ("noise and data exchanged", path(straight, lambda x0, x1, t, xt: x1 - x0), {"reverse": True}),
    ("target of another path", path(lambda x0, x1, t: (HALF_PI * t).cos() * x0 + (HALF_PI * t).sin() * x1,
                                    lambda x0, x1, t, xt: x1 - x0), {}),
    ("no derivative", path(straight, lambda x0, x1, t, xt: x1), {}),
    ("no derivative", path(straight, lambda x0, x1, t, xt: x1 - x0 + t), {}),
    ("wrong ends", path(lambda x0, x1, t: straight(x0, x1, t / 2), lambda x0, x1, t, xt: (x1 - x0) / 2), {}),
    ("no mixture", path(lambda x0, x1, t: straight(x0, x1, t) + torch.randn_like(x0), lambda x0, x1, t, xt: x1), {}),
    ("time broadcast", broadcasting, {}),
    ("shape", lambda x0, x1, t: (x0[:, :1], x1), {}),
    ("scaled", path(straight, lambda x0, x1, t, xt: (x1 - x0) * (1 + (t < 0.15))), {}),
]  # fmt: skip

# What is right --------------------------------------------------------------------------------------------------------


def heun(model: Any, x: Tensor, steps: int = 25) -> Tensor:
    for k in range(steps):
        v = model(x, torch.tensor(k / steps))
        x = x + (v + model(x + v / steps, torch.tensor((k + 1) / steps))) / (2 * steps)
    return x


RIGHT: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("loss", "in a plain loop", loss(), {}),
    ("loss", "of images", loss(), {"shape": (1, 8, 8)}),
    ("loss", "of two numbers", loss(), {"shape": (2,)}),
    ("loss", "with (B, 1) times", lambda model, x1: loss(time=lambda t: t[:, None])(model, x1), {}),
    ("loss", "half of the squares", loss(reduce=lambda error: 0.5 * error.square().mean()), {}),
    ("loss", "summed over dimensions", loss(reduce=lambda error: error.square().sum(1).mean()), {}),
    ("loss", "noise added to the input", loss(mix=lambda *all: straight(*all) + 0.1 * torch.randn_like(all[0])), {}),
    ("loss", "with weights of the time", lambda model, x1: weighted(model, x1), {}),
    ("loss", "of logit-normal times", loss(draw=lambda n: torch.randn(n).sigmoid()), {}),
    ("loss", "time first, scaled, reversed, negated", lambda model, x1: loss(
        **REVERSED, target=lambda x0, x1, xt, t: x0 - x1, time=lambda t: 1000 * t)(lambda x, t: model(t, x), x1),
     {"order": "t,x", "time_scale": 1000.0, "reverse": True, "sign": -1}),
    ("loss", "DDPM", ddpm_loss(), {"path": SCHEDULE}),
    ("loss", "predicting the data", loss(target=lambda x0, x1, xt, t: x1), {"output": "data"}),
    ("loss", "of data that it normalizes", lambda model, x1: loss()(model, 2 * x1 - 1), {"shape": (3, 8, 8)}),
    ("loss", "with a zero weight at early times", lambda model, x1: windowed(model, x1), {}),
    ("loss", "with weights of the entries", lambda model, x1: masked(model, x1), {}),
    ("loss", "by names, as a network of diffusers", lambda model, x1: loss()(
        lambda x, t: model(sample=x, timestep=t).sample, x1), {}),
    ("loss", "from a tuple", lambda model, x1: loss()(lambda x, t: model(x, t, return_dict=False)[0], x1), {}),
    ("sampler", "adaptive, of torchdiffeq", lambda model, x: torchdiffeq.odeint(
        lambda t, x: model(x, t), x, torch.tensor([0.0, 1.0]), rtol=1e-4, atol=1e-4)[-1], {}),
    ("sampler", "of images", euler(), {"shape": (1, 4, 4)}),
    ("sampler", "of images by DDPM", ancestral(), {"path": SCHEDULE, "shape": (1, 4, 4)}),
    ("velocity", "for a column of times", lambda x, t: EXACT(x, t[:, None][:, 0]), {}),
    ("velocity", "for one time only", lambda x, t: EXACT(x, t) + 0 * (t * x), {}),
    ("path", "in float32", lambda x0, x1, t: tuple(part.float() for part in path(
        straight, lambda x0, x1, t, xt: x1 - x0)(x0, x1, t)), {}),
    ("velocity", "a formula", EXACT, {"tolerance": 1e-6}),
    ("velocity", "reversed on purpose", lambda x, t: -EXACT(x, 1 - t), {"reverse": True, "sign": -1}),
    ("velocity", "of a denoiser", lambda x, t: MIXTURE.denoised(x, t, PATH), {"output": "data"}),
    ("sampler", "Euler", euler(), {}),
    ("sampler", "Heun", heun, {}),
    ("sampler", "dopri5", lambda model, x: sample(model, x).x, {}),
    ("sampler", "times scaled on purpose", euler(time=lambda t: 1000 * t), {"time_scale": 1000.0}),
    ("sampler", "DDPM", ancestral(), {"path": SCHEDULE}),
    ("sampler", "DDIM", ddim(), {"path": SCHEDULE}),
    ("sampler", "this package's DDPM", lambda model, x: ddpm_sample(model, x, SCHEDULE), {"path": SCHEDULE}),
    ("sampler", "this package's DDIM", lambda model, x: ddim_sample(model, x, SCHEDULE, 10), {"path": SCHEDULE}),
    ("log_prob", "Heun", density(), {}),
    ("log_prob", "by signs", density(probes=signs), {"probes": 1}),
    ("log_prob", "by normal numbers", density(probes=torch.randn_like), {"probes": 1}),
    ("log_prob", "this package's", lambda model, x: log_prob(model, x, method="rk4", steps=20).log_prob, {}),
    ("path", "straight", path(straight, lambda x0, x1, t, xt: x1 - x0), {}),
    ("path", "straight, as derivative", path(straight, lambda x0, x1, t, xt: (x1 - xt) / (1 - t)), {}),
    ("path", "this package's", CosinePath(), {"expected": CosinePath()}),
    ("path", "reversed on purpose", path(lambda x0, x1, t: straight(x1, x0, t), lambda x0, x1, t, xt: x0 - x1),
     {"reverse": True}),
]  # fmt: skip


def windowed(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn_like(x1), torch.rand(len(x1), 1)
    error = model((1 - t) * x0 + t * x1, t) - (x1 - x0)
    return ((t > 0.1) * error.square()).mean()


def masked(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn_like(x1), torch.rand(len(x1), 1)
    error = model((1 - t) * x0 + t * x1, t) - (x1 - x0)
    return (torch.linspace(0.5, 2, x1.shape[1]) * error.square()).mean()


def weighted(model: Any, x1: Tensor) -> Tensor:
    x0, t = torch.randn_like(x1), torch.rand(len(x1), 1)
    error = model((1 - t) * x0 + t * x1, t) - (x1 - x0)
    return ((1 + t) * error.square()).mean()
