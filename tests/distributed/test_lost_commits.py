"""A retried call recognises its own result after a COMMIT whose answer was lost."""

import sqlite3

import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from distributed import test_retrying_storage
from distributed.test_retrying_storage import COMPLETE, SPACE, failing, unavailable
from optuna_robustloss.distributed.trial_io import database_of, write_trial

storage = test_retrying_storage.storage


def lose_next_commit(storage, monkeypatch):
    """The next COMMIT is done, but its answer is lost."""
    dialect, left = database_of(storage).engine.dialect, [1]
    commit = dialect.do_commit

    def do_commit(connection):
        commit(connection)
        if left[0]:
            left[0] = 0
            raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(dialect, "do_commit", do_commit)
    return left


def test_a_result_whose_commit_was_not_answered_is_recognised(storage, monkeypatch):
    trial = storage.create_new_trial(1)
    left = lose_next_commit(storage, monkeypatch)
    assert storage.set_trial_state_values(trial, COMPLETE, [0.75]) is True
    assert left == [0]
    assert storage.get_trial(trial).values == [0.75]
    with pytest.raises(UpdateFinishedTrialError):  # at the first attempt it is another worker's
        storage.set_trial_state_values(trial, COMPLETE, [0.75])


def test_the_result_of_another_worker_is_not_taken_for_ones_own(storage):
    trial = storage.create_new_trial(1)
    other = RDBStorage(storage.policy.url)

    def finish_trial():
        other.set_trial_state_values(trial, TrialState.FAIL)
        return unavailable()

    with failing(storage, 1, finish_trial), pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial, COMPLETE, [0.75])
    assert storage.get_trial(trial).state == TrialState.FAIL


def test_parameters_whose_commit_was_not_answered_are_recognised(storage, monkeypatch):
    trial = storage.create_new_trial(1)
    left = lose_next_commit(storage, monkeypatch)
    write_trial(storage, trial, {"x": 0.1}, SPACE, {"a": 1})
    assert left == [0]
    assert storage.get_trial(trial).params == {"x": 0.1}
    assert storage.get_trial(trial).system_attrs == {"a": 1}
