"""What a trial was given when it was asked for: a slot, and the parameters drawn for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_robustloss.distributed.trial_io import write_trial
from optuna_robustloss.sampler.replay import Generations
from optuna_robustloss.sampler.slots import Slot
from optuna_robustloss.sampler.transform import Numerical

#: A study, or a trial of one.
Key = tuple[int, ...]


def key_of(study: Study, *trial_number: int) -> Key:
    """Tell studies apart, also those of one name in two storages."""
    return id(study._storage), study._study_id, *trial_number


def stopped(study: Study) -> bool:
    """Stop ``study.optimize``; return whether that is what runs the trials."""
    try:
        study.stop()
    except RuntimeError:
        return False
    return True


def owner() -> tuple[int, int]:
    """Return what tells this thread from those of other processes: a fork has the same number."""
    return os.getpid(), threading.get_ident()


@dataclass(frozen=True)
class Asked:
    """The slot, the search space if it is known, what was drawn, and the thread that asked.

    ``over`` says that the last generation was complete, and there is nothing to evaluate.
    """

    slot: Slot | None
    space: Mapping[str, Numerical] | None
    drawn: Mapping[str, Any]
    over: bool = False
    owner: tuple[int, int] = field(default_factory=owner)

    def has(self, name: str, distribution: BaseDistribution) -> bool:
        """Whether a parameter was drawn, within the range that the objective asks for."""
        try:
            return distribution._contains(distribution.to_internal_repr(self.drawn[name]))
        except (KeyError, TypeError, ValueError):
            return False


def draw(generations: Generations, trial: FrozenTrial, slot: Slot | None) -> Asked:
    """Draw the candidate of a slot that ``trial`` holds in the present generation.

    A repetition gets what the first evaluation has, which may have been enqueued. A trial without
    a slot gets a draw of its own, which CMA-ES is never told.
    """
    space = generations.space
    if slot is None:
        beside = generations.definition.popsize + trial.number
        return Asked(None, space, generations.candidate(beside))
    drawn = generations.candidate(slot.index)
    if slot.replicate:
        for first in generations.claims(replace(slot, replicate=0))[:1]:
            drawn |= first.system_attrs.get("fixed_params", {}) | first.params
    return Asked(slot, space, drawn)


def store(study: Study, trial: FrozenTrial, asked: Asked) -> None:
    """Store all parameters in one transaction, so that no ``suggest`` call needs its own.

    What was enqueued is left to ``suggest``.
    """
    fixed = trial.system_attrs.get("fixed_params", {})
    distributions: dict[str, BaseDistribution] = {
        n: d for n, d in (asked.space or {}).items() if n not in fixed and n not in trial.params
    }
    if not distributions:
        return
    params = {n: asked.drawn[n] for n in distributions}
    write_trial(study._storage, trial._trial_id, params, distributions, {})
    trial.params = trial.params | params
    trial.distributions = trial.distributions | distributions
