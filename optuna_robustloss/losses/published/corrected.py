"""Cross-entropy with corrected labels: bootstrapped, smoothed, or through a transition matrix."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import (
    ClassificationLoss,
    TaskOptions,
    at_label,
    check_reduction,
    cross_entropy,
    expectation,
)
from ..layout import class_last, full_precision


class BootstrapLoss(ClassificationLoss):
    """Cross-entropy against a mix of the label and the prediction: Reed et al. (ICLR-W 2015).

    Soft: −Σ_k [β y_k + (1 − β) ŷ_k] log ŷ_k; the gradient goes through both ŷ.
    Hard: −Σ_k [β y_k + (1 − β) z_k] log ŷ_k with z = 1 at the largest ŷ.

    Args:
        beta: weight of the label in [0, 1]; 1 is cross-entropy. ``None`` is the published value,
            .95 for soft and .8 for hard (the paper has no experiment on CIFAR).
        hard: take the predicted class in place of the predicted probabilities.
        task: ``reduction``, ``ignore_index`` and ``weight`` as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError: β is not in [0, 1].

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(BootstrapLoss()(logits, labels).item(), 3)
    0.261

    """

    def __init__(
        self,
        beta: float | None = None,
        *,
        hard: bool = False,
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(**task)
        if beta is None:
            beta = 0.8 if hard else 0.95
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        self.beta = beta
        self.hard = hard

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """β·CE with the label + (1 − β)·CE with the prediction."""
        log_probability = logits.log_softmax(-1)
        prediction = logits.argmax(-1) if self.hard else log_probability.exp()
        return -(
            self.beta * expectation(log_probability, target)
            + (1 - self.beta) * expectation(log_probability, prediction)
        )

    def linear_part(self, logits: Tensor, target: Tensor) -> Tensor:
        """β·CE with the label."""
        return self.beta * cross_entropy(logits, target)


class LabelSmoothingLoss(nn.CrossEntropyLoss):
    """Cross-entropy against (1 − α) y + α/C: Szegedy et al. (CVPR 2016), Sec. 7, with α = .1.

    ``nn.CrossEntropyLoss(label_smoothing=alpha)``, reduction and weights included (a class weight
    goes to that class's term of the smoothed label), which also takes classes-last logits and
    other integer dtypes, and computes half precision in float32. A class whose logit is −∞ makes
    it infinite, as its part of the label does in PyTorch.

    Raises:
        ValueError: α is not in [0, 1], or an unknown reduction.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(LabelSmoothingLoss()(logits, labels).item(), 3)
    0.373

    """

    def __init__(self, alpha: float = 0.1, **task: Unpack[TaskOptions]) -> None:
        check_reduction(task.get("reduction", "mean"))
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        super().__init__(**task, label_smoothing=alpha)

    @property
    def alpha(self) -> float:
        """The share of the label that is spread over all classes."""
        return self.label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss: a scalar, or per sample with ``reduction="none"``."""
        rows, target = class_last(input, target)
        rows = full_precision(rows)
        flat = rows.reshape(-1, rows.shape[-1])
        loss = F.cross_entropy(
            flat,
            target.reshape(flat.shape).to(flat.dtype)
            if target.is_floating_point()
            else target.reshape(-1),
            None if self.weight is None else self.weight.to(rows.dtype),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.alpha,
        )
        return loss.view(rows.shape[:-1]) if self.reduction == "none" else loss

    def extra_repr(self) -> str:
        """Print α."""
        return f"alpha={self.alpha}"


class ForwardCorrectionLoss(ClassificationLoss):
    """Forward correction −log (Tᵀŷ)_t: Patrini et al. (CVPR 2017), Theorem 2.

    The prediction is passed through the noise before it meets the noisy label. The identity is
    cross-entropy. Probability targets are those of the noisy label: −Σ_t y_t log (Tᵀŷ)_t.

    Args:
        transition: ``(C, C)``, T_ij = P(noisy label j | true class i): entries ≥ 0, rows of sum 1,
            and no label that cannot occur (a column of zeros: its loss would be infinite).
            A buffer, saved in the state.
        task: ``reduction``, ``ignore_index`` and ``weight`` as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError: ``transition`` is not such a matrix; later, logits of another C.

    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(ForwardCorrectionLoss(0.8 * torch.eye(3) + 0.2 / 3)(logits, labels).item(), 3)
    0.362

    """

    transition: Tensor

    def __init__(self, transition: Tensor, **task: Unpack[TaskOptions]) -> None:
        super().__init__(**task)
        transition = torch.as_tensor(transition).detach().clone()
        if not transition.is_floating_point():
            transition = transition.to(torch.get_default_dtype())
        _check_transition(transition)
        self.register_buffer("transition", transition)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """−log Σ_i T_it ŷ_i through log T + log ŷ: finite gradients at ŷ → 0."""
        classes = self.transition.shape[0]
        if logits.shape[-1] != classes:
            raise ValueError(
                f"logits {tuple(logits.shape)} have {logits.shape[-1]} classes, "
                f"the transition matrix has {classes}"
            )
        log_noise = self.transition.to(logits.dtype).log()
        log_probability = logits.log_softmax(-1)
        if target.is_floating_point():
            noisy = (log_probability.unsqueeze(-1) + log_noise).logsumexp(-2)
            return -expectation(noisy, target)
        rows = (*target.shape, classes)
        of_label = at_label(log_noise.expand(*rows, classes), target.unsqueeze(-1).expand(rows))
        return -(log_probability + of_label).logsumexp(-1)

    linear_part = per_sample

    def extra_repr(self) -> str:
        """Print C."""
        return f"classes={self.transition.shape[0]}"


def _check_transition(transition: Tensor) -> None:
    if transition.ndim != 2 or transition.shape[0] != transition.shape[1]:
        raise ValueError(f"transition must be (C, C), got {tuple(transition.shape)}")
    if not bool((transition >= 0).all()):  # NaN, too
        raise ValueError("transition must have entries ≥ 0")
    sums = transition.double().sum(1)
    worst = int((sums - 1).abs().argmax())
    if not abs(float(sums[worst]) - 1) < 1e-3:
        raise ValueError(
            f"the rows of transition must have sum 1, row {worst} has {float(sums[worst]):.6g}"
        )
    empty = (transition == 0).all(0)
    if bool(empty.any()):
        raise ValueError(
            f"column {int(empty.int().argmax())} of transition is zero: that label cannot occur, "
            "and its loss would be infinite"
        )
