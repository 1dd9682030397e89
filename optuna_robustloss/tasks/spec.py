"""A task: data set × architecture × noise × recipe × split sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from optuna_robustloss.spec_files import OneOrMany, StrictModel
from optuna_robustloss.tasks.data import check_data_name
from optuna_robustloss.tasks.recipes import Recipe, RecipeChanges, recipe_for

ValidationLabels = Literal["clean", "noisy"]
NoiseKind = Literal[
    "none",
    "symmetric",
    "pair-flip",
    "asymmetric",
    "asymmetric-blocks",
    "human",
    "matrix",
    "file",
    "given",
]
# kind → the fields it uses; the text after the colon fills the first
_FIELDS: dict[str, tuple[str, ...]] = {
    "symmetric": ("rate", "counts"),
    "pair-flip": ("rate", "counts"),
    "asymmetric": ("rate", "counts"),
    "asymmetric-blocks": ("rate", "counts"),
    "human": ("name", "path"),
    "matrix": ("path",),
    "file": ("path",),
}


class NoiseSpec(StrictModel):
    """A kind of label noise and its argument.

    In YAML and in other models it is a mapping of the fields below or a text: ``none``, ``given``,
    ``symmetric:RATE``, ``pair-flip:RATE``, ``asymmetric:RATE``, ``asymmetric-blocks:RATE``, each
    with ``:exact`` behind it or not, ``human:NAME``, ``matrix:PATH`` or ``file:PATH``. A field that
    the kind does not use is an error.

    >>> NoiseSpec.parse("symmetric:0.8").label
    'symmetric 80 %'
    """

    kind: NoiseKind
    rate: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    """Probability that a label is wrong (asymmetric: of a class that stands in the class map)."""
    counts: Literal["random", "exact"] = "random"
    """random: each label is wrong with probability ``rate``, as in Patrini et al. and Co-teaching.
    exact: that share of each class is, as in the code of Ma et al. (APL), ALFs and ANL."""
    name: str | None = None
    """human: the array, for instance ``worse_label``."""
    path: Path | None = None
    """matrix: (C, C), row-stochastic. file: (N,) labels of the full training set. human: the .pt
    or .npz, by default the one under ``cifar-n`` in the data folder."""

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        kind, colon, argument = value.partition(":")
        if not colon or kind not in get_args(NoiseKind):
            return {"kind": kind}
        if kind not in _FIELDS:
            raise ValueError(f"noise kind {kind!r} takes no argument, got {argument!r}")
        first, *more = _FIELDS[kind]
        if "counts" in more and ":" in argument:
            argument, _, counts = argument.partition(":")
            return {"kind": kind, first: argument, "counts": counts}
        return {"kind": kind, first: argument}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form, such as ``symmetric:0.8``.

        Raises:
            ValueError: The kind is unknown, or its argument is missing, superfluous or no number.
        """
        return cls.model_validate(text)

    @property
    def label(self) -> str:
        """Short text for tables and plots."""
        if self.kind == "human":
            return f"human {self.name}"
        if self.path is not None:
            return f"{self.kind} {self.path.name}"
        if self.kind in _FIELDS:
            exact = ", exact counts" if self.counts == "exact" else ""
            return f"{self.kind} {100 * self.rate:g} %{exact}"
        return "clean" if self.kind == "none" else "given labels"

    @property
    def symmetric(self) -> bool:
        """Whether the noise treats all classes alike by construction."""
        return self.kind in ("none", "symmetric")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        used = _FIELDS.get(self.kind, ())
        for field in ("rate", "counts", "name", "path"):
            value = getattr(self, field)
            if field not in used and value != type(self).model_fields[field].default:
                shown = str(value) if field == "path" else value
                raise ValueError(f"noise kind {self.kind!r} takes no {field}, got {shown!r}")
        needed = used[0] if used else None
        if needed == "rate" and "rate" not in self.model_fields_set:
            raise ValueError(f"noise kind {self.kind!r} needs a rate in [0, 1]")
        if needed == "name" and not self.name:
            raise ValueError("noise kind 'human' needs the name of the array, e.g. 'worse_label'")
        if needed == "path" and self.path is None:
            raise ValueError(f"noise kind {self.kind!r} needs the path of a file")
        return self


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
    train: int | None = Field(default=None, ge=1, le=2**31)
    """Number of training images; by default all that validation leaves."""
    validation: int = Field(default=0, ge=0, le=2**31)
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
    train: int | None = Field(default=None, ge=1, le=2**31)
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
