"""A benchmark as a YAML file: methods × tasks × seeds, and what may be varied beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from optuna_robustloss.benchmark.methods import check_method
from optuna_robustloss.benchmark.runs import Run
from optuna_robustloss.spec_files import explain, read_yaml
from optuna_robustloss.tasks.noise import NoiseSpec
from optuna_robustloss.tasks.recipes import Recipe
from optuna_robustloss.tasks.spec import TaskSpec

Schedule = Literal["recipe", "constant", "cosine"]


class TaskGroup(BaseModel):
    """Every data set × architecture × noise.

    ``recipe`` and ``train`` as in the benchmark; ``pretrained`` starts from published weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: tuple[str, ...] = Field(min_length=1)
    architectures: tuple[str, ...] = Field(min_length=1)
    noise: tuple[NoiseSpec, ...] = Field(min_length=1)
    recipe: dict[str, Any] = Field(default_factory=dict)
    train: int | None = Field(default=None, ge=1)
    pretrained: bool = False

    @field_validator("datasets", "architectures", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("noise", mode="before")
    @classmethod
    def _noise_by_name(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        return [NoiseSpec.parse(v) if isinstance(v, str) else v for v in items]


class BenchmarkSpec(BaseModel):
    """Everything that decides a benchmark's result; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    """``make_loss`` names, loss files, and ``forward``, ``jocor``, ``elr``."""
    tasks: tuple[TaskGroup, ...] = Field(min_length=1)
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Changes to the paper's recipe of each architecture, such as ``epochs``."""
    train: int | None = Field(default=None, ge=1)
    """Training images; all that validation leaves if not set."""
    validation: int = Field(default=1000, ge=2)
    """Validation images, of which clean and noisy labels are used in turn."""
    few: int = Field(default=200, ge=1)
    """How many of them are clean, where only few are."""
    test: int | None = Field(default=None, ge=1)
    """Test images, drawn anew for each seed; all if not set."""
    evaluations: int = Field(default=20, ge=1)
    """Moments of a recipe's epochs at which accuracies are measured, evenly spread."""
    seeds: int = Field(default=3, ge=1)
    """Repetitions, each with noise, split, initial weights and batch order of its own."""
    seed: int = Field(default=0, ge=0)
    """From which all seeds follow."""
    scales: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1, 2)
    """Factors of each loss that the tuned pass trains with."""
    horizons: tuple[float, ...] = (1, 3)
    """Lengths of training that may be asked for, as multiples of the epochs."""
    schedules: tuple[Schedule, ...] = ("recipe", "constant", "cosine")
    """Learning rates over the run that may be asked for."""

    @field_validator("tasks", "methods", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            check_method(name)
        return value

    @field_validator("scales", "horizons", "schedules")
    @classmethod
    def _has_the_usual(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if 1 not in value and "recipe" not in value:
            usual = "'recipe'" if value and isinstance(value[0], str) else "1"
            raise ValueError(f"{usual}, the native one, must be among them")
        if not all(isinstance(v, str) or 0 < v < math.inf for v in value):
            raise ValueError(f"expected positive numbers, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _check(self) -> BenchmarkSpec:
        for name in ("methods", "scales", "horizons", "schedules"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has the same value twice")
        for group in self.tasks:
            unknown = [k for k in self.recipe | group.recipe if k not in Recipe.model_fields]
            if unknown:
                known = ", ".join(Recipe.model_fields)
                raise ValueError(f"recipe: unknown key {unknown[0]!r}; known keys: {known}")
        labels = [task.label for task in self.task_specs]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"tasks: {twice[0]!r} is there twice")
        if self.few > self.validation:
            raise ValueError(f"few ({self.few}) is a part of validation ({self.validation})")
        return self

    @cached_property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """All tasks, group after group."""
        return tuple(
            TaskSpec(
                dataset=dataset,
                architecture=architecture,
                noise=noise,
                recipe=self.recipe | group.recipe,  # type: ignore[arg-type]  # completed by TaskSpec
                train=group.train or self.train,
                validation=self.validation,
                pretrained=group.pretrained,
            )
            for group in self.tasks
            for dataset in group.datasets
            for architecture in group.architectures
            for noise in group.noise
        )

    def task(self, label: str) -> TaskSpec:
        """Return a task by its label."""
        return next(task for task in self.task_specs if task.label == label)

    def cells(
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
            only: parts of labels; tasks that have none of them are left out.

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
            strange = [v for v in values if v not in known]
            if strange:
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

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the spec's JSON, defaults left out."""
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_benchmark(values: Any, source: str) -> BenchmarkSpec:
    """Build a spec from plain values, with one clear message for all that is wrong.

    Raises:
        ValueError: names ``source``, the keys, what is allowed and what was given.

    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a benchmark is a mapping of keys to values")
    if "architectures" in values:
        raise ValueError(f"{source} is a search: run it with 'optuna-robustloss search'")
    try:
        return BenchmarkSpec.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error, BenchmarkSpec)}") from None


def load_benchmark(path: str | Path) -> BenchmarkSpec:
    """Read and check a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a benchmark; see ``parse_benchmark``.

    """
    return parse_benchmark(read_yaml(path, "benchmark"), str(path))
