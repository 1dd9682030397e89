"""All trials of a study at once, in plain columns.

Optuna's own call makes an ORM object of each row. What is here keeps to Optuna's tables and falls
back to its call where they are not as known.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

_TIMES = ("datetime_start", "datetime_complete")
_STEPS = ("trial_id", "step", "intermediate_value", "intermediate_value_type")
#: The models and columns that are known here; one column more could mean anything.
COLUMNS: dict[str, tuple[str, ...]] = {
    "TrialModel": ("trial_id", "number", "study_id", "state", *_TIMES),
    "TrialParamModel": ("param_id", "trial_id", "param_name", "param_value", "distribution_json"),
    "TrialValueModel": ("trial_value_id", "trial_id", "objective", "value", "value_type"),
    "TrialIntermediateValueModel": ("trial_intermediate_value_id", *_STEPS),
    "TrialUserAttributeModel": ("trial_user_attribute_id", "trial_id", "key", "value_json"),
    "TrialSystemAttributeModel": ("trial_system_attribute_id", "trial_id", "key", "value_json"),
}
#: Up to so many trials are named one by one in a query.
_FEW = 500

_Time = Callable[[datetime | None], datetime | None]

_distribution = functools.lru_cache(maxsize=4096)(json_to_distribution)


@functools.cache
def tables_of_optuna() -> dict[str, sa.Table] | None:
    """Optuna's tables by the names of their models; None if they are not as known here."""
    tables: dict[str, sa.Table] = {}
    for name, columns in COLUMNS.items():
        table = getattr(getattr(models, name, None), "__table__", None)
        if table is None or {column.name for column in table.columns} != set(columns):
            return None
        tables[name] = table
    return tables


def _reader(time: str) -> _Time | None:
    """Return how Optuna makes a trial's time of the column; None if that is not as known here.

    Since 5.0 a property converts the column, which is in UTC; before, it was the column itself.
    """
    attribute, column = vars(models.TrialModel).get(time), f"_{time}_utc"
    if not isinstance(attribute, property):
        return None if attribute is None else (lambda stored: stored)
    convert = attribute.fget
    if convert is None or not hasattr(models.TrialModel, column):
        return None
    return lambda stored: convert(SimpleNamespace(**{column: stored}))


@contextmanager
def transaction(storage: RDBStorage) -> Iterator[sa.Connection]:
    """Begin a transaction whose errors are those of Optuna's storage."""
    try:
        with storage.engine.begin() as connection:
            yield connection
    except sa.exc.IntegrityError:
        raise
    except sa.exc.SQLAlchemyError as error:
        raise StorageInternalError("an error in a transaction of many rows") from error


@dataclass(slots=True)
class _Rows:
    """What the tables beside ``trials`` have on one trial."""

    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)


def read_trials(
    storage: RDBStorage,
    study_id: int,
    states: Container[TrialState] | None,
    included_trial_ids: set[int],
    trial_id_greater_than: int,
) -> list[FrozenTrial] | None:
    """Return what ``RDBStorage._get_trials`` returns, several times faster.

    Trials share the objects of equal distributions.

    Returns:
        The trials in the order of their ids; None if Optuna's tables are not as known here.

    Raises:
        KeyError: there is no such study.

    """
    tables, start, complete = tables_of_optuna(), *(_reader(time) for time in _TIMES)
    if tables is None or start is None or complete is None:
        return None
    table = tables["TrialModel"].c
    scope = [table.study_id == study_id]
    if states is not None:
        if not isinstance(states, Iterable):
            return None
        scope.append(table.state.in_(list(states)))
    included = {i for i in included_trial_ids if i <= trial_id_greater_than}
    if trial_id_greater_than > -1:
        later = table.trial_id > trial_id_greater_than
        if len(included) > _FEW:
            later = table.trial_id >= min(included)  # the others in between are dropped below
        elif included:
            later = sa.or_(later, table.trial_id.in_(included))
        scope.append(later)
    with transaction(storage) as connection:
        found = _read(
            connection, scope, lambda i: i > trial_id_greater_than or i in included, start, complete
        )
        if not found:
            study = models.StudyModel.study_id
            if connection.scalar(sa.select(study).where(study == study_id)) is None:
                raise KeyError(models.NOT_FOUND_MSG)
    return found


def read_trial(storage: RDBStorage, trial_id: int) -> FrozenTrial | None:
    """Return what ``RDBStorage.get_trial`` returns, in plain columns; None as ``read_trials``.

    Raises:
        KeyError: there is no such trial.

    """
    tables, start, complete = tables_of_optuna(), *(_reader(time) for time in _TIMES)
    if tables is None or start is None or complete is None:
        return None
    scope = [tables["TrialModel"].c.trial_id == trial_id]
    with transaction(storage) as connection:
        found = _read(connection, scope, lambda _: True, start, complete)
    if not found:
        raise KeyError(models.NOT_FOUND_MSG)
    return found[0]


def _read(
    connection: sa.Connection,
    scope: Sequence[sa.ColumnElement[bool]],
    wanted: Callable[[int], bool],
    start: _Time,
    complete: _Time,
) -> list[FrozenTrial]:
    tables = tables_of_optuna() or {}
    table = tables["TrialModel"].c
    query = sa.select(*(table[name] for name in ("trial_id", "number", "state", *_TIMES)))
    # The trials first: nothing changes in those that are finished by then.
    found = connection.execute(query.where(*scope).order_by(table.trial_id)).all()
    trials = [row for row in found if wanted(row[0])]
    if not trials:
        return []
    rows = {row[0]: _Rows() for row in trials}
    _read_rows(connection, tables, scope, rows)
    return [
        FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=[row.values[i] for i in range(len(row.values))] or None,
            datetime_start=start(started),
            datetime_complete=complete(completed),
            params=row.params,
            distributions=row.distributions,
            user_attrs=row.user,
            system_attrs=row.system,
            intermediate_values=row.steps,
            trial_id=trial_id,
        )
        for (trial_id, number, state, started, completed), row in zip(
            trials, rows.values(), strict=True
        )
    ]


def _read_rows(
    connection: sa.Connection,
    tables: Mapping[str, sa.Table],
    scope: Sequence[sa.ColumnElement[bool]],
    trials: Mapping[int, _Rows],
) -> None:
    """Fill in ``trials``; they are all in the ``scope``, which may have others."""

    def select(model: str) -> Iterator[tuple[_Rows, Any]]:
        table = tables[model]
        key, trial_id, *columns = (table.c[name] for name in COLUMNS[model])
        query = sa.select(trial_id, *columns).order_by(key)
        if len(trials) <= _FEW:
            query = query.where(trial_id.in_(trials))
        else:
            query = query.join_from(table, tables["TrialModel"]).where(*scope)
        for row in connection.execute(query).all():
            if (trial := trials.get(row[0])) is not None:
                yield trial, row

    for trial, (_, name, stored, text) in select("TrialParamModel"):
        trial.distributions[name] = distribution = _distribution(text)
        trial.params[name] = distribution.to_external_repr(stored)
    external = models.TrialValueModel.stored_repr_to_value
    for trial, (_, objective, stored, kind) in select("TrialValueModel"):
        trial.values[objective] = external(stored, kind)
    reported = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    for trial, (_, step, stored, kind) in select("TrialIntermediateValueModel"):
        trial.steps[step] = reported(stored, kind)
    for trial, (_, key, text) in select("TrialUserAttributeModel"):
        trial.user[key] = json.loads(text)
    for trial, (_, key, text) in select("TrialSystemAttributeModel"):
        trial.system[key] = json.loads(text)
