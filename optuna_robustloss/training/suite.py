"""Losses scored on several tasks, one network after another, the worst stopped on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.evaluation import Evaluation
from optuna_robustloss.training.loop import STOP_AT_CHANCE_AFTER
from optuna_robustloss.training.score import Score, ScoreKind, score_population, training_steps

#: Told the number of optimiser steps so far, and the mean accuracy of the finished networks and
#: the running one.
Report = Callable[[int, float], None]

#: In a smaller population the worst third is too often a matter of luck.
SMALLEST_JUDGED = 6


@dataclass(frozen=True)
class SuiteScore:
    """The scores of one loss."""

    scores: Mapping[TaskSpec, Score]
    """By task, in order; up to where it ended early."""
    dropped: bool = False
    """It was among the worst at a rung, and stopped there."""
    error: Exception | None = None
    """What its report raised; it was stopped there."""

    @property
    def value(self) -> float:
        """Mean over the tasks."""
        return math.fsum(s.value for s in self.scores.values()) / len(self.scores)


@dataclass(eq=False)
class _Climber:
    """One loss on its way from task to task."""

    make: Callable[[int], nn.Module]
    report: Report | None
    scores: dict[TaskSpec, Score] = field(default_factory=dict)
    merit: float = 0.0
    dropped: bool = False
    error: Exception | None = None

    def observe(self, step: int, accuracy: float) -> None:
        finished = [score.value for score in self.scores.values()]
        self.merit = math.fsum([*finished, accuracy]) / (len(finished) + 1)
        if self.report is not None:
            self.report(step, self.merit)

    def finish(self, task: TaskSpec, score: Score) -> None:
        self.scores[task] = score
        values = [score.value for score in self.scores.values()]
        self.merit = math.fsum(values) / len(values)


def worst_third(merits: Sequence[float], population: int) -> list[int]:
    """Return the positions of the worst third, of which the better half is never part.

    CMA-ES recombines the better half of a population, so at least so many stay, however many
    rungs there are.

    Args:
        merits: of those that are left.
        population: how many there were at the start.

    >>> worst_third([0.5, 0.1, 0.9, 0.3, 0.7, 0.2], population=6)
    [1, 5]

    """
    if population < SMALLEST_JUDGED:
        return []
    count = min(len(merits) // 3, len(merits) - math.ceil(population / 2))
    return sorted(range(len(merits)), key=lambda i: merits[i])[: max(0, count)]


@dataclass(frozen=True)
class _Rungs:
    """The rungs within one task; see ``score.Rungs``."""

    fractions: Sequence[float]
    task_steps: int
    climbers: Sequence[_Climber]
    population: int

    def steps(self, first: int, total: int) -> Collection[int]:
        at = {round(fraction * self.task_steps) - first for fraction in self.fractions}
        # The end of a horizon's run is none of its rungs; the step before is.
        return {min(step, total - 1) for step in at if 0 < step <= total}

    def judge(self, candidates: Sequence[int]) -> Collection[int]:
        merits = [self.climbers[i].merit for i in candidates]
        return [candidates[i] for i in worst_third(merits, self.population)]


def score_suite(
    tasks: Sequence[Task],
    losses: Sequence[Callable[[int], nn.Module]],
    *,
    seed: int,
    kind: ScoreKind = "last",
    horizons: Sequence[float] = (1,),
    device: torch.device | None = None,
    reports: Sequence[Report] | None = None,
    stop_at_chance_after: float | None = STOP_AT_CHANCE_AFTER,
    rungs: Sequence[float] = (),
) -> list[SuiteScore]:
    """Train with K losses together on every task, in order.

    Args:
        tasks: with validation splits.
        losses: each makes its module from the number of classes.
        seed: of all runs.
        kind: see ``score_population``, as ``horizons``, ``device`` and ``stop_at_chance_after``.
        horizons: see ``score_population``.
        device: see ``score_population``.
        reports: one for each loss; an exception ends that loss, and is its ``error``.
        stop_at_chance_after: see ``score_population``. A loss that is hopeless on one task goes on
            with the next.
        rungs: moments at which the worst third is stopped, counted in networks: 2.5 is half-way
            through the third task. Populations smaller than six are never judged.

    Raises:
        ValueError: a rung is not among the networks; otherwise see ``train_population``.

    """
    if not all(0 < rung < len(tasks) for rung in rungs):
        raise ValueError(f"rungs must lie between 0 and {len(tasks)} networks, got {list(rungs)}")
    climbers = [
        _Climber(make, None if reports is None else reports[i]) for i, make in enumerate(losses)
    ]
    first = 0
    for position, task in enumerate(tasks):
        alive = [c for c in climbers if not (c.dropped or c.error)]
        if position in rungs:
            for i in worst_third([c.merit for c in alive], len(losses)):
                alive[i].dropped = True
            alive = [c for c in alive if not c.dropped]
        makers = [partial(c.make, task.num_classes) for c in alive]
        steps = training_steps(task, horizons, makers)

        def observe(
            index: int, point: Evaluation, first: int = first, alive: list[_Climber] = alive
        ) -> None:
            alive[index].observe(first + point.step, point.accuracy)

        within = [rung - position for rung in rungs if position < rung < position + 1]
        results = score_population(
            task,
            makers,
            seed=seed,
            kind=kind,
            horizons=horizons,
            device=device,
            observe=observe,
            stop_at_chance_after=stop_at_chance_after,
            rungs=_Rungs(within, steps, alive, len(losses)),
        )
        for climber, result in zip(alive, results, strict=True):
            climber.error, climber.dropped = result.error, result.dropped
            if not (climber.error or climber.dropped):
                climber.finish(task.spec, result)
        first += steps
    return [SuiteScore(c.scores, c.dropped, c.error) for c in climbers]
