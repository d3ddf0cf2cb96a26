"""The global generators of torch, NumPy and Python, seeded for a while."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and ``random``, and give them their states back afterwards.

    Example:
        >>> with seeded(0):
        ...     a = torch.rand(1), np.random.rand(), random.random()
        >>> with seeded(0):
        ...     b = torch.rand(1), np.random.rand(), random.random()
        >>> a == b
        True
    """
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])
