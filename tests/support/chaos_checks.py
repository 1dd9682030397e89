"""What drives workers through a study, and what must hold when they are done."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.study import Study
from optuna.trial import TrialState

from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.slots import Slot, objective_failed, slot_of
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import create_study, read_generations
from optuna_robustloss.search.worker import run_worker
from support.chaos import CheapObjective, Worker, Zygote
from support.waiting import LIMIT

#: How workers may die; "" is for a signal from outside, at any moment.
DEATHS = {"": (0, 0), "asked": (1, 2), "done": (1, 2), "sql": (1, 150)}


@dataclass
class WorkerGroup:
    """A number of workers on one study; those that are killed are replaced.

    Args:
        zygotes: take turns.
        order: of each worker; `hosts` names of which each worker gets one, to be seen from others.
        kills: at least so many workers die by SIGKILL, at moments taken from `seed`.
        deaths: of DEATHS.

    """

    zygotes: Sequence[Zygote]
    order: dict[str, Any]
    hosts: Sequence[str] = ("",)
    kills: int = 0
    deaths: Sequence[str] = tuple(DEATHS)
    seed: int = 0
    workers: list[Worker] = field(default_factory=list)
    killed: int = 0
    #: No worker is started now, and one that cannot open the database will be started again.
    outage: bool = False
    _waiting: int = 0
    _doomed: list[Worker] = field(default_factory=list)
    _counted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def start(self, **order: Any) -> Worker:
        """Start one more worker."""
        number = len(self.workers)
        if self.killed < self.kills and "fate" not in order:
            kind = self._rng.choice(self.deaths)
            order["fate"] = [kind, self._rng.randint(*DEATHS[kind])]
        order = {"host": self.hosts[number % len(self.hosts)]} | self.order | order
        zygote = self.zygotes[number % len(self.zygotes)]
        worker = zygote.start("work", seed=self._rng.randrange(2**32), **order)
        self.workers.append(worker)
        if order.get("fate", [])[:1] == [""] and self.killed < self.kills:
            self._doomed.append(worker)
        return worker

    def run(self, each: Callable[[WorkerGroup], None] = lambda _: None) -> None:
        """Wait until all are done; `each` is called from time to time."""
        end = time.monotonic() + LIMIT
        while self._waiting or any(w.code is None for w in self.workers):
            if time.monotonic() > end:
                logs = [w.log()[-800:] for w in self.workers if w.code is None]
                raise TimeoutError("\n\n".join([f"{len(logs)} workers are still there", *logs]))
            for index, worker in enumerate(self.workers):
                if worker.code is not None and index not in self._counted:
                    self._counted.add(index)
                    if worker.code == -signal.SIGKILL:
                        self.killed += 1
                        self._waiting += 1
                    elif self.outage and worker.code == 1 and "cannot open the" in worker.log():
                        worker.code = 0
                        self._waiting += 1
            while self._waiting and not self.outage:
                self._waiting -= 1
                self.start()
            self._doomed = [w for w in self._doomed if w.code is None]
            if self._doomed and self._rng.random() < 0.05:
                self._doomed.pop(self._rng.randrange(len(self._doomed))).send(signal.SIGKILL)
            each(self)
            time.sleep(0.05)

    def check(self) -> None:
        """All that were not killed have ended well."""
        wrong = [w for w in self.workers if w.code not in (0, -signal.SIGKILL)]
        assert not wrong, "\n\n".join(f"exit code {w.code}:\n{w.log()[-3000:]}" for w in wrong)
        assert self.killed >= self.kills

    def took_over(self, number: int) -> bool:
        """Return whether any worker logged that the trial of another one is stale."""
        return any(f"trial {number} is stale" in w.log() for w in self.workers)


def evaluated(worker: Worker) -> list[int]:
    """Return the numbers of the trials whose evaluation a worker began."""
    return [int(n) for n in re.findall(r"evaluates trial (\d+)", worker.log())]


@lru_cache
def undisturbed(spec_json: str) -> tuple[bytes, ...]:
    """Return the last state of one undisturbed worker in memory."""
    spec = StudySpec.model_validate_json(spec_json)
    study = create_study(spec, optuna.storages.InMemoryStorage(), "undisturbed")
    run_worker(study, CheapObjective(spec))
    return state(study)


def state(study: Study) -> tuple[bytes, ...]:
    """Return the optimiser's state as any process replays it."""
    generations = read_generations(study)
    assert generations is not None
    assert generations.optimizer is not None
    return generations.optimizer.state


def check_study(url: str, name: str, spec: StudySpec, patience: float = 60) -> Study:
    """Check what must hold in a finished study, however its workers fared, and return it."""
    study = optuna.load_study(storage=open_storage(url, patience=patience), study_name=name)
    trials = study.get_trials(deepcopy=False)
    assert [t.number for t in trials] == list(range(len(trials)))
    unfinished = [t for t in trials if not t.state.is_finished()]
    assert not unfinished
    assert not [t.number for t in trials if objective_failed(t)]
    generations = read_generations(study)
    assert generations is not None
    assert generations.number == len(generations.told) == spec.generations
    for number, told in enumerate(generations.told):
        claimed = [slot_of(t, generations.config.key) for t in told]
        assert claimed == [Slot(number, index) for index in range(spec.popsize)]
        assert all(t.state == TrialState.COMPLETE for t in told)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    told_trials = sorted(t.number for told in generations.told for t in told)
    assert told_trials == [t.number for t in complete]
    assert state(study) == undisturbed(spec.model_dump_json())
    return study


def stored_text(url: str) -> dict[str, list[str]]:
    """Return every value of every column that may hold text, by table and column."""
    engine = sa.create_engine(url)
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            for column in sa.inspect(engine).get_columns(table):
                name = column["name"]
                query = sa.text(f'SELECT CAST("{name}" AS text) FROM "{table}"')
                values = connection.execute(query).scalars()
                found[f"{table}.{name}"] = [v for v in values if v is not None]
    engine.dispose()
    return found
