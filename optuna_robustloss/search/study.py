"""Studies that describe themselves: created from a spec, checked before any work is done."""

from __future__ import annotations

import os
from contextlib import suppress

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import Study, StudyDirection, get_all_study_names
from optuna.trial import TrialState

from optuna_robustloss.attributes import START
from optuna_robustloss.distributed.lease import LEASE
from optuna_robustloss.distributed.storage import load_study, open_storage
from optuna_robustloss.sampler.config import stored_config
from optuna_robustloss.sampler.replay import Generations
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.warm_start import estimate_start
from optuna_robustloss.search.samplers import find_sources, make_sampler
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.spec_files import check_name, check_spec, store_spec, stored_spec

METRIC = "mean validation accuracy"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def create_study(
    spec: StudySpec, storage: str | BaseStorage | None, study_name: str, *, lease: float = LEASE
) -> Study:
    """Create a study for ``spec``, or open the one that has this name and spec.

    Everything is checked before anything is stored.

    Args:
        spec: of the study.
        storage: or its URL, see ``open_storage``; its file may be missing. None: in memory.
        study_name: printable text.
        lease: the sampler's, in seconds.

    Raises:
        ValueError: the study belongs to another spec, or minimises, the name cannot be used, or
            a source study does not fit; nothing is changed then.

    >>> from optuna_robustloss import open_storage
    >>> spec = StudySpec(
    ...     name="small", datasets="digits", architectures="mlp2", noise="symmetric:0.4",
    ...     train=200, validation=100, recipe={"epochs": 1}, popsize=4, generations=1,
    ... )
    >>> create_study(spec, open_storage("sqlite:///:memory:"), "small").study_name
    'small'

    """
    check_name(study_name)
    found: str | BaseStorage | None = storage
    if isinstance(storage, str):
        with suppress(FileNotFoundError):
            found = open_storage(storage)
    if isinstance(found, str) or found is None or study_name not in get_all_study_names(found):
        _check_sources(spec, found or InMemoryStorage())
    study = optuna.create_study(
        storage=open_storage(found, create=True) if isinstance(found, str) else found,
        study_name=study_name,
        direction="maximize",
        load_if_exists=True,
    )
    study.sampler = make_sampler(attach_spec(study, spec), study._storage, lease)
    return study


def _check_sources(spec: StudySpec, storage: str | BaseStorage) -> None:
    """Raise a ValueError if a study of ``spec`` could not start from its source studies."""
    for source in spec.source_studies:
        place = os.path.expandvars(source.storage or "")
        if place.startswith("$"):
            raise ValueError(
                f"source study {source.study!r}: the environment has no variable {place}"
            )
    if sources := find_sources(spec, storage):
        estimate_start(sources, StudyDirection.MAXIMIZE, spec.space.distributions)


def open_study(
    storage: str | BaseStorage,
    study_name: str,
    spec: StudySpec | None = None,
    *,
    lease: float = LEASE,
) -> Study:
    """Open a study that ``optuna create-study`` or ``create_study`` made.

    ``lease`` is the sampler's, in seconds.

    Raises:
        ValueError: there is no such study, it has no spec and none is given, it has another one,
            or it minimises.

    >>> from optuna_robustloss import open_storage
    >>> spec = StudySpec(
    ...     name="small", datasets="digits", architectures="mlp2", noise="symmetric:0.4",
    ...     train=200, validation=100, recipe={"epochs": 1}, popsize=4, generations=1,
    ... )
    >>> storage = open_storage("sqlite:///:memory:")
    >>> _ = create_study(spec, storage, "small")
    >>> print(open_study(storage, "small").sampler)
    GenerationalCmaEsSampler(popsize=4)

    """
    study = load_study(storage, study_name)
    study.sampler = make_sampler(attach_spec(study, spec), study._storage, lease)
    return study


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
    stored = stored_spec(study, StudySpec)
    if spec is None:
        if stored is None:
            raise ValueError(
                f"study {study.study_name!r} has no spec yet: give one, for example "
                "--spec studies/digits.yaml"
            )
        return stored
    if stored is None:
        _check_sources(spec, study._storage)
        store_spec(study, spec)
        study.set_metric_names([METRIC])
        enqueue_start(study, spec)
    check_spec(study, spec)  # also after storing: another process may have stored its own
    return spec


def enqueue_start(study: Study, spec: StudySpec) -> None:
    """Make the start loss the next trial, unless it is done, running or waiting.

    The generational sampler begins with it by itself.
    """
    if spec.sampler == "generational":
        return
    trials = study.get_trials(deepcopy=False)
    if not any(START.read(t) and t.state != TrialState.FAIL for t in trials):
        study.enqueue_trial(spec.space.start_point, user_attrs=START.entry(spec.start))


def finished_study(study: Study, spec: StudySpec) -> bool:
    """Return whether all trials of the spec are done and its generations complete."""
    if spec.sampler == "generational":
        generations = read_generations(study)
        return generations is not None and generations.number >= spec.generations
    return trials_done(study, spec) >= spec.n_trials


def trials_done(study: Study, spec: StudySpec) -> int:
    """Return the number of trials that count towards ``spec.n_trials``.

    With the generational sampler those are the filled slots of its generations, whatever the
    number of retries; else the complete and the pruned trials.
    """
    if spec.sampler == "generational":
        generations = read_generations(study)
        return 0 if generations is None else min(generations.filled, spec.n_trials)
    return len(study.get_trials(deepcopy=False, states=_DONE))


def read_generations(study: Study) -> Generations | None:
    """Return the generations of a study so far; None if the generational sampler has not begun."""
    if isinstance(study.sampler, GenerationalCmaEsSampler) and stored_config(study):
        return study.sampler.generations(study)  # which knows most of it
    return replay(study)


def replay(study: Study) -> Generations | None:
    """Replay a study of the generational sampler, without changing anything in its storage."""
    config = stored_config(study)
    if config is None:
        return None
    generations = Generations(config, study.direction)
    generations.update(study.get_trials(deepcopy=False))
    return generations
