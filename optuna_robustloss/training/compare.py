"""Losses side by side: the same recipe, data, noise and seeds, judged on clean test images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from optuna_robustloss.losses.named import make_loss
from optuna_robustloss.losses.robust import ScaledLoss
from optuna_robustloss.tasks.prepare import prepare_task
from optuna_robustloss.tasks.seeds import derive_seed
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.loop import train
from optuna_robustloss.training.score import score

#: The scales that every tuned loss may choose from on validation data.
SCALES = (0.05, 0.1, 0.2, 0.5, 1.0)

#: Makes a loss for a number of classes.
Criterion = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Contender:
    """A loss that takes part: its name, how it is made, and whether its scale is tuned."""

    name: str
    criterion: Criterion
    tuned: bool = False


def contenders_by_name(names: Sequence[str]) -> list[Contender]:
    """Make contenders of what ``make_loss`` knows; ``*best`` behind a name tunes its scale."""
    contenders = []
    for name in names:
        tuned = name.endswith("*best")
        base = name.removesuffix("*best")
        label = base + (", best scale" if tuned else "")
        contenders.append(Contender(label, partial(make_loss, base), tuned))
    return contenders


@dataclass(frozen=True)
class Result:
    """Test accuracy of one loss on one task, one value per seed, at the last epoch."""

    name: str
    accuracies: tuple[float, ...]
    scale: float | None = None
    """The chosen scale, where it was tuned."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return math.fsum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds; 0 for a single seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else 0.0


def scaled(criterion: Criterion, scale: float) -> Criterion:
    """Return ``criterion`` times ``scale``."""
    return lambda num_classes: ScaledLoss(criterion(num_classes), scale)


def validation_means(
    spec: TaskSpec,
    criteria: Mapping[float, Criterion],
    seeds: Sequence[int],
    *,
    device: torch.device | None = None,
    root: str | Path | None = None,
) -> dict[float, float]:
    """Mean last-epoch accuracy on the validation images, for each criterion by its key."""
    totals = dict.fromkeys(criteria, 0.0)
    for seed in seeds:
        task = prepare_task(spec, seed=seed, root=root)
        for key, make in criteria.items():
            criterion = partial(make, task.num_classes)
            totals[key] += score(task, criterion, seed=seed, device=device, give_up=False).value
    return {key: total / len(seeds) for key, total in totals.items()}


def compare(
    spec: TaskSpec,
    contenders: Sequence[Contender],
    *,
    seeds: int = 5,
    tuning_seeds: int = 3,
    seed: int = 0,
    device: torch.device | None = None,
    root: str | Path | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Train one network per loss and seed, and measure last-epoch accuracy on the test images.

    The scale of a tuned loss is chosen from ``SCALES`` on the task's validation images, on seeds
    that the test does not use.

    Args:
        spec: the task; it needs a validation split if a contender is tuned.
        contenders: the losses.
        seeds: trainings per loss; noise, split, initial weights and order change with the seed,
            and are the same for all losses.
        tuning_seeds: trainings per scale.
        seed: from which all seeds follow.
        device: by default CUDA where there is a device.
        root: folder of the data.
        on_result: called after each loss.

    Raises:
        ValueError: a contender is to be tuned without validation images.

    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if spec.validation == 0 and any(c.tuned for c in contenders):
        raise ValueError(
            "choosing a scale needs validation images: set the task's 'validation', for example "
            "to 1000"
        )
    test_seeds = [derive_seed(seed, "test", k) for k in range(seeds)]
    results = []
    for contender in contenders:
        criterion, scale = contender.criterion, None
        if contender.tuned:
            means = validation_means(
                spec,
                {s: scaled(criterion, s) for s in SCALES},
                [derive_seed(seed, "tuning", k) for k in range(tuning_seeds)],
                device=device,
                root=root,
            )
            scale = max(means, key=lambda s: means[s])
            criterion = scaled(criterion, scale)
        accuracies = []
        for test_seed in test_seeds:
            task = prepare_task(spec, seed=test_seed, root=root)
            run = train(
                task,
                criterion(task.num_classes),
                seed=test_seed,
                watch=task.test,
                watch_at=(),
                device=device,
                give_up=False,
            )
            accuracies.append(run.curve[-1].accuracy)
        results.append(Result(contender.name, tuple(accuracies), scale))
        if on_result is not None:
            on_result(results[-1])
    return results
