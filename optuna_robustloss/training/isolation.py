"""Process-wide settings of PyTorch that training changes and restores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


class RandomState:
    """A state of PyTorch's global generators that belongs to one group of candidates.

    Args:
        seed: of the state.
        device: whose generator belongs to the state, beside the CPU's.

    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        with self._current_device(), torch.random.fork_rng(devices=self._cuda):
            torch.default_generator.manual_seed(seed)
            if self._cuda:
                torch.cuda.manual_seed(seed)
            self._states = self._read_states()

    def _current_device(self) -> AbstractContextManager[object]:
        """Select the device whose generator is seeded and whose CUDA graphs are recorded."""
        return torch.cuda.device(self._cuda[0]) if self._cuda else nullcontext()

    def _read_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use this state inside the context, and restore the caller's afterwards."""
        with self._current_device(), torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._cuda, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._states = self._read_states()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero inside the context: denormal momentum slows SGD on CPUs."""
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
