"""Mean absolute error, generalised and symmetric cross-entropy."""

from __future__ import annotations

import math
from typing import Literal, Unpack

from torch import Tensor

from ..base import (
    ClassificationLoss,
    TaskOptions,
    absolute_error,
    at_label,
    cross_entropy,
    reverse_cross_entropy,
)


class MAELoss(ClassificationLoss):
    """Mean absolute error Σ_i |ŷ_i − y_i| = 2(1 − ŷ_t): Ghosh, Kumar, Sastry (AAAI 2017), Eq. 6.

    Options are those of ``nn.CrossEntropyLoss``: ``reduction``, ``ignore_index``, ``weight``.

    >>> import torch
    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(MAELoss()(logits, labels).item(), 3)
    0.426

    """

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Σ|ŷ − y| over classes."""
        return absolute_error(logits, target)


class GCELoss(ClassificationLoss):
    """Generalised cross-entropy (1 − ŷ_t^q)/q: Zhang and Sabuncu (NeurIPS 2018), Eq. 6.

    q → 0 is cross-entropy, q = 1 is half of MAE. Probability targets weigh the classes' terms.

    Raises:
        ValueError: q is not in (0, 1].

    >>> import torch
    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(GCELoss()(logits, labels).item(), 3)
    0.221

    """

    def __init__(self, q: float = 0.7, **task: Unpack[TaskOptions]) -> None:
        super().__init__(**task)
        if not 0 < q <= 1:
            raise ValueError(f"q must be in (0, 1], got {q}")
        self.q = q

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """(1 − ŷ^q)/q at the label, through the logarithm: finite gradients at ŷ → 0."""
        log_probability = logits.log_softmax(-1)
        if target.is_floating_point():
            return (target * -(self.q * log_probability).expm1()).sum(-1) / self.q
        return -(self.q * at_label(log_probability, target)).expm1() / self.q

    linear_part = per_sample


class SCELoss(ClassificationLoss):
    """Symmetric cross-entropy α·CE + β·RCE: Wang et al. (ICCV 2019), Eq. 7.

    The reverse term −Σ ŷ_i log y_i, with log 0 set to A, is −A(1 − ŷ_t) for class indices.

    Args:
        alpha: weight α ≥ 0 of CE. The authors' code has .1 for CIFAR-10, .01 for MNIST and 6 for
            CIFAR-100.
        beta: weight β ≥ 0 of RCE: 1, 1 and .1.
        A: log 0, below zero. Their code (``loss.py`` of
            YisenWang/symmetric_cross_entropy_for_noisy_labels) clips labels at 10⁻⁴, which is
            ``"code"``: A = log 10⁻⁴ ≈ −9.21. The default −4 makes the reverse term .43 times as
            large; benchmarks with ``settings: published`` take the code's.
        task: ``reduction``, ``ignore_index`` and ``weight`` as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError: a weight or A is out of its domain.

    >>> import torch
    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(SCELoss()(logits, labels).item(), 3)
    0.876

    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        A: float | Literal["code"] = -4.0,
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(**task)
        A = math.log(1e-4) if A == "code" else A
        if not (math.isfinite(alpha + beta + A) and alpha >= 0 and beta >= 0 and A < 0):
            raise ValueError(f"need alpha, beta ≥ 0 and A < 0, got {alpha=}, {beta=}, {A=}")
        self.alpha, self.beta, self.A = alpha, beta, A

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """α·CE + β·RCE."""
        reverse = reverse_cross_entropy(logits, target, self.A)
        return self.linear_part(logits, target) + self.beta * reverse

    def linear_part(self, logits: Tensor, target: Tensor) -> Tensor:
        """α·CE."""
        return self.alpha * cross_entropy(logits, target)
