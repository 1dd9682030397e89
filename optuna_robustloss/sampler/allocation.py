"""The allocation of slots: a trial claims a free one, or waits for the next generation."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_robustloss.distributed.lease import (
    LeaseKeeper,
    LeaseMonitor,
    current_heartbeat,
    fail_stale_trials,
)
from optuna_robustloss.distributed.trial_io import write_trial
from optuna_robustloss.sampler.replay import Generations
from optuna_robustloss.sampler.slots import NO_CLAIM, Slot

#: Leaves the state of ``random`` unchanged, and forked workers draw different numbers.
_random = random.SystemRandom()

#: Seconds between two readings of a full generation: a tenth of the time waited, within these.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 5.0
#: Seconds for which a claim may rely on the last reading; another one verifies it.
_RECENT = 1.0
#: Seconds for which the lower of two trial numbers waits for the higher to withdraw its claim.
_CONTEST = 1.0


class SearchFinished(RuntimeError):
    """All generations that the sampler was limited to are complete."""


class GenerationTimeoutError(TimeoutError):
    """A generation did not become complete within ``max_wait``, or never can."""


@dataclass
class SlotAllocator:
    """Allocates the slots of a study's generations to its trials.

    Args:
        study: whose trials are read.
        generations: replayed from them.
        keeper: of this process's leases.
        monitor: of the other processes' leases.
        max_wait: see ``GenerationalCmaEsSampler``.
        limit: its ``generations``.
        held: returns the numbers of the calling thread's unfinished trials.

    """

    study: Study
    generations: Generations
    keeper: LeaseKeeper
    monitor: LeaseMonitor
    max_wait: float
    limit: int | None
    held: Callable[[], Iterable[int]]
    lock: threading.RLock = field(default_factory=threading.RLock)
    _read_at: float = -math.inf

    @property
    def _storage(self) -> BaseStorage:
        return self.study._storage

    def read(self) -> Generations:
        """Replay new trials into ``generations``, and fail the stale trials that hold a slot."""
        with self.lock:  # reading too: an older reading must not come after a newer one
            trials = self._storage.get_all_trials(self.study._study_id, deepcopy=False)
            if len(trials) < self.generations.trials_read:  # a new study with the same id
                self.generations = Generations(self.generations.config, self.study.direction)
            self.generations.update(trials)
            self._read_at = time.monotonic()
            running = [t for trials in self.generations.running.values() for t in trials]
        if not isinstance(self._storage, InMemoryStorage):
            others = [t for t in running if not self.keeper.holds(self._storage, t._trial_id)]
            fail_stale_trials(self._storage, others, self.monitor)
        return self.generations

    def allocate(self, trial: FrozenTrial) -> Slot | None:
        """Claim a slot for ``trial``, and return it, or None.

        None for an enqueued trial that would wait for other trials of its own thread.

        Raises:
            SearchFinished: see ``GenerationalCmaEsSampler``.
            GenerationTimeoutError: the generation did not become complete in time.

        """
        enqueued = "fixed_params" in trial.system_attrs or bool(trial.params)
        preferred: int | None = trial.number % self.generations.config.popsize
        while True:
            slot = self.wait(enqueued=enqueued, preferred=preferred)
            if slot is None or self._bid(trial, slot):
                return slot
            preferred = None

    def wait(self, *, enqueued: bool = False, preferred: int | None = None) -> Slot | None:
        """Wait for a free slot, and return it, or None as in ``allocate``.

        ``preferred`` is the index to begin with: it differs between trials asked for at once.
        """
        begin = time.monotonic()
        with self.lock:
            if begin - self._read_at < _RECENT and self.generations.free():
                choice = self._choose(enqueued, preferred)
                if choice != "wait":
                    return choice
        while True:
            self.read()
            with self.lock:
                choice = self._choose(enqueued, preferred)
            if choice != "wait":
                return choice
            waited = time.monotonic() - begin
            if waited > self.max_wait:
                raise GenerationTimeoutError(self._timeout_message())
            pause = min(max(0.1 * waited, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            time.sleep(pause * _random.uniform(0.5, 1.5))

    def _choose(self, enqueued: bool, preferred: int | None) -> Slot | Literal["wait"] | None:
        generations = self.generations
        if self.limit is not None and generations.number >= self.limit:
            raise SearchFinished(
                f"study {self.study.study_name!r}: all {self.limit} generations are complete"
            )
        if free := generations.free():
            if preferred is None:
                return _random.choice(free)
            popsize = generations.config.popsize
            return min(free, key=lambda slot: (slot.index - preferred) % popsize)
        running = {t.number for trials in generations.running.values() for t in trials}
        own = sorted(running.intersection(self.held()))
        if own and enqueued:
            return None
        if own:  # this thread would wait for itself
            raise GenerationTimeoutError(
                f"study {self.study.study_name!r}: this thread asks for a trial beyond "
                f"popsize={generations.config.popsize} and has not told its trials {own}, which "
                f"generation {generations.number} waits for. Tell their values first, or "
                "study.tell(NUMBER, state=TrialState.FAIL), or take a greater popsize"
            )
        return "wait"

    def _bid(self, trial: FrozenTrial, slot: Slot) -> bool:
        """Claim ``slot``; return whether no other trial had claimed it."""
        claim = slot.claim(trial.number, self.generations.config.key)
        attributes = current_heartbeat().attribute() | claim
        write_trial(self._storage, trial._trial_id, {}, {}, attributes)
        deadline = time.monotonic() + _CONTEST
        while True:
            verdict = self._verdict(trial, slot)
            if verdict == "held":
                return True
            if verdict == "lost" or time.monotonic() > deadline:
                write_trial(self._storage, trial._trial_id, {}, {}, NO_CLAIM)
                return False
            time.sleep(_random.uniform(0.005, 0.03))

    def _verdict(self, trial: FrozenTrial, slot: Slot) -> Literal["held", "lost", "contested"]:
        self.read()
        with self.lock:
            generations = self.generations
            if slot.generation != generations.number or generations.is_exhausted(slot.index):
                return "lost"
            others = [t for t in generations.claims(slot.index) if t.number != trial.number]
        if not others:
            return "held"
        if any(t.state.is_finished() or t.number < trial.number for t in others):
            return "lost"
        return "contested"

    def _timeout_message(self) -> str:
        generations = self.generations
        running = sorted(t.number for t in generations.waits_for())
        return (
            f"study {self.study.study_name!r}: waited {self.max_wait:.0f} s for generation "
            f"{generations.number}: all popsize={generations.config.popsize} slots are taken, and "
            f"trials {running} still run. Start no more workers than popsize, take a greater "
            "popsize in a new study, or raise max_wait"
        )
