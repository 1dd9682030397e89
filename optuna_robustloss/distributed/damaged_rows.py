"""Rows that another client wrote wrongly: each is left out with a warning, and the study goes on.

Whether a row is left out depends on the row alone, so that all workers leave out the same ones.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Container, Iterable, Iterator
from functools import lru_cache
from numbers import Real
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    json_to_distribution,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import object_session

_logger = logging.getLogger(__name__)
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
#: What reading a damaged row raises, in Optuna, SQLAlchemy, or the database's driver.
_UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)


@lru_cache(maxsize=10_000)
def warn_of_damage(text: str) -> None:
    """Log a warning, once in a process."""
    _logger.warning("%s", text)


def is_number(value: object) -> bool:
    """Return whether ``value`` is a finite number, and no truth value."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def single_value(trial: FrozenTrial) -> float | None:
    """Return the one value of a trial; None if it has none, several, or no number."""
    values = trial.values or []
    return float(values[0]) if len(values) == 1 and _is_value(values[0]) else None


def _is_value(value: object) -> bool:
    """Return whether ``value`` is a number, perhaps infinite."""
    return is_number(value) or (isinstance(value, float) and math.isinf(value))


def damage_of(trial: FrozenTrial, objectives: int = 1) -> str | None:
    """Return what is wrong with the values or parameters of a complete or pruned trial, or None."""
    if trial.state not in _DONE:
        return None
    values = trial.values or []
    if trial.state == TrialState.COMPLETE and (
        len(values) != objectives or not all(map(_is_value, values))
    ):
        return f"its value is {_shorten(trial.values)}"
    for name, distribution in trial.distributions.items():
        value = trial.params.get(name)
        if not isinstance(distribution, CategoricalDistribution) and not is_number(value):
            return f"its parameter {name!r} is {_shorten(value)}"
    return None


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


class TolerantRDBStorage(RDBStorage):
    """Optuna's database storage, which reads a study although some of its rows are damaged.

    An unreadable attribute is left out. A complete or pruned trial without a readable value and
    readable parameters becomes a failed one, and its candidate is evaluated again.
    """

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See ``optuna.storages.BaseStorage.get_study_user_attrs``."""
        return self._read_study_attrs(models.StudyUserAttributeModel, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See ``optuna.storages.BaseStorage.get_study_system_attrs``."""
        return self._read_study_attrs(models.StudySystemAttributeModel, study_id)

    def _read_study_attrs(self, model: Any, study_id: int) -> dict[str, Any]:
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            rows = model.where_study_id(study_id, session)
            return _read_attributes(f"study {study_id}", rows)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        arguments = (trial_id, param_name, param_value_internal, distribution)
        try:
            super()._set_trial_param(*arguments, previous_distribution)
        except (AttributeError, LookupError, TypeError, json.JSONDecodeError):
            if previous_distribution is not None:
                raise
            super()._set_trial_param(*arguments, distribution)  # the earlier row is damaged

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        try:
            trials = super()._get_trials(
                study_id, states, included_trial_ids, trial_id_greater_than
            )
        except _UNREADABLE:  # one row's date or state ends the whole query
            trials = [
                self._read_trial(trial_id, number)
                for trial_id, number in self._trial_numbers(study_id)
                if trial_id in included_trial_ids or trial_id > trial_id_greater_than
            ]
            trials = [t for t in trials if states is None or t.state in states]
        return [t for t in trials if isinstance(t.number, int)]

    def _trial_numbers(self, study_id: int) -> list[tuple[int, int]]:
        columns = models.TrialModel.trial_id, models.TrialModel.number
        with _create_scoped_session(self.scoped_session) as session:
            query = session.query(*columns).filter(models.TrialModel.study_id == study_id)
            return [(row[0], row[1]) for row in query.order_by(columns[0])]

    def _read_trial(self, trial_id: int, number: int) -> FrozenTrial:
        """Return a trial, or a failed one in place of a row that cannot be read."""
        try:
            return self.get_trial(trial_id)
        except _UNREADABLE as error:
            warn_of_damage(f"trial {number} is left out: its row is damaged ({_shorten(error)})")
            return FrozenTrial(
                number=number,
                state=TrialState.FAIL,
                value=None,
                datetime_start=None,
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
                trial_id=trial_id,
            )

    def _build_frozen_trial_from_trial_model(self, trial: Any) -> FrozenTrial:
        where = f"trial {trial.number}"
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        damaged = len(trial.params)
        rows = sorted(trial.params, key=lambda row: row.param_id)
        readable = _readable(where, "parameter", rows, "param_name", _read_parameter)
        for name, (value, distribution) in readable:
            params[name], distributions[name] = value, distribution
            damaged -= 1
        built = FrozenTrial(
            number=trial.number,
            state=trial.state,
            value=None,
            values=_values(trial.values),
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=params,
            distributions=distributions,
            user_attrs=_read_attributes(where, trial.user_attributes),
            system_attrs=_read_attributes(where, trial.system_attributes),
            intermediate_values=dict(
                _readable(where, "report", trial.intermediate_values, "step", _read_report)
            ),
            trial_id=trial.trial_id,
        )
        if built.state in _DONE:
            why = damage_of(built, self._objectives(trial))
            if damaged or why is not None:
                warn_of_damage(f"{where} counts as failed: {why or 'a parameter is damaged'}")
                built.state, built._values = TrialState.FAIL, None
        return built

    def _objectives(self, trial: Any) -> int:
        """Return the number of objectives of a trial's study."""
        counts: dict[int, int] = self.__dict__.setdefault("_objective_counts", {})
        if trial.study_id not in counts:
            session = object_session(trial)
            assert session is not None  # the caller's, which has read the trial
            rows = models.StudyDirectionModel.where_study_id(trial.study_id, session)
            counts[trial.study_id] = len(rows)
        return counts[trial.study_id]


def _readable(
    where: str, kind: str, rows: Iterable[Any], key: str, read: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """Yield name and content of the rows that can be read; warn of the others."""
    for row in rows:
        name = getattr(row, key)
        try:
            content = read(row)
        except _UNREADABLE as error:
            reason = f"{type(error).__name__}: {_shorten(str(error))}"
            warn_of_damage(f"{where}: its {kind} {_shorten(name)} is left out ({reason})")
        else:
            yield name, content


def _read_attributes(where: str, rows: Iterable[Any]) -> dict[str, Any]:
    return dict(_readable(where, "attribute", rows, "key", lambda row: json.loads(row.value_json)))


def _read_parameter(row: Any) -> tuple[Any, BaseDistribution]:
    distribution = json_to_distribution(row.distribution_json)
    value = distribution.to_external_repr(row.param_value)
    if not isinstance(distribution, CategoricalDistribution) and not is_number(value):
        raise ValueError(f"it is {value!r}")
    return value, distribution


def _read_report(row: Any) -> float:
    value, kind = row.intermediate_value, row.intermediate_value_type
    return float(models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(value, kind))


def _values(rows: Iterable[Any]) -> list[Any] | None:
    """Return the values in the order of their objectives; damaged ones are None."""
    found: list[Any] = []
    for row in sorted(rows, key=lambda row: row.trial_value_id):
        try:
            value = models.TrialValueModel.stored_repr_to_value(row.value, row.value_type)
            found.append((int(row.objective), value if isinstance(value, Real) else None))
        except _UNREADABLE:
            found.append((len(found), None))
    return [value for _, value in sorted(found, key=lambda pair: pair[0])] or None
