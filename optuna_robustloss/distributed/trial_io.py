"""All that ``ask`` writes into a trial in one transaction, where Optuna makes one per parameter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage, _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from sqlalchemy.orm import Session


def database_of(storage: BaseStorage) -> RDBStorage | None:
    """Return the database behind a storage and its cache; None for a journal or gRPC client."""
    storage = getattr(storage, "inner", storage)
    storage = storage._backend if isinstance(storage, _CachedStorage) else storage
    return storage if isinstance(storage, RDBStorage) else None


def lock_trial(database: RDBStorage, session: Session, trial_id: int) -> None:
    """Lock a trial until the session's transaction ends.

    SQLite has no FOR UPDATE: there a write that changes nothing locks the file.
    """
    if database.engine.name == "sqlite":
        trials = models.TrialModel.__table__
        same = {"number": trials.c.number}
        session.execute(sa.update(trials).where(trials.c.trial_id == trial_id).values(same))


def write_trial(
    storage: BaseStorage,
    trial_id: int,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    system_attrs: Mapping[str, Any],
) -> None:
    """Write parameters and system attributes of a running trial, in one transaction if possible.

    A database gets all or nothing; another storage one call after another. Whether the
    distributions agree with those of earlier trials is not checked. Attributes are overwritten. A
    ``Trial`` object made before does not see the parameters.

    Args:
        storage: any.
        trial_id: of the trial in the storage, not its number.
        params: as an objective sees them.
        distributions: of all ``params``.
        system_attrs: to be written as JSON.

    Raises:
        UpdateFinishedTrialError: the trial is finished; nothing is written.
        KeyError: there is no such trial.
        ValueError: the trial has one of the parameters, with another value or distribution.

    """
    internal = {name: distributions[name].to_internal_repr(value) for name, value in params.items()}
    rows = {name: (x, distribution_to_json(distributions[name])) for name, x in internal.items()}
    attrs = {key: json.dumps(value) for key, value in system_attrs.items()}
    database = database_of(storage)
    if database is None:
        for name, value in internal.items():
            storage.set_trial_param(trial_id, name, value, distributions[name])
        for key, attr in system_attrs.items():
            storage.set_trial_system_attr(trial_id, key, attr)
        return

    def write_rows() -> None:
        with _create_scoped_session(database.scoped_session) as session:
            lock_trial(database, session, trial_id)
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            database.check_trial_is_updatable(trial_id, trial.state)
            _add_params(session, trial_id, rows)
            _set_attrs(session, trial, attrs)

    retry = getattr(storage, "retry", None)
    retry(write_rows) if retry is not None else write_rows()


def _add_params(session: Session, trial_id: int, params: Mapping[str, tuple[float, str]]) -> None:
    """Add parameters; equal ones may be there, after a COMMIT whose answer was lost."""
    if not params:
        return
    stored: dict[str, Any] = {
        str(row.param_name): (row.param_value, row.distribution_json)
        for row in models.TrialParamModel.where_trial_id(trial_id, session)
    }
    if taken := sorted(name for name in params if stored.get(name, params[name]) != params[name]):
        raise ValueError(f"the trial with id {trial_id} already has the parameters {taken}")
    session.add_all(
        models.TrialParamModel(
            trial_id=trial_id, param_name=name, param_value=value, distribution_json=text
        )
        for name, (value, text) in params.items()
        if name not in stored
    )


def _set_attrs(session: Session, trial: Any, attrs: Mapping[str, str]) -> None:
    for key, text in attrs.items():
        row = models.TrialSystemAttributeModel.find_by_trial_and_key(trial, key, session)
        if row is None:
            new = models.TrialSystemAttributeModel(
                trial_id=trial.trial_id, key=key, value_json=text
            )
            session.add(new)
        else:
            row.value_json = text
