"""A task: data set × architecture × noise × recipe × split sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from optuna_robustloss.spec_files import OneOrMany, StrictModel
from optuna_robustloss.tasks.data import check_data_name
from optuna_robustloss.tasks.noise import NoiseSpec
from optuna_robustloss.tasks.recipes import Recipe, RecipeChanges, recipe_for

ValidationLabels = Literal["clean", "noisy"]


class TaskSpec(StrictModel):
    """What one network is trained on and scored by.

    ``recipe`` may be a whole recipe, a mapping of the settings to change in the paper's recipe for
    this architecture and data set, or nothing.

    >>> TaskSpec.parse("mnist,mlp2,symmetric:0.8", recipe={"epochs": 20}).label
    'mnist/mlp2/symmetric 80 %'
    """

    dataset: str
    architecture: str
    noise: NoiseSpec = NoiseSpec(kind="none")
    recipe: Recipe
    train: int | None = Field(default=None, ge=1)
    """Number of training images; by default all that validation leaves."""
    validation: int = Field(default=0, ge=0)
    """Number of validation images, disjoint from training and test images."""
    validation_labels: ValidationLabels = "clean"
    pretrained: bool = False

    @model_validator(mode="before")
    @classmethod
    def _complete_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        recipe = values.get("recipe")
        changes = recipe is None or isinstance(recipe, dict)
        if not changes or not {"architecture", "dataset"} <= values.keys():
            return values
        base = recipe_for(str(values["architecture"]), str(values["dataset"]))
        return values | {"recipe": base.changed(recipe or {})}

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, name: str) -> str:
        check_data_name(name)
        return name

    @property
    def label(self) -> str:
        """Short name, such as ``mnist/mlp2/symmetric 80 %``."""
        return f"{self.dataset}/{self.architecture}/{self.noise.label}"

    @classmethod
    def parse(cls, text: str, **settings: Any) -> TaskSpec:
        """Read ``DATASET,ARCHITECTURE[,NOISE]``, such as ``mnist,mlp2,symmetric:0.8``.

        Args:
            text: the three names.
            settings: further fields, such as ``train`` or ``recipe``.

        Raises:
            ValueError: the text has another form, or a name is unknown.

        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(
                f"a task is DATASET,ARCHITECTURE[,NOISE], for example mnist,mlp2,symmetric:0.8; "
                f"got {text!r}"
            )
        noise = NoiseSpec.parse(parts[2] if len(parts) == 3 else "none")
        return cls(dataset=parts[0], architecture=parts[1], noise=noise, **settings)


class TaskGrid(StrictModel):
    """Every data set × architecture × noise."""

    datasets: OneOrMany[str] = Field(min_length=1)
    architectures: OneOrMany[str] = Field(min_length=1)
    noise: OneOrMany[NoiseSpec] = Field(min_length=1)
    """Noise conditions, such as ``symmetric:0.8``; see ``NoiseSpec``."""
    recipe: RecipeChanges = Field(default_factory=dict)
    """Changes to the paper's recipe of each architecture, such as ``epochs``."""
    train: int | None = Field(default=None, ge=1)
    """Training images; all that validation leaves if not set."""
    pretrained: bool = False
    """Start from published weights."""

    def expand(
        self,
        *,
        recipe: Mapping[str, Any] | None = None,
        recipes: Mapping[str, Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> tuple[TaskSpec, ...]:
        """Return the tasks, noise changing fastest.

        Args:
            recipe: changes to all recipes, before the grid's own.
            recipes: changes by architecture, after the grid's own.
            settings: further fields of ``TaskSpec``; ``train`` holds where the grid sets none.

        Raises:
            ValueError: a name is unknown, or a recipe contradicts itself.

        """
        settings |= {"train": self.train or settings.get("train"), "pretrained": self.pretrained}
        common = {**(recipe or {}), **self.recipe}
        return tuple(
            TaskSpec.model_validate(
                settings
                | {
                    "dataset": dataset,
                    "architecture": architecture,
                    "noise": noise,
                    "recipe": {**common, **(recipes or {}).get(architecture, {})},
                }
            )
            for dataset in self.datasets
            for architecture in self.architectures
            for noise in self.noise
        )
