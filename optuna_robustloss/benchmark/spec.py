"""A benchmark as a YAML file: methods × tasks × seeds, and what may be varied beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from optuna_robustloss.benchmark.methods import check_method
from optuna_robustloss.benchmark.runs import Run
from optuna_robustloss.benchmark.settings import Settings
from optuna_robustloss.spec_files import OneOrMany, SpecFile, StudyName
from optuna_robustloss.tasks.recipes import RecipeChanges
from optuna_robustloss.tasks.spec import TaskGrid, TaskSpec

Schedule = Literal["recipe", "constant", "cosine"]
#: Trainings of a benchmark at one horizon and schedule.
MOST_RUNS = 1_000_000
_EVALUATIONS = 20


class BenchmarkSpec(SpecFile):
    """Everything that decides a benchmark's result; unknown keys are errors."""

    file_kind: ClassVar[str] = "benchmark"
    refused_keys: ClassVar[Mapping[str, str]] = {
        "architectures": "this is a search: run it with 'optuna-robustloss search'"
    }
    former_values: ClassVar[Mapping[str, Any]] = {"settings": "cifar10"}

    name: StudyName
    methods: OneOrMany[str] = Field(min_length=1)
    """``make_loss`` names, loss files, and ``forward``, ``jocor``, ``elr``."""
    settings: Settings = "published"
    """Settings of the methods: ``published`` for each data set and noise, or ``cifar10`` for all;
    see ``benchmark.settings``."""
    tasks: OneOrMany[TaskGrid] = Field(min_length=1)
    """Grids of data sets, architectures and noise; a grid's ``recipe`` and ``train`` override the
    benchmark's."""
    recipe: RecipeChanges = Field(default_factory=dict)
    """Changes to the paper's recipe of each architecture, such as ``epochs``."""
    train: int | None = Field(default=None, ge=1, le=2**31)
    """Training images; all that validation leaves if not set."""
    validation: int = Field(default=1000, ge=0, le=2**31)
    """Validation images; they are scored with their clean and with their noisy labels."""
    few: int = Field(default=200, ge=0)
    """Number of clean validation labels in the regime with few clean labels."""
    test: int | None = Field(default=None, ge=1, le=2**31)
    """Test images, drawn anew for each seed; all if not set."""
    evaluations: int = Field(default=_EVALUATIONS, ge=1)
    """Moments of a recipe's epochs at which accuracies are measured, evenly spread; by default one
    each epoch where there are fewer than 20."""
    seeds: int = Field(default=3, ge=1, le=1000)
    """Repetitions, each with noise, split, initial weights and batch order of its own."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed that all others are derived from."""
    scales: OneOrMany[float] = (0.05, 0.1, 0.2, 0.5, 1, 2)
    """Factors of each loss that the tuned pass trains with."""
    horizons: OneOrMany[float] = (1, 3)
    """Lengths of training that ``--horizon`` may name, as multiples of the epochs."""
    schedules: OneOrMany[Schedule] = ("recipe", "constant", "cosine")
    """Learning-rate schedules that ``--schedule`` may name."""

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            check_method(name)
        return value

    @field_validator("scales", "horizons", "schedules")
    @classmethod
    def _check_values(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if 1 not in value and "recipe" not in value:
            native = "'recipe'" if value and isinstance(value[0], str) else "1"
            raise ValueError(f"{native}, the native one, must be among them")
        if not all(isinstance(v, str) or 1e-6 <= v <= 1e6 for v in value):
            raise ValueError(f"expected numbers from 1e-6 to 1e6, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _check(self) -> BenchmarkSpec:
        for name in ("methods", "scales", "horizons", "schedules"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has the same value twice, got {list(values)}")
        labels = [task.label for task in self.task_specs]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"tasks: {twice[0]!r} is there twice")
        for task in self.task_specs:
            epochs = task.recipe.epochs
            if self.evaluations > epochs and self.evaluations != _EVALUATIONS:
                raise ValueError(
                    f"evaluations ({self.evaluations}) exceed the {epochs} epochs of {task.label}"
                )
        runs = len(self.methods) * len(labels) * self.seeds * len(self.scales)
        if runs > MOST_RUNS:
            raise ValueError(
                f"methods × tasks × seeds × scales are {runs} trainings; allowed are {MOST_RUNS}"
            )
        if self.few > self.validation:
            raise ValueError(f"few ({self.few}) is a part of validation ({self.validation})")
        return self

    @cached_property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """All tasks, grid after grid."""
        return tuple(
            task
            for grid in self.tasks
            for task in grid.expand(
                recipe=self.recipe, train=self.train, validation=self.validation
            )
        )

    def task(self, label: str) -> TaskSpec:
        """Return the task of a label."""
        return next(task for task in self.task_specs if task.label == label)

    def runs(
        self,
        *,
        scales: Iterable[float] = (1.0,),
        horizons: Iterable[float] = (1.0,),
        schedules: Iterable[str] = ("recipe",),
        only: Sequence[str] | None = None,
    ) -> list[Run]:
        """Return the trainings of a pass: seed after seed, task after task.

        Args:
            scales: of each loss.
            horizons: multiples of the epochs.
            schedules: of the learning rate.
            only: parts of task labels.

        Raises:
            ValueError: the spec does not have such a scale, horizon, schedule or task.

        """
        wanted: dict[str, Sequence[Any]] = {
            "scales": list(scales),
            "horizons": list(horizons),
            "schedules": list(schedules),
        }
        for name, values in wanted.items():
            known = getattr(self, name)
            if strange := [v for v in values if v not in known]:
                raise ValueError(
                    f"{name} of benchmark {self.name!r} are {', '.join(map(str, known))}; "
                    f"{strange[0]} is none of them"
                )
        labels = [task.label for task in self.task_specs]
        chosen = [label for label in labels if only is None or any(part in label for part in only)]
        if not chosen:
            raise ValueError(f"no task has {' or '.join(only or ())} in it: {', '.join(labels)}")
        return [
            Run(method, label, seed, float(scale), float(horizon), schedule)
            for horizon in wanted["horizons"]
            for schedule in wanted["schedules"]
            for seed in range(self.seeds)
            for label in chosen
            for scale in wanted["scales"]
            for method in self.methods
        ]
