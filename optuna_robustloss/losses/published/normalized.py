"""Normalised losses, divided by their sum over all labels, and their active-passive sums."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor

from ..base import (
    ClassificationLoss,
    TaskOptions,
    absolute_error,
    check_factors,
    expectation,
    reverse_cross_entropy,
)


def normalized_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Log ŷ_t / Σ_j log ŷ_j, in [0, 1]; the sum over all labels t is 1.

    Classes of probability 0 do not enter the sum over j, which would be infinite.
    """
    log_probability = logits.log_softmax(-1)
    total = log_probability.masked_fill(log_probability == -math.inf, 0.0).sum(-1)
    return expectation(log_probability, target) / total


def normalized_negative_cross_entropy(logits: Tensor, target: Tensor, p_min: float) -> Tensor:
    """1 − (A + log ŷ_t) / Σ_j (A + log ŷ_j), A = −log p_min and ŷ ≥ p_min, in [0, 1]."""
    flipped = logits.log_softmax(-1).clamp_min(math.log(p_min)) - math.log(p_min)
    return expectation(1 - flipped / flipped.sum(-1, keepdim=True), target)


class NCELoss(ClassificationLoss):
    """Normalised cross-entropy log ŷ_t / Σ_j log ŷ_j: Ma et al. (ICML 2020), Sec. 3.

    Robust, but slow to fit on its own: see ``NCEandRCELoss``. Probability targets weigh the
    labels' losses. Options are those of ``nn.CrossEntropyLoss``. Classes whose logits are −∞ do
    not enter the sum over j, here and in the losses below: the loss is that of the other classes.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(NCELoss()(logits, labels).item(), 3)
    0.051

    """

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy over its sum over the labels."""
        return normalized_cross_entropy(logits, target)

    linear_part = per_sample


class ActivePassiveLoss(ClassificationLoss):
    """α·NCE + β·passive loss: the active passive losses of Ma et al. (ICML 2020), Sec. 4.

    Raises:
        ValueError: α or β is not a number ≥ 0.

    """

    #: δ of δ‖w‖₁ over the network's parameters, which only the training loop can add.
    l1 = 0.0

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, **task: Unpack[TaskOptions]) -> None:
        super().__init__(**task)
        check_factors(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def regularizer(self, parameters: Iterable[Tensor]) -> Tensor:
        """δ Σ|w| of losses with ``l1``, to be added: ``loss + criterion.regularizer(…)``."""
        return self.l1 * sum((w.abs().sum() for w in parameters), torch.zeros(()))

    @abstractmethod
    def passive(self, logits: Tensor, target: Tensor) -> Tensor:
        """The passive term ``(...)`` of float ``logits (..., C)``."""

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """α·NCE + β·passive loss."""
        active = normalized_cross_entropy(logits, target)
        return self.alpha * active + self.beta * self.passive(logits, target)

    def linear_part(self, logits: Tensor, target: Tensor) -> Tensor:
        """α·NCE."""
        return self.alpha * normalized_cross_entropy(logits, target)


class NCEandMAELoss(ActivePassiveLoss):
    """α·NCE + β·(1 − ŷ_t): Ma et al. (ICML 2020), Sec. 4.

    The passive term is half of ``MAELoss``, as in the authors' code, which α and β belong to.
    Defaults are theirs for CIFAR-10; CIFAR-100: α = 10, β = 1.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(NCEandMAELoss()(logits, labels).item(), 3)
    0.264

    """

    def passive(self, logits: Tensor, target: Tensor) -> Tensor:
        """½ Σ|ŷ − y|."""
        return absolute_error(logits, target) / 2


class NCEandRCELoss(ActivePassiveLoss):
    """α·NCE + β·RCE with the reverse term −A(1 − ŷ_t): Ma et al. (ICML 2020), Sec. 4.

    Defaults are those of the authors' code for CIFAR-10, where log 0 is log 10⁻⁴ ≈ −9.21;
    CIFAR-100: α = 10, β = .1.

    Raises:
        ValueError: α or β is not a number ≥ 0, or A is not a number < 0.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(NCEandRCELoss()(logits, labels).item(), 3)
    2.013

    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        A: float = math.log(1e-4),
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(alpha, beta, **task)
        if not -math.inf < A < 0:
            raise ValueError(f"A must be a number < 0, got {A}")
        self.A = A

    def passive(self, logits: Tensor, target: Tensor) -> Tensor:
        """−Σ ŷ log y."""
        return reverse_cross_entropy(logits, target, self.A)


class ANLCELoss(ActivePassiveLoss):
    """Active negative loss α·NCE + β·NNCE: Ye et al. (NeurIPS 2023).

    The passive term is the normalised negative cross-entropy
    1 − (A + log ŷ_t) / Σ_j (A + log ŷ_j) with A = −log p_min and ŷ not below p_min.

    Trained with δ‖w‖₁ over all parameters (biases and normalisation layers, too) in place of
    weight decay, which only the training loop can add, by ``l1`` or ``regularizer``. Defaults are
    those of the authors' code for CIFAR-10; CIFAR-100: α = 10, β = 1, ``l1`` = 5·10⁻⁷.

    Args:
        alpha: weight of the normalised cross-entropy, ≥ 0.
        beta: weight of the normalised negative cross-entropy, ≥ 0.
        l1: δ ≥ 0; 0 for none.
        p_min: probability at which the negative term stops, in (0, 1).
        task: ``reduction``, ``ignore_index`` and ``weight`` as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError: any of the above is out of its domain.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(ANLCELoss()(logits, labels).item(), 3)
    3.434

    """

    def __init__(
        self,
        alpha: float = 5.0,
        beta: float = 5.0,
        *,
        l1: float = 5e-5,
        p_min: float = 1e-7,
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(alpha, beta, **task)
        check_factors(l1=l1)
        if not 0 < p_min < 1:
            raise ValueError(f"p_min must be in (0, 1), got {p_min}")
        self.l1 = l1
        self.p_min = p_min

    def passive(self, logits: Tensor, target: Tensor) -> Tensor:
        """NNCE."""
        return normalized_negative_cross_entropy(logits, target, self.p_min)

    linear_part = ActivePassiveLoss.per_sample
