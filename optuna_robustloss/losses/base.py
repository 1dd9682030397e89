"""The contract of every loss: layouts, targets, weights and reductions of ``F.cross_entropy``."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from .layout import class_last, full_precision, split_ignored

if TYPE_CHECKING:
    from .closed_form import ClosedForm

Reduction = Literal["mean", "sum", "none"]
#: Numbers of a loss are at most this.
_LARGEST = torch.finfo(torch.float32).max


class TaskOptions(TypedDict, total=False):
    """Arguments that every loss has, which belong to the task at hand."""

    reduction: Reduction
    ignore_index: int
    weight: Tensor | None


#: The names of ``TaskOptions``.
TASK_OPTIONS = ("reduction", "ignore_index", "weight")


class ClassificationLoss(nn.Module, ABC):
    """A drop-in replacement for ``nn.CrossEntropyLoss``, given the loss of one sample.

    A subclass gives the loss of each sample, ``per_sample``; layouts, ``ignore_index``, class
    weights and reduction are handled here.

    The result has the dtype of the logits, but float32 for half precision, in which nothing is
    computed. Derivatives of any order, ``torch.func`` and ``torch.compile(fullgraph=True)`` work,
    but not both: PyTorch's compiled gradients cannot be differentiated again. A class whose logit
    is −∞ has the probability 0, and 0 · log 0 is 0: where no label is masked, value and gradient
    are finite.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, over samples.
        ignore_index: class index whose samples do not count (class-index targets only).
        weight: ``(C,)`` weight of each class. For probability targets, as in
            ``F.cross_entropy``, weight_c multiplies the term of y_c, and a mean divides by the
            number of samples; what is not linear in y is multiplied by Σ_c weight_c·y_c instead.

    Raises:
        ValueError: an unknown ``reduction``; in ``forward``, shapes that do not fit, or a dtype
            that is not allowed.
        IndexError: in ``forward``, a label outside 0 … C−1 (on CUDA a device-side assertion).

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
        """Return the losses ``(...)`` of the samples.

        Args:
            logits: ``(..., C)``, float32 or wider.
            target: class indices ``(...)`` in 0 … C−1, or class probabilities ``(..., C)``.

        """

    def linear_part(self, logits: Tensor, target: Tensor) -> Tensor | None:
        """Return the part of ``per_sample`` that is Σ_k y_k·ℓ_k; None: there is none.

        Class weights of probability targets reach its terms class by class.
        """
        return None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss: a scalar, or per sample with ``reduction="none"``.

        Args:
            logits: ``(..., C)``, or ``(N, C, d1, ...)`` as in ``F.cross_entropy``; floating point.
            target: class indices of any integer dtype, shaped as ``logits`` without its classes;
                or class probabilities, float16 to float64, shaped as ``logits``.

        """
        rows, target, ignored = self.prepare(logits, target)
        losses = self.per_sample(rows, target)
        if self.weight is None or not target.is_floating_point():
            return self.reduce(losses, target, ignored)
        weight = self.weight.to(losses.dtype)
        of_sample = (weight * target).sum(-1)
        losses = losses * of_sample
        linear = self.linear_part(rows, (weight - of_sample.unsqueeze(-1)) * target)
        return reduce_samples(losses if linear is None else losses + linear, target, self.reduction)

    def prepare(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring both into the form that ``per_sample`` takes.

        Returns:
            logits with the classes last in float32 or wider; the target as int64 with a valid
            class in place of ``ignore_index``, or as probabilities of the logits' dtype; and the
            mask of the ignored samples (None: there are none).

        """
        rows, target = class_last(logits, target)
        rows, ignored = full_precision(rows), None
        if target.is_floating_point():
            return rows, target.to(rows.dtype), None
        target, ignored = split_ignored(target, self.ignore_index)
        return rows, target, ignored

    def reduce(self, losses: Tensor, target: Tensor, ignored: Tensor | None) -> Tensor:
        """Weight, mask and reduce per-sample ``losses (...)``."""
        return reduce_samples(losses, target, self.reduction, ignored=ignored, weight=self.weight)

    def closed_form(self) -> ClosedForm | None:
        """Return the gradient at the logits in closed form, or None where there is none."""
        return None

    def extra_repr(self) -> str:
        """Print the arguments of the formula."""
        names = inspect.signature(type(self)).parameters.keys()
        values = {n: getattr(self, n) for n in names if n not in (*TASK_OPTIONS, "task")}
        return ", ".join(
            f"{n}={v:g}" if type(v) is float else f"{n}={v}" for n, v in values.items()
        )


def check_reduction(reduction: str) -> None:
    """Raise ``ValueError`` unless ``reduction`` is one of the allowed names."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")


def at_label(values: Tensor, target: Tensor) -> Tensor:
    """``values (..., C)`` at the class indices ``target (...)``.

    Raises:
        IndexError: a label is outside 0 … C−1 (on CUDA a device-side assertion, as PyTorch's).

    """
    try:
        return values.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    except (RuntimeError, IndexError) as error:
        if target.device.type == "cpu" and "out of bounds" in str(error):
            classes = values.shape[-1]
            wrong = target[(target < 0) | (target >= classes)]
            raise IndexError(
                f"label {int(wrong.flatten()[0])} is out of range for {classes} classes: labels "
                f"must be 0 … {classes - 1} (or ignore_index)"
            ) from None
        raise


def reduce_samples(
    losses: Tensor,
    target: Tensor,
    reduction: Reduction,
    *,
    ignored: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Weight, mask and reduce per-sample ``losses (...)`` the way ``F.cross_entropy`` does.

    With class indices the weighted mean divides by the sum of the weights of the samples that
    count; with class probabilities a sample weighs Σ_c weight_c·y_c and the mean divides by the
    number of samples.
    """
    soft = target.is_floating_point()
    sample_weight = None
    if weight is not None:
        weight = weight.to(losses.dtype)
        sample_weight = (weight * target).sum(-1) if soft else weight[target]
        losses = losses * sample_weight
    if ignored is not None:
        losses = losses.masked_fill(ignored, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if soft or (sample_weight is None and ignored is None):
        return losses.mean()
    counted = torch.ones_like(losses) if sample_weight is None else sample_weight
    if ignored is not None:
        counted = counted.masked_fill(ignored, 0.0)
    return losses.sum() / counted.sum()


def check_factors(**factors: float) -> None:
    """Raise ``ValueError`` unless each is a number ≥ 0 that fits into float32."""
    for name, factor in factors.items():
        if not 0 <= factor <= _LARGEST:
            raise ValueError(f"{name} must be a number ≥ 0, got {factor}")


def check_positive(**values: float) -> None:
    """Raise ``ValueError`` unless each is a number > 0 that fits into float32."""
    for name, value in values.items():
        if not 0 < value <= _LARGEST:
            raise ValueError(f"{name} must be a positive number, got {value}")


def expectation(values: Tensor, target: Tensor) -> Tensor:
    """Σ_k y_k·values_k of ``values (..., C)`` with 0 · ∞ = 0: those at the labels of indices."""
    if target.is_floating_point():
        return (target * values.masked_fill((target == 0) & (values == -math.inf), 0.0)).sum(-1)
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
