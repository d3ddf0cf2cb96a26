"""Checks of the exercises of chapter 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowbook.diffusion import NoiseSchedule, ddim_sample, ddim_steps
from flowbook.laws.diagnosis import diagnose, diagnose_number


def amplitude_left(value: float) -> str:
    """Exercise 1.1: the fraction of the data's amplitude that 50 linear betas from 1e-4 to 0.02 leave.

    Example:
        >>> amplitude_left(0.776)
        'right: sampling would start from pure noise, which the last step has never seen'
    """
    betas = torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)
    abar = float((1 - betas).prod())
    noise = "this is the noise's fraction, not the data's"
    diagnose_number(
        value, math.sqrt(abar),
        {
            "this is abar, the fraction of the variance; the amplitude is its square root": abar,
            f"{noise}: its variance": 1 - abar,
            f"{noise}: its amplitude": math.sqrt(1 - abar),
            "this is the last step alone; multiply over all of them": math.sqrt(0.98),
        },
        "multiply 1 - beta over all steps, and take the square root", tolerance=2e-3,
    )  # fmt: skip
    return "right: sampling would start from pure noise, which the last step has never seen"


def posterior_step(function: Callable[..., tuple[Tensor, Tensor]]) -> str:
    """Exercise 1.2: ``function(x, x1, i, betas) -> (mean, variance)`` of equation (1.3), i an integer.

    Example:
        >>> def posterior(x, x1, i, betas):
        ...     mean, variance = NoiseSchedule(betas).posterior(x, x1, i)
        ...     return mean, variance
        >>> posterior_step(posterior)
        'right: at every step, and at i = 0 the data themselves'
    """
    schedule = NoiseSchedule.linear(40, rescale=True)
    generator = torch.Generator().manual_seed(0)
    x, x1 = (torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    abar, betas = schedule.alphas_cumprod, schedule.betas
    for i in (17, 0):
        mean, variance = function(x, x1, i, betas)
        right_mean, right_variance = schedule.posterior(x, x1, i)
        of_data, of_state, _ = (table[i] for table in schedule.posterior_coefficients())
        last, shifted = abar[i - 1], abar[i - 1].sqrt() * betas[i] / (1 - abar[i])
        wrong_state = (1 - betas[i]).sqrt() * (1 - last) / (1 - abar[i])
        diagnose(
            torch.as_tensor(mean), right_mean,
            {
                "the coefficients are swapped: the data's is the small one, with sqrt(abar_{i-1}) beta_i": of_data * x
                + of_state * x1,
                "at i = 0 abar_{i-1} is not abar[-1], the noisiest step's: it is 1": shifted
                * x1
                + wrong_state * x,
                "this is the predicted data with the noise of step i - 1, not the posterior's mean": (
                    (abar[i - 1] if i else torch.ones(())).sqrt() * x1
                ),
            },
            f"mean at i = {i}",
        )  # fmt: skip
        diagnose(
            torch.as_tensor(variance, dtype=torch.float64), right_variance,
            {
                "this is beta_i, which is right for data from N(0, I)": betas[i],
                "at i = 0 abar_{i-1} is not abar[-1], the last step's: the variance must be 0": (1 - last)
                / (1 - abar[i])
                * betas[i],
                "this is the standard deviation": right_variance.sqrt(),
            },
            f"variance at i = {i}",
        )  # fmt: skip
    return "right: at every step, and at i = 0 the data themselves"


def ddim(function: Callable[..., Tensor]) -> str:
    """Exercise 1.3: ``function(model, x, abar, visited) -> x``; the model predicts the noise, the steps decrease.

    Example:
        >>> schedule = NoiseSchedule.linear(50, rescale=True)
        >>> ddim(lambda model, x, abar, visited: ddim_sample(model, x, schedule, len(visited)))
        'right: one network call for each visited step, and the last jump ends in the data'
    """
    schedule, visited = NoiseSchedule.linear(50, rescale=True), ddim_steps(50, 4)
    abar, calls = schedule.alphas_cumprod, []

    def model(x: Tensor, i: Any) -> Tensor:
        calls.append(int(torch.as_tensor(i).flatten()[0]))
        return torch.tanh(0.7 * x) + 0.1

    x = torch.tensor([[1.2, -0.4], [-0.3, 0.8]], dtype=torch.float64)

    def walk(last: float, root: bool = True) -> Tensor:
        z = x
        for n, i in enumerate(visited):
            noise = torch.tanh(0.7 * z) + 0.1
            data = (z - (1 - abar[i]).sqrt() * noise) / abar[i].sqrt()
            after = abar[visited[n + 1]] if n + 1 < len(visited) else torch.tensor(last, dtype=torch.float64)
            z = after.sqrt() * data + ((1 - after).sqrt() if root else 1 - after) * noise
        return z

    expected = ddim_sample(model, x, schedule, len(visited))
    calls.clear()
    got = function(model, x, abar, visited)
    diagnose(
        got, expected,
        {
            "the last jump ends at step 0, whose noise remains in the sample; end in the data": walk(float(abar[0])),
            "the last jump goes to abar[-1], which is the noisiest step; after the last step there is no noise": walk(
                float(abar[-1])
            ),
            "the noise is multiplied by 1 - abar instead of its square root": walk(1.0, root=False),
        },
        "x",
    )  # fmt: skip
    if calls != visited:
        raise AssertionError(f"steps: expected one call at each of {visited}; got {calls}")
    return "right: one network call for each visited step, and the last jump ends in the data"


def renoised_std(value: float) -> str:
    """Exercise 1.4: the standard deviation of samples by re-noising the predicted data, for data N(m, 0.5^2).

    The number of steps is very large.

    Example:
        >>> renoised_std(0.3536)
        'right: s divided by the square root of 2, however many steps are taken'
    """
    diagnose_number(
        value, 0.5 / math.sqrt(2),
        {
            "0.5 would be correct sampling; the fresh noise here forgets what x_i says beyond x1": 0.5,
            "this is the variance; the standard deviation is its square root": 0.125,
        },
        "find the variance that one step leaves unchanged, and let abar go to 1", tolerance=5e-3,
    )  # fmt: skip
    return "right: s divided by the square root of 2, however many steps are taken"


def noise_floor(value: float) -> str:
    """Exercise 1.5: the lowest loss of a noise prediction at abar = 1/2, for data N(m, 0.5^2).

    Example:
        >>> noise_floor(0.2)
        'right: noise and data cannot be told apart, and the less noise there is, the harder it is'
    """
    diagnose_number(
        value, 0.2,
        {
            "not 0: x_i does not determine the noise in it, since the data vary too": 0.0,
            "this is the fraction of the noise that is explained; the loss is the rest": 0.8,
            "this is the variance of the data's part of x_i, given x_i; divide by the noise's factor, 1 - abar": 0.1,
        },
        "condition the jointly Gaussian pair (noise, x_i) on x_i", tolerance=2e-3,
    )  # fmt: skip
    return "right: noise and data cannot be told apart, and the less noise there is, the harder it is"


def noise_from_velocity(function: Callable[..., Tensor]) -> str:
    """Exercise 1.6: ``function(v, x, abar) -> noise`` for v = sqrt(abar) noise - sqrt(1 - abar) data.

    Example:
        >>> noise_from_velocity(lambda v, x, abar: (1 - abar) ** 0.5 * x + abar**0.5 * v)
        'right: a rotation of the pair (state, velocity)'
    """
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    signal, spread = math.sqrt(0.36), math.sqrt(0.64)
    x, v = signal * data + spread * noise, signal * noise - spread * data
    diagnose(
        function(v, x, 0.36), noise,
        {
            "this is the data": data,
            "sign flipped: the velocity points from the data to the noise": spread * x - signal * v,
            "the square roots are missing: amplitudes are the square roots of abar and 1 - abar": 0.64 * x + 0.36 * v,
            "the amplitudes are swapped": signal * x + spread * v,
        },
        "noise",
    )  # fmt: skip
    return "right: a rotation of the pair (state, velocity)"
