"""The benchmark as an Optuna study: one trial per training, whose value is test accuracy.

A trial's parameters are its cell. Workers claim cells by creating running trials; of two trials of
one cell, the one with the lower number counts. So any number of workers may share a benchmark, and
a killed one loses what it was training and nothing else.
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
from optuna_robustloss.benchmark.runs import Moment, Outcome, Run
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.distributed.lease import current_heartbeat
from optuna_robustloss.distributed.storage import load_study
from optuna_robustloss.spec_files import check_spec, store_spec, stored_spec

METRIC = "test accuracy at the last epoch"


def create_benchmark(spec: BenchmarkSpec, storage: BaseStorage, study_name: str) -> Study:
    """Create the study of a benchmark, or open it if it is there, and check that they agree.

    Raises:
        ValueError: the study is another benchmark's, or no benchmark; nothing is changed then.

    """
    study = optuna.create_study(
        storage=storage, study_name=study_name, direction="maximize", load_if_exists=True
    )
    begun = bool(study.get_trials(deepcopy=False))  # first: who has trials has the attribute
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


def claim(study: Study, spec: BenchmarkSpec, cell: Run) -> int | None:
    """Create the running trial of a cell; return its id, or None if another trial was faster."""
    template = create_trial(
        state=TrialState.RUNNING,
        params=asdict(cell),
        distributions=_distributions(spec),
        user_attrs=WORKER.entry(worker_name()),
        system_attrs=current_heartbeat().attribute(),
    )
    storage = study._storage
    trial_id = storage.create_new_trial(study._study_id, template_trial=template)
    number = storage.get_trial(trial_id).number
    for trial in study.get_trials(deepcopy=False):
        if trial.number < number and trial.state != TrialState.FAIL and cell_of(trial) == cell:
            storage.set_trial_user_attr(trial_id, SURPLUS_TO.key, trial.number)
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
    return trial_id


def tell(study: Study, trial_id: int, outcome: Outcome) -> None:
    """Write down what came of a claimed cell.

    Raises:
        UpdateFinishedTrialError: somebody has taken the cell over.

    """
    storage = study._storage
    storage.set_trial_user_attr(trial_id, CURVE.key, [list(astuple(m)) for m in outcome.curve])
    if outcome.diverged:
        storage.set_trial_user_attr(trial_id, RUN_DIVERGED.key, True)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [outcome.curve[-1].test])


def cell_of(trial: FrozenTrial) -> Run:
    """Return the cell of a benchmark's trial."""
    return Run(**trial.params)


def outcome_of(trial: FrozenTrial) -> Outcome:
    """Return what came of a complete trial."""
    curve = tuple(Moment(*values) for values in CURVE.read(trial) or ())
    return Outcome(cell_of(trial), curve, bool(RUN_DIVERGED.read(trial)))


def outcomes(study: Study) -> list[Outcome]:
    """Return the outcomes of all trainings that are done, each cell once."""
    found: dict[Run, Outcome] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        found.setdefault(cell_of(trial), outcome_of(trial))
    return list(found.values())


def open_cells(study: Study, cells: Iterable[Run]) -> tuple[list[Run], list[FrozenTrial]]:
    """Return the cells that nobody has done or is at, and the running trials of the others."""
    wanted = list(cells)
    among = set(wanted)
    taken: set[Run] = set()
    running: list[FrozenTrial] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE:
            taken.add(cell_of(trial))
        elif trial.state == TrialState.RUNNING:
            taken.add(cell_of(trial))
            if cell_of(trial) in among:
                running.append(trial)
    return [cell for cell in wanted if cell not in taken], running


def done(study: Study, cells: Sequence[Run]) -> int:
    """Number of ``cells`` that are done."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return len({cell_of(trial) for trial in complete} & set(cells))


def failures(study: Study, cells: Sequence[Run]) -> dict[Run, str]:
    """Return the last errors of those of ``cells`` that failed by their own fault, and are open."""
    left = set(open_cells(study, cells)[0])
    return {
        cell: error
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if (error := ERROR.read(trial)) is not None and (cell := cell_of(trial)) in left
    }
