"""A COMMIT whose answer is lost: what is repeated recognises what was done."""

import sqlite3

import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from distributed import test_patience
from distributed.test_patience import SPACE, failing, gone
from optuna_robustloss.distributed.trial_io import write_trial

storage = test_patience.storage


def lost_commit(storage, monkeypatch):
    """The next COMMIT is done, but its answer is lost."""
    commit, left = storage.engine.dialect.do_commit, [1]

    def do_commit(connection):
        commit(connection)
        if left[0]:
            left[0] = 0
            raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(storage.engine.dialect, "do_commit", do_commit)
    return left


def test_a_result_whose_commit_was_not_answered_is_recognised(storage, monkeypatch):
    trial = storage.create_new_trial(1)
    left = lost_commit(storage, monkeypatch)
    assert storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.75]) is True
    assert left == [0]
    assert storage.get_trial(trial).values == [0.75]
    with pytest.raises(UpdateFinishedTrialError):  # not repeated: somebody else's, then
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.75])


def test_the_result_of_another_is_not_taken_for_ones_own(storage):
    trial = storage.create_new_trial(1)

    def somebody_else(*_):
        RDBStorage.set_trial_state_values(other, trial, TrialState.FAIL)
        return gone()

    other = RDBStorage(storage.url)
    with failing(storage, 1, somebody_else), pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.75])
    assert storage.get_trial(trial).state == TrialState.FAIL


def test_parameters_whose_commit_was_not_answered_are_recognised(storage, monkeypatch):
    trial = storage.create_new_trial(1)
    left = lost_commit(storage, monkeypatch)
    write_trial(storage, trial, {"x": 0.1}, SPACE, {"a": 1})
    assert left == [0]
    assert storage.get_trial(trial).params == {"x": 0.1}
    assert storage.get_trial(trial).system_attrs == {"a": 1}
