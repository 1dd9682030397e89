"""User attributes of studies and trials: each name with the type of its value, in one place.

The attributes of the generational sampler, which can be used alone, stand in ``sampler``; those of
leases in ``distributed``.
"""

from __future__ import annotations

import logging
import os
import reprlib
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypedDict, TypeVar

from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@dataclass(frozen=True)
class Attribute(Generic[T]):
    """A user attribute of studies or trials.

    >>> import optuna
    >>> study = optuna.create_study()
    >>> GENERATION.write(study.ask(), 3)
    >>> GENERATION.read(study.trials[0])
    3
    """

    key: str
    kind: Any
    """Type of the value."""

    def read(self, owner: Study | BaseTrial | FrozenTrial) -> T | None:
        """Return the value of ``owner``; None if it has none, or (with a warning) a damaged one."""
        stored = owner.user_attrs.get(self.key)
        if stored is None:
            return None
        try:
            value: T = _adapter(self.kind).validate_python(stored, strict=True)
        except ValidationError:
            name = repr(owner.study_name) if isinstance(owner, Study) else owner.number
            of = "study" if isinstance(owner, Study) else "trial"
            kind = getattr(self.kind, "__name__", self.kind)
            _warn_once(
                f"{of} {name}: its attribute {self.key!r} is left out: expected {kind}, "
                f"got {reprlib.repr(stored)}"
            )
            return None
        return value

    def write(self, owner: Study | BaseTrial, value: T) -> None:
        """Store ``value``, which must be JSON."""
        owner.set_user_attr(self.key, value)

    def entry(self, value: T) -> dict[str, Any]:
        """Return the attribute as a mapping, for trials that are created with attributes."""
        return {self.key: value}


@lru_cache(maxsize=10_000)
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning("%s", text)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


class StoredSpec(TypedDict):
    """A spec as a study carries it: one attribute, so that a reader sees all of it or nothing."""

    values: dict[str, Any]
    hash: str
    version: str


# Studies.
SPEC: Attribute[StoredSpec] = Attribute("spec", dict[str, Any])
#: Of a search: its finalists and the winner.
SELECTION: Attribute[dict[str, Any]] = Attribute("selection", dict[str, Any])

# Trials.
#: HOST:PID of the process that evaluates the trial.
WORKER: Attribute[str] = Attribute("worker", str)

# Trials of a search.
GENERATION: Attribute[int] = Attribute("generation", int)
#: Name of the start loss, on the trial that evaluates it.
START: Attribute[str] = Attribute("start", str)
#: Labels of the tasks on which the training diverged.
DIVERGED: Attribute[list[str]] = Attribute("diverged", list[str])
#: Labels of the tasks on which the training was stopped at chance.
STOPPED_AT_CHANCE: Attribute[list[str]] = Attribute("stopped_at_chance", list[str])

# Trials of a benchmark.
#: One list of numbers an evaluation.
CURVE: Attribute[list[list[Any]]] = Attribute("curve", list[list[Any]])
RUN_DIVERGED: Attribute[bool] = Attribute("run_diverged", bool)
#: What the training of a failed trial raised.
ERROR: Attribute[str] = Attribute("error", str)
#: Number of the trial that already evaluates the same run.
SURPLUS_TO: Attribute[int] = Attribute("surplus_to", int)


def accuracy_on(task: str) -> Attribute[float]:
    """Return the attribute for the validation accuracy on a task, by the task's label."""
    return Attribute(f"accuracy {task}", float)


def best_epoch_on(task: str) -> Attribute[float]:
    """Return the attribute for the epoch of the best accuracy on a task, by the task's label."""
    return Attribute(f"best epoch {task}", float)


def worker_name() -> str:
    """Return HOST:PID of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
