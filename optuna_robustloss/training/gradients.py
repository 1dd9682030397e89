"""The gradient of K losses at the logits of K networks: all that training needs of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optuna_robustloss.losses.phased import PhasedLoss, late_share
from optuna_robustloss.losses.published.gce_sce_mae import ScaledLoss
from optuna_robustloss.losses.taylor.gradient import TaylorGradient
from optuna_robustloss.losses.taylor.loss import TaylorLoss
from optuna_robustloss.losses.taylor.polynomial import hard_polynomials


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


#: When a loss changes: ``switch`` and ``width`` of ``PhasedLoss``; None: never.
Change = tuple[float, float] | None


class TaylorGradients(LossGradients):
    """Taylor losses of one variable: written down for all K at once, without autograd.

    A ``PhasedLoss`` of two such losses is one of them again at every step, since the gradient is
    linear in the coefficients.

    Args:
        early: of the losses as they begin.
        late: of the losses as they end; other ones in the places of those with phases.
        changes: when each of the K changes.

    """

    def __init__(
        self, early: TaylorGradient, late: TaylorGradient, changes: Sequence[Change]
    ) -> None:
        self._early, self._late = early, late
        self._changes = list(changes)
        self._gradient = copy(early)  # the blend
        self._gradient.keep(range(len(self._changes)))
        self._weights: list[float] = []
        self.set_progress(0.0)

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``LossGradients``; a Taylor loss is finite where the logits are."""
        return self._gradient(logits, labels), torch.isfinite(logits).flatten(1).all(1)

    def keep(self, indices: Sequence[int]) -> None:
        """See ``LossGradients``."""
        for gradient in (self._early, self._late, self._gradient):
            gradient.keep(indices)
        self._changes = [self._changes[i] for i in indices]
        self._weights = [self._weights[i] for i in indices]

    def extend(self, other: LossGradients) -> None:
        """See ``LossGradients``."""
        assert isinstance(other, TaylorGradients)
        self._early.extend(other._early)
        self._late.extend(other._late)
        self._gradient.extend(other._gradient)
        self._changes += other._changes
        self._weights += other._weights

    def set_progress(self, progress: float) -> None:
        """Blend the two phases of the losses that have them."""
        weights = [late_share(progress, *change) if change else 0.0 for change in self._changes]
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
    """Whether ``TaylorGradients`` serves.

    All are then plain Taylor losses of one variable, or change from one into another.
    """
    losses = [phase for criterion in criteria for phase in _phases(criterion)]
    return None not in losses and len({p.loss.variable for p in losses if p}) == 1


def loss_gradients(
    criteria: Sequence[nn.Module], num_classes: int, device: torch.device, *, closed_form: bool
) -> LossGradients:
    """Return the gradients of ``criteria``, in closed form if ``is_closed_form`` says so.

    Raises:
        ValueError: a Taylor loss was built for another number of classes.

    """
    phases = [_phases(criterion) for criterion in criteria]
    for phase in (phase for pair in phases for phase in pair if phase is not None):
        if phase.loss.num_classes != num_classes:
            raise ValueError(
                f"the loss was built for {phase.loss.num_classes} classes, the task has "
                f"{num_classes}"
            )
    if not closed_form:
        return AnyGradients([criterion.to(device) for criterion in criteria])
    early, late = ([p for pair in phases if (p := pair[i])] for i in (0, -1))
    changes = [_change(criterion) for criterion in criteria]
    return TaylorGradients(_stacked(early, device), _stacked(late, device), changes)


@dataclass(frozen=True)
class _Phase:
    """A Taylor loss and the factor it is multiplied by."""

    loss: TaylorLoss
    scale: float


def _stacked(phases: Sequence[_Phase], device: torch.device) -> TaylorGradient:
    scales = torch.tensor([phase.scale for phase in phases], dtype=torch.float64)
    coefficients = torch.stack([phase.loss.coefficients.double().cpu() for phase in phases])
    p0, difference = hard_polynomials(coefficients * scales.view(-1, 1, 1))
    weights = [phase.loss.cross_entropy_weight for phase in phases]
    alpha = scales * torch.tensor(weights).double()
    return TaylorGradient(
        p0.float().to(device),
        difference.float().to(device),
        log=phases[0].loss.variable == "log",
        cross_entropy_weight=alpha.float().to(device) if bool(alpha.any()) else None,
    )


def _phases(criterion: nn.Module, scale: float = 1.0) -> tuple[_Phase | None, ...]:
    """Return the plain Taylor loss that ``criterion`` is, or the two; None for any other loss."""
    if type(criterion) is ScaledLoss:
        return _phases(criterion.criterion, scale * criterion.scale)
    if type(criterion) is PhasedLoss and criterion.training:  # else it is the late loss alone
        return _phases(criterion.early, scale) + _phases(criterion.late, scale)
    plain = (
        type(criterion) is TaylorLoss
        and criterion.weight is None
        and criterion.reduction == "mean"
        and criterion.ignore_index < 0
    )
    return (_Phase(criterion, scale) if plain else None,)  # type: ignore[arg-type]


def _change(criterion: nn.Module) -> Change:
    if type(criterion) is ScaledLoss:
        return _change(criterion.criterion)
    return (criterion.switch, criterion.width) if type(criterion) is PhasedLoss else None
