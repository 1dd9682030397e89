"""Claims of trials on the slots of a generation, stored with the trials.

A claim is a system attribute of a running trial. Its worker writes it, reads all trials again, and
withdraws it if another trial has claimed the same slot. Of two trials that read each other's claim
the higher number withdraws. At most one trial holds a slot, since the worker that writes second
reads the first one's claim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

_CLAIM = "generational-cma:claim"
_FAILED = "generational-cma:failed"


@dataclass(frozen=True)
class Slot:
    """The place of one candidate in a generation, both counted from 0."""

    generation: int
    index: int

    def claim(self, trial_number: int, config_key: str) -> dict[str, Any]:
        """Return the system attribute that claims this slot for a trial."""
        return {_CLAIM: [self.generation, self.index, trial_number, config_key]}


#: The system attribute that withdraws a claim.
NO_CLAIM: dict[str, Any] = {_CLAIM: None}
#: The system attribute of a trial whose objective failed; a stale trial does not get it.
FAILED: dict[str, Any] = {_FAILED: True}


def slot_of(trial: FrozenTrial, config_key: str | None = None) -> Slot | None:
    """Return the slot that ``trial`` claims, or None.

    A claim that was copied from another trial (a retried one) or comes from a sampler with another
    configuration does not count, and neither does one of a waiting trial.

    Args:
        trial: of any study.
        config_key: of the search; any if None.

    """
    value = trial.system_attrs.get(_CLAIM)
    if trial.state == TrialState.WAITING or not isinstance(value, list) or len(value) != 4:
        return None
    *numbers, key = value
    if not all(type(n) is int and n >= 0 for n in numbers) or numbers[2] != trial.number:
        return None
    return Slot(numbers[0], numbers[1]) if config_key in (None, key) else None


def objective_failed(trial: FrozenTrial) -> bool:
    """Return whether the objective of a trial failed, rather than its worker."""
    return trial.state == TrialState.FAIL and _FAILED in trial.system_attrs
