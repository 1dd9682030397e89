"""The configuration of a generational CMA-ES, which all workers of a study share."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.study import Study

from optuna_robustloss.sampler.optimizer import GenerationalCma, StartDistribution, first_draw
from optuna_robustloss.sampler.slots import Slot
from optuna_robustloss.sampler.transform import (
    Numerical,
    ParameterTransform,
    SearchSpaceTransform,
    Widths,
    numerical_parameters,
)
from optuna_robustloss.sampler.warm_start import Sources, estimate_start
from optuna_robustloss.seeds import derive_seed

_ATTRIBUTE = "generational-cma:config"
_DAMAGED = f"the study's attribute {_ATTRIBUTE!r}, the sampler's configuration, is damaged"
#: Beyond it a generation takes longer to draw than to evaluate.
LARGEST_POPSIZE = 10_000
_TYPES = {
    **dict.fromkeys(("popsize", "seed", "max_retry"), int),
    **dict.fromkeys(("lr_adapt", "separable", "include_start"), bool),
}


@dataclass(frozen=True)
class SamplerConfig:
    """The options of ``GenerationalCmaEsSampler`` that every worker must share.

    Kept as JSON in a system attribute of the study.
    """

    popsize: int
    seed: int
    x0: Mapping[str, float] | None = None
    sigma0: Widths | None = None
    space: dict[str, Numerical] | None = None
    start: StartDistribution | None = None
    lr_adapt: bool = False
    separable: bool = False
    max_retry: int = 3
    include_start: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if not 4 <= self.popsize <= LARGEST_POPSIZE:
            raise ValueError(
                f"popsize must be at least 4 and at most {LARGEST_POPSIZE}, got {self.popsize}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.max_retry < 0:
            raise ValueError(f"max_retry must not be negative, got {self.max_retry}")
        if self.lr_adapt and self.separable:
            raise ValueError("lr_adapt needs a full covariance: leave out separable")
        for option, named in (("x0", self.x0), ("sigma0", self.sigma0)):
            unknown = set(named) - set(self.space or named) if isinstance(named, Mapping) else ()
            if unknown:
                raise ValueError(f"{option} names {sorted(unknown)}, which search_space does not")

    @cached_property
    def key(self) -> str:
        """Eight hexadecimal digits that claims carry."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    def transform(self, space: Mapping[str, Numerical]) -> SearchSpaceTransform:
        """Return the coordinates of ``space`` in which CMA-ES works."""
        if self.start is not None:
            return SearchSpaceTransform.unit(space)
        return SearchSpaceTransform.standardised(space, self.x0, self.sigma0)

    def optimizer(self, space: Mapping[str, Numerical]) -> GenerationalCma:
        """Return CMA-ES before its first generation."""
        return GenerationalCma(
            self.transform(space),
            self.popsize,
            self.seed,
            start=self.start,
            lr_adapt=self.lr_adapt,
            separable=self.separable and len(space) > 1,
        )

    def draw_parameter(self, slot: Slot, name: str, distribution: Numerical) -> float | int:
        """Draw one parameter of the first generation, before the search space is known."""
        parameter = self.transform({name: distribution}).parameters[name]
        if self.include_start and (slot.generation, slot.index) == (0, 0):
            return self._start(name, parameter, parameter.external(0.0))
        return first_draw(self.seed, slot.generation, slot.index, name, parameter)

    def start_point(self, optimizer: GenerationalCma) -> dict[str, float | int]:
        """Return the start itself, as a candidate."""
        mean, parameters = optimizer.mean, optimizer.transform.parameters
        return {n: self._start(n, parameter, mean[n]) for n, parameter in parameters.items()}

    def _start(self, name: str, parameter: ParameterTransform, mean: float | int) -> float | int:
        """Return ``x0`` as it was given, not through logarithms; but on the parameter's grid."""
        on_grid = parameter.distribution.step is not None
        return mean if on_grid else (self.x0 or {}).get(name, mean)

    def to_json(self) -> str:
        """Return the configuration as JSON with sorted keys."""
        values = asdict(self)
        if self.space is not None:
            values["space"] = {n: distribution_to_json(d) for n, d in self.space.items()}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SamplerConfig:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: the text is damaged.

        """
        try:
            values = json.loads(text)
            if values["space"] is not None:
                space = {n: json_to_distribution(d) for n, d in values["space"].items()}
                values["space"] = numerical_parameters(space)
            if values["start"] is not None:
                mean, sigma, rows = (values["start"][f.name] for f in fields(StartDistribution))
                values["start"] = StartDistribution(tuple(mean), sigma, tuple(map(tuple, rows)))
            config = cls(**values)
            if [type(getattr(config, n)) for n in _TYPES] != [*_TYPES.values()]:
                raise TypeError(f"expected the types {_TYPES}")
            if config.space:
                config.optimizer(config.space)  # x0, sigma0 and start fit it
        except Exception as error:  # also those of Optuna, cmaes and numpy
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{_DAMAGED}: {reprlib.repr(reason)}") from None
        return config

    def differences(self, other: SamplerConfig) -> list[str]:
        """Options in which two configurations differ, as ``name: value here / value there``.

        A start distribution is not compared: it is estimated once, by the first worker.
        """
        names = [f.name for f in fields(self) if f.name != "start"]
        return [
            f"{n}: {getattr(self, n)!r} / {getattr(other, n)!r}"
            for n in names
            if getattr(self, n) != getattr(other, n)
        ]


def stored_config(study: Study) -> SamplerConfig | None:
    """Return the configuration kept with a study, or None if no generation was begun.

    Raises:
        ValueError: it is damaged.

    """
    attributes: dict[str, Any] = study._storage.get_study_system_attrs(study._study_id)
    text = attributes.get(_ATTRIBUTE)
    return None if text is None else SamplerConfig.from_json(str(text))


def load_or_store(
    study: Study, options: SamplerConfig, seed: int | None, sources: Sources
) -> SamplerConfig:
    """Return the configuration that all workers of a study share; the first one stores its own.

    Args:
        study: the study.
        options: what this worker was set up with.
        seed: what it was given, or None to take the study's.
        sources: earlier studies to start from; only the first worker reads them.

    Raises:
        ValueError: the study was begun with other options, a source is not usable, or the stored
            configuration is damaged.

    """
    stored = stored_config(study)
    if seed is None:
        made = derive_seed(0, "study", study.study_name)
        options = replace(options, seed=stored.seed if stored else made)
    if stored is None:
        if sources:
            space, start = estimate_start(sources, study.direction, options.space)
            options = replace(options, space=space, start=start)
            stored = stored_config(study)  # another worker may have stored its own meanwhile
    if stored is None:
        study._storage.set_study_system_attr(study._study_id, _ATTRIBUTE, options.to_json())
        return options
    if bool(sources) != (stored.start is not None):
        had = "without" if sources else "with"
        raise ValueError(
            f"study {study.study_name!r} was begun {had} source_studies: give the same, or use "
            "another study"
        )
    if sources:
        options = replace(options, space=stored.space)
    different = options.differences(stored)
    if different:
        raise ValueError(
            f"study {study.study_name!r} was begun with another GenerationalCmaEsSampler (given / "
            f"study): {'; '.join(different)}; use the study's options or another study"
        )
    return stored
