"""The assignment of a trial: its slot, and the parameters drawn for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Return a key that differs between studies, also those of one name in two storages."""
    return id(study._storage), study._study_id, *trial_number


def current_owner() -> tuple[int, int]:
    """Return process and thread; a forked process has other trials than its parent."""
    return os.getpid(), threading.get_ident()


@dataclass(frozen=True)
class TrialAssignment:
    """The slot, the search space if it is known, the point drawn, and the thread that asked.

    With ``search_finished`` all generations were complete, and the trial is not to be evaluated.
    """

    slot: Slot | None
    space: Mapping[str, Numerical] | None
    point: Mapping[str, Any]
    search_finished: bool = False
    owner: tuple[int, int] = field(default_factory=current_owner)

    def has(self, name: str, distribution: BaseDistribution) -> bool:
        """Return whether a parameter was drawn, and lies within a distribution."""
        try:
            return distribution._contains(distribution.to_internal_repr(self.point[name]))
        except (KeyError, TypeError, ValueError):
            return False


def draw_assignment(
    generations: Generations, trial: FrozenTrial, slot: Slot | None
) -> TrialAssignment:
    """Draw the candidate of a trial's slot in the present generation.

    A trial without a slot gets another draw, which CMA-ES is not told.
    """
    index = slot.index if slot is not None else generations.config.popsize + trial.number
    return TrialAssignment(slot, generations.space, generations.candidate(index))


def store_point(study: Study, trial: FrozenTrial, assignment: TrialAssignment) -> None:
    """Store all parameters but the enqueued ones in one transaction, before any ``suggest``."""
    enqueued = trial.system_attrs.get("fixed_params", {})
    distributions: dict[str, BaseDistribution] = {
        name: d
        for name, d in (assignment.space or {}).items()
        if name not in enqueued and name not in trial.params
    }
    if not distributions:
        return
    params = {name: assignment.point[name] for name in distributions}
    write_trial(study._storage, trial._trial_id, params, distributions, {})
    trial.params = trial.params | params
    trial.distributions = trial.distributions | distributions
