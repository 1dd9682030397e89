"""Points of the search space: losses before the number of classes is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from optuna_robustloss.losses import PhasedLoss, TaylorLoss
from optuna_robustloss.losses.taylor.polynomial import Variable


@dataclass(frozen=True)
class LossParameters:
    """A Taylor loss before the number of classes is known: a point of the search space.

    ``theta`` has twelve numbers, whatever the coordinates of the search.
    """

    theta: tuple[float, ...]
    eta: float
    cross_entropy_weight: float = 0.0
    variable: Variable = "probability"

    def build(self, num_classes: int, **options: Any) -> TaylorLoss:
        """Return the loss for ``num_classes`` classes; ``options`` are ``TaylorLoss``'s."""
        return TaylorLoss(num_classes=num_classes, **(asdict(self) | options))


@dataclass(frozen=True)
class PhasedParameters:
    """A loss with two phases before the number of classes is known."""

    early: LossParameters
    late: LossParameters
    switch: float
    width: float

    def build(
        self, num_classes: int, *, total_steps: int | None = None, **options: Any
    ) -> PhasedLoss:
        """Return the loss for ``num_classes`` classes; ``options`` are ``TaylorLoss``'s."""
        return PhasedLoss(
            self.early.build(num_classes, **options),
            self.late.build(num_classes, **options),
            switch=self.switch,
            width=self.width,
            total_steps=total_steps,
        )


@dataclass(frozen=True)
class AdaptiveParameters:
    """A loss with an adaptive switch before the number of classes is known."""

    early: LossParameters
    late: LossParameters
    after: float
    guard: float
    averaging: float
    """In steps."""
    width: float

    def build(self, num_classes: int, *, lr: float | None = None, **options: Any) -> PhasedLoss:
        """Return the loss for ``num_classes`` classes; ``options`` are ``TaylorLoss``'s."""
        return PhasedLoss(
            self.early.build(num_classes, **options),
            self.late.build(num_classes, **options),
            switch="adaptive",
            after=self.after,
            guard=self.guard,
            averaging=1 - 1 / self.averaging,
            width=self.width,
            lr=lr,
        )


Parameters = LossParameters | PhasedParameters | AdaptiveParameters
