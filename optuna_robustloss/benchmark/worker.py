"""Works on a benchmark: claims cells, trains them, tells what came of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_robustloss.attributes import ERROR
from optuna_robustloss.benchmark.runs import Outcome, Run
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import (
    cell_of,
    claim,
    open_benchmark,
    open_cells,
    tell,
)
from optuna_robustloss.benchmark.trainings import Options, train_cells, unit
from optuna_robustloss.distributed.lease import (
    LeaseMonitor,
    fail_stale_trials,
    fail_trial,
    lease_keeper,
)
from optuna_robustloss.distributed.storage import open_storage

_logger = logging.getLogger(__name__)

#: Seconds between two looks at the cells that other workers are at.
_POLL = 1.0


def run_cells(
    study: Study,
    spec: BenchmarkSpec,
    cells: Sequence[Run],
    options: Options | None = None,
    *,
    on_cell: Callable[[], None] = lambda: None,
) -> dict[Run, str]:
    """Train until all ``cells`` are done, whoever does them; any number of workers may.

    Runs of workers that are gone are done again. A method that raises an error leaves the others
    as they are; its cell is marked, and tried again by the next call only.

    Args:
        study: of the benchmark.
        spec: with which it was created.
        cells: what is to be done, in this order.
        options: how.
        on_cell: called whenever a cell of ours was told.

    Returns:
        the cells that failed here, with their errors.

    """
    worker = _Worker(study, spec, options or Options(), on_cell)
    while worker.step(cells):
        pass
    return worker.failed


@dataclass
class _Worker:
    study: Study
    spec: BenchmarkSpec
    options: Options
    on_cell: Callable[[], None]
    failed: dict[Run, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._storage: BaseStorage = self.study._storage
        self._monitor = LeaseMonitor(self.options.lease)
        self._keeper = lease_keeper(self.options.lease)
        self._held: dict[Run, int] = {}

    def step(self, cells: Sequence[Run]) -> bool:
        """Train some cells or wait for other workers; return whether anything is left."""
        free, running = open_cells(self.study, cells)
        free = [cell for cell in free if cell not in self.failed]
        if self._reap(running):
            return True
        if not free and not running:
            return False
        if not free:
            time.sleep(_POLL)
            return True
        try:
            self._claim(chosen(free, [cell_of(trial) for trial in running], self.options.together))
            if self._held:
                self._train()
        finally:
            for trial_id in self._held.values():  # after an error or Ctrl-C
                self._keeper.release(self._storage, trial_id)
                fail_trial(self._storage, trial_id)
            self._held.clear()
        return True

    def _reap(self, running: Sequence[FrozenTrial]) -> bool:
        """Fail the trials whose workers are gone; return whether there were any."""
        return len(fail_stale_trials(self._storage, running, self._monitor)) < len(running)

    def _claim(self, cells: Sequence[Run]) -> None:
        for cell in cells:
            trial_id = claim(self.study, self.spec, cell)
            if trial_id is None:
                return  # somebody else is at the same cells: choose again
            self._held[cell] = trial_id
            self._keeper.hold(self._storage, trial_id)

    def _train(self) -> None:
        """Train what is held, and tell it; trouble of the storage is raised, not a method's."""
        cells = list(self._held)
        try:
            found = self._outcomes(cells)
        except Exception as error:
            if len(cells) == 1:
                self._mark(cells[0], error)
                return
        else:
            self._tell(found)
            return
        for cell in cells:  # which of them is it?
            try:
                found = self._outcomes([cell])
            except Exception as error:
                self._mark(cell, error)
            else:
                self._tell(found)

    def _outcomes(self, cells: Sequence[Run]) -> list[Outcome]:
        return train_cells(self.spec, cells, self.options)

    def _tell(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            trial_id = self._held[outcome.cell]
            try:
                tell(self.study, trial_id, outcome)
            except UpdateFinishedTrialError:
                _logger.warning(
                    "a cell was taken over while this worker was away: %s", outcome.cell
                )
            self._release(outcome.cell)
            self.on_cell()

    def _release(self, cell: Run) -> None:
        self._keeper.release(self._storage, self._held.pop(cell))

    def _mark(self, cell: Run, error: Exception) -> None:
        """Fail a cell by its own fault."""
        text = f"{type(error).__name__}: {error}"
        self.failed[cell] = text
        trial_id = self._held[cell]
        try:
            self._storage.set_trial_user_attr(trial_id, ERROR.key, text)
        except UpdateFinishedTrialError:
            pass
        fail_trial(self._storage, trial_id)
        self._release(cell)
        _logger.warning("%s on %s failed: %s", cell.method, cell.task, text)


def chosen(free: Sequence[Run], running: Sequence[Run], count: int) -> list[Run]:
    """Return up to ``count`` free cells to be trained together.

    Those of the first task and seed that nobody is at, so that workers rarely want the same.
    """
    busy = {unit(cell) for cell in running}
    first = next((cell for cell in free if unit(cell) not in busy), free[0])
    return [cell for cell in free if unit(cell) == unit(first)][:count]


@dataclass(frozen=True)
class BenchmarkJob:
    """What a worker process is told; the study has its spec already."""

    storage: str = field(repr=False)
    study_name: str
    set_up: Callable[[], None]
    """Called first, in a fresh process; makes SIGTERM raise ``KeyboardInterrupt``."""
    cells: Sequence[Run]
    options: Options

    def run(self) -> None:
        """Work on the benchmark in this process."""
        study, spec = open_benchmark(open_storage(self.storage), self.study_name)
        run_cells(study, spec, self.cells, self.options)
