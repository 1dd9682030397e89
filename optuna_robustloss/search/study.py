"""Studies that describe themselves: created from a spec, checked before any work is done."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import CmaEsSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import MaxTrialsCallback, Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.spec import StudySpec, differences, parse_spec

METRIC = "mean validation accuracy"
_SPEC, _HASH, _VERSION = "spec", "spec_hash", "optuna_robustloss_version"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
#: Seconds between the signs of life of a running trial, and until one without them is failed.
_HEARTBEAT, _GRACE = 30, 120
#: Seconds a worker waits for another one's write to an SQLite file.
_SQLITE_PATIENCE = 60


def safe_url(storage: str) -> str:
    """``storage`` without its password, for messages."""
    hidden = re.sub(r"//([^/:@]*):.*@", r"//\1:***@", storage)
    return re.sub(r"(password=)[^&]*", r"\1***", hidden)


def open_storage(storage: str, *, create: bool = False) -> BaseStorage:
    """Open a database by its URL, with heartbeats so that dead workers' trials are failed.

    Args:
        storage: the URL.
        create: make an SQLite file that is not there yet.

    Raises:
        FileNotFoundError: there is no such SQLite file, and ``create`` is off.
        ValueError: the URL is malformed, its driver is missing, or the database does not answer.

    """
    options: dict[str, Any] = {}
    if storage.startswith("sqlite:///"):
        path = storage.removeprefix("sqlite:///").partition("?")[0]
        if not create and path and not Path(path).is_file():
            raise FileNotFoundError(
                f"there is no database {path}: check the name and the current folder, or create a "
                "study first"
            )
        options["connect_args"] = {"timeout": _SQLITE_PATIENCE}
    try:
        return RDBStorage(
            storage,
            engine_kwargs=options,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
        )
    except (ArgumentError, ValueError) as error:
        raise ValueError(
            f"{safe_url(storage)!r} is not a storage URL: use for example sqlite:///search.db or "
            "postgresql+psycopg://user:password@host/database"
        ) from error
    except ImportError as error:
        raise ValueError(
            f"the driver for {safe_url(storage)!r} is not installed: pip install it ({error})"
        ) from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise ValueError(f"cannot open the storage {safe_url(storage)!r}: {reason}") from error


def make_sampler(spec: StudySpec) -> CmaEsSampler:
    """Optuna's CMA-ES with the spec's popsize; it starts at the centre of the space."""
    return CmaEsSampler(seed=spec.seed, popsize=spec.popsize, warn_independent_sampling=False)


def create_study(spec: StudySpec, storage: str | BaseStorage, study_name: str) -> Study:
    """Create a study for ``spec``, or open it if it is there, and check that they agree.

    Raises:
        ValueError: the study belongs to another spec, or minimises; nothing is changed then.

    """
    study = optuna.create_study(
        storage=storage,
        sampler=make_sampler(spec),
        study_name=study_name,
        direction="maximize",
        load_if_exists=True,
    )
    attach_spec(study, spec)
    return study


def open_study(storage: str | BaseStorage, study_name: str, spec: StudySpec | None = None) -> Study:
    """Open a study that ``optuna create-study`` or ``create_study`` made.

    Raises:
        ValueError: there is no such study, it has no spec and none is given, it has another one,
            or it minimises.

    """
    try:
        study = optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        names = optuna.get_all_study_names(storage)
        raise ValueError(
            f"there is no study {study_name!r} in the storage; it has: "
            f"{', '.join(names) or 'none yet'}"
        ) from None
    study.sampler = make_sampler(attach_spec(study, spec))
    return study


def spec_of(study: Study) -> StudySpec | None:
    """Return the spec stored with ``study``, if there is one."""
    stored = study.user_attrs.get(_SPEC)
    if stored is None:
        return None
    return parse_spec(stored, f"the spec stored with study {study.study_name!r}")


def attach_spec(study: Study, spec: StudySpec | None) -> StudySpec:
    """Make sure that ``study`` maximises and carries the spec, and return it.

    A study without a spec gets ``spec``, and its start loss as the first trial.

    Raises:
        ValueError: see ``open_study``.

    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        raise ValueError(
            f"study {study.study_name!r} must maximise one value, the accuracy: create it with "
            "--direction maximize"
        )
    stored = spec_of(study)
    if stored is None:
        if spec is None:
            raise ValueError(
                f"study {study.study_name!r} has no spec yet: give one, for example "
                "--spec studies/digits.yaml"
            )
        _describe(study, spec)
        return spec
    if spec is not None and spec.hash != stored.hash:
        raise ValueError(
            f"study {study.study_name!r} belongs to another spec (study / given): "
            + "; ".join(differences(stored, spec))
            + "; use the study's own spec or another study name"
        )
    return stored


def _describe(study: Study, spec: StudySpec) -> None:
    study.set_user_attr(_SPEC, spec.model_dump(mode="json"))
    study.set_user_attr(_HASH, spec.hash)
    study.set_user_attr(_VERSION, version("optuna-robustloss"))
    study.set_metric_names([METRIC])
    _enqueue_start(study, spec)


def _enqueue_start(study: Study, spec: StudySpec) -> None:
    """Make the start loss the next trial, unless it is done, running or waiting."""
    trials = study.get_trials(deepcopy=False)
    if not any("start" in t.user_attrs and t.state != TrialState.FAIL for t in trials):
        study.enqueue_trial(spec.space.start_point, user_attrs={"start": spec.start})


def trials_done(study: Study) -> int:
    """Number of trials that count: complete or pruned."""
    return len(study.get_trials(deepcopy=False, states=_DONE))


def fail_dead_trials(study: Study) -> int:
    """Fail the running trials of processes of this host that no longer exist; return how many.

    Trials of other hosts are left to the heartbeat.
    """
    failed = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = str(trial.user_attrs.get("worker", "")).rpartition(":")
        if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            # Another worker that starts now may have been faster.
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            failed += 1
    return failed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_trials(
    study: Study,
    objective: NoisyLabelObjective,
    *,
    n_trials: int | None = None,
    on_trial: Callable[[Study, FrozenTrial], None] | None = None,
) -> None:
    """Work on ``study`` until its spec's number of trials is done, by whichever worker.

    Ctrl-C marks the running trial failed and is passed on; finished trials are kept.

    Args:
        study: opened by ``create_study`` or ``open_study``.
        objective: with the study's spec.
        n_trials: stop after this many trials of this worker.
        on_trial: called after each of this worker's trials.

    """
    fail_dead_trials(study)
    _enqueue_start(study, objective.spec)  # again, if the first try was interrupted
    total = objective.spec.n_trials
    left = total - trials_done(study)
    if left <= 0:
        return
    objective.tasks(0)  # missing data shows here, before a trial is started
    callbacks: list[Callable[[Study, FrozenTrial], None]] = [MaxTrialsCallback(total, states=_DONE)]
    if on_trial is not None:
        callbacks.append(on_trial)
    study.optimize(objective, n_trials=n_trials, callbacks=callbacks)
