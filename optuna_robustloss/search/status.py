"""The status of a study: its workers, its progress and the time left."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.attributes import WORKER
from optuna_robustloss.distributed.lease import LEASE, heartbeat_of
from optuna_robustloss.sampler.replay import Generations
from optuna_robustloss.search.objective import generation_of
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import replay, trials_done

#: Evaluations per hour are counted over so many last ones.
_RECENT = 100


@dataclass(frozen=True)
class Status:
    """The status of a study at one moment.

    ``workers`` has the running trials of each worker with a heartbeat within the lease, by
    the worker's clock; ``stale`` the running trials without one, which the next ask fails.
    A worker that waits for a generation has no trial and is not listed.
    """

    study: str
    done: int
    total: int
    generation: int
    generations: int
    popsize: int
    slots_done: int
    slots_running: int
    slots_stale: int
    states: Mapping[str, int]
    per_hour: float | None
    left: timedelta | None
    workers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stale: tuple[int, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all trials are done."""
        return self.done >= self.total


def status_of(study: Study, spec: StudySpec, *, lease: float = LEASE) -> Status:
    """Read the status of ``study``, without changing its storage.

    ``lease`` is the number of seconds without a heartbeat after which a trial counts as stale.
    """
    trials = study.get_trials(deepcopy=False)
    running = [t for t in trials if t.state == TrialState.RUNNING]
    workers: dict[str, list[int]] = defaultdict(list)
    stale = []
    for trial in running:
        beat = heartbeat_of(trial)
        if beat is None or time.time() - beat.at > lease:
            stale.append(trial.number)
        else:
            name = WORKER.read(trial) or f"{beat.machine}:{beat.pid}"
            workers[str(name)].append(trial.number)
    generations = replay(study) if spec.sampler == "generational" else None
    done = trials_done(study, spec) if generations is None else generations.filled
    per_hour = _per_hour(trials)
    left = timedelta(hours=max(0, spec.n_trials - done) / per_hour) if per_hour else None
    before = spec.n_trials - spec.popsize * spec.generations  # the start loss, of Optuna's
    generation, in_slots = _present_generation(generations, spec, trials, running, done)
    return Status(
        study=study.study_name,
        done=done,
        total=spec.n_trials,
        generation=generation,
        generations=spec.generations,
        popsize=spec.popsize,
        slots_done=min(max(0, done - before - generation * spec.popsize), spec.popsize),
        slots_running=len(in_slots - set(stale)),
        slots_stale=len(in_slots & set(stale)),
        states={s.name: sum(t.state == s for t in trials) for s in TrialState},
        per_hour=per_hour,
        left=left,
        workers={w: tuple(n) for w, n in sorted(workers.items())},
        stale=tuple(stale),
    )


def _present_generation(
    generations: Generations | None,
    spec: StudySpec,
    trials: Sequence[FrozenTrial],
    running: Sequence[FrozenTrial],
    done: int,
) -> tuple[int, set[int]]:
    """Return the generation under way, and the numbers of the trials that run in it."""
    if generations is not None:
        return generations.number, {t.number for t in generations.waits_for()}
    last = max((generation_of(t, spec.popsize) for t in trials), default=0)
    return min(last, max(0, done - 1) // spec.popsize), {t.number for t in running}


def _per_hour(trials: Sequence[FrozenTrial]) -> float | None:
    """Evaluations per hour: the last ones, up to this moment."""
    ended = sorted(
        t.datetime_complete
        for t in trials
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.datetime_complete
    )[-_RECENT:]
    if len(ended) < 2:
        return None
    hours = (datetime.now() - ended[0]).total_seconds() / 3600
    return (len(ended) - 1) / hours if hours > 0 else None
