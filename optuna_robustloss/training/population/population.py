"""Several networks of one architecture that are trained on the same images independently.

A *population* of K candidates is trained as one module: its parameters are stacked along a new
first dimension, one backward pass gives the gradients of all, and one step of an elementwise
optimiser updates all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Population(nn.Module, ABC):
    """K networks as one module: images ``(N, ch, H, W)``, shared by all, to logits ``(K, N, C)``.

    Every parameter and every buffer has the candidate as its first dimension. Candidate k's logits
    and gradients depend on slice k only: NaNs of one candidate do not reach the others.
    """

    @property
    def size(self) -> int:
        """Number K of candidates."""
        return next(self.parameters()).shape[0]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(K, N, C)`` of every candidate for ``images (N, ch, H, W)``."""

    @abstractmethod
    def network(self, index: int) -> nn.Module:
        """Return a plain network with a copy of candidate ``index``'s weights and buffers."""

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the candidates ``indices``, in this order; the tensors shrink.

        The parameters stay the same objects, so that an optimiser still refers to them. Its state
        is not changed: see ``keep_state``.
        """
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = _rows(tensor.data, indices)
            tensor.grad = None


class Single(Population):
    """A population of one network, which is used as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def size(self) -> int:
        """Number of networks, 1."""
        return 1

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(1, N, C)``."""
        logits: Tensor = self.model(images)
        return logits.unsqueeze(0)

    def network(self, index: int) -> nn.Module:
        """Return the network itself."""
        return self.model

    def keep(self, indices: Sequence[int]) -> None:
        """Do nothing: one network does not shrink."""


def _rows(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    return tensor.index_select(0, torch.tensor(indices, device=tensor.device))


def _stacked_states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yield each parameter with its state; Lookahead's is that of its base optimiser."""
    state = getattr(optimizer, "_base_optimizer", optimizer).state
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in state:
                yield parameter, state[parameter]


def keep_state(optimizer: torch.optim.Optimizer, indices: Sequence[int]) -> None:
    """Shrink the optimiser's state to the candidates ``indices``: call before ``keep``."""
    for parameter, state in _stacked_states(optimizer):
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = _rows(value, indices)


def optimizer_state_to(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move the stacked state to ``device``."""
    for parameter, state in _stacked_states(optimizer):
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = value.to(device)


def clip_gradients(population: Population, max_norm: float) -> None:
    """Clip each candidate's gradient to the Euclidean norm ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, for each candidate separately.
    """
    gradients = [p.grad for p in population.parameters() if p.grad is not None]
    size = population.size
    norms = torch.stack([g.reshape(size, -1).norm(dim=1) for g in gradients]).norm(dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        shape = (size, *[1] * (gradient.ndim - 1)) if size > 1 else ()
        gradient.mul_(factors.view(shape))


def add_l1(population: Population, weights: Sequence[float]) -> None:
    """Add the gradient of ``weights[k]`` × Σ|w| over all weights of each candidate k."""
    size = population.size
    for parameter in population.parameters():
        if parameter.grad is not None:
            shape = (size, *[1] * (parameter.ndim - 1)) if size > 1 else ()
            factors = parameter.new_tensor(weights).view(shape)
            parameter.grad.add_(parameter.detach().sign() * factors)
