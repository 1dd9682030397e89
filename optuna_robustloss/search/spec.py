"""A study as a YAML file: what is searched, what it is scored on, and for how long."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from optuna_robustloss.distributed.passwords import has_password, safe_url
from optuna_robustloss.losses.phased import DEFAULT_WIDTH
from optuna_robustloss.losses.taylor.polynomial import Variable
from optuna_robustloss.sampler.allocation import Surplus
from optuna_robustloss.search.phases import (
    DEFAULT_LATE_ETA,
    DEFAULT_SWITCH,
    Phases,
    Space,
    search_space,
)
from optuna_robustloss.search.space import (
    DEFAULT_ETA,
    DEFAULT_HALF_WIDTH,
    DEFAULT_SIGMA,
    Coordinates,
    NumberOrRange,
    Start,
)
from optuna_robustloss.tasks.noise import NoiseSpec
from optuna_robustloss.tasks.recipes import Recipe
from optuna_robustloss.tasks.spec import TaskSpec, ValidationLabels
from optuna_robustloss.training.loop import STOP_AT_CHANCE_AFTER
from optuna_robustloss.training.score import ScoreKind

SamplerName = Literal["generational", "optuna-cmaes", "tpe", "random", "gp"]
_OF_TWO_PHASES = ("late_eta", "late_cross_entropy_weight", "late_start", "switch", "switch_width")


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


class SourceStudy(BaseModel):
    """An earlier study, by default in the same storage.

    Variables in ``storage`` (``$NAME``, ``${NAME}``) are filled in from the environment when it is
    opened, so that no password is in the spec, which the study stores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str = Field(min_length=1)
    storage: str | None = None

    @field_validator("storage")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and has_password(value):
            raise ValueError(
                f"{safe_url(value)!r} has a password, and a spec is stored for all to read: put "
                "the URL into an environment variable and write its name, for example $OLD_STORAGE"
            )
        return value


class StudySpec(BaseModel):
    """Everything that decides a study's result; unknown keys are errors.

    Every data set is combined with every architecture and every noise; the fitness of a loss is
    the mean over all of them (Eq. 2 of the paper: architectures × data sets).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    datasets: tuple[str, ...] = Field(min_length=1)
    architectures: tuple[str, ...] = Field(min_length=1)
    noise: tuple[NoiseSpec, ...] = Field(min_length=1)
    """One noise condition, or a list whose fitness is averaged."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Changes to the paper's recipe of each architecture, such as ``epochs``."""
    recipes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further changes for single architectures, by name."""
    train: int | None = Field(default=None, ge=1)
    """Training images; all that validation leaves if not set."""
    validation: int = Field(default=1000, ge=100)
    validation_labels: ValidationLabels = "clean"
    score: ScoreKind = "last"
    horizons: tuple[float, ...] = Field(default=(1,), min_length=1)
    """Lengths of training the fitness is averaged over, as multiples of the epochs."""
    stop_at_chance_after: float | None = Field(default=STOP_AT_CHANCE_AFTER, gt=0, lt=1)
    """Share of a network's steps after which a candidate near chance is stopped; None: never."""
    prune_at: tuple[float, ...] = ()
    """Moments at which the worst third of a population is pruned, counted in networks: 2.5 is
    half-way through the third. ``studies/ranking.py`` measures where that is safe."""
    popsize: int = Field(default=12, ge=4)
    generations: int = Field(default=30, ge=1)
    seed: int = Field(default=0, ge=0)
    eta: NumberOrRange = DEFAULT_ETA
    cross_entropy_weight: NumberOrRange = 0.0
    variable: Variable = "probability"
    coordinates: Coordinates = "taylor"
    start: Start = "mae"
    half_width: float = Field(default=DEFAULT_HALF_WIDTH, gt=0, allow_inf_nan=False)
    """Each coefficient lies within ± this of the start's."""
    phases: Phases = 1
    """1, or 2 for a loss that changes into another; ``eta`` and so on are the early one's then."""
    late_eta: NumberOrRange = DEFAULT_LATE_ETA
    late_cross_entropy_weight: NumberOrRange = 0.0
    late_start: Start = "confirm"
    switch: NumberOrRange = DEFAULT_SWITCH
    """Share of each training's steps after which the change begins."""
    switch_width: float = DEFAULT_WIDTH
    """Share of the steps that it takes."""
    sampler: SamplerName = "generational"
    """Ours, or one of Optuna's."""
    sigma0: float = Field(default=DEFAULT_SIGMA, gt=0, allow_inf_nan=False)
    """First σ of each coefficient, for the generational sampler."""
    surplus: Surplus = "wait"
    """What workers do that find a generation's slots taken; see ``GenerationalCmaEsSampler``."""
    lr_adapt: bool = False
    separable: bool = False
    max_retry: int = Field(default=3, ge=0)
    """Evaluations of a candidate after its first, if its training raised an error."""
    source_studies: tuple[SourceStudy, ...] = ()
    """Earlier studies whose best candidates the search starts from."""
    finalists: int = Field(default=3, ge=1)
    """Top candidates that are trained again beside the mean of the last CMA means."""
    finalist_seeds: int = Field(default=3, ge=3)
    """Fresh seeds each finalist is trained with."""
    pretrained: bool = False

    @field_validator("datasets", "architectures", "noise", "horizons", "prune_at", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("noise", mode="before")
    @classmethod
    def _noise_by_name(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        return [NoiseSpec.parse(v) if isinstance(v, str) else v for v in items]

    @field_validator("source_studies", mode="before")
    @classmethod
    def _source_by_name(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        return [{"study": v} if isinstance(v, str) else v for v in items]

    @field_validator("recipe", "recipes")
    @classmethod
    def _known_settings(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for changes in value.values() if info.field_name == "recipes" else [value]:
            unknown = [key for key in changes if key not in Recipe.model_fields]
            if unknown:
                known = ", ".join(Recipe.model_fields)
                raise ValueError(f"unknown key {unknown[0]!r}; known keys: {known}")
        return value

    @field_validator("horizons")
    @classmethod
    def _positive_horizons(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < h < math.inf for h in value):
            raise ValueError(f"horizons are positive multiples of the epochs, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _check(self) -> StudySpec:
        _ = self.space, self.tasks
        if strangers := [name for name in self.recipes if name not in self.architectures]:
            raise ValueError(f"recipes names {strangers[0]!r}, which is none of the architectures")
        ours = (
            "prune_at",
            "sigma0",
            "surplus",
            "lr_adapt",
            "separable",
            "max_retry",
            "source_studies",
        )
        chosen = [n for n in ours if getattr(self, n) != type(self).model_fields[n].default]
        if self.sampler != "generational" and chosen:
            raise ValueError(f"{chosen[0]} is an option of sampler: generational")
        if not all(0 < rung < len(self.tasks) for rung in self.prune_at):
            raise ValueError(
                f"prune_at are counted in networks, and this study trains {len(self.tasks)} for a "
                f"candidate: they must lie between 0 and that, got {list(self.prune_at)}"
            )
        for one, other in (
            ("lr_adapt", "separable"),
            ("source_studies", "separable"),
            ("source_studies", "sigma0"),
        ):
            if one in chosen and other in chosen:
                raise ValueError(f"{one} and {other} exclude each other: leave out one")
        return self

    @property
    def space(self) -> Space:
        """The parameters that are searched."""
        return search_space(
            self.phases,
            eta=self.eta,
            cross_entropy_weight=self.cross_entropy_weight,
            variable=self.variable,
            coordinates=self.coordinates,
            start=self.start,
            half_width=self.half_width,
            **{name: getattr(self, name) for name in _OF_TWO_PHASES},
        )

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Every data set × architecture × noise."""
        return tuple(
            TaskSpec(
                dataset=dataset,
                architecture=architecture,
                noise=noise,
                recipe=self.recipe | self.recipes.get(architecture, {}),  # type: ignore[arg-type]  # completed by TaskSpec
                train=self.train,
                validation=self.validation,
                validation_labels=self.validation_labels,
                pretrained=self.pretrained,
            )
            for dataset in self.datasets
            for architecture in self.architectures
            for noise in self.noise
        )

    @property
    def n_trials(self) -> int:
        """Trials that count: popsize × generations.

        The start loss is the first candidate of the generational sampler; for Optuna's it is one
        trial more, before them.
        """
        return self.popsize * self.generations + (self.sampler != "generational")

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the spec's JSON.

        With one phase that is the JSON from before there were two.
        """
        values = self.model_dump(mode="json")
        if self.phases == 1:
            for name in ("phases", *_OF_TWO_PHASES):
                del values[name]
        return hashlib.sha256(_json(values).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the spec as one line of JSON with sorted keys."""
        return _json(self.model_dump(mode="json"))

    def warn_if_unreliable(self) -> None:
        """Warn where noisy validation labels were measured not to rank losses."""
        if self.validation_labels == "clean":
            return
        biased = [noise.label for noise in self.noise if not noise.symmetric]
        if biased:
            warnings.warn(
                f"study {self.name!r} validates on noisy labels under {', '.join(biased)}: such "
                "labels were measured to rank losses unreliably when the noise depends on the "
                "class or the image (up to 8.6 points lost). 200 clean labels do better than "
                "10 000 noisy ones.",
                stacklevel=2,
            )
        elif self.validation < 2000:
            warnings.warn(
                f"study {self.name!r} validates on {self.validation} noisy labels: under symmetric "
                "noise the ranking holds from 2 000 on",
                stacklevel=2,
            )


def differences(a: StudySpec, b: StudySpec) -> list[str]:
    """Keys in which two specs differ, as ``key: value of a, value of b``."""
    left, right = a.model_dump(mode="json"), b.model_dump(mode="json")
    return [f"{k}: {left[k]!r} / {right[k]!r}" for k in left if left[k] != right[k]]
