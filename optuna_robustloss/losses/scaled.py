"""A loss times a number."""

from __future__ import annotations

from torch import Tensor, nn

from .base import check_positive
from .closed_form import ClosedForm, closed_form


class ScaledLoss(nn.Module):
    """Multiply any loss by a number: with SGD, the same as another learning rate.

    The attributes of the inner loss that a training loop reads are passed on: ``l1``, scaled as
    well, and ``takes_index``.

    Args:
        criterion: the inner loss, called as ``criterion(logits, target)``.
        scale: the factor, > 0.

    Raises:
        ValueError: ``scale`` is not a positive number.

    >>> import torch
    >>> logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(ScaledLoss(torch.nn.CrossEntropyLoss(), 0.1)(logits, labels).item(), 3)
    0.024

    """

    def __init__(self, criterion: nn.Module, scale: float) -> None:
        super().__init__()
        check_positive(scale=scale)
        self.criterion = criterion
        self.scale = scale

    @property
    def l1(self) -> float:
        """Weight of the L1 norm of the network's parameters: 0 for a loss without one."""
        return self.scale * float(getattr(self.criterion, "l1", 0.0))

    @property
    def takes_index(self) -> bool:
        """Whether the loss is called with the samples' indices, too."""
        return bool(getattr(self.criterion, "takes_index", False))

    def forward(self, logits: Tensor, target: Tensor, *rest: Tensor) -> Tensor:
        """Return ``scale`` × the loss."""
        loss: Tensor = self.criterion(logits, target, *rest)
        return self.scale * loss

    def closed_form(self) -> ClosedForm | None:
        """Return the gradient in closed form, if the inner loss has one."""
        form = closed_form(self.criterion) if type(self) is ScaledLoss else None
        return None if form is None else form.scaled(self.scale)

    def extra_repr(self) -> str:
        """Print the scale."""
        return f"scale={self.scale}"
