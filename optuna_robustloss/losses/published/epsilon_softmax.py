"""ε-softmax: Wang et al., "ε-Softmax: Approximating One-Hot Vectors for Mitigating Label Noise"."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from ..base import (
    ClassificationLoss,
    TaskOptions,
    absolute_error,
    check_factors,
    expectation,
)


def log_epsilon_softmax(logits: Tensor, m: float) -> Tensor:
    """Logarithm ``(..., C)`` of (ŷ + m·1[largest ŷ]) / (m + 1), without forming m + ŷ."""
    log_probability = logits.log_softmax(-1)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    largest = classes == logits.argmax(-1, keepdim=True)
    # (ŷ + m) / (m + 1) = 1 + (ŷ − 1) / (m + 1); the other classes stay out, log1p(−1) has no slope
    raised = log_probability.masked_fill(~largest, 0.0).expm1() / (m + 1)
    return torch.where(largest, raised.log1p(), log_probability - math.log1p(m))


class EpsilonSoftmaxLoss(ClassificationLoss):
    """α·CE_ε + β·MAE: Wang et al. (NeurIPS 2024).

    CE_ε is cross-entropy −log ŷ'_t of the ε-softmax ŷ' = (ŷ + m·1[largest ŷ]) / (m + 1), at most
    ε = 1/(m + 1) away from one-hot in each class; MAE is Σ|ŷ − y| of the softmax itself.

    Defaults are those of the authors' code for CIFAR-10 with symmetric noise; asymmetric:
    α = .02, m = 10³. CIFAR-100 at symmetric 40 %: α = .03, β = 1, m = 10⁴.

    Args:
        alpha: weight of CE_ε, ≥ 0.
        beta: weight of MAE, ≥ 0.
        m: how much is added to the largest probability, ≥ 0; 0 is the softmax itself.
        p_min: smallest ŷ' in CE_ε, as in the authors' code: a label below gets no gradient from
            it, which with m = 10⁵ is one with ŷ_t < 10⁻³. 0 for none, as the paper writes it.
        task: ``reduction``, ``ignore_index`` and ``weight`` as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError: any of the above is out of its domain.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(EpsilonSoftmaxLoss()(logits, labels).item(), 3)
    2.13

    """

    def __init__(
        self,
        alpha: float = 0.01,
        beta: float = 5.0,
        m: float = 1e5,
        *,
        p_min: float = 1e-8,
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(**task)
        check_factors(alpha=alpha, beta=beta, m=m)
        if not 0 <= p_min < 1:
            raise ValueError(f"p_min must be in [0, 1), got {p_min}")
        self.alpha, self.beta, self.m, self.p_min = alpha, beta, m, p_min

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """α·CE_ε + β·MAE."""
        return self.beta * absolute_error(logits, target) + self.linear_part(logits, target)

    def linear_part(self, logits: Tensor, target: Tensor) -> Tensor:
        """α·CE_ε."""
        log_probability = log_epsilon_softmax(logits, self.m)
        if self.p_min > 0:
            log_probability = log_probability.clamp_min(math.log(self.p_min))
        return -self.alpha * expectation(log_probability, target)
