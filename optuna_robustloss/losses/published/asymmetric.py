"""Asymmetric losses: Zhou et al., "Asymmetric Loss Functions for Learning with Noisy Labels"."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from ..base import ClassificationLoss, TaskOptions, check_positive, expectation
from .normalized import ActivePassiveLoss


def _check(a: float, q: float) -> None:
    check_positive(a=a, q=q)
    if q * math.log(a + 1) > math.log(torch.finfo(torch.float32).max):
        raise ValueError(f"(a + 1)^q must fit into float32, got a = {a:g} and q = {q:g}")


def asymmetric_gce(logits: Tensor, target: Tensor, a: float, q: float) -> Tensor:
    """[(a + 1)^q − (a + ŷ_t)^q] / q, between 0 and [(a + 1)^q − a^q] / q."""
    values = (a + 1) ** q - (a + logits.softmax(-1)) ** q
    return expectation(values, target) / q


class AGCELoss(ClassificationLoss):
    """Asymmetric generalised cross-entropy [(a + 1)^q − (a + ŷ_t)^q] / q: Zhou et al. (ICML 2021).

    Defaults are those of the authors' code for CIFAR-10 and CIFAR-100. Probability targets weigh
    the classes' terms. Raises ``ValueError`` unless a > 0 and q > 0.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(AGCELoss()(logits, labels).item(), 3)
    0.182

    """

    def __init__(self, a: float = 0.6, q: float = 0.6, **task: Unpack[TaskOptions]) -> None:
        super().__init__(**task)
        _check(a, q)
        self.a, self.q = a, q

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Zero at ŷ_t = 1."""
        return asymmetric_gce(logits, target, self.a, self.q)

    linear_part = per_sample


class NCEandAGCELoss(ActivePassiveLoss):
    """α·NCE + β·AGCE: Zhou et al. (ICML 2021).

    Defaults are those of the authors' code for CIFAR-10; CIFAR-100: α = 10, β = .1, a = 1.8,
    q = 3. Raises ``ValueError`` unless α, β ≥ 0, a > 0 and q > 0.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(NCEandAGCELoss()(logits, labels).item(), 3)
    2.288

    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 4.0,
        a: float = 6.0,
        q: float = 1.5,
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(alpha, beta, **task)
        _check(a, q)
        self.a, self.q = a, q

    def passive(self, logits: Tensor, target: Tensor) -> Tensor:
        """AGCE."""
        return asymmetric_gce(logits, target, self.a, self.q)

    linear_part = ActivePassiveLoss.per_sample
