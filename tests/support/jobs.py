"""Jobs for worker processes that import no PyTorch, so that they start in a second."""

from __future__ import annotations

import signal
import threading
import warnings
from dataclasses import dataclass

import optuna

from optuna_robustloss.distributed.lease import fail_trial, record_heartbeat
from optuna_robustloss.distributed.storage import open_storage


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@dataclass(frozen=True)
class HoldJob:
    """Asks for a trial of the study ``small``, and holds it until it is interrupted."""

    url: str

    def set_up(self) -> None:
        signal.signal(signal.SIGTERM, _raise_interrupt)

    def run(self) -> None:
        study = optuna.load_study(study_name="small", storage=open_storage(self.url))
        trial = study.ask()
        try:
            record_heartbeat(study._storage, trial._trial_id)
            trial.set_user_attr("generation", 0)  # it trains
            threading.Event().wait()
        finally:
            fail_trial(study._storage, trial._trial_id)


@dataclass(frozen=True)
class WarnJob(HoldJob):
    """Warns, and ends."""

    def run(self) -> None:
        warnings.warn("all of us see this", UserWarning, stacklevel=1)


@dataclass(frozen=True)
class FailJob(HoldJob):
    """Fails at once."""

    def run(self) -> None:
        raise ValueError(f"nothing can be done with {self.url}")
