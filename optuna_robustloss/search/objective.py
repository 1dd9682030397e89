"""The objective of a search: train every network with the suggested loss, return the accuracy."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import torch
from optuna.exceptions import TrialPruned
from optuna.storages import InMemoryStorage
from optuna.trial import BaseTrial, FrozenTrial, Trial

from optuna_robustloss.search.claims import slot_of
from optuna_robustloss.search.lease import LEASE, beat, heartbeat
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.suggest import LossParameters
from optuna_robustloss.tasks.prepare import Task, prepare_task
from optuna_robustloss.tasks.seeds import derive_seed
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.loop import Point, default_device, steps_per_epoch
from optuna_robustloss.training.score import Score, score

#: Key under which Optuna's CMA-ES notes the generation a trial was drawn for.
OPTUNA_GENERATION = "cma:generation"


@lru_cache(maxsize=64)
def _prepared(spec: TaskSpec, seed: int, root: Path | None, download: bool) -> Task:
    return prepare_task(spec, seed=seed, root=root, download=download)


def generation_of(trial: FrozenTrial, popsize: int) -> int:
    """Generation of a trial, counted from 0: as its sampler noted it, else by trial number.

    With Optuna's samplers trial 0 of our studies is the start loss, before the first generation;
    it shares its seed.
    """
    slot = slot_of(trial)
    if slot is not None:
        return slot.generation
    noted = trial.system_attrs.get(OPTUNA_GENERATION)
    return int(noted) if isinstance(noted, int) else max(0, trial.number - 1) // popsize


@contextmanager
def _lease_of(trial: BaseTrial) -> Iterator[None]:
    """Give signs of life while the trial is running, whoever runs it."""
    if not isinstance(trial, Trial):
        yield
        return
    beats, storage = heartbeat(LEASE), trial.study._storage
    held = beats.holds(storage, trial._trial_id)
    if not held and not isinstance(storage, InMemoryStorage):
        beat(storage, trial._trial_id)
    beats.hold(storage, trial._trial_id)
    try:
        yield
    finally:
        if not held:
            beats.release(storage, trial._trial_id)


class NoisyLabelObjective:
    """The mean validation accuracy of networks trained with the suggested loss.

    All candidates of a generation share noise, split, initial weights and batch order (common
    random numbers); the next generation gets fresh ones, so that no candidate is liked for its
    luck twice, and so does each round of repetitions by surplus workers. A diverged candidate
    scores the accuracy it has then (about chance) and carries the attribute ``diverged``; one
    below 1.5 × chance after 7 % of its steps is stopped there (``hopeless``). Reports one
    intermediate value per evaluation, the mean of the finished networks and the running one, at
    the number of optimiser steps so far.

    Use with ``study.optimize`` of a study that maximises.

    Args:
        spec: what to train and how to score it.
        device: by default CUDA where there is a device.
        root: folder of the data; see ``load_data``.
        download: fetch missing data through torchvision.
        prune: ask the study's pruner after every evaluation. Off by default, because Optuna's
            default pruner compares early accuracies, which rank robust losses backwards.

    """

    def __init__(
        self,
        spec: StudySpec,
        *,
        device: torch.device | str | None = None,
        root: str | Path | None = None,
        download: bool = False,
        prune: bool = False,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device) if device is not None else default_device()
        self.root = Path(root) if root is not None else None
        self.download = download
        self.prune = prune

    def __call__(self, trial: BaseTrial) -> float:
        """Train with the loss that ``trial`` suggests and return its fitness in [0, 1]."""
        with _lease_of(trial):
            return self._fitness(trial)

    def _fitness(self, trial: BaseTrial) -> float:
        if isinstance(trial, Trial):
            trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        parameters = self.spec.space.suggest(trial)
        generation, replicate = 0, 0
        if isinstance(trial, Trial):  # its sampler has noted the generation by now
            stored = trial.study._storage.get_trial(trial._trial_id)
            generation = generation_of(stored, self.spec.popsize)
            slot = slot_of(stored)
            replicate = slot.replicate if slot else 0
            if stored.params == self.spec.space.start_point:
                trial.set_user_attr("start", self.spec.start)
        again = ("replicate", replicate) if replicate else ()
        seed = derive_seed(self.spec.seed, "generation", generation, *again)
        trial.set_user_attr("generation", generation)
        scores = self.scores(parameters, seed, trial)
        for task, result in scores.items():
            trial.set_user_attr(f"accuracy {task.label}", result.value)
            if self.spec.score == "best":
                trial.set_user_attr(f"best epoch {task.label}", result.best_epoch)
        for name in ("diverged", "hopeless"):
            affected = [t.label for t, result in scores.items() if getattr(result, name)]
            if affected:
                trial.set_user_attr(name, affected)
        return math.fsum(s.value for s in scores.values()) / len(scores)

    def tasks(self, seed: int) -> list[Task]:
        """Every task of the spec, its noise and split drawn from ``seed``; reads the data."""
        return [_prepared(spec, seed, self.root, self.download) for spec in self.spec.tasks]

    def scores(
        self, parameters: LossParameters, seed: int, trial: BaseTrial | None = None
    ) -> dict[TaskSpec, Score]:
        """Score a loss on every task of the spec, with everything random taken from ``seed``.

        Intermediate values go to ``trial`` if there is one.

        Raises:
            TrialPruned: the study's pruner says so, and ``prune`` is on.

        """
        results: dict[TaskSpec, Score] = {}
        first_step = 0
        for task in self.tasks(seed):
            spec = task.spec
            report = None if trial is None else _Reports(trial, results, first_step, self.prune)
            lengths = [max(1, round(spec.recipe.epochs * h)) for h in self.spec.horizons]
            first_step += sum(lengths) * steps_per_epoch(task)
            results[spec] = score(
                task,
                partial(parameters.build, task.num_classes),
                seed=seed,
                kind=self.spec.score,
                horizons=self.spec.horizons,
                device=self.device,
                observe=report,
            )
        return results


class _Reports:
    """Tells a trial the accuracy of one network after another, each step once."""

    def __init__(
        self,
        trial: BaseTrial,
        results: Mapping[TaskSpec, Score],
        first_step: int,
        prune: bool,
    ) -> None:
        self._trial = trial
        self._finished = [s.value for s in results.values()]
        self._first_step = first_step
        self._last_step = 0
        self._prune = prune

    def __call__(self, point: Point) -> None:
        if point.step <= self._last_step:  # the run of the next horizon
            self._first_step += self._last_step
        self._last_step = point.step
        running = math.fsum([*self._finished, point.accuracy]) / (len(self._finished) + 1)
        self._trial.report(running, self._first_step + point.step)
        if self._prune and self._trial.should_prune():
            raise TrialPruned(f"pruned after {self._first_step + point.step} steps")
