"""The gradient of K losses at the logits of K networks: all that training needs of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

from optuna_robustloss.losses.closed_form import ClosedForm, stack_gradients
from optuna_robustloss.losses.closed_form import closed_form as form_of


class LossGradients(ABC):
    """dL_k/dlogits_k of K losses for the same labels."""

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
        """Go on with the losses ``indices``, in this order."""

    @abstractmethod
    def extend(self, other: LossGradients) -> None:
        """Append the losses of ``other``, which is of the same kind."""

    @abstractmethod
    def set_progress(self, progress: float) -> None:
        """Tell the losses that ask for it which share of the steps is done, from 0 to 1."""

    def set_index(self, index: Tensor) -> None:  # noqa: B027
        """Tell the losses that ask for it which images the next batch has, ``(N,)`` int64."""

    @property
    def l1(self) -> Sequence[float]:
        """Weight of the sum of absolute network weights, which each loss wants added."""
        return ()


class TaylorGradients(LossGradients):
    """Taylor losses of one variable: written down for all K at once, without autograd.

    A ``PhasedLoss`` of two such losses is one of them again at every step, since the gradient is
    linear in the coefficients.

    Args:
        forms: of the K losses.
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
        """See ``LossGradients``; a Taylor loss is finite where the logits are."""
        return self._gradient(logits, labels), torch.isfinite(logits).flatten(1).all(1)

    def keep(self, indices: Sequence[int]) -> None:
        """See ``LossGradients``."""
        for gradient in (self._early, self._late, self._gradient):
            gradient.keep(indices)
        self._forms = [self._forms[i] for i in indices]
        self._weights = [self._weights[i] for i in indices]

    def extend(self, other: LossGradients) -> None:
        """See ``LossGradients``."""
        assert isinstance(other, TaylorGradients)
        self._early.extend(other._early)
        self._late.extend(other._late)
        self._gradient.extend(other._gradient)
        self._forms += other._forms
        self._weights += other._weights

    def set_progress(self, progress: float) -> None:
        """Blend the two phases of the losses that have them."""
        weights = [form.late_share(progress) for form in self._forms]
        if weights != self._weights:
            self._weights = weights
            self._gradient.blend(self._early, self._late, torch.tensor(weights))


class AnyGradients(LossGradients):
    """Any losses ``criterion(logits, labels) → scalar``, one after another, by autograd."""

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

    def extend(self, other: LossGradients) -> None:
        """See ``LossGradients``."""
        assert isinstance(other, AnyGradients)
        self._criteria += other._criteria

    def set_progress(self, progress: float) -> None:
        """Set the attribute ``progress`` of the losses, and parts of losses, that have one."""
        for criterion in self._criteria:
            for follower in followers(criterion):
                follower.progress = progress  # type: ignore[assignment]

    def _loss(self, criterion: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
        further = (self._index,) if getattr(criterion, "takes_index", False) else ()
        loss: Tensor = criterion(logits, labels, *further)
        return loss

    def set_index(self, index: Tensor) -> None:
        """Kept for the losses with ``takes_index``."""
        self._index = index

    @property
    def l1(self) -> Sequence[float]:
        """See ``LossGradients``."""
        return [getattr(criterion, "l1", 0.0) for criterion in self._criteria]


def followers(criterion: nn.Module) -> list[nn.Module]:
    """Return the parts of a loss, perhaps itself, that want to be told the progress."""
    return [module for module in criterion.modules() if hasattr(module, "progress")]


def is_closed_form(criteria: Sequence[nn.Module]) -> bool:
    """Whether ``TaylorGradients`` serves: all have a closed form, of one variable."""
    forms = [form_of(criterion) for criterion in criteria]
    phases = [phase for form in forms if form for phase in (form.early, form.late)]
    return None not in forms and len({phase.variable for phase in phases}) == 1


def loss_gradients(
    criteria: Sequence[nn.Module], num_classes: int, device: torch.device, *, closed_form: bool
) -> LossGradients:
    """Return the gradients of ``criteria``, in closed form if ``is_closed_form`` says so.

    Raises:
        ValueError: a Taylor loss was built for another number of classes.

    """
    forms = [form_of(criterion) for criterion in criteria]
    for phase in (phase for form in forms if form for phase in (form.early, form.late)):
        if phase.num_classes != num_classes:
            raise ValueError(
                f"the loss was built for {phase.num_classes} classes, the task has {num_classes}"
            )
    if not closed_form:
        return AnyGradients([criterion.to(device) for criterion in criteria])
    return TaylorGradients([form for form in forms if form], device)
