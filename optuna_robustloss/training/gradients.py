"""The gradients of K losses at the logits of K networks, which training propagates back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

from optuna_robustloss.losses.adaptive import AdaptiveState, read_batch
from optuna_robustloss.losses.closed_form import ClosedForm, closed_form, stack_gradients
from optuna_robustloss.losses.phased import PhasedLoss


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
    def set_progress(self, progress: float, cumulative_lr: float) -> None:
        """Set how far the training is, for the losses that depend on it.

        Args:
            progress: share of the steps done, from 0 to 1.
            cumulative_lr: Σ lr of the steps done.

        """

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
        self._adaptive = AdaptiveState([form.rule for form in forms if form.rule]).to(device)
        self._steps = torch.zeros((), device=device)
        self._cumulative_lr = torch.zeros((), device=device)
        self._find_adaptive()
        self.set_progress(0.0, 0.0)

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``LossGradients``; these losses are finite where the logits are."""
        if len(self._places):
            self._steps += 1
            sums = read_batch(logits.index_select(0, self._places).float(), labels)
            weights = self._adaptive.advance(sums, self._steps, self._cumulative_lr)
            self._shares.index_copy_(0, self._places, weights)
            self._gradient.blend(self._early, self._late, self._shares)
        return self._gradient(logits, labels), torch.isfinite(logits).flatten(1).all(1)

    def keep(self, indices: Sequence[int]) -> None:
        """See ``LossGradients``."""
        for gradient in (self._early, self._late, self._gradient):
            gradient.keep(indices)
        places = self._places.tolist()
        self._adaptive.keep([places.index(i) for i in indices if i in places])
        self._forms = [self._forms[i] for i in indices]
        self._weights = [self._weights[i] for i in indices]
        self._find_adaptive()

    def set_progress(self, progress: float, cumulative_lr: float) -> None:
        """Blend the two phases of the losses that change at a share of the steps."""
        self._cumulative_lr.fill_(cumulative_lr)
        weights = [form.late_share(progress) for form in self._forms]
        if weights != self._weights:
            self._weights = weights
            self._shares.copy_(torch.tensor(weights))
            self._gradient.blend(self._early, self._late, self._shares)

    def state(self) -> list[Tensor]:
        """Return the tensors that a call changes in place."""
        return [self._steps, self._shares, *self._adaptive.buffers()]

    def _find_adaptive(self) -> None:
        places = [i for i, form in enumerate(self._forms) if form.rule]
        self._places = torch.tensor(places, dtype=torch.long, device=self._steps.device)
        self._shares = torch.zeros(len(self._forms), device=self._steps.device)
        if self._weights:
            self._shares.copy_(torch.tensor(self._weights))


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

    def set_progress(self, progress: float, cumulative_lr: float) -> None:
        """Set ``progress``, or ``cumulative_lr``, of the modules of losses that have one."""
        for criterion in self._criteria:
            for module in progress_modules(criterion):
                module.progress = progress  # type: ignore[assignment]
            for module in criterion.modules():
                if is_adaptive(module):
                    module.cumulative_lr = cumulative_lr  # type: ignore[assignment]

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


def has_l1(criterion: nn.Module) -> bool:
    """Return whether the loss, or a part of it, adds an L1 norm of the network weights."""
    return any(getattr(module, "l1", 0.0) for module in criterion.modules())


def progress_modules(criterion: nn.Module) -> list[nn.Module]:
    """Return the modules of a loss that depend on the share of the steps done.

    Those with an attribute ``progress``, perhaps the loss itself; a loss with an adaptive switch
    does not know the length of the training.
    """
    return [m for m in criterion.modules() if hasattr(m, "progress") and not is_adaptive(m)]


def is_adaptive(module: nn.Module) -> bool:
    """Return whether a module is a loss with an adaptive switch."""
    return isinstance(module, PhasedLoss) and module.switch == "adaptive"


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
