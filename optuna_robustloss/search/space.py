"""The search space of Taylor losses: its options, its parameters, and the loss of each point.

Each coefficient lies within ± 3 of a loss that is known to train. The generational sampler starts
there with σ = .5; Optuna's CMA-ES, whose ``x0`` and ``sigma0`` are deprecated, with a third of the
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial, FixedTrial
from pydantic import AfterValidator, Field, model_validator

from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAE_THETA,
    MSE_THETA,
    canonical,
    canonical_names,
    from_canonical,
)
from optuna_robustloss.losses.phased import DEFAULT_WIDTH
from optuna_robustloss.losses.taylor.polynomial import Variable
from optuna_robustloss.search.parameters import (
    AdaptiveParameters,
    LossParameters,
    Parameters,
    PhasedParameters,
)
from optuna_robustloss.spec_files import StrictModel

Start = Literal["mae", "mse", "sce", "confirm"]
Coordinates = Literal["taylor", "canonical"]
#: A fixed number, or the bounds of one log-uniform parameter.
NumberOrRange = float | tuple[float, float]

#: Bounds of all numbers above 0 of the space; losses compute in float32.
LEAST, GREATEST = 1e-9, 1e9
#: First σ of each coefficient: wide enough to leave the start, narrow enough that most train.
DEFAULT_SIGMA = 0.5

# Symmetric cross-entropy without its α · cross-entropy is MAE (Wang et al. 2019, Eq. 7).
_START_THETA = {"mae": MAE_THETA, "mse": MSE_THETA, "sce": MAE_THETA, "confirm": CONFIRM_THETA}

#: What ``phases`` has to be for the options that begin so.
_PHASES_OF = {"late_": (2, "adaptive"), "switch": (2,), "adaptive_": ("adaptive",)}
#: Parameters of an adaptive switch.
_ADAPTIVE = ("after", "guard", "averaging", "width")


def _check_range(value: NumberOrRange, least: str) -> NumberOrRange:
    if isinstance(value, tuple):
        valid = LEAST <= value[0] < value[1] <= GREATEST
    else:
        valid = LEAST <= value <= GREATEST or (value == 0 and least == "0 or more")
    if not valid:
        raise ValueError(
            f"expected a number, {least}, or a range [low, high] between {LEAST:g} and "
            f"{GREATEST:g}, 0 < low < high"
        )
    return value


PositiveOrRange = Annotated[NumberOrRange, AfterValidator(lambda v: _check_range(v, "above 0"))]
ZeroOrRange = Annotated[NumberOrRange, AfterValidator(lambda v: _check_range(v, "0 or more"))]


class SpaceOptions(StrictModel):
    """What is searched: one Taylor loss, or two of which the first changes into the second.

    A range in place of a number adds one log-uniform parameter.
    """

    phases: Literal[1, 2, "adaptive"] = 1
    """1, or 2 for a loss that changes; ``adaptive``: when, is read off the batches (PhasedLoss).
    All that begins with ``late_`` needs one of the two, ``switch`` and ``switch_width`` 2,
    ``adaptive_…`` the other."""
    eta: PositiveOrRange = 10.0
    """Range η of the loss (Eq. 5); of the early one, if there are two. At learning rate .01, ten
    separates losses within hundreds of steps; one or two would need five to ten times as many."""
    cross_entropy_weight: ZeroOrRange = 0.0
    """α of "normalised polynomial + α · cross-entropy"; of the early loss, if there are two."""
    variable: Variable = "probability"
    """What the polynomials are written in; see ``taylor_loss``."""
    coordinates: Coordinates = "taylor"
    """``taylor``: the paper's twelve; ``canonical``: the six (seven for the log variable) that the
    gradient depends on."""
    start: Start = "mae"
    """The loss at the centre; ``sce`` is MAE plus the cross-entropy term, which must then be on;
    ``confirm`` is −ŷ_t², which trains only after another loss."""
    half_width: float = Field(default=3.0, ge=LEAST, le=GREATEST)
    """Each coefficient lies within ± this of the start's."""
    late_eta: PositiveOrRange = 0.5
    """``eta`` of the late loss; −.5 ŷ_t², the best that was tried, has the default."""
    late_cross_entropy_weight: ZeroOrRange = 0.0
    """``cross_entropy_weight`` of the late loss."""
    late_start: Start = "confirm"
    """``start`` of the late loss."""
    switch: ZeroOrRange = (0.02, 0.32)
    """Share of each training's steps after which the change begins; the default has the best that
    was tried, .08, at its centre."""
    switch_width: float = DEFAULT_WIDTH
    """Share of the steps that the change takes."""
    adaptive_after: PositiveOrRange = (1.0, 4.0)
    """Cumulative learning rate before which the change does not start."""
    adaptive_guard: PositiveOrRange = (0.005, 0.08)
    """Rise of agreement/confidence above its minimum at which it starts."""
    adaptive_averaging: PositiveOrRange = 50.0
    """Length of the moving averages in steps, > 1: 50 keeps .98 at each."""
    adaptive_width: PositiveOrRange = 0.5
    """Length of the change, as a multiple of ``adaptive_after``."""

    @model_validator(mode="after")
    def _check_phases(self) -> SpaceOptions:
        for prefix, allowed in _PHASES_OF.items():
            for name, field in SpaceOptions.model_fields.items():
                given = name.startswith(prefix) and getattr(self, name) != field.default
                if given and self.phases not in allowed:
                    choices = " or ".join(f"phases: {phases}" for phases in allowed)
                    raise ValueError(f"{name} is an option of {choices}")
        averaging = self.adaptive_averaging
        if (averaging[0] if isinstance(averaging, tuple) else averaging) < 1:
            raise ValueError(f"adaptive_averaging must be 1 step or more, got {averaging}")
        last = self.switch[1] if isinstance(self.switch, tuple) else self.switch
        if not (self.switch_width >= 0 and last + self.switch_width <= 1):
            raise ValueError(
                "switch and switch_width are shares of the steps, and the change must be over by "
                "the end: switch + switch_width ≤ 1 and switch_width ≥ 0, got switch "
                f"{self.switch}, switch_width {self.switch_width}"
            )
        for prefix in ("", "late_"):
            start, key = getattr(self, f"{prefix}start"), f"{prefix}cross_entropy_weight"
            if start == "sce" and getattr(self, key) == 0:
                raise ValueError(
                    f"{prefix}start 'sce' is MAE plus cross-entropy: set {key} to a number or a "
                    "range, for example [0.003, 0.3]"
                )
        return self


@dataclass(frozen=True)
class SearchSpace:
    """The parameters of a search, before any trial.

    ``prefix`` begins every parameter's name: by default ``theta_`` for one loss, and nothing for
    two, whose parameters begin with ``early_`` and ``late_``.
    """

    options: SpaceOptions
    prefix: str | None = None

    @property
    def start(self) -> str:
        """Name of the loss at the centre."""
        return "-then-".join(loss.start for loss in self._losses())

    @property
    def centre(self) -> dict[str, float]:
        """Coefficients of the start loss by parameter name."""
        return {name: value for loss in self._losses() for name, value in loss.centre.items()}

    @property
    def distributions(self) -> dict[str, FloatDistribution]:
        """Every parameter with its distribution, in the order they are suggested."""
        space = {n: d for loss in self._losses() for n, d in loss.distributions.items()}
        if self.options.phases == 2 and isinstance(self.options.switch, tuple):
            space[self._switch] = FloatDistribution(*self.options.switch, log=True)
        if self.options.phases == "adaptive":
            for name, value in self._adaptive().items():
                if isinstance(value, tuple):
                    space[f"{self.prefix or ''}{name}"] = FloatDistribution(*value, log=True)
        return space

    @property
    def start_point(self) -> dict[str, float]:
        """The centre of the space: the parameters of the start loss, as a trial has them."""
        return {
            name: math.sqrt(d.low * d.high) if d.log else (d.low + d.high) / 2
            for name, d in self.distributions.items()
        }

    def suggest(self, trial: BaseTrial) -> Parameters:
        """Suggest every parameter of the space with ``trial``."""
        params = {
            name: trial.suggest_float(name, d.low, d.high, log=d.log)
            for name, d in self.distributions.items()
        }
        first, *rest = (loss.parameters(params) for loss in self._losses())
        if not rest:
            return first
        if self.options.phases == "adaptive":
            numbers = {
                name: params[f"{self.prefix or ''}{name}"] if isinstance(value, tuple) else value
                for name, value in self._adaptive().items()
            }
            return AdaptiveParameters(first, rest[0], **numbers)
        switch = self.options.switch
        share = params[self._switch] if isinstance(switch, tuple) else switch
        return PhasedParameters(first, rest[0], share, self.options.switch_width)

    def at(self, params: Mapping[str, float]) -> Parameters:
        """Return the loss of a finished trial's ``params``."""
        return self.suggest(FixedTrial(dict(params)))

    @property
    def _switch(self) -> str:
        return f"{self.prefix or ''}switch"

    def _adaptive(self) -> dict[str, NumberOrRange]:
        return {name: getattr(self.options, f"adaptive_{name}") for name in _ADAPTIVE}

    def _losses(self) -> Iterator[_LossSpace]:
        o = self.options
        if o.phases == 1:
            prefix = "theta_" if self.prefix is None else self.prefix
            yield _LossSpace(prefix, o.eta, o.cross_entropy_weight, o.start, o)
            return
        prefix = self.prefix or ""
        yield _LossSpace(f"{prefix}early_", o.eta, o.cross_entropy_weight, o.start, o)
        yield _LossSpace(f"{prefix}late_", o.late_eta, o.late_cross_entropy_weight, o.late_start, o)


@dataclass(frozen=True)
class _LossSpace:
    """The parameters of one Taylor loss; ``common`` holds the options that two losses share."""

    prefix: str
    eta: NumberOrRange
    cross_entropy_weight: NumberOrRange
    start: Start
    common: SpaceOptions

    @property
    def centre(self) -> dict[str, float]:
        theta, variable = _START_THETA[self.start], self.common.variable
        if self.common.coordinates == "taylor":
            return {f"{self.prefix}{k}": value for k, value in enumerate(theta)}
        values = canonical(theta, variable=variable).tolist()
        names = canonical_names(variable)
        return {self.prefix + name: value for name, value in zip(names, values, strict=True)}

    @property
    def distributions(self) -> dict[str, FloatDistribution]:
        width = self.common.half_width
        space = {n: FloatDistribution(v - width, v + width) for n, v in self.centre.items()}
        for name in ("eta", "cross_entropy_weight"):
            value: NumberOrRange = getattr(self, name)
            if isinstance(value, tuple):
                space[self.prefix + name] = FloatDistribution(*value, log=True)
        return space

    def parameters(self, params: Mapping[str, float]) -> LossParameters:
        """Return the loss of a trial's ``params``."""
        variable = self.common.variable
        values = [params[name] for name in self.centre]
        if self.common.coordinates == "canonical":
            values = from_canonical(values, variable=variable).tolist()
        searched: dict[str, Any] = {
            name: params.get(self.prefix + name, getattr(self, name))
            for name in ("eta", "cross_entropy_weight")
        }
        return LossParameters(tuple(values), variable=variable, **searched)
