"""The objective of a search: train every network with the suggested loss, return the accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import TrialPruned
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, Trial

from optuna_robustloss.attributes import (
    DIVERGED,
    GENERATION,
    START,
    STOPPED_AT_CHANCE,
    WORKER,
    accuracy_on,
    best_epoch_on,
    worker_name,
)
from optuna_robustloss.sampler.slots import slot_of
from optuna_robustloss.search.parameters import Parameters
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.spec_files import stored_spec
from optuna_robustloss.tasks.prepare import Task, prepare_task
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.networks import default_device
from optuna_robustloss.training.scoring import LossScore, Report, score_losses

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


class NoisyLabelObjective:
    """The mean validation accuracy of networks trained with the suggested loss.

    All candidates of a generation share noise, split, initial weights and batch order (common
    random numbers); the next generation draws fresh ones. A diverged candidate scores the accuracy
    it has then (about chance) and gets the attribute ``diverged``; one near chance after the spec's
    ``stop_at_chance_after`` is stopped there (``stopped_at_chance``). Candidates that are evaluated
    together are trained as one population, and the worst are pruned at the spec's ``prune_at``.
    Reports one intermediate value per evaluation, the mean of the finished networks and the
    running one, at the number of optimiser steps so far.

    Use with ``study.optimize`` of a study that maximises, or ``evaluate`` several trials at once.

    Args:
        spec: what to train and how to score it.
        device: by default CUDA where there is a device.
        root: folder of the data; see ``load_data``.
        download: fetch missing data through torchvision.
        prune: ask the study's pruner after every evaluation. Off by default, because Optuna's
            default pruner compares early accuracies, which rank robust losses backwards.

    >>> spec = StudySpec(
    ...     name="small", datasets="digits", architectures="mlp2", noise="symmetric:0.4",
    ...     train=200, validation=100, recipe={"epochs": 1}, popsize=4, generations=1,
    ... )
    >>> objective = NoisyLabelObjective(spec, device="cpu")
    >>> import optuna
    >>> study = optuna.create_study(direction="maximize")
    >>> study.optimize(objective, n_trials=1)
    >>> 0 <= study.best_value <= 1
    True

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

    @classmethod
    def from_study(cls, study: Study, **options: Any) -> NoisyLabelObjective:
        """Return the objective of a study that carries its spec; see the class for ``options``.

        Raises:
            ValueError: the study has no spec.

        """
        spec = stored_spec(study, StudySpec)
        if spec is None:
            raise ValueError(
                f"study {study.study_name!r} has no spec yet: open it with one, "
                "open_study(storage, name, spec)"
            )
        return cls(spec, **options)

    def __call__(self, trial: BaseTrial) -> float:
        """Train with the loss that ``trial`` suggests and return its fitness in [0, 1]."""
        (outcome,) = self.evaluate([trial])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def evaluate(self, trials: Sequence[BaseTrial]) -> list[float | Exception]:
        """Train with the losses of several trials, those of one generation as one population.

        Returns:
            for each trial its fitness in [0, 1], or the exception that ended it (also
            ``TrialPruned``), which does not affect the other trials.

        """
        outcomes: dict[int, float | Exception] = {}
        populations: dict[int, dict[int, Parameters]] = defaultdict(dict)  # by seed and position
        for position, trial in enumerate(trials):
            try:
                seed, parameters = self._suggest(trial)
                populations[seed][position] = parameters
            except Exception as error:
                outcomes[position] = error
        for seed, members in populations.items():
            scores = self.scores(
                list(members.values()),
                seed,
                reports=[partial(self._report, trials[position]) for position in members],
                stop_early=True,
            )
            for position, score in zip(members, scores, strict=True):
                try:
                    self._write_score(trials[position], score)
                    outcomes[position] = score.value
                except Exception as error:
                    outcomes[position] = error
        return [outcomes[position] for position in range(len(trials))]

    def _suggest(self, trial: BaseTrial) -> tuple[int, Parameters]:
        """Return the seed of a trial's generation and its loss; write both to the trial."""
        if isinstance(trial, Trial):
            WORKER.write(trial, worker_name())
        parameters = self.spec.space.suggest(trial)
        generation = 0
        if isinstance(trial, Trial):  # its sampler has noted the generation by now
            stored = trial.study._storage.get_trial(trial._trial_id)
            generation = generation_of(stored, self.spec.popsize)
            if stored.params == self.spec.space.start_point:
                START.write(trial, self.spec.start)
        GENERATION.write(trial, generation)
        seed = derive_seed(self.spec.seed, "generation", generation)
        for num_classes in {task.num_classes for task in self.tasks(seed)}:
            parameters.build(num_classes)  # a constant loss raises here and fails this trial only
        return seed, parameters

    def _report(self, trial: BaseTrial, step: int, mean_accuracy: float) -> None:
        trial.report(mean_accuracy, step)
        if self.prune and trial.should_prune():
            raise TrialPruned(f"pruned after {step} steps")

    def _write_score(self, trial: BaseTrial, result: LossScore) -> None:
        """Write the score of every network to the trial; raise what ended its training early."""
        if result.error is not None:
            raise result.error
        for task, score in result.scores.items():
            accuracy_on(task.label).write(trial, score.value)
            if self.spec.score == "best":
                best_epoch_on(task.label).write(trial, score.best_epoch)
        if diverged := [t.label for t, score in result.scores.items() if score.diverged]:
            DIVERGED.write(trial, diverged)
        if stopped := [t.label for t, score in result.scores.items() if score.stopped_at_chance]:
            STOPPED_AT_CHANCE.write(trial, stopped)
        if result.pruned:
            raise TrialPruned("among the worst third of its population")

    def tasks(self, seed: int) -> list[Task]:
        """Every task of the spec, its noise and split drawn from ``seed``; reads the data."""
        return [_prepared(spec, seed, self.root, self.download) for spec in self.spec.tasks]

    def scores(
        self,
        losses: Sequence[Parameters],
        seed: int,
        *,
        reports: Sequence[Report] | None = None,
        stop_early: bool = False,
    ) -> list[LossScore]:
        """Score losses on every task of the spec, with everything random taken from ``seed``.

        Args:
            losses: K of them, trained together.
            seed: of noise, split, initial weights and batch order.
            reports: see ``score_losses``.
            stop_early: stop candidates at chance and prune the worst, as the spec says. By
                default every loss is trained to the end.

        """
        return score_losses(
            self.tasks(seed),
            [parameters.build for parameters in losses],
            seed=seed,
            kind=self.spec.score,
            horizons=self.spec.horizons,
            device=self.device,
            reports=reports,
            stop_at_chance_after=self.spec.stop_at_chance_after if stop_early else None,
            prune_at=self.spec.prune_at if stop_early else (),
        )
