"""Score losses by the accuracy of the networks trained with them: what a search maximises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import nn

from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.tasks.recipes import Recipe
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.evaluation import Evaluation, TrainingResult, smoothed_best
from optuna_robustloss.training.gradients import progress_modules
from optuna_robustloss.training.population.backend import Backend
from optuna_robustloss.training.stopping import chance_threshold, worst_third
from optuna_robustloss.training.train import spread_over_epochs, steps_per_epoch, train

ScoreKind = Literal["last", "best"]
#: Builds a loss for a number of classes.
LossFactory = Callable[[int], nn.Module]
#: Called with the optimiser steps so far, and the mean accuracy of the finished networks and the
#: running one.
Report = Callable[[int, float], None]

#: Evaluations per run for ``"last"``; for ``"best"`` there is one each epoch.
EVALUATIONS = 10
#: Default share of the steps after which candidates near chance are stopped. In trainings of some
#: hundred steps good losses were measured to be near chance for up to an eighth of them.
STOP_AT_CHANCE_AFTER = 0.2


@dataclass(frozen=True)
class Score:
    """The validation accuracy of one loss on one task, as a search sees it."""

    value: float
    """Mean over the horizons of the last or of the best accuracy."""
    best_epoch: float
    """Epoch of the best smoothed accuracy within the last horizon."""
    diverged: bool
    stopped_at_chance: bool
    curve: tuple[Evaluation, ...]


@dataclass(frozen=True)
class LossScore:
    """The scores of one loss on several tasks."""

    scores: Mapping[TaskSpec, Score]
    """By task, in order; up to where it was pruned or raised an error."""
    pruned: bool = False
    error: Exception | None = None
    """What its report raised; it was stopped there."""

    @property
    def value(self) -> float:
        """Mean over the tasks."""
        return math.fsum(s.value for s in self.scores.values()) / len(self.scores)


def score_losses(
    tasks: Sequence[Task],
    losses: Sequence[LossFactory],
    *,
    seed: int,
    kind: ScoreKind = "last",
    horizons: Sequence[float] = (1,),
    device: torch.device | None = None,
    reports: Sequence[Report] | None = None,
    stop_at_chance_after: float | None = STOP_AT_CHANCE_AFTER,
    prune_at: Sequence[float] = (),
    backend: Backend | None = None,
) -> list[LossScore]:
    """Train with K losses together on every task, in order, and measure validation accuracies.

    Candidates near chance are stopped on the way, and the worst pruned. With a constant learning
    rate all horizons are read off one run of the longest; with a schedule, or a loss that depends
    on the progress, each horizon is a run of its own.

    Args:
        tasks: with validation splits.
        losses: build the K losses, anew for each run.
        seed: of all runs; see ``train``.
        kind: ``"last"`` epoch's accuracy, or the ``"best"`` epoch's (smoothed over three).
        horizons: lengths of training to average over, as multiples of the recipe's epochs.
        device: see ``train``.
        reports: one for each loss, called at every evaluation; an exception ends that loss, and is
            its ``error``.
        stop_at_chance_after: share of the steps of a run after which a candidate near chance is
            stopped; it still takes part in the next task. None never stops any. Ignored on noisy
            validation labels, where good networks are near chance, too.
        prune_at: moments at which the worst third is pruned, counted in networks: 2.5 is in the
            middle of the third task. Populations smaller than six are not pruned.
        backend: see ``train``.

    Raises:
        ValueError: ``prune_at`` or ``stop_at_chance_after`` is out of range; otherwise see
            ``train``.

    """
    if not all(0 < moment < len(tasks) for moment in prune_at):
        raise ValueError(
            f"prune_at must lie between 0 and {len(tasks)} networks, got {list(prune_at)}"
        )
    if stop_at_chance_after is not None and not 0 < stop_at_chance_after < 1:
        raise ValueError(
            f"stop_at_chance_after must be a share between 0 and 1, got {stop_at_chance_after}"
        )
    protocol = _Protocol(seed, kind, horizons, device, stop_at_chance_after, backend, len(losses))
    candidates = [
        _Candidate(make, reports[i] if reports else lambda step, accuracy: None)
        for i, make in enumerate(losses)
    ]
    steps = 0
    for position, task in enumerate(tasks):
        if position in prune_at:
            _prune([c for c in candidates if not c.ended], len(losses))
        moments = [m - position for m in prune_at if position < m < position + 1]
        alive = [c for c in candidates if not c.ended]
        steps += _score_task(protocol, task, alive, moments, steps)
    return [LossScore(c.scores, c.pruned, c.error) for c in candidates]


@dataclass(frozen=True)
class _Protocol:
    """What all candidates share."""

    seed: int
    kind: ScoreKind
    horizons: Sequence[float]
    device: torch.device | None
    stop_at_chance_after: float | None
    backend: Backend | None
    population: int
    """Candidates at the start."""


@dataclass(eq=False)
class _Candidate:
    """One loss and its results so far."""

    make: LossFactory
    report: Report
    scores: dict[TaskSpec, Score] = field(default_factory=dict)
    pruned: bool = False
    error: Exception | None = None
    mean_accuracy: float = 0.0
    """Over the finished networks and the running one."""

    @property
    def ended(self) -> bool:
        return self.pruned or self.error is not None

    def update_mean(self, *running: float) -> None:
        values = [*(score.value for score in self.scores.values()), *running]
        self.mean_accuracy = math.fsum(values) / len(values)

    def add_report(self, step: int, accuracy: float) -> None:
        """Report the mean accuracy; an exception ends this candidate and no other."""
        self.update_mean(accuracy)
        try:
            self.report(step, self.mean_accuracy)
        except Exception as error:
            self.error = error


@dataclass(eq=False)
class _Tally:
    """One candidate's results on the current task."""

    candidate: _Candidate
    values: list[float] = field(default_factory=list)
    """One for each horizon so far."""
    curve: tuple[Evaluation, ...] = ()
    """Of the last run."""
    diverged: bool = False
    stopped_at_chance: bool = False

    def add_run(self, result: TrainingResult, ends: Sequence[int], kind: ScoreKind) -> None:
        """Read the values of the horizons that end at the steps ``ends`` off a run."""
        self.curve, self.diverged = result.curve, result.diverged
        for end in ends if self.curve else ():
            seen = [e for e in self.curve if e.step <= end] or list(self.curve[:1])
            at_end = seen[-1] if kind == "last" else smoothed_best(seen)
            self.values.append(at_end.accuracy)

    def score(self, horizons: int) -> Score:
        values = self.values
        if values:  # the longer horizons would end no better
            values = values + [values[-1]] * (horizons - len(values))
        return Score(
            value=math.fsum(values) / len(values) if values else 0.0,
            best_epoch=smoothed_best(self.curve).epoch if self.curve else 0.0,
            diverged=self.diverged,
            stopped_at_chance=self.stopped_at_chance,
            curve=self.curve,
        )


def _score_task(
    protocol: _Protocol,
    task: Task,
    candidates: Sequence[_Candidate],
    prune_at: Sequence[float],
    steps_before: int,
) -> int:
    """Score candidates on one task, and return the optimiser steps that all its runs take."""
    recipe, per_epoch = task.spec.recipe, steps_per_epoch(task)
    lengths = run_lengths(recipe, protocol.horizons)
    # Does a run of the longest horizon begin as those of the others do?
    criteria = [candidate.make(task.num_classes) for candidate in candidates]
    one_run = recipe.constant_lr and not any(progress_modules(c) for c in criteria)
    runs = [lengths] if one_run else [[epochs] for epochs in lengths]
    total = per_epoch * sum(run[-1] for run in runs)
    prune_steps = [round(share * total) for share in prune_at]
    tallies = [_Tally(candidate) for candidate in candidates]
    running, first = tallies, 0
    for run in runs:
        if not running:
            break
        ends = [epochs * per_epoch for epochs in run]
        running = _train_run(
            protocol, task, running, ends, [s - first for s in prune_steps], steps_before + first
        )
        first += ends[-1]
    for tally in tallies:
        if not tally.candidate.ended:
            tally.candidate.scores[task.spec] = tally.score(len(lengths))
            tally.candidate.update_mean()
    return total


def _train_run(
    protocol: _Protocol,
    task: Task,
    tallies: Sequence[_Tally],
    ends: Sequence[int],
    prune_steps: Sequence[int],
    steps_before: int,
) -> list[_Tally]:
    """Train up to step ``ends[-1]``, and return the tallies of the candidates that came there."""
    candidates, total = [tally.candidate for tally in tallies], ends[-1]
    epochs = total // steps_per_epoch(task)
    count = epochs if protocol.kind == "best" else EVALUATIONS
    score_at = {*spread_over_epochs(task, epochs, count), *ends}
    # The last evaluation of a run ends it, so pruning happens one step before.
    prune_at = {min(step, total - 1) for step in prune_steps if 0 < step <= total}
    check_at = set()
    if protocol.stop_at_chance_after is not None and task.spec.validation_labels == "clean":
        # Exact: the float .07 × 100 rounds up to 8 steps.
        check_at = {math.ceil(Fraction(str(protocol.stop_at_chance_after)) * total)}
    training = train(
        task,
        [candidate.make(task.num_classes) for candidate in candidates],
        seed=protocol.seed,
        evaluate_on=task.validation,
        evaluate_at=score_at | prune_at | check_at,
        epochs=epochs,
        device=protocol.device,
        backend=protocol.backend,
    )
    for evaluations in training:
        for index, evaluation in evaluations.items():
            candidates[index].add_report(steps_before + evaluation.step, evaluation.accuracy)
        training.stop(index for index in evaluations if candidates[index].error is not None)
        if training.step in check_at:
            threshold = chance_threshold(task.num_classes)
            for index in training.alive:
                tallies[index].stopped_at_chance = evaluations[index].accuracy < threshold
            training.stop(i for i in training.alive if tallies[i].stopped_at_chance)
        if training.step in prune_at:
            _prune([candidates[index] for index in training.alive], protocol.population)
            training.stop(index for index in training.alive if candidates[index].pruned)
    results = training.finish()
    for tally, result in zip(tallies, results, strict=True):
        if result.complete:  # evaluations for pruning and for the check at chance do not count
            result = replace(result, curve=tuple(e for e in result.curve if e.step in score_at))
        tally.add_run(result, ends, protocol.kind)
    return [t for t, result in zip(tallies, results, strict=True) if result.complete]


def _prune(candidates: Sequence[_Candidate], population: int) -> None:
    for position in worst_third([c.mean_accuracy for c in candidates], population):
        candidates[position].pruned = True


def run_lengths(recipe: Recipe, horizons: Sequence[float]) -> list[int]:
    """Return the numbers of epochs of the horizons, ascending and without repetition."""
    return sorted({max(1, round(recipe.epochs * h)) for h in horizons})
