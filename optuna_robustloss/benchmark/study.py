"""Store a benchmark as an Optuna study: one trial per run, whose value is test accuracy.

A trial's parameters are its run. Workers claim runs by creating running trials; of two trials of
one run, the one with the lower number counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_robustloss.attributes import (
    CURVE,
    ERROR,
    RUN_DIVERGED,
    SPEC,
    SURPLUS_TO,
    WORKER,
    worker_name,
)
from optuna_robustloss.benchmark.rows import result_of, run_of
from optuna_robustloss.benchmark.runs import Run, RunResult
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.distributed.lease import current_heartbeat
from optuna_robustloss.distributed.storage import load_study
from optuna_robustloss.spec_files import check_spec, store_spec, stored_spec

METRIC = "test accuracy at the last epoch"


def create_benchmark(spec: BenchmarkSpec, storage: BaseStorage, study_name: str) -> Study:
    """Create the study of a benchmark, or open it if it exists, and compare the specs.

    Raises:
        ValueError: the study belongs to another benchmark or to none; it is left unchanged.

    """
    study = optuna.create_study(
        storage=storage, study_name=study_name, direction="maximize", load_if_exists=True
    )
    begun = bool(study.get_trials(deepcopy=False))  # first, as trials follow the attribute
    attrs = study.user_attrs  # read once: another process may store its spec meanwhile
    if SPEC.key not in attrs:
        if attrs or begun or study.directions != [StudyDirection.MAXIMIZE]:
            raise ValueError(
                f"study {study_name!r} exists and is not a benchmark: choose another --study-name"
            )
        store_spec(study, spec)
        study.set_metric_names([METRIC])
    check_spec(study, spec)  # also after storing: another process may have stored its own
    return study


def open_benchmark(storage: BaseStorage, study_name: str) -> tuple[Study, BenchmarkSpec]:
    """Open the study of a benchmark, with the spec stored in it.

    Raises:
        ValueError: there is no such study, or it is no benchmark.

    """
    study = load_study(storage, study_name)
    spec = stored_spec(study, BenchmarkSpec)
    if spec is None:
        raise ValueError(f"study {study_name!r} is not a benchmark")
    return study, spec


def _distributions(spec: BenchmarkSpec) -> dict[str, BaseDistribution]:
    return {
        "method": CategoricalDistribution(spec.methods),
        "task": CategoricalDistribution([task.label for task in spec.task_specs]),
        "seed": IntDistribution(0, spec.seeds - 1),
        "scale": CategoricalDistribution([float(scale) for scale in spec.scales]),
        "horizon": CategoricalDistribution([float(horizon) for horizon in spec.horizons]),
        "schedule": CategoricalDistribution(spec.schedules),
    }


def claim_run(study: Study, spec: BenchmarkSpec, run: Run) -> int | None:
    """Create a run's trial; return its id, or None if another trial was created first."""
    template = create_trial(
        state=TrialState.RUNNING,
        params=asdict(run),
        distributions=_distributions(spec),
        user_attrs=WORKER.entry(worker_name()),
        system_attrs=current_heartbeat().attribute(),
    )
    storage = study._storage
    trial_id = storage.create_new_trial(study._study_id, template_trial=template)
    number = storage.get_trial(trial_id).number
    for trial in study.get_trials(deepcopy=False):
        if trial.number < number and _claimed_run(trial) == run:
            storage.set_trial_user_attr(trial_id, SURPLUS_TO.key, trial.number)
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
    return trial_id


def store_result(study: Study, trial_id: int, result: RunResult) -> None:
    """Store the result of a claimed run and complete its trial.

    Raises:
        UpdateFinishedTrialError: the trial was failed since, and the run claimed again.

    """
    storage = study._storage
    storage.set_trial_user_attr(trial_id, CURVE.key, [list(astuple(m)) for m in result.curve])
    if result.diverged:
        storage.set_trial_user_attr(trial_id, RUN_DIVERGED.key, True)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [result.curve[-1].test])


def _claimed_run(trial: FrozenTrial) -> Run | None:
    """Return the run that a trial keeps from others: that of a running or a whole complete one."""
    whole = trial.state == TrialState.COMPLETE and result_of(trial) is not None
    return run_of(trial) if whole or trial.state == TrialState.RUNNING else None


def stored_results(study: Study) -> list[RunResult]:
    """Return the results of all complete runs, each once."""
    found: dict[Run, RunResult] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if (result := result_of(trial)) is not None:
            found.setdefault(result.run, result)
    return list(found.values())


def open_runs(study: Study, runs: Iterable[Run]) -> tuple[list[Run], list[FrozenTrial]]:
    """Return the runs that no worker has claimed, and the running trials of the others."""
    wanted = list(runs)
    among = set(wanted)
    taken: set[Run] = set()
    running: list[FrozenTrial] = []
    for trial in study.get_trials(deepcopy=False):
        if (run := _claimed_run(trial)) is not None:
            taken.add(run)
            if trial.state == TrialState.RUNNING and run in among:
                running.append(trial)
    return [run for run in wanted if run not in taken], running


def count_done(study: Study, runs: Sequence[Run]) -> int:
    """Return the number of ``runs`` that are complete."""
    return len({result.run for result in stored_results(study)} & set(runs))


def failed_runs(study: Study, runs: Sequence[Run]) -> dict[Run, str]:
    """Return the last error of each of ``runs`` whose training failed and that is open."""
    left = set(open_runs(study, runs)[0])
    return {
        run: str(error)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if (error := ERROR.read(trial)) is not None
        and (run := run_of(trial)) is not None
        and run in left
    }
