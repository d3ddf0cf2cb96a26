"""Law 10's noise: a sample's numbers belong to seed, step and its place in the global batch, however it is split."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowbook._core import keyed

N = 700  # more than two blocks of 256


def draws(
    first: int, rows: int, dtype: torch.dtype = torch.float32, seed: int = 1, step: int = 2
) -> tuple[Tensor, ...]:
    """What a loss draws: noise for the samples, times, and noise again."""
    like = torch.empty(rows, 3, 2, dtype=dtype)
    with keyed.keyed(seed, step, first):
        return keyed.randn_like(like), keyed.rand(rows, like=like), keyed.randn_like(like)


@pytest.mark.parametrize("parts", [1, 2, 4, 7, 10, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_numbers_do_not_depend_on_how_the_batch_is_split(parts: int, dtype: torch.dtype) -> None:
    whole, rows = draws(0, N, dtype), N // parts
    pieces = [draws(first, rows, dtype) for first in range(0, N, rows)]
    for k in range(3):
        assert torch.equal(torch.cat([piece[k] for piece in pieces]), whole[k])


@pytest.mark.parametrize("first", [0, 1, 255, 256, 257, 511, 512, 600])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 100])
def test_any_window_of_the_batch_holds_its_own_rows(first: int, rows: int) -> None:
    for own, all_rows in zip(draws(first, rows), draws(0, N), strict=True):
        assert torch.equal(own, all_rows[first : first + rows])


def test_seed_step_sample_and_draw_all_matter() -> None:
    base = draws(0, 64)
    others = [draws(0, 64, seed=2), draws(0, 64, step=3), draws(64, 64)]
    assert all(not torch.equal(base[0], other[0]) for other in others)
    assert not torch.equal(base[0], base[2])
    assert torch.equal(base[0], draws(0, 64)[0])


def test_the_numbers_are_normal_and_uniform_and_independent_of_one_another() -> None:
    with keyed.keyed(0, 0, 0):
        noise = keyed.randn_like(torch.empty(40_000, 1)).flatten()
        time = keyed.rand(40_000, like=torch.empty(0))
        more = keyed.randn_like(torch.empty(40_000, 1)).flatten()
    error = 5 / math.sqrt(40_000)
    assert abs(float(noise.mean())) < error and abs(float(noise.var()) - 1) < 2 * error
    assert abs(float(time.mean()) - 0.5) < error and abs(float(time.var()) - 1 / 12) < error
    assert float(time.min()) >= 0 and float(time.max()) < 1
    table = torch.stack([noise, noise.abs(), time, more, noise.roll(1), noise.roll(256)])
    correlations = torch.corrcoef(table) - torch.eye(6)
    correlations[0, 1] = correlations[1, 0] = 0  # |x| and x are no two draws
    assert correlations.abs().max() < error


def test_outside_the_numbers_are_torch_s_own() -> None:
    like = torch.empty(4, 2)
    torch.manual_seed(5)
    ours = keyed.randn_like(like), keyed.rand(4, like=like)
    torch.manual_seed(5)
    assert torch.equal(ours[0], torch.randn_like(like)) and torch.equal(ours[1], torch.rand(4))


def test_keyed_draws_leave_torch_s_generator_alone() -> None:
    state = torch.get_rng_state()
    draws(0, 100)
    assert torch.equal(torch.get_rng_state(), state)


def test_keys_nest_and_end_with_an_error_too() -> None:
    like = torch.empty(8, 2)
    with keyed.keyed(1, 1, 0):
        first = keyed.randn_like(like)
        with pytest.raises(ArithmeticError), keyed.keyed(9, 9, 0):
            raise ArithmeticError
        second = keyed.randn_like(like)
    with keyed.keyed(1, 1, 0):
        assert torch.equal(keyed.randn_like(like), first) and torch.equal(keyed.randn_like(like), second)
    assert keyed._current is None


def test_mixed_seeds_fit_a_generator_and_do_not_collide() -> None:
    seeds = {keyed.mix(a, b, c) for a in range(30) for b in range(30) for c in range(30)}
    assert len(seeds) == 30**3
    assert min(seeds) >= 0 and max(seeds) < 2**63
    assert len({keyed.mix(0), keyed.mix(0, 0), keyed.mix(0, 0, 0)}) == 3
