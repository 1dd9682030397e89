"""The search space of losses with two phases: two Taylor losses, and when one becomes the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial, FixedTrial

from optuna_robustloss.losses.phased import DEFAULT_WIDTH, PhasedLoss
from optuna_robustloss.losses.taylor.polynomial import Variable
from optuna_robustloss.search.space import (
    DEFAULT_ETA,
    DEFAULT_HALF_WIDTH,
    Coordinates,
    LossParameters,
    NumberOrRange,
    Start,
    TaylorSpace,
    bounds_of,
)

Phases = Literal[1, 2]

#: Share of the steps after which the change begins; its middle, .08, is the best that was tried.
DEFAULT_SWITCH = (0.02, 0.32)
#: Range of the late loss: −.5 ŷ_t², the best that was tried, has it.
DEFAULT_LATE_ETA = 0.5


@dataclass(frozen=True)
class PhasedParameters:
    """A loss with two phases before the number of classes is known: a point of the search space."""

    early: LossParameters
    late: LossParameters
    switch: float
    width: float

    def build(
        self,
        num_classes: int,
        *,
        total_steps: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> PhasedLoss:
        """Return the loss for ``num_classes`` classes; ``options`` are ``TaylorLoss``'s."""
        return PhasedLoss(
            self.early.build(num_classes, **options),
            self.late.build(num_classes, **options),
            switch=self.switch,
            width=self.width,
            total_steps=total_steps,
            provenance=provenance,
        )


@dataclass(frozen=True)
class PhasedSpace:
    """The parameters of a search for losses with two phases, before any trial.

    Args:
        early: space of the loss at first.
        late: space of the loss in the end, with another prefix.
        switch: share of the steps after which the change begins, a number; or a range, which adds
            one log-uniform parameter.
        width: share of the steps that the change takes.
        prefix: of the name of that parameter.

    Raises:
        ValueError: the range is none, or the change would not be over by the end.

    """

    early: TaylorSpace
    late: TaylorSpace
    switch: NumberOrRange = DEFAULT_SWITCH
    width: float = DEFAULT_WIDTH
    prefix: str = ""

    def __post_init__(self) -> None:
        """Check the options."""
        bounds = bounds_of(self.switch, "switch", zero_allowed=True)
        last = bounds[1] if bounds else float(self.switch)  # type: ignore[arg-type]
        if not (self.width >= 0 and last + self.width <= 1):
            raise ValueError(
                "switch and width are shares of the steps, and the change has to be over by the "
                f"end: switch + width ≤ 1 and width ≥ 0, got switch {self.switch}, width "
                f"{self.width}"
            )

    @property
    def start(self) -> str:
        """Name of the loss at the centre."""
        return f"{self.early.start}-then-{self.late.start}"

    @property
    def centre(self) -> dict[str, float]:
        """The start losses' coefficients by parameter name."""
        return self.early.centre | self.late.centre

    @property
    def distributions(self) -> dict[str, FloatDistribution]:
        """Every parameter with its distribution, in the order they are suggested."""
        space = self.early.distributions | self.late.distributions
        bounds = bounds_of(self.switch, "switch", zero_allowed=True)
        if bounds:
            space[self._name] = FloatDistribution(*bounds, log=True)
        return space

    @property
    def start_point(self) -> dict[str, float]:
        """The centre of the space: the parameters of the start loss, as a trial has them."""
        point = self.early.start_point | self.late.start_point
        d = self.distributions.get(self._name)
        return point | ({self._name: math.sqrt(d.low * d.high)} if d else {})

    def suggest(self, trial: BaseTrial) -> PhasedParameters:
        """Suggest every parameter of the space with ``trial``."""
        early, late = self.early.suggest(trial), self.late.suggest(trial)
        if isinstance(self.switch, int | float):
            switch = float(self.switch)
        else:
            switch = trial.suggest_float(self._name, *self.switch, log=True)
        return PhasedParameters(early, late, switch, self.width)

    def at(self, params: Mapping[str, float]) -> PhasedParameters:
        """Return the loss of a finished trial's ``params``."""
        return self.suggest(FixedTrial(dict(params)))

    @property
    def _name(self) -> str:
        return f"{self.prefix}switch"


Space = TaylorSpace | PhasedSpace
Parameters = LossParameters | PhasedParameters


def search_space(
    phases: Phases = 1,
    *,
    prefix: str | None = None,
    eta: NumberOrRange = DEFAULT_ETA,
    cross_entropy_weight: NumberOrRange = 0.0,
    variable: Variable = "probability",
    coordinates: Coordinates = "taylor",
    start: Start = "mae",
    half_width: float = DEFAULT_HALF_WIDTH,
    late_eta: NumberOrRange = DEFAULT_LATE_ETA,
    late_cross_entropy_weight: NumberOrRange = 0.0,
    late_start: Start = "confirm",
    switch: NumberOrRange = DEFAULT_SWITCH,
    switch_width: float = DEFAULT_WIDTH,
) -> Space:
    """Return the space of one Taylor loss, or of two with a change between them.

    Args:
        phases: 1 or 2.
        prefix: of all parameters' names; by default ``theta_`` for one loss, none for two, whose
            parameters begin with ``early_`` and ``late_``.
        eta: see ``TaylorSpace``; of the early loss, if there are two.
        cross_entropy_weight: the same.
        variable: see ``TaylorSpace``; of both losses.
        coordinates: the same.
        start: see ``TaylorSpace``; of the early loss.
        half_width: see ``TaylorSpace``; of both losses.
        late_eta: ``eta`` of the late loss.
        late_cross_entropy_weight: ``cross_entropy_weight`` of the late loss.
        late_start: ``start`` of the late loss.
        switch: see ``PhasedSpace``.
        switch_width: ``width`` of ``PhasedSpace``.

    Raises:
        ValueError: as ``TaylorSpace`` and ``PhasedSpace``, ``phases`` is neither 1 nor 2, or it
            is 1 and something is said of a late loss.

    """
    if phases not in get_args(Phases):
        raise ValueError(f"phases must be 1 or 2, got {phases}")
    first = "theta_" if prefix is None else prefix
    early = TaylorSpace(first, eta, cross_entropy_weight, variable, coordinates, start, half_width)
    if phases == 1:
        said = {
            "late_eta": late_eta != DEFAULT_LATE_ETA,
            "late_cross_entropy_weight": late_cross_entropy_weight != 0,
            "late_start": late_start != "confirm",
            "switch": switch != DEFAULT_SWITCH,
            "switch_width": switch_width != DEFAULT_WIDTH,
        }
        if strange := [name for name, is_said in said.items() if is_said]:
            raise ValueError(f"{strange[0]} is an option of phases: 2")
        return early
    prefix = prefix or ""
    try:
        late = replace(
            early,
            prefix=f"{prefix}late_",
            eta=late_eta,
            cross_entropy_weight=late_cross_entropy_weight,
            start=late_start,
        )
    except ValueError as error:
        raise ValueError(f"of the late loss: {error}") from None
    return PhasedSpace(replace(early, prefix=f"{prefix}early_"), late, switch, switch_width, prefix)
