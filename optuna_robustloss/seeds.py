"""One seed for everything that is random in a run, the same on every host."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

#: How many numbers follow a purpose that is always numbered. Zeros among them stay unmarked, so
#: that the seeds of earlier results stay the same.
_NUMBERED = {"generation": 1, "finalist": 1, "benchmark": 1, "candidate": 2}


def derive_seed(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and on what it is for.

    A path and the same path with zeros behind it give different seeds. ``SeedSequence`` pads with
    zeros, so one of two such paths is marked.

    Args:
        seed: an integer ≥ 0.
        path: what the seed is for: a purpose, and numbers ≥ 0 or names.

    >>> derive_seed(0, "noise") == derive_seed(0, "noise") != derive_seed(0, "init")
    True
    >>> derive_seed(1) != derive_seed(1, 0)
    True

    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else p for p in path]
    usual = 1 + _NUMBERED[path[0]] if path and path[0] in _NUMBERED else 0
    if len(words) < usual or (len(words) > usual and words[-1] == 0):
        words.append(zlib.crc32(f"a path of {len(words)}".encode()))
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def uniform(seed: int, count: int) -> np.ndarray:
    """``count`` doubles in [0, 1) from PCG64, whose raw doubles are the same in every version."""
    return np.random.Generator(np.random.PCG64(seed)).random(count)


def permutation(seed: int, count: int) -> Tensor:
    """A random order ``(count,)`` int64 of 0 … count−1."""
    return torch.from_numpy(np.argsort(uniform(seed, count), kind="stable"))
