"""One seed for everything that is random in a run, the same on every host."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and on what it is for.

    >>> derive_seed(0, "noise") == derive_seed(0, "noise") != derive_seed(0, "init")
    True

    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else p for p in path]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def uniform(seed: int, count: int) -> np.ndarray:
    """``count`` doubles in [0, 1) from PCG64, whose raw doubles are the same in every version."""
    return np.random.Generator(np.random.PCG64(seed)).random(count)


def permutation(seed: int, count: int) -> Tensor:
    """A random order ``(count,)`` int64 of 0 … count−1."""
    return torch.from_numpy(np.argsort(uniform(seed, count), kind="stable"))
