"""How well a loss trains a network: the number that a search maximises."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import nn

from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.tasks.recipes import Recipe
from optuna_robustloss.training.evaluation import Evaluation, TrainingResult
from optuna_robustloss.training.gradients import followers
from optuna_robustloss.training.group import Observer
from optuna_robustloss.training.loop import (
    STOP_AT_CHANCE_AFTER,
    steps_per_epoch,
    train_population,
)
from optuna_robustloss.training.population.backend import Backend

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
    curve: tuple[Evaluation, ...]
    dropped: bool = False
    """Stopped at a rung: ``value`` is of that moment."""
    error: Exception | None = None
    """What the observer raised, and ended the training with."""


class Rungs(Protocol):
    """Decides at which steps of a training the worst candidates are stopped, and which."""

    def steps(self, first: int, total: int) -> Collection[int]:
        """Return the rungs within a run of ``total`` steps that begins after ``first`` others."""

    def judge(self, candidates: Sequence[int]) -> Collection[int]:
        """Return those of the candidates at a rung that are stopped there."""


def smoothed_best(curve: Sequence[Evaluation]) -> Evaluation:
    """Best point of a moving mean over three evaluations, so that one lucky epoch does not win.

    The first and the last point are averaged with their one neighbour.
    """
    best = None
    for i, point in enumerate(curve):
        window = curve[max(0, i - 1) : i + 2]
        mean = sum(p.accuracy for p in window) / len(window)
        if best is None or mean > best.accuracy:
            best = Evaluation(point.step, point.epoch, mean)
    if best is None:
        raise ValueError("the curve is empty")
    return best


def evaluation_steps(task: Task, epochs: int, kind: ScoreKind) -> list[int]:
    """Steps after which a run is evaluated: ends of epochs, evenly spread."""
    per_epoch = steps_per_epoch(task)
    count = epochs if kind == "best" else min(epochs, EVALUATIONS)
    return [round(epochs * (i + 1) / count) * per_epoch for i in range(count)]


def run_lengths(recipe: Recipe, horizons: Sequence[float]) -> list[int]:
    """Numbers of epochs of the horizons, ascending."""
    return sorted({max(1, round(recipe.epochs * h)) for h in horizons})


def training_steps(
    task: Task, horizons: Sequence[float], criteria: Sequence[Callable[[], nn.Module]] = ()
) -> int:
    """Optimiser steps that scoring losses together takes, all their runs counted."""
    lengths = run_lengths(task.spec.recipe, horizons)
    read_off = _read_off(task.spec.recipe, criteria)
    return steps_per_epoch(task) * (lengths[-1] if read_off else sum(lengths))


def _read_off(recipe: Recipe, criteria: Sequence[Callable[[], nn.Module]]) -> bool:
    """Whether a run of the longest horizon begins as those of the others do."""
    return recipe.constant_lr and not any(followers(make()) for make in criteria)


@dataclass
class _Tally:
    """What is known of one candidate after some of its runs."""

    values: list[float] = field(default_factory=list)
    run: TrainingResult | None = None

    def add(
        self, run: TrainingResult, ends: Sequence[int], watch_at: Collection[int], kind: ScoreKind
    ) -> None:
        if run.complete:  # the hopeless check and the rungs are no evaluations
            run = replace(run, curve=tuple(p for p in run.curve if p.step in watch_at))
        self.run = run
        for end in ends if run.curve else ():
            seen = [p for p in run.curve if p.step <= end] or list(run.curve[:1])
            at_end = seen[-1] if kind == "last" else smoothed_best(seen)
            self.values.append(at_end.accuracy)

    def score(self, horizons: int) -> Score:
        run, values = self.run, self.values
        assert run is not None
        if values:  # the longer horizons would end no better
            values = values + [values[-1]] * (horizons - len(values))
        return Score(
            value=math.fsum(values) / len(values) if values else 0.0,
            best_epoch=smoothed_best(run.curve).epoch if run.curve else 0.0,
            diverged=run.diverged,
            hopeless=run.hopeless,
            curve=run.curve,
            dropped=run.dropped,
            error=run.error,
        )


def score_population(
    task: Task,
    criteria: Sequence[Callable[[], nn.Module]],
    *,
    seed: int,
    kind: ScoreKind = "last",
    horizons: Sequence[float] = (1,),
    device: torch.device | None = None,
    observe: Observer | None = None,
    stop_at_chance_after: float | None = STOP_AT_CHANCE_AFTER,
    rungs: Rungs | None = None,
    backend: Backend | None = None,
) -> list[Score]:
    """Train with each of K losses, all together, and measure the validation accuracies.

    With a constant learning rate all horizons are read off one run of the longest; with a
    schedule each horizon is a run of its own.

    Args:
        task: with a validation split.
        criteria: make the losses, once per run.
        seed: of the runs; see ``train_population``.
        kind: ``"last"`` epoch's accuracy, or the ``"best"`` epoch's (smoothed over three).
        horizons: lengths of training to average over, as multiples of the recipe's epochs.
        device: see ``train_population``.
        observe: see ``train_population``; the steps of several runs are counted on.
        stop_at_chance_after: see ``train_population``; never done on noisy validation labels.
        rungs: where the worst candidates are stopped.
        backend: see ``train_population``.

    """
    lengths = run_lengths(task.spec.recipe, horizons)
    read_off = _read_off(task.spec.recipe, criteria)
    per_epoch = steps_per_epoch(task)
    tallies = [_Tally() for _ in criteria]
    alive = list(range(len(criteria)))
    first = 0
    for epochs in lengths[-1:] if read_off else lengths:
        ends = [n * per_epoch for n in (lengths if read_off else [epochs])]
        watch_at = {*evaluation_steps(task, epochs, kind), *ends}
        numbers = _Renumbered(alive, first, observe, rungs)
        runs = train_population(
            task,
            [criteria[i]() for i in alive],
            seed=seed,
            watch=task.validation,
            watch_at=watch_at,
            epochs=epochs,
            device=device,
            observe=numbers.observe if observe is not None else None,
            # Accuracy on noisy labels is near chance for good networks too.
            stop_at_chance_after=stop_at_chance_after
            if task.spec.validation_labels == "clean"
            else None,
            judge=numbers.judge,
            judge_at=rungs.steps(first, epochs * per_epoch) if rungs is not None else (),
            backend=backend,
        )
        for i, run in zip(alive, runs, strict=True):
            tallies[i].add(run, ends, watch_at, kind)
        alive = [i for i, run in zip(alive, runs, strict=True) if run.complete]
        first += epochs * per_epoch
        if not alive:
            break
    return [tally.score(len(lengths)) for tally in tallies]


@dataclass(frozen=True)
class _Renumbered:
    """A later run's candidates by the numbers they had in the first, its steps after those."""

    numbers: Sequence[int]
    first: int
    observer: Observer | None
    rungs: Rungs | None

    def observe(self, index: int, point: Evaluation) -> None:
        if self.observer is not None:
            point = replace(point, step=self.first + point.step)
            self.observer(self.numbers[index], point)

    def judge(self, candidates: Sequence[int]) -> Collection[int]:
        if self.rungs is None:
            return ()
        stopped = self.rungs.judge([self.numbers[i] for i in candidates])
        return [self.numbers.index(number) for number in stopped]


def score(
    task: Task,
    criterion: Callable[[], nn.Module],
    *,
    seed: int,
    kind: ScoreKind = "last",
    horizons: Sequence[float] = (1,),
    device: torch.device | None = None,
    observe: Callable[[Evaluation], None] | None = None,
    stop_at_chance_after: float | None = STOP_AT_CHANCE_AFTER,
) -> Score:
    """Score one loss; see ``score_population``. What ``observe`` raises is raised."""
    result = score_population(
        task,
        [criterion],
        seed=seed,
        kind=kind,
        horizons=horizons,
        device=device,
        observe=None if observe is None else lambda _, point: observe(point),
        stop_at_chance_after=stop_at_chance_after,
    )[0]
    if result.error is not None:
        raise result.error
    return result
