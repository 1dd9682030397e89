"""How a network is trained: optimiser, learning rate over the run, batch, epochs.

The paper's settings stand in Gao et al., "Searching for Robustness", section 3 ("Architectures" and
"Real-world Clothing1M results"); where it points to another paper or is silent, the recipe says so.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from timm.optim import Lookahead
from torch import nn

from optuna_robustloss.spec_files import StrictModel
from optuna_robustloss.tasks.models import check_model_name

Precision = Literal["float32", "bfloat16"]
_FLOAT32 = torch.finfo(torch.float32)
#: A number that float32 holds: the weights are float32.
Positive = Annotated[float, Field(ge=_FLOAT32.tiny, le=_FLOAT32.max, allow_inf_nan=False)]


def recipe_for(architecture: str, dataset: str) -> "Recipe":
    """Return the paper's settings for a network on a data set.

    - ``mlp2``, ``mlp3``, ``cnn4``: SGD, learning rate 0.01, momentum 0.9. Batch and epochs are not
      given; 128 and 100 are our choice.
    - ``jocor``, ``jocor-code``: Adam, 0.001. Batch 128, 200 epochs and the linear decay to zero
      from epoch 80 on are those of Wei et al. (CVPR 2020), where the networks come from, as are two
      settings of their code: from there on Adam's β₁ is .1, and on CIFAR-100 the decay starts at
      epoch 100.
    - every other network: the CIFAR protocol of Zhang et al. (Lookahead, NeurIPS 2019), as the
      paper says for ``vgg11`` and ``resnet18``: SGD with Nesterov momentum 0.9, learning rate
      0.1 divided by 5 at epochs 60, 120 and 160, batch 128, 200 epochs, random crops and flips,
      as in the code that it builds on (uoguelph-mlrg/Cutout, train.py), and Lookahead with k = 5
      and α = 0.8. Weight decay 0.001 is what later reproductions of that protocol run with.
    - any network on ``clothing1m``: Adam at 8e-4, 5e-4 and 5e-5 for 5 epochs each, batch 64, after
      Wei et al. The paper prints 5e-4 twice, which reads as a slip: it follows their setting, and
      two equal segments would be one of 10 epochs.

    Raises:
        ValueError: an unknown network, with the close names.
    """
    check_model_name(architecture)
    if dataset == "clothing1m":
        return _CLOTHING1M
    if architecture in ("jocor", "jocor-code"):
        return _JOCOR_CIFAR100 if dataset == "cifar100" else _JOCOR
    if architecture in ("mlp2", "mlp3", "cnn4"):
        return _SMALL
    return _LOOKAHEAD


def build_optimizer(recipe: "Recipe", params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the recipe's optimiser, wrapped in timm's Lookahead where the recipe asks for it.

    The learning rate is the recipe's first; the training loop sets it from `Recipe.lr_at`. The
    slow weights start at the parameters' values of now (Zhang et al. 2019, Algorithm 1, φ₀).

    Raises:
        ValueError: there are no parameters.
    """
    weights = list(params)
    lr = recipe.lr_at(0.0)
    base: torch.optim.Optimizer
    common: dict[str, Any] = {"lr": lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        # Not fused: that kernel rounds the last elements of a tensor in another way on CPUs, so
        # that a network's result would depend on those that it is stacked with.
        base = torch.optim.SGD(
            weights, momentum=recipe.momentum, nesterov=recipe.nesterov, foreach=True, **common
        )
    elif recipe.optimizer == "adam":
        base = torch.optim.Adam(weights, fused=True, **common)
    else:
        base = torch.optim.AdamW(weights, fused=True, **common)
    if recipe.lookahead_k is None:
        return base
    _start_slow_weights(base, weights)
    optimizer: torch.optim.Optimizer = Lookahead(
        base, alpha=recipe.lookahead_alpha, k=recipe.lookahead_k
    )
    return optimizer


def _start_slow_weights(base: torch.optim.Optimizer, weights: list[nn.Parameter]) -> None:
    """Make the present weights the first slow weights.

    timm's Lookahead copies the slow weights when it first synchronises, after k steps, and so does
    not interpolate the first k. The copy is handed over after the first step of the base optimiser
    and not before: Adam takes a parameter that has any state for one whose moments exist.
    """
    start = [(weight, weight.detach().clone()) for weight in weights]

    def hand_over(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        handle.remove()
        for weight, value in start:
            if weight.grad is not None:
                optimizer.state[weight].setdefault("lookahead_slow_buff", value)
        start.clear()

    handle = base.register_step_post_hook(hand_over)


class Recipe(StrictModel):
    """Settings of one training run; fields that contradict each other are an error.

    Times of the schedule are fractions of the run, so that a recipe keeps its shape when ``epochs``
    is changed.

    >>> Recipe(optimizer="sgd", lr=0.1, batch_size=128, epochs=10, schedule="cosine").lr_at(0.5)
    0.05
    """

    optimizer: Literal["sgd", "adam", "adamw"]
    lr: Positive
    """Learning rate at the start of the run."""
    batch_size: int = Field(gt=0, le=2**20)
    epochs: int = Field(gt=0, le=100_000)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """sgd only."""
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0, le=_FLOAT32.max, allow_inf_nan=False)
    schedule: Literal["constant", "step", "linear", "cosine"] = "constant"
    milestones: tuple[float, ...] = ()
    """step: the moments the rate changes, ascending fractions of the run in (0, 1)."""
    factors: tuple[Positive, ...] = ()
    """step: one for each milestone; from there on the rate is ``lr`` times it."""
    decay_start: float = Field(default=0.0, ge=0, lt=1)
    """linear and cosine: the fraction of the run from which the rate falls to zero."""
    decayed_beta1: float | None = Field(default=None, ge=0, lt=1)
    """adam and adamw: β₁ from ``decay_start`` on; None: as before."""
    lookahead_k: int | None = Field(default=None, ge=1, le=2**20)
    """Steps between two synchronisations of Lookahead (k); None: no Lookahead."""
    lookahead_alpha: Annotated[Positive, Field(le=1)] | None = None
    """Step of the slow weights (α)."""
    clip_grad_norm: Positive | None = None
    """Longest gradient (Euclidean norm over all weights of one network); None: no clipping."""
    precision: Precision = "float32"
    """bfloat16: matrix products and convolutions under autocast; weights stay float32."""
    augment: bool = False
    """Random crops and, where the data set allows them, flips."""

    def lr_at(self, progress: float) -> float:
        """Return the learning rate at a moment of the run, ``progress`` in [0, 1).

        Raises:
            ValueError: progress is outside [0, 1).
        """
        if not 0 <= progress < 1:
            raise ValueError(f"progress must be in [0, 1), got {progress}")
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr * (1.0, *self.factors)[bisect_right(self.milestones, progress)]
        decayed = max(0.0, (progress - self.decay_start) / (1 - self.decay_start))
        if self.schedule == "linear":
            return self.lr * (1 - decayed)
        return self.lr * (1 + math.cos(math.pi * decayed)) / 2

    def changed(self, changes: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with ``changes``.

        Another optimiser or schedule starts from its own defaults, without the settings that
        belonged to the old one.

        Raises:
            ValueError: an unknown setting, or settings that contradict each other.
        """
        values = self.model_dump()
        if changes.get("optimizer", self.optimizer) != self.optimizer:
            of_optimizer = ("momentum", "nesterov", "decayed_beta1")
            values = {k: v for k, v in values.items() if k not in of_optimizer}
        if changes.get("schedule", self.schedule) != self.schedule:
            values = {k: v for k, v in values.items() if k not in _OF_SCHEDULE}
        return Recipe.model_validate(values | dict(changes))

    @property
    def constant_lr(self) -> bool:
        """Whether the learning rate stays the same over the whole run."""
        return self.schedule == "constant"

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(
                f"momentum and nesterov belong to 'sgd', got momentum={self.momentum}, "
                f"nesterov={self.nesterov} with {self.optimizer!r}"
            )
        if self.decayed_beta1 is not None and (
            self.optimizer == "sgd" or self.schedule not in ("linear", "cosine")
        ):
            raise ValueError(
                "decayed_beta1 belongs to 'adam' and 'adamw' with schedule 'linear' or 'cosine', "
                f"got {self.decayed_beta1} with {self.optimizer!r} and {self.schedule!r}"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs a momentum above 0, got momentum=0.0")
        if (self.lookahead_k is None) != (self.lookahead_alpha is None):
            raise ValueError(
                "lookahead_k and lookahead_alpha come together, got "
                f"{self.lookahead_k} and {self.lookahead_alpha}"
            )
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.schedule == "step":
            inside = all(0 < m < 1 for m in self.milestones)
            ascending = all(a < b for a, b in pairwise(self.milestones))
            if not (self.milestones and inside and ascending):
                raise ValueError(
                    "schedule 'step' needs milestones, ascending fractions of the run in (0, 1), "
                    f"got {self.milestones}"
                )
            if len(self.factors) != len(self.milestones) or min(self.factors) <= 0:
                raise ValueError(
                    "schedule 'step' needs one factor above 0 for each milestone, got "
                    f"{self.factors} for {self.milestones}"
                )
        elif self.milestones or self.factors:
            raise ValueError(
                f"milestones and factors belong to schedule 'step', got {self.milestones} and "
                f"{self.factors} with {self.schedule!r}"
            )
        if self.decay_start and self.schedule not in ("linear", "cosine"):
            raise ValueError(
                f"decay_start belongs to schedules 'linear' and 'cosine', got {self.decay_start} "
                f"with {self.schedule!r}"
            )
        return self


def _check_settings(changes: dict[str, Any]) -> dict[str, Any]:
    for key in changes:
        if key not in Recipe.model_fields:
            raise ValueError(f"unknown key {key!r}; known keys: {', '.join(Recipe.model_fields)}")
    return changes


#: Some settings of a recipe by name; their values are checked when a recipe is made of them.
RecipeChanges = Annotated[dict[str, Any], AfterValidator(_check_settings)]

_OF_SCHEDULE = ("milestones", "factors", "decay_start", "decayed_beta1")
_SMALL = Recipe(optimizer="sgd", lr=0.01, momentum=0.9, batch_size=128, epochs=100)
_JOCOR = Recipe(
    optimizer="adam",
    lr=1e-3,
    batch_size=128,
    epochs=200,
    schedule="linear",
    decay_start=80 / 200,
    decayed_beta1=0.1,
)
_JOCOR_CIFAR100 = _JOCOR.changed({"decay_start": 100 / 200})
_LOOKAHEAD = Recipe(
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-3,
    batch_size=128,
    epochs=200,
    schedule="step",
    milestones=(60 / 200, 120 / 200, 160 / 200),
    factors=(1 / 5, 1 / 25, 1 / 125),
    lookahead_k=5,
    lookahead_alpha=0.8,
    augment=True,
)
_CLOTHING1M = Recipe(
    optimizer="adam",
    lr=8e-4,
    batch_size=64,
    epochs=15,
    schedule="step",
    milestones=(5 / 15, 10 / 15),
    factors=(5e-4 / 8e-4, 5e-5 / 8e-4),
    augment=True,
)
