"""A worker, one of any number: asks, evaluates and tells until the study is done."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_robustloss.attributes import START, WORKER
from optuna_robustloss.distributed.lease import (
    LEASE,
    LeaseMonitor,
    fail_stale_trials,
    fail_trial,
    has_lease,
    heartbeat_of,
    lease_keeper,
    machine,
    record_heartbeat,
)
from optuna_robustloss.distributed.trial_io import database_of
from optuna_robustloss.sampler.allocation import GenerationTimeoutError, SearchFinished
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.study import enqueue_start, finished_study, trials_done

_logger = logging.getLogger(__name__)
OnTrial = Callable[[Study, FrozenTrial], None]


def run_worker(
    study: Study,
    objective: NoisyLabelObjective,
    *,
    n_trials: int | None = None,
    candidates: int = 1,
    on_trial: OnTrial | None = None,
    lease: float = LEASE,
) -> None:
    """Evaluate trials of ``study`` until its workers have done the spec's number of them.

    Renews the leases of its trials, fails stale trials of other workers, and drops a result if its
    own trial was failed meanwhile. ``KeyboardInterrupt`` fails the running trials, whose
    candidates are drawn again, and is raised again; finished trials are kept.

    Args:
        study: opened by ``create_study`` or ``open_study``.
        objective: with the study's spec.
        n_trials: stop after this many trials of this worker.
        candidates: trials to ask for at once, where so many are free.
        on_trial: called after each of this worker's trials.
        lease: seconds without a heartbeat after which a trial is stale.

    >>> from optuna_robustloss import StudySpec, create_study, open_storage
    >>> spec = StudySpec(
    ...     name="small", datasets="digits", architectures="mlp2", noise="symmetric:0.4",
    ...     train=200, validation=100, recipe={"epochs": 1}, popsize=4, generations=1,
    ... )
    >>> study = create_study(spec, open_storage("sqlite:///:memory:"), "small")
    >>> run_worker(study, NoisyLabelObjective.from_study(study))
    >>> len(study.trials)
    4

    """
    worker = _Worker(study, objective, on_trial, lease)
    worker.reap()
    if finished_study(study, objective.spec):
        return
    objective.tasks(0)  # missing data shows here, before a trial is started
    left = n_trials
    while left is None or left > 0:
        trials = worker.ask(candidates if left is None else min(candidates, left))
        if not trials:
            worker.reap_to_the_end()
            return
        worker.work(trials)
        left = None if left is None else left - len(trials)


class _Worker:
    """The state of one call of ``run_worker``."""

    def __init__(
        self,
        study: Study,
        objective: NoisyLabelObjective,
        on_trial: OnTrial | None,
        lease: float,
    ) -> None:
        self._study = study
        self._objective = objective
        self._on_trial = on_trial
        self._keeper = lease_keeper(lease)
        self._monitor = LeaseMonitor(lease)
        self._storage: BaseStorage = study._storage
        if isinstance(study.sampler, GenerationalCmaEsSampler):
            study.sampler.holds_leases = False  # this worker does
        self._warned = False

    # Trials of other workers

    def reap(self) -> list[FrozenTrial]:
        """Fail the stale running trials of other workers; return their other running trials."""
        if isinstance(self._storage, InMemoryStorage):
            return []
        others = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._warn_of_other_host(trial)
            if _has_lease(trial) and not self._keeper.holds(self._storage, trial._trial_id):
                others.append(trial)
        return fail_stale_trials(self._storage, others, self._monitor)

    def reap_to_the_end(self) -> None:
        """Wait until every running trial has had a new heartbeat or is stale."""
        first = {t.number: heartbeat_of(t) for t in self.reap()}
        while any(first.get(t.number) == heartbeat_of(t) for t in self.reap()):
            time.sleep(min(1.0, self._monitor.lease / 20))

    def _warn_of_other_host(self, trial: FrozenTrial) -> None:
        beat = heartbeat_of(trial)
        database = database_of(self._storage)
        if self._warned or beat is None or database is None or database.engine.name != "sqlite":
            return
        # The first part of a machine's name is its boot; containers of one host share it.
        if beat.machine[:13] != machine()[:13] and abs(time.time() - beat.at) < self._monitor.lease:
            self._warned = True
            warnings.warn(
                f"trial {trial.number} runs on another host, {WORKER.read(trial)}, and "
                "SQLite's locks do not work between hosts: use PostgreSQL, MySQL or a journal file",
                stacklevel=2,
            )

    # Trials of this worker

    def ask(self, count: int) -> list[Trial]:
        """Ask for up to ``count`` trials; none if the study is done."""
        while True:
            self.reap()
            trials: list[Trial] = []
            try:
                for _ in range(self._count(count)):
                    if trials and not self._room():
                        break
                    trials.append(self._ask())
            except SearchFinished:
                pass  # with the trials asked for so far
            except GenerationTimeoutError:
                if not trials:
                    raise  # else another worker has taken the last slot of the batch
            except UpdateFinishedTrialError:  # the lease expired before the trial had begun
                if not trials:
                    continue
            except BaseException:
                self._give_back(trials)
                raise
            return trials

    def _count(self, count: int) -> int:
        """Wait for a free slot; return for how many trials to ask."""
        spec, sampler = self._objective.spec, self._study.sampler
        if isinstance(sampler, GenerationalCmaEsSampler):
            sampler.wait(self._study)  # a worker that only waits needs no trial
            return max(1, min(count, len(sampler.generations(self._study).free())))
        count = min(count, spec.n_trials - trials_done(self._study, spec))
        if count > 0:
            enqueue_start(self._study, spec)  # again, if the first try was interrupted
        return count

    def _room(self) -> bool:
        """Whether a slot is free for one more trial of a batch."""
        sampler = self._study.sampler
        if isinstance(sampler, GenerationalCmaEsSampler):
            return bool(sampler.generations(self._study).free())
        return True

    def _ask(self) -> Trial:
        trial = self._study.ask()
        try:
            if not isinstance(self._storage, InMemoryStorage):
                record_heartbeat(self._storage, trial._trial_id)
            self._keeper.hold(self._storage, trial._trial_id)
        except BaseException:
            self._give_back([trial])
            raise
        return trial

    def work(self, trials: list[Trial]) -> None:
        """Evaluate trials together and tell them all; then raise the first failure."""
        waiting = list(trials)
        failure: Exception | None = None
        try:
            for trial, outcome in zip(trials, self._objective.evaluate(trials), strict=True):
                error = self._tell_outcome(trial, outcome)
                failure = failure or error
                waiting.remove(trial)
        except BaseException:
            self._give_back(waiting)
            raise
        if failure is not None:
            raise failure

    def _tell_outcome(self, trial: Trial, outcome: float | Exception) -> Exception | None:
        """Tell one trial; return its exception if the objective failed."""
        if isinstance(outcome, TrialPruned):
            self._tell(trial, None, TrialState.PRUNED)
        elif isinstance(outcome, UpdateFinishedTrialError):
            if not self._taken_over(trial):
                return outcome
        elif isinstance(outcome, Exception):
            self._tell(trial, None, TrialState.FAIL)
            return outcome
        else:
            self._tell(trial, outcome, None)
        return None

    def _tell(self, trial: Trial, value: float | None, state: TrialState | None) -> None:
        try:
            self._study.tell(trial, value, state)
        except (UpdateFinishedTrialError, ValueError):
            if not self._taken_over(trial, value):
                raise
            return
        self._keeper.release(self._storage, trial._trial_id)
        if self._on_trial is not None:
            self._on_trial(self._study, self._storage.get_trial(trial._trial_id))

    def _taken_over(self, trial: Trial, value: float | None = None) -> bool:
        """Whether another process has finished this trial; its result is dropped then."""
        stored = self._storage.get_trial(trial._trial_id)
        if not stored.state.is_finished():
            return False
        self._keeper.release(self._storage, trial._trial_id)
        if stored.state == TrialState.FAIL or stored.value != value:
            _logger.warning(
                "trial %d was taken over while this worker was away: its result is dropped",
                trial.number,
            )
        return True

    def _give_back(self, trials: list[Trial]) -> None:
        """Fail trials that were not evaluated; the objective does not count as failed."""
        for trial in trials:
            self._keeper.release(self._storage, trial._trial_id)
            fail_trial(self._storage, trial._trial_id)


def _has_lease(trial: FrozenTrial) -> bool:
    """Return whether a running trial has a heartbeat, or was not begun by any worker."""
    begun = trial.params or trial.user_attrs.keys() - {START.key}
    return has_lease(trial) or not begun
