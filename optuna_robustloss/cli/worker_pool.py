"""The workers of one command: this process, or several, under one progress bar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import typer
from optuna.study import Study

from optuna_robustloss.cli.console import console, set_up_process
from optuna_robustloss.cli.progress import SearchProgress
from optuna_robustloss.distributed.lease import LEASE
from optuna_robustloss.distributed.processes import run_processes
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
        """Work on a study with a progress bar; Ctrl-C ends the command cleanly.

        Args:
            study: to work on.
            objective: with the study's spec.
            storage: URL of the study's storage.

        """
        spec = objective.spec
        try:
            with SearchProgress(study, spec, console) as progress:
                if self.workers > 1:
                    self._run_processes(study, objective, storage, progress)
                    return
                run_worker(
                    study,
                    objective,
                    n_trials=self.trials,
                    candidates=self.candidates or candidates_each(spec, 1)[0],
                    lease=self.lease,
                    on_trial=progress.on_trial,
                )
        except KeyboardInterrupt:
            console.print(
                f"stopped: {done(study, spec)} and kept; the same command goes on from there"
            )
            raise typer.Exit(130) from None

    def _run_processes(
        self, study: Study, objective: NoisyLabelObjective, storage: str, progress: SearchProgress
    ) -> None:
        if ":memory:" in storage or storage.rstrip("/") == "sqlite:":
            raise ValueError("a database in memory cannot be shared: leave out --workers")
        if finished_study(study, objective.spec):
            return
        objective.tasks(0)  # missing data shows here, and is downloaded once
        jobs = self.jobs(study.study_name, objective, storage)
        run_processes(study, jobs, on_poll=progress.refresh)

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


def done(study: Study, spec: StudySpec) -> str:
    """Say how far a study is."""
    return f"{trials_done(study, spec)} of {spec.n_trials} trials are done"
