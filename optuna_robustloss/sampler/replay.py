"""The generations of a study, replayed from its trials."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.distributed.damaged_rows import (
    damage_of,
    is_number,
    single_value,
    warn_of_damage,
)
from optuna_robustloss.sampler.config import SamplerConfig
from optuna_robustloss.sampler.optimizer import GenerationalCma
from optuna_robustloss.sampler.slots import Slot, objective_failed, slot_of
from optuna_robustloss.sampler.transform import Numerical, numerical_parameters

#: A candidate whose trials became stale so often is told as failed, too.
MAX_LOST = 20


class Generations:
    """Replays a study: ``update`` reads its trials and tells CMA-ES every complete generation.

    The state after a generation depends on the configuration and the told trials' parameters and
    values only, so every process computes the same one, bit for bit. An update reads unfinished and
    new trials only.

    Args:
        config: of the sampler.
        direction: of the study.

    """

    def __init__(self, config: SamplerConfig, direction: StudyDirection) -> None:
        self.config = config
        self.number = 0
        """Of the present generation, from 0; as many are told."""
        self.told: list[tuple[FrozenTrial, ...]] = []
        self.means: list[dict[str, Any]] = []
        """Mean of the distribution after each told generation."""
        self.running: dict[int, list[FrozenTrial]] = {}
        """Trials that claim a slot of the present generation, by its index."""
        self.optimizer: GenerationalCma | None = None
        self.space: dict[str, Numerical] | None = None
        self.trials_read = 0
        self._sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        self._finished: dict[Slot, list[FrozenTrial]] = defaultdict(list)
        self._unfinished: set[int] = set()
        if config.space is not None:
            self._set_space(config.space)

    def _set_space(self, space: dict[str, Numerical]) -> None:
        self.space = space
        if space:
            self.optimizer = self.config.optimizer(space)

    # Trials

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Read all trials of the study, ordered by number."""
        running: dict[Slot, list[FrozenTrial]] = defaultdict(list)
        for number in [*sorted(self._unfinished), *range(self.trials_read, len(trials))]:
            trial = trials[number]
            slot = slot_of(trial, self.config.key)
            if slot is not None and slot.index >= self.config.popsize:
                slot = None  # there is no such slot
            if not trial.state.is_finished():
                self._unfinished.add(number)
                if slot is not None:
                    running[slot].append(trial)
                continue
            self._unfinished.discard(number)
            if slot is None or slot.generation < self.number:
                continue
            if (damage := damage_of(trial)) is not None:
                warn_of_damage(f"trial {trial.number} is left out: {damage}")
                continue
            self._finished[slot].append(trial)
        self.trials_read = len(trials)
        while True:
            self.running = {
                slot.index: trials
                for slot, trials in running.items()
                if slot.generation == self.number
            }
            if not self._is_complete():
                return
            self._tell_generation()

    def claims(self, index: int) -> list[FrozenTrial]:
        """Return the trials that hold or have filled a slot of the present generation."""
        return [*self.running.get(index, ()), *self._filled(index)]

    def _ended(self, index: int) -> Sequence[FrozenTrial]:
        return self._finished.get(Slot(self.number, index), ())

    def _filled(self, index: int) -> list[FrozenTrial]:
        done = (t for t in self._ended(index) if t.state != TrialState.FAIL)
        return sorted(done, key=lambda t: t.number)

    @property
    def filled(self) -> int:
        """Number of slots of all generations with a value, or that failed too often."""
        return self.number * self.config.popsize + sum(
            bool(self._filled(i)) or self.is_abandoned(i) for i in range(self.config.popsize)
        )

    def is_abandoned(self, index: int) -> bool:
        """Return whether a candidate failed too often, and is told as the worst."""
        return index not in self.running and not self._filled(index) and self.is_exhausted(index)

    def is_exhausted(self, index: int) -> bool:
        """Return whether a candidate has failed so often that no worker takes it again."""
        failures = self.failures(index)
        lost = sum(t.state == TrialState.FAIL for t in self._ended(index)) - failures
        return failures > self.config.max_retry or lost >= MAX_LOST

    def failures(self, index: int) -> int:
        """Return how often the objective has failed on a candidate."""
        return sum(objective_failed(t) for t in self._ended(index))

    def free(self) -> list[Slot]:
        """Return the slots of the present generation that no trial holds or has filled."""
        return [
            Slot(self.number, index)
            for index in range(self.config.popsize)
            if not self.claims(index) and not self.is_abandoned(index)
        ]

    def waits_for(self) -> list[FrozenTrial]:
        """Return the running trials of candidates that have no value yet."""
        return [
            trial
            for index, trials in self.running.items()
            if not (self._filled(index) or self.is_exhausted(index))
            for trial in trials
        ]

    def ends_with(self, trial: FrozenTrial, slot: Slot, limit: int, *, failed: bool) -> bool:
        """Return whether ``limit`` generations are complete once a running trial is told."""
        if self.number != limit - 1:
            return self.number >= limit
        if failed and self.failures(slot.index) < self.config.max_retry:
            return False
        running = {t.number for trials in self.running.values() for t in trials}
        return running == {trial.number} and not self.free()

    # Told to CMA-ES

    def _is_complete(self) -> bool:
        # A generation with a running claim is not closed, so that all processes tell the same set.
        if self.running:
            return False
        return all(self._filled(i) or self.is_abandoned(i) for i in range(self.config.popsize))

    def _tell_generation(self) -> None:
        indices = range(self.config.popsize)
        members = [self._representative(i) for i in indices]
        if self.space is None:
            complete = [t for t in members if t is not None and t.state == TrialState.COMPLETE]
            shown = complete or [t for t in members if t is not None and t.distributions]
            if shown:
                self._set_space(_shared_space(shown))
        if self.optimizer is not None:
            order = sorted(indices, key=lambda i: self._rank(members[i]))
            self.optimizer.tell([self._point(i, members[i]) for i in order])
            self.means.append(self.optimizer.mean)
        self.told.append(tuple(t for t in members if t is not None))
        for index in indices:
            self._finished.pop(Slot(self.number, index), None)
        self.number += 1

    def _representative(self, index: int) -> FrozenTrial | None:
        """Return the trial that filled a slot, else the first whose objective failed on it."""
        failed = [t for t in self._ended(index) if objective_failed(t)]
        return min(self._filled(index) or failed, key=lambda t: t.number, default=None)

    def _rank(self, trial: FrozenTrial | None) -> tuple[int, float, float]:
        """Sort key: complete by value, then pruned by how far they came, then failed."""
        if trial is not None and trial.state == TrialState.COMPLETE:
            return 0, self._sign * (single_value(trial) or 0.0), 0.0
        if trial is not None and trial.state == TrialState.PRUNED:
            step = trial.last_step
            if step is None:
                return 1, math.inf, 0.0
            last = self._sign * trial.intermediate_values[step]
            return 1, -float(step), last if math.isfinite(last) else math.inf
        return 2, 0.0, 0.0

    def _point(self, index: int, trial: FrozenTrial | None) -> dict[str, Any]:
        """Return the parameters evaluated on a slot: those of its trial, else the drawn ones."""
        space = self.space or {}
        params = trial.params if trial is not None else {}
        known = {name: params[name] for name in space if is_number(params.get(name))}
        drawn = {} if known.keys() >= space.keys() else self.candidate(index)
        return {name: known.get(name, drawn.get(name)) for name in space}

    def candidate(self, index: int) -> dict[str, Any]:
        """Return the point of a slot of the present generation; empty if no space is known."""
        if self.optimizer is None:
            return {}
        if index == 0 and self.number == 0 and self.config.include_start:
            return self.config.start_point(self.optimizer)
        return self.optimizer.candidate(index)


def _shared_space(trials: Sequence[FrozenTrial]) -> dict[str, Numerical]:
    """Return the numerical parameters that all trials have with the same distribution."""
    first = numerical_parameters(trials[0].distributions)
    return {
        name: d
        for name, d in sorted(first.items())
        if all(t.distributions.get(name) == d for t in trials)
    }
