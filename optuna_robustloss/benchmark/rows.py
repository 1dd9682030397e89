"""Read the trials of a benchmark, which other clients of the database may have written."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from optuna.trial import FrozenTrial

from optuna_robustloss.attributes import CURVE, RUN_DIVERGED
from optuna_robustloss.benchmark.runs import Run, RunEvaluation, RunResult
from optuna_robustloss.spec_files import short_repr

_logger = logging.getLogger(__name__)

_TEXTS, _NUMBERS = ("method", "task", "schedule"), ("seed", "scale", "horizon")
#: Places of fields of an evaluation: accuracies begin with the test accuracy.
_STEP, _TEST = 0, 3
_FIELDS = len(RunEvaluation.__dataclass_fields__)
#: What is known of finished trials, which do not change.
_results: dict[tuple[object, ...], RunResult | None] = {}


class _Damaged(ValueError):
    """What is wrong with a trial."""


def run_of(trial: FrozenTrial) -> Run | None:
    """Return the run of a trial; None, with a warning, if its parameters are none of a run."""
    try:
        return _read_run(trial)
    except _Damaged as damage:
        _warn_once(f"trial {trial.number} is left out: {damage}")
        return None


def result_of(trial: FrozenTrial) -> RunResult | None:
    """Return the result of a complete trial; None, with a warning, if it is damaged."""
    key = (trial._trial_id, trial.number, trial.datetime_start, trial.datetime_complete)
    if key not in _results:
        try:
            _results[key] = _read_result(trial)
        except _Damaged as damage:
            _warn_once(f"trial {trial.number} is left out: {damage}")
            _results[key] = None
    return _results[key]


def _read_run(trial: FrozenTrial) -> Run:
    for name in (*_TEXTS, *_NUMBERS):
        value = trial.params.get(name)
        if not (isinstance(value, str) if name in _TEXTS else _is_number(value)):
            raise _Damaged(f"its parameter {name!r} is {short_repr(value)}")
    if further := sorted(map(str, trial.params.keys() - {*_TEXTS, *_NUMBERS})):
        raise _Damaged(f"it has the parameter {short_repr(further[0])}, which no run has")
    return Run(**trial.params)


def _read_result(trial: FrozenTrial) -> RunResult:
    run = _read_run(trial)
    values = trial.values or [None]
    if len(values) != 1 or not _is_share(values[0]):
        raise _Damaged(f"its value is {short_repr(trial.values)}, not an accuracy in [0, 1]")
    curve: Any = CURVE.read(trial)
    if not isinstance(curve, list) or not curve:
        raise _Damaged(f"its attribute {CURVE.key!r} holds no evaluations")
    step = -1
    for row in curve:
        if not (isinstance(row, list) and len(row) == _FIELDS and _is_evaluation(row)):
            raise _Damaged(
                f"its attribute {CURVE.key!r} holds {short_repr(row)}, which is no evaluation"
            )
        if row[_STEP] <= step:
            raise _Damaged(f"its attribute {CURVE.key!r} is not in the order of its steps")
        step = row[_STEP]
    diverged = trial.user_attrs.get(RUN_DIVERGED.key)
    if diverged is not None and not isinstance(diverged, bool):
        raise _Damaged(f"its attribute {RUN_DIVERGED.key!r} is {short_repr(diverged)}")
    return RunResult(run, tuple(RunEvaluation(*row) for row in curve), bool(diverged))


def _is_evaluation(row: list[Any]) -> bool:
    return (
        isinstance(row[_STEP], int)
        and all(_is_number(value) and value >= 0 for value in row[:_TEST])
        and _is_share(row[_TEST])
        and all(value is None or _is_share(value) for value in row[_TEST + 1 :])
    )


def _is_number(value: object) -> bool:
    """Return whether a value is a finite number that floats can hold."""
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < 1e300


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


@lru_cache(maxsize=10_000)
def _warn_once(text: str) -> None:
    _logger.warning("%s", text)
