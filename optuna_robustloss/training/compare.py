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

from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.losses.scaled import ScaledLoss
from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.prepare import prepare_task
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.loop import train_population
from optuna_robustloss.training.score import score_population

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
        makers = [partial(make, task.num_classes) for make in criteria.values()]
        scores = score_population(task, makers, seed=seed, device=device, stop_at_chance_after=None)
        for key, score in zip(criteria, scores, strict=True):
            totals[key] += score.value
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
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Train one network per loss and seed, and measure last-epoch accuracy on the test images.

    All losses of a seed are trained together.

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
        on_progress: called with the trainings per loss that are done, and their number.

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
    done, steps = 0, seeds + tuning_seeds * sum(c.tuned for c in contenders)

    def advance(by: int) -> None:
        nonlocal done
        done += by
        if on_progress is not None:
            on_progress(done, steps)

    chosen: list[float | None] = []
    criteria: list[Criterion] = []
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
            advance(tuning_seeds)
        chosen.append(scale)
        criteria.append(criterion)
    accuracies: list[list[float]] = [[] for _ in contenders]
    for test_seed in [derive_seed(seed, "test", k) for k in range(seeds)]:
        task = prepare_task(spec, seed=test_seed, root=root)
        runs = train_population(
            task,
            [criterion(task.num_classes) for criterion in criteria],
            seed=test_seed,
            watch=task.test,
            watch_at=(),
            device=device,
            stop_at_chance_after=None,
        )
        for own, run in zip(accuracies, runs, strict=True):
            own.append(run.curve[-1].accuracy)
        advance(1)
    return [
        Result(contender.name, tuple(own), scale)
        for contender, own, scale in zip(contenders, accuracies, chosen, strict=True)
    ]
