"""A study as a YAML file: what is searched, what it is scored on, and for how long."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from optuna_robustloss.distributed.urls import has_password, mask_password
from optuna_robustloss.sampler.config import LARGEST_POPSIZE
from optuna_robustloss.search.space import (
    DEFAULT_SIGMA,
    GREATEST,
    LEAST,
    SearchSpace,
    SpaceOptions,
)
from optuna_robustloss.spec_files import OneOrMany, SpecFile, StrictModel, StudyName
from optuna_robustloss.tasks.recipes import RecipeChanges
from optuna_robustloss.tasks.spec import TaskGrid, TaskSpec, ValidationLabels
from optuna_robustloss.training.scoring import STOP_AT_CHANCE_AFTER, ScoreKind

SamplerName = Literal["generational", "optuna-cmaes", "tpe", "random", "gp"]
#: Options of the generational sampler, at their defaults with any other.
_GENERATIONAL_ONLY = (
    *("prune_at", "sigma0", "lr_adapt", "separable", "max_retry", "source_studies"),
)
_EXCLUSIVE = (
    ("lr_adapt", "separable"),
    ("source_studies", "separable"),
    ("source_studies", "sigma0"),
)


class SourceStudy(StrictModel):
    """An earlier study, by its name or as a mapping, by default in the same storage.

    Variables in ``storage`` (``$NAME``, ``${NAME}``) are filled in from the environment when it is
    opened, so that no password is in the spec, which the study stores.
    """

    study: str = Field(min_length=1)
    storage: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return {"study": value} if isinstance(value, str) else value

    @field_validator("storage")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and has_password(value):
            raise ValueError(
                f"{mask_password(value)!r} has a password, and a spec is stored for all to read: "
                "put the URL into an environment variable and write its name, for example "
                "$OLD_STORAGE"
            )
        return value


class StudySpec(TaskGrid, SpaceOptions, SpecFile):
    """Everything that decides a study's result; unknown keys are errors.

    The keys of ``TaskGrid`` say what the losses are scored on: the fitness of a loss is the mean
    over all its tasks (Eq. 2 of the paper: architectures × data sets). The keys of
    ``SpaceOptions`` say what is searched.

    >>> StudySpec(name="a", datasets="digits", architectures="mlp2", noise="symmetric:0.4").n_trials
    360
    """

    file_kind: ClassVar[str] = "study spec"
    refused_keys: ClassVar[Mapping[str, str]] = {
        "methods": "this is a benchmark: run it with 'optuna-robustloss benchmark'",
        "hopeless_after": "the key 'hopeless_after' is now 'stop_at_chance_after'",
        "surplus": "the key 'surplus' was removed: workers beyond popsize wait for the generation",
        "rungs": "the key 'rungs' is now 'prune_at'",
    }
    secret_keys: ClassVar[frozenset[str]] = frozenset({"source_studies"})

    name: StudyName
    recipes: dict[str, RecipeChanges] = Field(default_factory=dict)
    """Further changes to the recipes of single architectures, by name."""
    validation: int = Field(default=1000, ge=100)
    validation_labels: ValidationLabels = "clean"
    score: ScoreKind = "last"
    horizons: OneOrMany[float] = Field(default=(1,), min_length=1)
    """Lengths of training the fitness is averaged over, as multiples of the epochs."""
    stop_at_chance_after: float | None = Field(default=STOP_AT_CHANCE_AFTER, gt=0, lt=1)
    """Share of a network's steps after which a candidate near chance is stopped; None: never."""
    prune_at: OneOrMany[float] = ()
    """Moments at which the worst third of a population is pruned, counted in networks: 2.5 is
    half-way through the third. ``benchmarks/ranking.py`` measures where that is safe."""
    popsize: int = Field(default=12, ge=4, le=LARGEST_POPSIZE)
    generations: int = Field(default=30, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0)
    sampler: SamplerName = "generational"
    """``generational``, or one of Optuna's."""
    sigma0: float = Field(default=DEFAULT_SIGMA, ge=LEAST, le=GREATEST)
    """First σ of each coefficient, for the generational sampler."""
    lr_adapt: bool = False
    separable: bool = False
    max_retry: int = Field(default=3, ge=0, le=1000)
    """Evaluations of a candidate after its first, if its training raised an error."""
    source_studies: OneOrMany[SourceStudy] = ()
    """Earlier studies whose best candidates the search starts from."""
    finalists: int = Field(default=3, ge=1, le=1000)
    """Best late candidates that are trained again beside the mean of the last CMA means."""
    finalist_seeds: int = Field(default=3, ge=3, le=1000)
    """Fresh seeds each finalist is trained with."""

    @field_validator("horizons")
    @classmethod
    def _positive_horizons(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < h <= 1000 for h in value):
            raise ValueError(
                f"horizons are positive multiples of the epochs, at most 1000, got {list(value)}"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        count = len(self.tasks)  # raises where a task is wrong
        for position, task in enumerate(self.tasks):
            if task in self.tasks[:position]:
                raise ValueError(f"the task {task.label} is there twice: leave out one")
        for name in self.recipes:
            if name not in self.architectures:
                raise ValueError(
                    f"recipes names {name!r}, which is none of the architectures "
                    f"{', '.join(self.architectures)}"
                )
        fields = type(self).model_fields
        chosen = [n for n in _GENERATIONAL_ONLY if getattr(self, n) != fields[n].default]
        if self.sampler != "generational" and chosen:
            raise ValueError(f"{chosen[0]} is an option of sampler: generational")
        if not all(0 < moment < count for moment in self.prune_at):
            raise ValueError(
                f"prune_at is counted in networks, and this study trains {count} for a "
                f"candidate: each must lie between 0 and that, got {list(self.prune_at)}"
            )
        for one, other in _EXCLUSIVE:
            if one in chosen and other in chosen:
                raise ValueError(f"{one} and {other} exclude each other: leave out one")
        return self

    @classmethod
    def from_values(cls, values: Any, source: str) -> Self:
        """Build a spec from plain values; warns of options that were measured to mislead.

        Raises:
            ValueError: one line with every wrong key, the values given and the values allowed.

        """
        spec = super().from_values(values, source)
        spec._warn_if_unreliable()
        spec._warn_of_scale_under_adam()
        return spec

    @property
    def space(self) -> SearchSpace:
        """The parameters that are searched."""
        return SearchSpace(self)

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Every data set × architecture × noise."""
        return self.expand(
            recipes=self.recipes,
            validation=self.validation,
            validation_labels=self.validation_labels,
        )

    @property
    def n_trials(self) -> int:
        """Trials that count: popsize × generations.

        The start loss is the first candidate of the generational sampler; for Optuna's it is one
        trial more, before them.
        """
        return self.popsize * self.generations + (self.sampler != "generational")

    def _warn_of_scale_under_adam(self) -> None:
        """Warn where η is searched and the optimiser's steps do not depend on it."""
        searched = [
            key
            for key, weight in (
                ("eta", self.cross_entropy_weight),
                ("late_eta", self.late_cross_entropy_weight),
            )
            if isinstance(getattr(self, key), tuple) and weight == 0  # else their ratio matters
        ]
        adam = {
            f"{t.architecture} on {t.dataset} ({t.recipe.optimizer})": None
            for t in self.tasks
            if t.recipe.optimizer == "adamw"
            or (t.recipe.optimizer == "adam" and t.recipe.weight_decay == 0)
        }
        if searched and adam:
            warnings.warn(
                f"study {self.name!r} searches {' and '.join(searched)}, which has nearly no "
                f"effect on {', '.join(adam)}: Adam divides each gradient by its size. Give "
                f"{searched[0]} one number, or train with recipe: {{optimizer: sgd}}",
                stacklevel=3,
            )

    def _warn_if_unreliable(self) -> None:
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
