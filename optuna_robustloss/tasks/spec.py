"""A task: data set × architecture × noise × recipe × split sizes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from optuna_robustloss.tasks.data import check_data_name
from optuna_robustloss.tasks.noise import NoiseSpec
from optuna_robustloss.tasks.recipes import Recipe, recipe_for

ValidationLabels = Literal["clean", "noisy"]


class TaskSpec(BaseModel):
    """What one network is trained on and scored by.

    ``recipe`` may be a whole recipe, a mapping of the settings to change in the paper's recipe for
    this architecture and data set, or nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
