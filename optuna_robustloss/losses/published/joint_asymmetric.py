"""Joint asymmetric losses: Wang et al., "Joint Asymmetric Loss for Learning with Noisy Labels"."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from ..base import ClassificationLoss, TaskOptions, at_label, check_factors
from .normalized import ActivePassiveLoss


def asymmetric_mse(logits: Tensor, target: Tensor, a: float) -> Tensor:
    """(1/C) Σ_k (ŷ_k − a·y_k)²."""
    probability = logits.softmax(-1)
    if target.is_floating_point():
        return (probability - a * target).square().mean(-1)
    of_label = at_label(probability, target)
    total = probability.square().sum(-1) - 2 * a * of_label + a**2
    return total / logits.shape[-1]


class AMSELoss(ClassificationLoss):
    """Asymmetric mean squared error (1/C) Σ_k (ŷ_k − a·y_k)²: Wang et al. (ICCV 2025).

    For class indices a member of the Taylor family, but for the constant a²/C. a = 1 is the mean
    squared error; the default is that of ``JALCELoss``. Raises ``ValueError`` unless a ≥ 0.

    >>> import torch
    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(AMSELoss(a=1.0)(logits, labels).item(), 4)
    0.0227

    """

    def __init__(self, a: float = 30.0, **task: Unpack[TaskOptions]) -> None:
        super().__init__(**task)
        check_factors(a=a)
        self.a = a

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over classes of (ŷ − a·y)²."""
        return asymmetric_mse(logits, target, self.a)


class JALCELoss(ActivePassiveLoss):
    """Joint asymmetric loss α·NCE + β·AMSE: Wang et al. (ICCV 2025).

    Trained with δ‖w‖₁ over all parameters of the network in place of weight decay, as ANL-CE:
    see ``ANLCELoss``. Defaults are those of the authors' code (``config.py`` of
    cswjl/joint-asymmetric-loss) for CIFAR-10; CIFAR-100: α = 5, a = 20, ``l1`` = 5·10⁻⁶;
    Clothing1M: α = 5, β = .1, a = 5.

    Args:
        alpha: weight of the normalised cross-entropy, ≥ 0.
        beta: weight of the asymmetric mean squared error, ≥ 0.
        a: what the label's probability is drawn to, ≥ 0.
        l1: δ ≥ 0; 0 for none.
        task: ``reduction``, ``ignore_index`` and ``weight`` as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError: any of the above is out of its domain.

    >>> import torch
    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(JALCELoss()(logits, labels).item(), 2)
    284.53

    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        a: float = 30.0,
        *,
        l1: float = 5e-5,
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(alpha, beta, **task)
        check_factors(a=a, l1=l1)
        self.a, self.l1 = a, l1

    def passive(self, logits: Tensor, target: Tensor) -> Tensor:
        """AMSE."""
        return asymmetric_mse(logits, target, self.a)
