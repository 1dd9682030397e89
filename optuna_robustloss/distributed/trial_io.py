"""All that ``ask`` writes into a trial at once, in one transaction.

Optuna's own calls make a transaction for each parameter.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage, _CachedStorage
from optuna.storages._rdb import models
from sqlalchemy.dialects import mysql, postgresql, sqlite

from optuna_robustloss.distributed.bulk import COLUMNS, tables_of_optuna, transaction

#: Dialects with INSERT … ON CONFLICT DO UPDATE.
_UPSERTS: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def write_trial(
    storage: BaseStorage,
    trial_id: int,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    system_attrs: Mapping[str, Any],
) -> None:
    """Write parameters and system attributes of a running trial, in one transaction if possible.

    A database gets all or nothing, in three statements; another storage one call after another.
    Whether the distributions agree with those of earlier trials is not checked. Attributes are
    overwritten. A ``Trial`` object made before does not see the parameters.

    Args:
        storage: any; Optuna's cache around a database is looked through.
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
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    if not isinstance(backend, RDBStorage) or tables_of_optuna() is None:
        for name, value in internal.items():
            storage.set_trial_param(trial_id, name, value, distributions[name])
        for key, attr in system_attrs.items():
            storage.set_trial_system_attr(trial_id, key, attr)
        return
    new = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for name, value in internal.items()
    ]
    attrs = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(attr)}
        for key, attr in system_attrs.items()
    ]
    write = functools.partial(_write_rows, backend, trial_id, new, attrs)
    patiently = getattr(backend, "patiently", functools.partial.__call__)
    patiently(write)


def touch(trial_id: int) -> sa.Update:
    """Return a statement that takes the lock for writing a trial, and changes nothing."""
    trials = models.TrialModel.__table__
    return sa.update(trials).where(trials.c.trial_id == trial_id).values(number=trials.c.number)


def _write_rows(
    storage: RDBStorage, trial_id: int, params: list[dict[str, Any]], attrs: list[dict[str, Any]]
) -> None:
    trials, stored = models.TrialModel.__table__, models.TrialParamModel.__table__
    try:
        with transaction(storage) as connection:
            if connection.dialect.name == "sqlite":  # has no FOR UPDATE; a write locks the file
                connection.execute(touch(trial_id))
            wanted = sa.select(trials.c.state).where(trials.c.trial_id == trial_id)
            state = connection.scalar(wanted.with_for_update())
            if state is not None and not state.is_finished():
                if params:
                    connection.execute(sa.insert(stored), params)
                if attrs:
                    _write_attrs(connection, trial_id, attrs)
    except sa.exc.IntegrityError:
        # After a COMMIT whose answer was lost, the parameters are there.
        names = COLUMNS["TrialParamModel"][1:]
        there = sa.select(*(stored.c[name] for name in names)).where(stored.c.trial_id == trial_id)
        with transaction(storage) as connection:
            rows = [dict(row) for row in connection.execute(there).mappings()]
        if all(row in rows for row in params):
            return
        taken = {row["param_name"] for row in rows} & {row["param_name"] for row in params}
        raise ValueError(
            f"the trial with id {trial_id} already has the parameters {', '.join(sorted(taken))}"
        ) from None
    if state is None:
        raise KeyError(models.NOT_FOUND_MSG)
    storage.check_trial_is_updatable(trial_id, state)


def _write_attrs(connection: sa.Connection, trial_id: int, attrs: list[dict[str, Any]]) -> None:
    """Insert or update system attributes, the way of the dialect."""
    table = models.TrialSystemAttributeModel.__table__
    dialect = connection.dialect.name
    if dialect in ("mysql", "mariadb"):
        new = mysql.insert(table)
        connection.execute(new.on_duplicate_key_update(value_json=new.inserted.value_json), attrs)
    elif dialect in _UPSERTS:
        row = _UPSERTS[dialect](table)
        unique, changed = [table.c.trial_id, table.c.key], {"value_json": row.excluded.value_json}
        connection.execute(row.on_conflict_do_update(index_elements=unique, set_=changed), attrs)
    else:
        keys = [attr["key"] for attr in attrs]
        old = sa.delete(table).where(table.c.trial_id == trial_id, table.c.key.in_(keys))
        connection.execute(old)
        connection.execute(sa.insert(table), attrs)
