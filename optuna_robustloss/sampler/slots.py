"""Who evaluates which candidate: claims on the slots of a generation, kept with the trials.

A claim is a system attribute of a running trial. It is a bid first: its owner writes it, reads all
trials again, and keeps it only if no other trial bids for the same slot. Of two that see each
other the lower trial number waits for the higher to move on, so at most one trial holds a slot:
whoever writes second reads the first one's bid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

#: Everything the sampler writes into a trial begins with this.
PREFIX = "generational-cma:"
_CLAIM = PREFIX + "claim"
_LET_GO = PREFIX + "let-go"
_FAILED = PREFIX + "failed"


@dataclass(frozen=True)
class Slot:
    """One evaluation of one candidate of a generation.

    ``replicate`` 0 is the evaluation that every candidate needs; higher ones are repetitions by
    surplus workers.
    """

    generation: int
    index: int
    replicate: int = 0

    def attribute(self, trial_number: int, definition: str) -> dict[str, Any]:
        """Return the system attribute that claims this slot."""
        value = [self.generation, self.index, self.replicate, trial_number, definition]
        return {_CLAIM: value}

    @property
    def let_go(self) -> dict[str, Any]:
        """The system attribute that anybody may write to end a claim on this slot.

        Its name has the slot, because the trial may have moved on to another one meanwhile.
        """
        return {f"{_LET_GO}:{self.generation}:{self.index}:{self.replicate}": True}


#: The system attribute that gives a claim back.
NO_CLAIM: dict[str, Any] = {_CLAIM: None}
#: The system attribute of a trial whose objective failed, which a lost worker's trial lacks.
FAILED: dict[str, Any] = {_FAILED: True}


def slot_of(trial: FrozenTrial, definition: str | None = None) -> Slot | None:
    """Return the slot that ``trial`` claims, or None.

    A claim that came with a copy of another trial (a retried one) or from a sampler that was set
    up otherwise does not count, and neither does one of a trial that waits.

    Args:
        trial: of any study.
        definition: key of the search; any if None.

    """
    value = trial.system_attrs.get(_CLAIM)
    if trial.state == TrialState.WAITING or not isinstance(value, list) or len(value) != 5:
        return None
    *numbers, key = value
    if not all(type(n) is int and n >= 0 for n in numbers) or numbers[3] != trial.number:
        return None
    if definition is not None and key != definition:
        return None
    slot = Slot(*numbers[:3])
    return None if slot.let_go.keys() <= trial.system_attrs.keys() else slot


def was_let_go(trial: FrozenTrial) -> bool:
    """Whether a trial lost its slot because it came too late."""
    return any(key.startswith(_LET_GO) for key in trial.system_attrs)


def failed_itself(trial: FrozenTrial) -> bool:
    """Whether the objective failed, rather than the worker."""
    return trial.state == TrialState.FAIL and _FAILED in trial.system_attrs
