"""What losses of softmax probabilities share: shapes, reduction, common terms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..base import (
    Reduction,
    at_label,
    check_reduction,
    class_last,
    reduce_samples,
    split_ignored,
)


class ProbabilityLoss(nn.Module, ABC):
    """Shapes, ``ignore_index``, weights and reduction as in ``nn.CrossEntropyLoss``.

    A subclass gives the loss per sample. It gets classes-last logits in float32 or wider.
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)

    @abstractmethod
    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses ``(...)`` of float ``logits (..., C)`` and indices or probabilities."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss: a scalar, or per sample with ``reduction="none"``."""
        rows, target, ignored = self.prepare(logits, target)
        return self.reduce(self.per_sample(rows, target), target, ignored)

    def prepare(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Classes last, in float32 or wider, a valid class for ignored samples, and their mask."""
        rows, target = class_last(logits, target)
        ignored = None
        if not target.is_floating_point():
            target, ignored = split_ignored(target, self.ignore_index)
        return full_precision(rows), target, ignored

    def reduce(self, losses: Tensor, target: Tensor, ignored: Tensor | None) -> Tensor:
        """Weight, mask and reduce per-sample ``losses (...)``."""
        return reduce_samples(losses, target, self.reduction, ignored=ignored, weight=self.weight)


def full_precision(logits: Tensor) -> Tensor:
    """``logits`` in float32, or as they are in float64."""
    return logits if logits.dtype.itemsize > 4 else logits.float()


def check_factors(**factors: float) -> None:
    """Raise ``ValueError`` unless each is a finite number ≥ 0."""
    for name, factor in factors.items():
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"{name} must be a number ≥ 0, got {factor}")


def expectation(values: Tensor, target: Tensor) -> Tensor:
    """Σ_k y_k·values_k of ``values (..., C)``: those at the labels where y is one-hot."""
    if target.is_floating_point():
        return (target * values).sum(-1)
    return at_label(values, target)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """−Σ_k y_k log ŷ_k."""
    return -expectation(logits.log_softmax(-1), target)


def absolute_error(logits: Tensor, target: Tensor) -> Tensor:
    """Σ_k |ŷ_k − y_k|, which is 2(1 − ŷ_t) for class indices."""
    probability = logits.softmax(-1)
    if target.is_floating_point():
        return (probability - target).abs().sum(-1)
    return 2 * (1 - at_label(probability, target))


def reverse_cross_entropy(logits: Tensor, target: Tensor, A: float) -> Tensor:
    """−Σ_k ŷ_k log y_k with log 0 set to A < 0, which is −A(1 − ŷ_t) for class indices."""
    probability = logits.softmax(-1)
    if target.is_floating_point():
        return -(probability * target.clamp_min(math.exp(A)).log()).sum(-1)
    return -A * (1 - at_label(probability, target))
