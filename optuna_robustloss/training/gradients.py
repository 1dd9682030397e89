"""The gradients of K losses at the logits of K networks, which training propagates back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

from optuna_robustloss.losses.closed_form import ClosedForm, closed_form, stack_gradients


class LossGradients(ABC):
    """Computes dL_k/dlogits_k of K losses for the same labels."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients and which losses are finite.

        Args:
            logits: ``(K, N, C)``, not differentiated through.
            labels: ``(N,)`` class indices, the same for all.

        Returns:
            gradients of each loss (its mean over N) like ``logits``, and bool ``(K,)``.

        """

    @abstractmethod
    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the losses ``indices``, in this order."""

    @abstractmethod
    def set_progress(self, progress: float) -> None:
        """Set the share of the steps done, from 0 to 1, on the losses that depend on it."""

    def set_index(self, index: Tensor) -> None:  # noqa: B027
        """Set the image indices ``(N,)`` of the next batch, for losses with ``takes_index``."""

    @property
    def l1(self) -> Sequence[float]:
        """Factors of the L1 norm of the network weights, one for each loss; empty for none."""
        return ()


class ClosedFormGradients(LossGradients):
    """Computes the gradients of K losses with a closed form at once, without autograd.

    Args:
        forms: closed forms of the K losses, of one variable.
        device: where the logits are.

    """

    def __init__(self, forms: Sequence[ClosedForm], device: torch.device) -> None:
        self._early = stack_gradients([form.early for form in forms], device)
        self._late = stack_gradients([form.late for form in forms], device)
        self._forms = list(forms)
        self._gradient = copy(self._early)  # the blend
        self._gradient.keep(range(len(self._forms)))
        self._weights: list[float] = []
        self.set_progress(0.0)

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``LossGradients``; these losses are finite where the logits are."""
        return self._gradient(logits, labels), torch.isfinite(logits).flatten(1).all(1)

    def keep(self, indices: Sequence[int]) -> None:
        """See ``LossGradients``."""
        for gradient in (self._early, self._late, self._gradient):
            gradient.keep(indices)
        self._forms = [self._forms[i] for i in indices]
        self._weights = [self._weights[i] for i in indices]

    def set_progress(self, progress: float) -> None:
        """Blend the two phases of the losses that have them."""
        weights = [form.late_share(progress) for form in self._forms]
        if weights != self._weights:
            self._weights = weights
            self._gradient.blend(self._early, self._late, torch.tensor(weights))


class AutogradGradients(LossGradients):
    """Computes the gradients of any losses ``criterion(logits, labels) → scalar`` by autograd."""

    def __init__(self, criteria: Sequence[nn.Module]) -> None:
        self._criteria = list(criteria)
        self._index: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``LossGradients``; half precision is computed in float32, as under autocast."""
        exact = logits if logits.dtype == torch.float64 else logits.float()
        leaves = [row.detach().requires_grad_() for row in exact]
        pairs = zip(self._criteria, leaves, strict=True)
        losses = torch.stack([self._loss(criterion, leaf, labels) for criterion, leaf in pairs])
        gradients = torch.autograd.grad(losses.sum(), leaves)
        return torch.stack(gradients).to(logits.dtype), torch.isfinite(losses.detach())

    def keep(self, indices: Sequence[int]) -> None:
        """See ``LossGradients``."""
        self._criteria = [self._criteria[i] for i in indices]

    def set_progress(self, progress: float) -> None:
        """Set the attribute ``progress`` of the losses, and modules of losses, that have one."""
        for criterion in self._criteria:
            for module in progress_modules(criterion):
                module.progress = progress  # type: ignore[assignment]

    def _loss(self, criterion: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
        further = (self._index,) if getattr(criterion, "takes_index", False) else ()
        loss: Tensor = criterion(logits, labels, *further)
        return loss

    def set_index(self, index: Tensor) -> None:
        """See ``LossGradients``."""
        self._index = index

    @property
    def l1(self) -> Sequence[float]:
        """See ``LossGradients``."""
        return [getattr(criterion, "l1", 0.0) for criterion in self._criteria]


def progress_modules(criterion: nn.Module) -> list[nn.Module]:
    """Return the modules of a loss with an attribute ``progress``, perhaps the loss itself."""
    return [module for module in criterion.modules() if hasattr(module, "progress")]


def is_closed_form(criteria: Sequence[nn.Module]) -> bool:
    """Return whether all losses have a closed form, of one and the same variable."""
    forms = [closed_form(criterion) for criterion in criteria]
    phases = [phase for form in forms if form for phase in (form.early, form.late)]
    return None not in forms and len({phase.variable for phase in phases}) == 1


def loss_gradients(
    criteria: Sequence[nn.Module], num_classes: int, device: torch.device, *, without_autograd: bool
) -> LossGradients:
    """Return the gradients of K losses for a training that begins.

    Args:
        criteria: the losses; ``reset()`` is called on their modules that have it, such as those
            that remember the images of another training.
        num_classes: C of the task.
        device: where the logits are.
        without_autograd: use the closed forms; requires ``is_closed_form(criteria)``.

    Raises:
        ValueError: a loss with a closed form was built for another number of classes.

    """
    forms = [closed_form(criterion) for criterion in criteria]
    for phase in (phase for form in forms if form for phase in (form.early, form.late)):
        if phase.num_classes != num_classes:
            raise ValueError(
                f"the loss was built for {phase.num_classes} classes, the task has {num_classes}"
            )
    for module in (module for criterion in criteria for module in criterion.modules()):
        if hasattr(module, "reset"):
            module.reset()  # type: ignore[operator]
    if not without_autograd:
        return AutogradGradients([criterion.to(device) for criterion in criteria])
    return ClosedFormGradients([form for form in forms if form], device)
