"""Work on a benchmark: claim runs, train them, store their results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study

from optuna_robustloss.attributes import ERROR
from optuna_robustloss.benchmark.rows import run_of
from optuna_robustloss.benchmark.runs import Run, RunResult
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import (
    claim_run,
    open_benchmark,
    open_runs,
    store_result,
)
from optuna_robustloss.benchmark.trainings import Options, population_key, train_runs
from optuna_robustloss.distributed.lease import (
    LeaseMonitor,
    fail_stale_trials,
    fail_trial,
    lease_keeper,
)
from optuna_robustloss.distributed.storage import open_storage

_logger = logging.getLogger(__name__)

#: Seconds between two checks of the runs that other workers have claimed.
_POLL = 1.0


def run_benchmark(
    study: Study,
    spec: BenchmarkSpec,
    runs: Sequence[Run],
    options: Options | None = None,
    *,
    on_run: Callable[[], None] = lambda: None,
) -> dict[Run, str]:
    """Train until all ``runs`` are done, here or by other workers on the same study.

    Runs of dead workers are claimed again. A run whose training raises an error carries the error
    and is tried again by the next call only.

    Args:
        study: of the benchmark.
        spec: with which it was created.
        runs: in the order in which they are claimed.
        options: device, data, lease and number of runs side by side.
        on_run: called after each result that this worker stored.

    Returns:
        the runs that failed here, with their errors.

    """
    worker = _Worker(study, spec, options or Options(), on_run)
    while worker.step(runs):
        pass
    return worker.failed


@dataclass
class _Worker:
    study: Study
    spec: BenchmarkSpec
    options: Options
    on_run: Callable[[], None]
    failed: dict[Run, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._storage: BaseStorage = self.study._storage
        self._monitor = LeaseMonitor(self.options.lease)
        self._keeper = lease_keeper(self.options.lease)
        self._held: dict[Run, int] = {}

    def step(self, runs: Sequence[Run]) -> bool:
        """Train some runs or wait for other workers; return whether runs are left."""
        free, running = open_runs(self.study, runs)
        free = [run for run in free if run not in self.failed]
        if len(fail_stale_trials(self._storage, running, self._monitor)) < len(running):
            return True
        if not free and not running:
            return False
        if not free:
            time.sleep(_POLL)
            return True
        try:
            busy = [run for trial in running if (run := run_of(trial)) is not None]
            self._claim(choose_runs(free, busy, self.options.together))
            if self._held:
                self._train(list(self._held))
        finally:
            for trial_id in self._held.values():  # after an error or Ctrl-C
                self._keeper.release(self._storage, trial_id)
                fail_trial(self._storage, trial_id)
            self._held.clear()
        return True

    def _claim(self, runs: Sequence[Run]) -> None:
        for run in runs:
            trial_id = claim_run(self.study, self.spec, run)
            if trial_id is None:
                return  # another worker was faster: choose again
            self._held[run] = trial_id
            self._keeper.hold(self._storage, trial_id)

    def _train(self, runs: list[Run]) -> None:
        """Train claimed runs and store their results; raise errors of the storage only."""
        failure: Exception | None = None
        try:
            found = train_runs(self.spec, runs, self.options)
        except Exception as error:
            failure = error
        if failure is None:
            self._store(found)
        elif len(runs) == 1:
            self._mark(runs[0], failure)
        else:
            for run in runs:  # one by one, to find which of them fails
                self._train([run])

    def _store(self, results: Sequence[RunResult]) -> None:
        for result in results:
            trial_id = self._held[result.run]
            try:
                store_result(self.study, trial_id, result)
            except UpdateFinishedTrialError:
                _logger.warning("another worker has claimed the run since: %s", result.run)
            self._release(result.run)
            self.on_run()

    def _release(self, run: Run) -> None:
        self._keeper.release(self._storage, self._held.pop(run))

    def _mark(self, run: Run, error: Exception) -> None:
        """Fail a run whose training raised an error."""
        text = f"{type(error).__name__}: {error}"
        self.failed[run] = text
        trial_id = self._held[run]
        try:
            self._storage.set_trial_user_attr(trial_id, ERROR.key, text)
        except UpdateFinishedTrialError:
            pass
        fail_trial(self._storage, trial_id)
        self._release(run)
        _logger.warning("%s on %s failed: %s", run.method, run.task, text)


def choose_runs(free: Sequence[Run], running: Sequence[Run], count: int) -> list[Run]:
    """Return up to ``count`` free runs of the first task and seed that no worker has claimed."""
    busy = {population_key(run) for run in running}
    first = next((run for run in free if population_key(run) not in busy), free[0])
    return [run for run in free if population_key(run) == population_key(first)][:count]


@dataclass(frozen=True)
class BenchmarkJob:
    """The work of one process on the study of a benchmark, which carries its spec."""

    storage: str = field(repr=False)
    study_name: str
    set_up: Callable[[], None]
    """Called first, in a fresh process; makes SIGTERM raise ``KeyboardInterrupt``."""
    runs: Sequence[Run]
    options: Options

    def run(self) -> None:
        """Work on the benchmark in this process."""
        study, spec = open_benchmark(open_storage(self.storage, wait=True), self.study_name)
        run_benchmark(study, spec, self.runs, self.options)
