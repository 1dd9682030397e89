"""How a trial comes by a slot: it bids, gives way, waits for the generation, or repeats."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_robustloss.distributed.lease import Heartbeat, Watch, fail, now
from optuna_robustloss.distributed.trial_io import write_trial
from optuna_robustloss.sampler.replay import Generations
from optuna_robustloss.sampler.slots import NO_CLAIM, Slot

#: The user's own random numbers stay theirs, and forked workers do not share ours.
_random = random.SystemRandom()

Surplus = Literal["wait", "replicate"]
_logger = logging.getLogger(__name__)

#: Seconds between two looks at a generation that is full: a tenth of the time waited, in between.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 5.0
#: So often are candidates repeated for a thread that asks and never tells.
_MOST_ROUNDS = 100
#: Seconds for which a bid may rely on what was read; it is verified by another reading.
_RECENT = 1.0
#: Seconds the lower of two trial numbers waits for the higher to give way on a slot.
_GIVE_WAY = 1.0


class SearchFinished(RuntimeError):
    """All generations that the sampler was told to run are complete."""


class GenerationTimeoutError(TimeoutError):
    """A generation did not become complete within ``max_wait``."""


@dataclass
class SlotTaker:
    """Gives the trials of one study their slots.

    Args:
        study: of which all trials are read.
        generations: what they say.
        heartbeat: of this process.
        watch: over the other processes' trials.
        surplus: see ``GenerationalCmaEsSampler``, as ``max_wait`` and ``limit``.
        held: returns the numbers of the calling thread's unfinished trials.

    """

    study: Study
    generations: Generations
    heartbeat: Heartbeat
    watch: Watch
    surplus: Surplus
    max_wait: float
    limit: int | None
    held: Callable[[], Iterable[int]]
    lock: threading.RLock = field(default_factory=threading.RLock)
    _warned: bool = False
    _read_at: float = -math.inf

    @property
    def _storage(self) -> BaseStorage:
        return self.study._storage

    def read(self) -> Generations:
        """Bring ``generations`` up to date.

        On the way trials of lost workers are failed, and repetitions that are late are let go.
        """
        with self.lock:  # reading too: an older reading must not come after a newer one
            self._update()
            while late := self.generations.late():
                for slot, trial in late:
                    self._let_go(slot, trial)
                self._update()
            running = [t for owners in self.generations.running.values() for t in owners]
        if not isinstance(self._storage, InMemoryStorage):
            self._fail_stale(running)
        return self.generations

    def _update(self) -> None:
        trials = self._storage.get_all_trials(self.study._study_id, deepcopy=False)
        if len(trials) < self.generations.seen:  # a new study with the old one's number
            self.generations = Generations(self.generations.definition, self.study.direction)
        self.generations.update(trials)
        self._read_at = time.monotonic()

    def _let_go(self, slot: Slot, trial: FrozenTrial) -> None:
        """End a running trial's claim on a slot: its value will not be told."""
        with suppress(UpdateFinishedTrialError):  # it has just ended, and will be told
            write_trial(self._storage, trial._trial_id, {}, {}, slot.let_go)

    def _fail_stale(self, running: Iterable[FrozenTrial]) -> None:
        for trial in running:
            if self.heartbeat.holds(self._storage, trial._trial_id):
                continue
            if self.watch.stale(trial) and fail(self._storage, trial._trial_id):
                _logger.warning(
                    "trial %d gave no sign of life for its lease: its slot is free", trial.number
                )

    def take(self, trial: FrozenTrial) -> Slot | None:
        """Return the slot that ``trial`` holds from now on, or None if it takes none.

        An enqueued trial that its own thread would have to wait for takes none.

        Raises:
            SearchFinished: see ``GenerationalCmaEsSampler``.
            GenerationTimeoutError: the generation did not become complete in time.

        """
        fixed = "fixed_params" in trial.system_attrs or bool(trial.params)
        favourite: int | None = trial.number % self.generations.definition.popsize
        while True:
            slot = self.wait(fixed=fixed, favourite=favourite)
            if slot is None or self._bid(trial, slot):
                return slot
            favourite = None

    def wait(self, *, fixed: bool = False, favourite: int | None = None) -> Slot | None:
        """Wait until there is a slot to bid for, and return it; or None, see ``take``.

        ``favourite`` keeps trials with neighbouring numbers out of each other's way.
        """
        begin = time.monotonic()
        with self.lock:
            if begin - self._read_at < _RECENT and self.generations.free():
                choice = self._choose(fixed, favourite)
                if choice != "wait":
                    return choice
        while True:
            self.read()
            with self.lock:
                choice = self._choose(fixed, favourite)
            if choice != "wait":
                return choice
            waited = time.monotonic() - begin
            if waited > self.max_wait:
                raise GenerationTimeoutError(self._why_it_waits())
            pause = min(max(0.1 * waited, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            time.sleep(pause * _random.uniform(0.5, 1.5))

    def _choose(self, fixed: bool, favourite: int | None) -> Slot | Literal["wait"] | None:
        now_ = self.generations
        if self.limit is not None and now_.number >= self.limit:
            raise SearchFinished(
                f"study {self.study.study_name!r}: all {self.limit} generations are complete"
            )
        if free := now_.free():
            if favourite is None:
                return _random.choice(free)
            return min(free, key=lambda slot: (slot.index - favourite) % now_.definition.popsize)
        under_way = {t.number for owners in now_.running.values() for t in owners}
        mine = [n for n in self.held() if n in under_way]
        if fixed:
            return None if mine else "wait"
        waits_for = now_.waits_for()
        if mine:
            self._warn_of_batch()
            slot = self._replicate()
            if slot != "wait" and slot.replicate > _MOST_ROUNDS:
                raise GenerationTimeoutError(
                    f"study {self.study.study_name!r}: this thread has asked for trials {mine} and "
                    f"asks for more instead of telling: generation {now_.number} waits for them. "
                    "Tell their values, or study.tell(NUMBER, state=TrialState.FAIL)"
                )
            return slot
        if self.surplus == "replicate" and 2 * len(waits_for) >= now_.definition.popsize:
            return self._replicate()
        return "wait"

    def _replicate(self) -> Slot | Literal["wait"]:
        nearest: list[Slot] = []
        for slot in self.generations.replicates():
            if nearest and slot.replicate > nearest[0].replicate:
                break
            nearest.append(slot)
        return _random.choice(nearest) if nearest else "wait"

    def _bid(self, trial: FrozenTrial, slot: Slot) -> bool:
        """Claim a slot; return whether it is ours."""
        claim = slot.attribute(trial.number, self.generations.definition.key)
        write_trial(self._storage, trial._trial_id, {}, {}, now().attribute() | claim)
        deadline = time.monotonic() + _GIVE_WAY
        while True:
            verdict = self._verdict(trial, slot)
            if verdict == "ours":
                return True
            if verdict == "lost" or time.monotonic() > deadline:
                write_trial(self._storage, trial._trial_id, {}, {}, NO_CLAIM)
                return False
            time.sleep(_random.uniform(0.005, 0.03))

    def _verdict(self, trial: FrozenTrial, slot: Slot) -> Literal["ours", "lost", "contested"]:
        self.read()
        with self.lock:
            now_ = self.generations
            if slot.generation != now_.number or now_.exhausted(slot.index):
                return "lost"
            if slot.replicate and not now_.waits_for():
                return "lost"  # the generation may be closed by now
            others = [t for t in now_.claims(slot) if t.number != trial.number]
        if not others:
            return "ours"
        if any(t.state.is_finished() or t.number < trial.number for t in others):
            return "lost"
        return "contested"

    def _warn_of_batch(self) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "more trials were asked for than a generation of popsize=%d has free: the others "
                "repeat candidates, and the averages are told; a greater popsize would draw more",
                self.generations.definition.popsize,
            )

    def _why_it_waits(self) -> str:
        now_ = self.generations
        running = sorted(t.number for t in now_.waits_for())
        return (
            f"study {self.study.study_name!r}: waited {self.max_wait:.0f} s for generation "
            f"{now_.number}: all popsize={now_.definition.popsize} slots are taken, and trials "
            f"{running} still run. Start no more workers than popsize, raise popsize in a new "
            "study, let surplus workers repeat candidates (surplus='replicate'), or raise max_wait"
        )
