"""The benchmark as an Optuna study: one trial per training, whose value is test accuracy.

A trial's parameters are its cell. Workers claim cells by creating running trials; of two trials of
one cell, the one with the lower number counts. So any number of workers may share a benchmark, and
a killed one loses what it was training and nothing else.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from importlib.metadata import version

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_robustloss.benchmark.runs import Moment, Outcome, Run
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.distributed.lease import current_heartbeat

METRIC = "test accuracy at the last epoch"
#: One attribute, so that whoever opens the study meanwhile sees all of it or nothing.
_BENCHMARK = "benchmark"
#: Attribute of a failed trial: what its training raised.
ERROR = "error"
_CURVE, _DIVERGED = "curve", "diverged"


def create_benchmark(spec: BenchmarkSpec, storage: BaseStorage, study_name: str) -> Study:
    """Create the study of a benchmark, or open it if it is there, and check that they agree.

    Raises:
        ValueError: the study is another benchmark's, or no benchmark; nothing is changed then.

    """
    study = optuna.create_study(
        storage=storage, study_name=study_name, direction="maximize", load_if_exists=True
    )
    begun = bool(study.get_trials(deepcopy=False))  # first: who has trials has the attribute
    attrs = study.user_attrs
    if _BENCHMARK not in attrs:
        if attrs or begun or study.directions != [StudyDirection.MAXIMIZE]:
            raise ValueError(
                f"study {study_name!r} is there, and no benchmark: choose another --study-name"
            )
        mine = {
            "hash": spec.hash,
            "optuna_robustloss_version": version("optuna-robustloss"),
            "spec": spec.model_dump(mode="json"),
        }
        study.set_user_attr(_BENCHMARK, mine)
        study.set_metric_names([METRIC])
        attrs = study.user_attrs  # somebody else's, if two were at it
    if attrs[_BENCHMARK]["hash"] != spec.hash:
        stored = BenchmarkSpec.from_values(attrs[_BENCHMARK]["spec"], f"benchmark {study_name!r}")
        raise ValueError(
            f"study {study_name!r} is of another benchmark (study / given): "
            f"{'; '.join(stored.differences(spec))}; "
            "use its own file or another --study-name"
        )
    return study


def open_benchmark(storage: BaseStorage, study_name: str) -> tuple[Study, BenchmarkSpec]:
    """Open the study of a benchmark, with the spec stored in it.

    Raises:
        ValueError: there is no such study, or it is no benchmark.

    """
    try:
        study = optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        names = ", ".join(optuna.get_all_study_names(storage)) or "none yet"
        raise ValueError(
            f"there is no study {study_name!r} in the storage; it has: {names}"
        ) from None
    if _BENCHMARK not in study.user_attrs:
        raise ValueError(f"study {study_name!r} is no benchmark")
    return study, BenchmarkSpec.from_values(
        study.user_attrs[_BENCHMARK]["spec"], f"benchmark {study_name!r}"
    )


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
        user_attrs={"worker": f"{socket.gethostname()}:{os.getpid()}"},
        system_attrs=current_heartbeat().attribute(),
    )
    storage = study._storage
    trial_id = storage.create_new_trial(study._study_id, template_trial=template)
    number = storage.get_trial(trial_id).number
    for trial in study.get_trials(deepcopy=False):
        if trial.number < number and trial.state != TrialState.FAIL and cell_of(trial) == cell:
            storage.set_trial_user_attr(trial_id, "surplus_to", trial.number)
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
    return trial_id


def tell(study: Study, trial_id: int, outcome: Outcome) -> None:
    """Write down what came of a claimed cell.

    Raises:
        UpdateFinishedTrialError: somebody has taken the cell over.

    """
    storage = study._storage
    storage.set_trial_user_attr(trial_id, _CURVE, [list(astuple(m)) for m in outcome.curve])
    if outcome.diverged:
        storage.set_trial_user_attr(trial_id, _DIVERGED, True)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [outcome.curve[-1].test])


def cell_of(trial: FrozenTrial) -> Run:
    """Return the cell of a benchmark's trial."""
    return Run(**trial.params)


def outcome_of(trial: FrozenTrial) -> Outcome:
    """Return what came of a complete trial."""
    curve = tuple(Moment(*values) for values in trial.user_attrs[_CURVE])
    return Outcome(cell_of(trial), curve, bool(trial.user_attrs.get(_DIVERGED, False)))


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
        cell: trial.user_attrs[ERROR]
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if ERROR in trial.user_attrs and (cell := cell_of(trial)) in left
    }
