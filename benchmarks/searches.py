"""A sampler with its workers, for a simulation that decides when each of them asks and tells."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.samplers import CmaEsSampler
from optuna.storages import InMemoryStorage

from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.slots import slot_of

DIMENSIONS = 12
LOW, HIGH = -5.0, 5.0
NAMES = [f"x{i:02}" for i in range(DIMENSIONS)]


def suggest(trial: optuna.Trial) -> dict[str, float]:
    return {name: trial.suggest_float(name, LOW, HIGH) for name in NAMES}


@dataclass(frozen=True)
class State:
    """The last generation that CMA-ES has heard of."""

    generation: int
    mean: dict[str, float]


class Search(Protocol):
    """A sampler with its workers."""

    def may_ask(self, worker: int, over: bool) -> bool:
        """Whether a worker asks now, or waits until another one has told; `over` the budget."""

    def ask(self, worker: int) -> optuna.Trial: ...

    def tell(self, worker: int, trial: optuna.Trial, value: float) -> None: ...

    def state(self) -> State: ...

    def finish(self) -> tuple[State, int]:
        """The last state, and the number of evaluations that were told to come to it."""


class Optunas:
    """Optuna's sampler: each worker asks at once."""

    def __init__(self, popsize: int, workers: int, seed: int) -> None:
        self.popsize = popsize
        self.study = optuna.create_study(sampler=CmaEsSampler(popsize=popsize, seed=seed))
        self._number = -1
        self._state = State(0, dict.fromkeys(NAMES, (LOW + HIGH) / 2))

    def may_ask(self, worker: int, over: bool) -> bool:
        return not over

    def ask(self, worker: int) -> optuna.Trial:
        return self.study.ask()

    def tell(self, worker: int, trial: optuna.Trial, value: float) -> None:
        told = self.study.tell(trial, value)
        self._restore(told.number, told.system_attrs)

    def _restore(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Do what every later ask does: the highest finished trial with an optimiser counts."""
        parts = [k for k in attributes if k.startswith("cma:optimizer:")]
        if parts and number > self._number:
            self._number = number
            text = "".join(attributes[f"cma:optimizer:{i}"] for i in range(len(parts)))
            cma = pickle.loads(bytes.fromhex(text))
            mean = LOW + (HIGH - LOW) * cma.mean
            self._state = State(cma.generation, dict(zip(NAMES, mean, strict=True)))

    def state(self) -> State:
        return self._state

    def finish(self) -> tuple[State, int]:
        trial = self.study.ask()  # a full generation is told by the next ask only
        suggest(trial)
        asked = self.study.get_trials(deepcopy=False)[trial.number]
        self._restore(asked.number, asked.system_attrs)
        return self._state, self._state.generation * self.popsize


class Generational:
    """Ours, with a sampler object for each worker as in processes of their own."""

    def __init__(self, popsize: int, workers: int, seed: int) -> None:
        self.popsize = popsize
        storage = InMemoryStorage()
        name = optuna.create_study(storage=storage).study_name
        # A worker that had to wait for real time would wait for ever.
        options = {"seed": seed, "max_wait": 1e-9}
        self.studies = [
            optuna.load_study(
                study_name=name,
                storage=storage,
                sampler=GenerationalCmaEsSampler(popsize, **options),
            )
            for _ in range(workers)
        ]

    def _generations(self, worker: int) -> Any:
        study = self.studies[worker]
        return study.sampler.generations(study)

    def may_ask(self, worker: int, over: bool) -> bool:
        now = self._generations(worker)
        free = len(now.free())
        if over and free == self.popsize:  # no generation is begun
            return False
        return free > 0

    def ask(self, worker: int) -> optuna.Trial:
        return self.studies[worker].ask()

    def tell(self, worker: int, trial: optuna.Trial, value: float) -> None:
        self.studies[worker].tell(trial, value)

    def state(self) -> State:
        now = self._generations(0)
        mean = now.means[-1] if now.means else dict.fromkeys(NAMES, (LOW + HIGH) / 2)
        return State(now.number, mean)

    def finish(self) -> tuple[State, int]:
        state = self.state()
        slots = map(slot_of, self.studies[0].get_trials(deepcopy=False))
        return state, sum(1 for s in slots if s is not None and s.generation < state.generation)


SAMPLERS: dict[str, Callable[[int, int, int], Search]] = {
    "CmaEsSampler": Optunas,
    "GenerationalCmaEsSampler": Generational,
}
