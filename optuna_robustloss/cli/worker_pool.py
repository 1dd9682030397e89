"""The workers of one command: this process, or several, under one progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import typer
from optuna.study import Study

from optuna_robustloss.cli.console import print_lines, set_up_process
from optuna_robustloss.cli.progress import SearchProgress
from optuna_robustloss.distributed.files import is_in_memory
from optuna_robustloss.distributed.lease import LEASE
from optuna_robustloss.distributed.processes import WorkerJob, run_processes
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import finished_study, trials_done
from optuna_robustloss.search.worker import run_worker
from optuna_robustloss.search.worker_job import SearchJob, candidates_each, devices_each, shares


@dataclass(frozen=True)
class WorkerPool:
    """What was asked for on the command line.

    ``trials`` are those of all workers together, ``candidates`` and ``threads`` of each; by
    default they share a generation, and the CUDA devices.
    """

    workers: int = 1
    trials: int | None = None
    candidates: int | None = None
    threads: int = 1
    lease: float = LEASE
    device: torch.device | None = None

    def run(self, study: Study, objective: NoisyLabelObjective, storage: str) -> None:
        """Work on a study with a progress bar; Ctrl-C ends the command cleanly."""
        spec = objective.spec
        progress = SearchProgress(study, spec)
        with exit_on_interrupt(lambda: done(study, spec)), progress.bar:
            if self.workers == 1:
                run_worker(
                    study,
                    objective,
                    n_trials=self.trials,
                    candidates=self.candidates or candidates_each(spec, 1)[0],
                    lease=self.lease,
                    on_trial=progress.refresh,
                )
            elif not finished_study(study, spec):
                objective.tasks(0)  # missing data shows here, and is downloaded once
                jobs = self.jobs(study.study_name, objective, storage)
                run_jobs(study, jobs, storage, progress.refresh)

    def jobs(
        self, study_name: str, objective: NoisyLabelObjective, storage: str
    ) -> list[SearchJob]:
        """Return the job of each worker; there are no more workers than trials."""
        own = shares(self.trials, self.workers) if self.trials else [None] * self.workers
        each = candidates_each(objective.spec, self.workers)
        return [
            SearchJob(
                storage,
                study_name,
                partial(set_up_process, self.threads),
                n_trials=n_trials,
                candidates=self.candidates or candidates,
                lease=self.lease,
                device=device,
                root=objective.root,
                download=objective.download,
            )
            for n_trials, candidates, device in zip(
                own, each, devices_each(self.device, self.workers), strict=True
            )
            if n_trials != 0
        ]


def run_jobs(
    study: Study, jobs: Sequence[WorkerJob], storage: str, on_poll: Callable[[], None]
) -> None:
    """Run jobs in processes of their own; raise a ValueError for a database in memory."""
    if is_in_memory(storage):
        raise ValueError("a database in memory cannot be shared: leave out --workers")
    run_processes(study, jobs, on_poll=on_poll)


@contextmanager
def exit_on_interrupt(done: Callable[[], str]) -> Iterator[None]:
    """Say what is done when Ctrl-C or SIGTERM stops the command, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print_lines(f"stopped: {done()} and kept; the same command goes on from there")
        raise typer.Exit(130) from None


def done(study: Study, spec: StudySpec) -> str:
    """Say how far a study is."""
    return f"{trials_done(study, spec)} of {spec.n_trials} trials are done"
