"""The search space of Taylor losses.

Each coefficient lies within ± 3 of a loss that is known to train. Our own sampler starts there with
σ = .5; Optuna's CMA-ES, whose ``x0`` and ``sigma0`` are deprecated, with a third of the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial, FixedTrial

from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAE_THETA,
    MSE_THETA,
    TaylorLoss,
    canonical,
    canonical_names,
    from_canonical,
)
from optuna_robustloss.losses.taylor.polynomial import Variable, check_variable

Start = Literal["mae", "mse", "sce", "confirm"]
Coordinates = Literal["taylor", "canonical"]
#: A fixed number, or the bounds of one log-uniform parameter.
NumberOrRange = float | tuple[float, float]

#: Half of the width of each coefficient's bounds; Optuna's CMA-ES starts with a third of it as σ.
DEFAULT_HALF_WIDTH = 3.0
#: First σ of each coefficient: wide enough to leave the start, narrow enough that most train.
DEFAULT_SIGMA = 0.5
#: Range of a suggested loss (Eq. 5). At learning rate .01, ten separates losses within hundreds
#: of steps; one or two would need five to ten times as many.
DEFAULT_ETA = 10.0

# Symmetric cross-entropy without its α · cross-entropy is MAE (Wang et al. 2019, Eq. 7).
_START_THETA = {"mae": MAE_THETA, "mse": MSE_THETA, "sce": MAE_THETA, "confirm": CONFIRM_THETA}


def bounds_of(value: NumberOrRange, name: str, *, zero_allowed: bool) -> tuple[float, float] | None:
    """Return the bounds of a range, or None for a number."""
    if isinstance(value, int | float):
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
            raise ValueError(f"{name} must be a positive number or a range, got {value}")
        return None
    low, high = value
    if not (0 < low < high and math.isfinite(high)):
        raise ValueError(f"the range of {name} needs 0 < low < high, got [{low}, {high}]")
    return float(low), float(high)


@dataclass(frozen=True)
class LossParameters:
    """A loss before the number of classes is known: a point of the search space.

    ``theta`` has twelve numbers, whatever the coordinates of the search.
    """

    theta: tuple[float, ...]
    eta: float
    cross_entropy_weight: float = 0.0
    variable: Variable = "probability"

    def build(self, num_classes: int, **options: Any) -> TaylorLoss:
        """Return the loss for ``num_classes`` classes; ``options`` are ``TaylorLoss``'s."""
        arguments: dict[str, Any] = {
            "eta": self.eta,
            "cross_entropy_weight": self.cross_entropy_weight,
            "variable": self.variable,
        }
        return TaylorLoss(self.theta, num_classes, **(arguments | options))


@dataclass(frozen=True)
class TaylorSpace:
    """The parameters of a search, before any trial.

    Args:
        prefix: of every parameter's name.
        eta: η of Eq. 5, a number; or a range, which adds one log-uniform parameter.
        cross_entropy_weight: α of "normalised polynomial + α · cross-entropy": 0, a number, or a
            range, which adds one log-uniform parameter.
        variable: what the polynomial is written in; see ``taylor_loss``.
        coordinates: ``"taylor"``, the paper's twelve; or ``"canonical"``, the six (seven for the
            log variable) that the gradient depends on.
        start: the loss at the centre: ``"mae"``; ``"mse"``; ``"sce"``, MAE plus the cross-entropy
            term, which must then be on; or ``"confirm"``, −ŷ_t², which trains after another loss
            only.
        half_width: each coefficient lies within ± this of the start's.

    Raises:
        ValueError: an unknown name, a range without 0 < low < high, ``half_width`` ≤ 0, or
            ``start="sce"`` without ``cross_entropy_weight``.

    """

    prefix: str = "theta_"
    eta: NumberOrRange = DEFAULT_ETA
    cross_entropy_weight: NumberOrRange = 0.0
    variable: Variable = "probability"
    coordinates: Coordinates = "taylor"
    start: Start = "mae"
    half_width: float = DEFAULT_HALF_WIDTH

    def __post_init__(self) -> None:
        """Check the options."""
        check_variable(self.variable)
        if self.coordinates not in get_args(Coordinates):
            raise ValueError(
                f"coordinates must be one of {get_args(Coordinates)}, got {self.coordinates!r}"
            )
        if self.start not in get_args(Start):
            raise ValueError(f"start must be one of {get_args(Start)}, got {self.start!r}")
        if not (math.isfinite(self.half_width) and self.half_width > 0):
            raise ValueError(f"half_width must be a positive number, got {self.half_width}")
        bounds_of(self.eta, "eta", zero_allowed=False)
        bounds_of(self.cross_entropy_weight, "cross_entropy_weight", zero_allowed=True)
        if self.start == "sce" and self.cross_entropy_weight == 0:
            raise ValueError(
                "start 'sce' is MAE plus cross-entropy: set cross_entropy_weight to a number or a "
                "range, for example [0.003, 0.3]"
            )

    @property
    def centre(self) -> dict[str, float]:
        """The start loss's coefficients by parameter name."""
        theta = _START_THETA[self.start]
        if self.coordinates == "taylor":
            return {f"{self.prefix}{k}": value for k, value in enumerate(theta)}
        values = canonical(theta, variable=self.variable).tolist()
        names = canonical_names(self.variable)
        return {self.prefix + n: v for n, v in zip(names, values, strict=True)}

    @property
    def distributions(self) -> dict[str, FloatDistribution]:
        """Every parameter with its distribution, in the order they are suggested."""
        space = {
            name: FloatDistribution(value - self.half_width, value + self.half_width)
            for name, value in self.centre.items()
        }
        for name in ("eta", "cross_entropy_weight"):
            bounds = bounds_of(getattr(self, name), name, zero_allowed=True)
            if bounds:
                space[self.prefix + name] = FloatDistribution(*bounds, log=True)
        return space

    @property
    def start_point(self) -> dict[str, float]:
        """The centre of the space: the parameters of the start loss, as a trial has them."""
        return {
            name: math.sqrt(d.low * d.high) if d.log else (d.low + d.high) / 2
            for name, d in self.distributions.items()
        }

    def suggest(self, trial: BaseTrial) -> LossParameters:
        """Suggest every parameter of the space with ``trial``."""
        params = {
            name: trial.suggest_float(name, d.low, d.high, log=d.log)
            for name, d in self.distributions.items()
        }
        values = [params[name] for name in self.centre]
        theta = (
            values
            if self.coordinates == "taylor"
            else from_canonical(values, variable=self.variable).tolist()
        )
        return LossParameters(
            theta=tuple(theta),
            eta=self._number("eta", params),
            cross_entropy_weight=self._number("cross_entropy_weight", params),
            variable=self.variable,
        )

    def at(self, params: Mapping[str, float]) -> LossParameters:
        """Return the loss of a finished trial's ``params``."""
        return self.suggest(FixedTrial(dict(params)))

    def _number(self, name: str, params: Mapping[str, float]) -> float:
        value = getattr(self, name)
        return float(value) if isinstance(value, int | float) else params[self.prefix + name]
