"""The job of a worker process, and how trials and devices are divided among them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from optuna_robustloss.distributed.lease import LEASE
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import attach_spec, open_study
from optuna_robustloss.search.worker import run_worker

#: Samplers whose proposals do not depend on trials of the same generation.
_IN_GENERATIONS = ("generational", "random")


@dataclass(frozen=True)
class SearchJob:
    """The arguments of a worker process; the study carries its spec already."""

    storage: str = field(repr=False)
    study_name: str
    set_up: Callable[[], None]
    """Called first, in a fresh process; makes SIGTERM raise ``KeyboardInterrupt``."""
    n_trials: int | None = None
    candidates: int = 1
    lease: float = LEASE
    device: torch.device | None = None
    root: Path | None = None
    download: bool = False

    def run(self) -> None:
        """Work on the study in this process."""
        with warnings.catch_warnings(action="ignore"):  # shown by the parent
            storage = open_storage(self.storage, wait=True)
            study = open_study(storage, self.study_name, lease=self.lease)
            spec = attach_spec(study, None)
        objective = NoisyLabelObjective(
            spec, device=self.device, root=self.root, download=self.download
        )
        run_worker(
            study,
            objective,
            n_trials=self.n_trials,
            candidates=self.candidates,
            lease=self.lease,
        )


def shares(total: int, workers: int) -> list[int]:
    """Divide ``total`` among workers as evenly as possible.

    >>> shares(12, 5)
    [3, 3, 2, 2, 2]
    """
    least, more = divmod(total, workers)
    return [least + (worker < more) for worker in range(workers)]


def candidates_each(spec: StudySpec, workers: int) -> list[int]:
    """Return how many trials each worker trains as one population: its share of a generation.

    The shares add up to a generation, so that workers do not compete for its last slots. One trial
    where the sampler learns from each.
    """
    if spec.sampler not in _IN_GENERATIONS:
        return [1] * workers
    return [max(1, share) for share in shares(spec.popsize, workers)]


def devices_each(given: torch.device | None, workers: int) -> list[torch.device | None]:
    """Return the device of each worker: as given, else the CUDA devices in turn."""
    count = torch.cuda.device_count()
    if given is not None or count < 2:
        return [given] * workers
    return [torch.device("cuda", worker % count) for worker in range(workers)]
