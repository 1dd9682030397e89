"""The generations of a study, read from its trials: what is told, running, free."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.sampler.config import Definition
from optuna_robustloss.sampler.optimizer import Evolution
from optuna_robustloss.sampler.slots import Slot, failed_itself, slot_of
from optuna_robustloss.sampler.transform import Numerical, numerical

#: A candidate whose workers died this often without a word is told as failed, too.
MAX_LOST = 20

_Key = tuple[int, int]


class Generations:
    """Replays a study: ``update`` takes its trials and tells CMA-ES every generation that is full.

    The state after a generation depends on nothing but the definition of the search and the told
    trials' parameters and values, so every process comes to the same one, bit for bit. An update
    looks at unfinished and new trials only.
    """

    def __init__(self, definition: Definition, direction: StudyDirection) -> None:
        self.definition = definition
        self.number = 0
        self.told: list[tuple[FrozenTrial, ...]] = []
        #: What CMA-ES was told of complete candidates, by the number of their first trial.
        self.averages: dict[int, float] = {}
        self.means: list[dict[str, Any]] = []
        self.running: dict[_Key, list[FrozenTrial]] = {}
        self.evolution: Evolution | None = None
        self.space: dict[str, Numerical] | None = definition.space
        self._sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        self._finished: dict[int, dict[_Key, list[FrozenTrial]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._unfinished: set[int] = set()
        self.seen = 0
        if self.space is not None:
            self._begin(self.space)

    def _begin(self, space: dict[str, Numerical]) -> None:
        self.space = space
        if space:
            self.evolution = self.definition.evolution(space)

    # What the trials say

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in all trials of the study, ordered by number."""
        running: dict[Slot, list[FrozenTrial]] = defaultdict(list)
        for number in [*sorted(self._unfinished), *range(self.seen, len(trials))]:
            trial = trials[number]
            slot = slot_of(trial, self.definition.key)
            if slot is not None and slot.index >= self.definition.popsize:
                slot = None  # nobody's: there is no such slot
            if not trial.state.is_finished():
                self._unfinished.add(number)
                if slot is not None:
                    running[slot].append(trial)
                continue
            self._unfinished.discard(number)
            if slot is not None and slot.generation >= self.number:
                self._finished[slot.generation][slot.index, slot.replicate].append(trial)
        self.seen = len(trials)
        while True:
            self.running = {
                (slot.index, slot.replicate): owners
                for slot, owners in running.items()
                if slot.generation == self.number
            }
            if not self._complete():
                return
            self._tell()

    def claims(self, slot: Slot) -> list[FrozenTrial]:
        """Return the trials that hold or fill a slot of the present generation."""
        key = (slot.index, slot.replicate)
        return [*self.running.get(key, ()), *self._filled(key)]

    def _filled(self, key: _Key) -> list[FrozenTrial]:
        done = self._finished[self.number].get(key, ())
        return sorted((t for t in done if t.state != TrialState.FAIL), key=lambda t: t.number)

    @property
    def filled(self) -> int:
        """Number of slots that have their value, or were given up."""
        here = range(self.definition.popsize)
        return self.number * self.definition.popsize + sum(
            bool(self._filled((i, 0))) or self.given_up(i) for i in here
        )

    def given_up(self, index: int) -> bool:
        """Whether a candidate failed too often, and is told as the worst."""
        key = (index, 0)
        return key not in self.running and not self._filled(key) and self.exhausted(index)

    def exhausted(self, index: int) -> bool:
        """Whether a candidate has failed so often that nobody may take it any more."""
        done = self._finished[self.number].get((index, 0), ())
        own = self.failures(index)
        lost = sum(t.state == TrialState.FAIL for t in done) - own
        return own > self.definition.max_retry or lost >= MAX_LOST

    def failures(self, index: int) -> int:
        """How often the objective has failed on a candidate."""
        return sum(failed_itself(t) for t in self._finished[self.number].get((index, 0), ()))

    def free(self) -> list[Slot]:
        """Return the slots of the present generation that nobody holds or has filled."""
        return [
            Slot(self.number, index)
            for index in range(self.definition.popsize)
            if not self.claims(Slot(self.number, index)) and not self.given_up(index)
        ]

    def waits_for(self) -> list[FrozenTrial]:
        """Return the running trials of candidates that have no value yet."""
        return [
            trial
            for (index, replicate), owners in self.running.items()
            if not (replicate or self._filled((index, 0)) or self.exhausted(index))
            for trial in owners
        ]

    def late(self) -> list[tuple[Slot, FrozenTrial]]:
        """Return the repetitions that still run when every candidate has its value."""
        if self.waits_for() or self.free():
            return []
        return [(Slot(self.number, *k), t) for k, owners in self.running.items() for t in owners]

    def replicates(self) -> Iterator[Slot]:
        """Return the repetitions nobody holds, round by round."""
        candidates = [i for i in range(self.definition.popsize) if not self.given_up(i)]
        replicate = 1
        while candidates:
            for index in candidates:
                slot = Slot(self.number, index, replicate)
                if not self.claims(slot):
                    yield slot
            replicate += 1

    def ends_with(self, trial: FrozenTrial, slot: Slot, limit: int, *, failed: bool) -> bool:
        """Whether ``limit`` generations are complete once a running trial is told."""
        if self.number != limit - 1:
            return self.number >= limit
        if failed and self.failures(slot.index) < self.definition.max_retry:
            return False
        running = {t.number for owners in self.running.values() for t in owners}
        return running == {trial.number} and not self.free()

    # What CMA-ES hears

    def _complete(self) -> bool:
        # Nobody closes a generation while a claim on it runs, so that all agree what was told:
        # a repetition is told if it ends before its claim is taken from it, else not.
        if self.running:
            return False
        return all(self._filled((i, 0)) or self.given_up(i) for i in range(self.definition.popsize))

    def _tell(self) -> None:
        members = [self._representative(i) for i in range(self.definition.popsize)]
        if self.space is None:
            complete = [t for t in members if t is not None and t.state == TrialState.COMPLETE]
            shown = complete or [t for t in members if t is not None and t.distributions]
            if shown:
                self._begin(_shared(shown))
        values = self._values()
        if self.evolution is not None:
            order = sorted(
                range(self.definition.popsize), key=lambda i: self._rank(members[i], values.get(i))
            )
            self.evolution.tell([self._point(i, members[i]) for i in order])
            self.means.append(self.evolution.mean)
        self.told.append(tuple(t for t in members if t is not None))
        for index, value in values.items():
            if (trial := members[index]) is not None:
                self.averages[trial.number] = self._sign * value
        self._finished.pop(self.number, None)
        self.number += 1

    def _representative(self, index: int) -> FrozenTrial | None:
        """Return the trial that filled a slot, else the first whose objective failed on it."""
        key = (index, 0)
        failed = [t for t in self._finished[self.number].get(key, ()) if failed_itself(t)]
        return min(self._filled(key) or failed, key=lambda t: t.number, default=None)

    def _rank(self, trial: FrozenTrial | None, value: float | None) -> tuple[int, float, float]:
        """Sort key: complete by value, then pruned by how far they came, then failed."""
        if value is not None:
            return 0, value, 0.0
        if trial is not None and trial.state == TrialState.PRUNED:
            step = trial.last_step
            if step is None:
                return 1, math.inf, 0.0
            last = self._sign * trial.intermediate_values[step]
            return 1, -float(step), last if math.isfinite(last) else math.inf
        return 2, 0.0, 0.0

    def _values(self) -> dict[int, float]:
        """Return each complete candidate's value, to be minimised; averaged over repetitions."""
        rounds: dict[int, dict[int, float]] = defaultdict(dict)
        for (index, replicate), trials in sorted(self._finished[self.number].items()):
            first = self._representative(index)
            for trial in sorted(trials, key=lambda t: -t.number):
                # What was repeated may have been enqueued, and have failed since.
                same = first is not None and trial.params == first.params
                if same and trial.state == TrialState.COMPLETE and trial.value is not None:
                    rounds[replicate][index] = self._sign * float(trial.value)
        return average(rounds)

    def _point(self, index: int, trial: FrozenTrial | None) -> dict[str, Any]:
        """Return the parameters evaluated on a slot: those of its trial, else the drawn ones."""
        space = self.space or {}
        params = trial.params if trial is not None else {}
        drawn = {} if params.keys() >= space.keys() else self.candidate(index)
        return {name: params.get(name, drawn.get(name)) for name in space}

    def candidate(self, index: int) -> dict[str, Any]:
        """Return what is drawn for a slot of the present generation; empty if no space is known."""
        if self.evolution is None:
            return {}
        if index == 0 and self.number == 0 and self.definition.include_start:
            return self.definition.centre(self.evolution)
        return self.evolution.candidate(index)


def _shared(trials: Sequence[FrozenTrial]) -> dict[str, Numerical]:
    """Return the numerical parameters that all trials have with the same distribution."""
    first = numerical(trials[0].distributions)
    return {
        name: d
        for name, d in sorted(first.items())
        if all(t.distributions.get(name) == d for t in trials)
    }


def average(rounds: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """Average candidates over rounds of evaluation that not all of them took part in.

    All evaluations of one round share their randomness (noise, initial weights), which moves them
    together; so value = candidate + round is fitted by least squares, and a candidate gains
    nothing by having been repeated in an easy round.

    Args:
        rounds: by round and candidate; round 0 has every candidate that is returned.

    """
    first = rounds.get(0, {})
    cells = [
        (r, i, v)
        for r, values in sorted(rounds.items())
        for i, v in sorted(values.items())
        if i in first
    ]
    if len(cells) == len(first) or not all(math.isfinite(v) for _, _, v in cells):
        return dict(first)
    column = {i: k for k, i in enumerate(sorted(first))}
    later = {r: len(column) + k for k, r in enumerate(sorted({r for r, _, _ in cells} - {0}))}
    design = np.zeros((len(cells), len(column) + len(later)))
    for row, (r, i, _) in enumerate(cells):
        design[row, column[i]] = 1
        if r:
            design[row, later[r]] = 1
    fitted = np.linalg.lstsq(design, np.array([v for _, _, v in cells]), rcond=None)[0]
    return {i: float(fitted[k]) for i, k in column.items()}
