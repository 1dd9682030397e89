"""How well a loss trains a network: the number that a search maximises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.training.loop import Point, Run, steps_per_epoch, train

ScoreKind = Literal["last", "best"]

#: Evaluations per run for ``"last"``; for ``"best"`` there is one each epoch.
EVALUATIONS = 10


@dataclass(frozen=True)
class Score:
    """The validation accuracy of one network, as a search sees it."""

    value: float
    """Mean over the horizons of the last or of the best accuracy."""
    best_epoch: float
    """Epoch of the best smoothed accuracy within the last horizon."""
    diverged: bool
    hopeless: bool
    curve: tuple[Point, ...]


def smoothed_best(curve: Sequence[Point]) -> Point:
    """Best point of a moving mean over three evaluations, so that one lucky epoch does not win.

    The first and the last point are averaged with their one neighbour.
    """
    best = None
    for i, point in enumerate(curve):
        window = curve[max(0, i - 1) : i + 2]
        mean = sum(p.accuracy for p in window) / len(window)
        if best is None or mean > best.accuracy:
            best = Point(point.step, point.epoch, mean)
    if best is None:
        raise ValueError("the curve is empty")
    return best


def evaluation_steps(task: Task, epochs: int, kind: ScoreKind) -> list[int]:
    """Steps after which a run is evaluated: ends of epochs, evenly spread."""
    per_epoch = steps_per_epoch(task)
    count = epochs if kind == "best" else min(epochs, EVALUATIONS)
    return [round(epochs * (i + 1) / count) * per_epoch for i in range(count)]


def score(
    task: Task,
    criterion: Callable[[], nn.Module],
    *,
    seed: int,
    kind: ScoreKind = "last",
    horizons: Sequence[float] = (1,),
    device: torch.device | None = None,
    observe: Callable[[Point], None] | None = None,
    give_up: bool = True,
) -> Score:
    """Train with a loss and measure its validation accuracy.

    With a constant learning rate all horizons are read off one run of the longest; with a
    schedule each horizon is a run of its own.

    Args:
        task: with a validation split.
        criterion: makes the loss, once per run.
        seed: of the run; see ``train``.
        kind: ``"last"`` epoch's accuracy, or the ``"best"`` epoch's (smoothed over three).
        horizons: lengths of training to average over, as multiples of the recipe's epochs.
        device: see ``train``.
        observe: see ``train``.
        give_up: see ``train``.

    """
    recipe = task.spec.recipe
    lengths = sorted({max(1, round(recipe.epochs * h)) for h in horizons})
    read_off = recipe.constant_lr and not hasattr(criterion(), "progress")
    values: list[float] = []
    runs: list[Run] = []
    for epochs in lengths[-1:] if read_off else lengths:
        ends = [n * steps_per_epoch(task) for n in (lengths if read_off else [epochs])]
        watch_at = {*evaluation_steps(task, epochs, kind), *ends}
        run = train(
            task,
            criterion(),
            seed=seed,
            watch=task.validation,
            watch_at=watch_at,
            epochs=epochs,
            device=device,
            observe=observe,
            # Accuracy on noisy labels is near chance for good networks too.
            give_up=give_up and task.spec.validation_labels == "clean",
        )
        if not (run.diverged or run.hopeless):  # the hopeless check is no evaluation
            run = replace(run, curve=tuple(p for p in run.curve if p.step in watch_at))
        runs.append(run)
        for end in ends:
            seen = [p for p in run.curve if p.step <= end] or list(run.curve[:1])
            at_end = seen[-1] if kind == "last" else smoothed_best(seen)
            values.append(at_end.accuracy)
        if run.diverged or run.hopeless:  # the longer horizons would end no better
            values += [values[-1]] * (len(lengths) - len(values))
            break
    return Score(
        value=math.fsum(values) / len(values),
        best_epoch=smoothed_best(runs[-1].curve).epoch,
        diverged=any(run.diverged for run in runs),
        hopeless=any(run.hopeless for run in runs),
        curve=runs[-1].curve,
    )
