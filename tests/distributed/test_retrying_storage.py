"""Calls are retried while a database is locked or unavailable; other errors are raised at once."""

import logging
import pickle
import sqlite3
import threading
from contextlib import contextmanager

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.exceptions import (
    DuplicatedStudyError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from distributed.test_open_storage import SECRET
from optuna_robustloss.distributed import retry
from optuna_robustloss.distributed.retry import RetryPolicy
from optuna_robustloss.distributed.retrying_storage import RetryingStorage
from optuna_robustloss.distributed.trial_io import database_of, write_trial

SPACE = {"x": FloatDistribution(0, 1)}
COMPLETE = TrialState.COMPLETE
#: In an order in which all succeed, on trials with the ids 1 and 2 of the study 1.
CALLS = [
    ("set_study_user_attr", 1, "a", 1),
    ("set_study_system_attr", 1, "a", 1),
    ("get_study_id_from_name", "s"),
    ("get_study_name_from_id", 1),
    ("get_study_directions", 1),
    ("get_study_user_attrs", 1),
    ("get_study_system_attrs", 1),
    ("get_all_studies",),
    ("set_trial_param", 1, "x", 0.5, SPACE["x"]),
    ("get_trial_id_from_study_id_trial_number", 1, 0),
    ("get_trial_number_from_id", 1),
    ("get_trial_param", 1, "x"),
    ("set_trial_intermediate_value", 1, 1, 2.0),
    ("set_trial_user_attr", 1, "a", 1),
    ("set_trial_system_attr", 1, "a", 1),
    ("get_trial", 1),
    ("get_all_trials", 1),
    ("get_n_trials", 1),
    ("get_trial_params", 1),
    ("get_trial_user_attrs", 1),
    ("get_trial_system_attrs", 1),
    ("set_trial_state_values", 1, COMPLETE, [1.0]),
    ("get_best_trial", 1),
    ("create_new_study", [StudyDirection.MINIMIZE], "t"),
    ("delete_study", 2),
]


@pytest.fixture
def storage(tmp_path):
    """Fails after a minute, waits milliseconds between attempts, and for no lock."""
    url = f"sqlite:///{tmp_path}/s.db"
    database = RDBStorage(url, {"connect_args": {"timeout": 0.01}})
    policy = RetryPolicy(url, 60.0, first_pause=0.001, longest_pause=0.02)
    storage = RetryingStorage(get_storage(database), policy)
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    return storage


@pytest.fixture
def levels(caplog):
    """Levels of what was logged since the last call."""
    caplog.set_level(logging.INFO, retry._logger.name)

    def take():
        found = [r.levelname for r in caplog.records if r.name == retry._logger.name]
        caplog.clear()
        return found

    return take


def unavailable(message="server closed the connection unexpectedly"):
    return sa.exc.OperationalError("SELECT 1", {}, Exception(message), connection_invalidated=True)


@contextmanager
def failing(storage, times, error=unavailable):
    """Let the next statements of the storage's database fail."""
    left = [times]

    def fail(*_):
        if left[0] > 0:
            left[0] -= 1
            raise error()

    engine = database_of(storage).engine
    sa.event.listen(engine, "before_cursor_execute", fail)
    try:
        yield left
    finally:
        sa.event.remove(engine, "before_cursor_execute", fail)


def test_every_call_is_retried(storage, levels):
    storage.create_new_trial(1)
    other = storage.create_new_trial(1)
    public = {name for name in vars(BaseStorage) if not name.startswith("_")}
    # Optuna retries a new trial itself first, with seconds in between.
    assert public - {call[0] for call in CALLS} == {
        "create_new_trial",
        "remove_session",
        "check_trial_is_updatable",
    }
    for name, *arguments in CALLS:
        with failing(storage, 2) as left:
            getattr(storage, name)(*arguments)
        if left[0] == 2:  # answered by Optuna's cache
            assert levels() == []
        else:
            assert left == [0], name
            assert levels() == ["WARNING", "INFO"], name
    with failing(storage, 2) as left:
        write_trial(storage, other, {"y": 0.5}, {"y": SPACE["x"]}, {"a": 1})
    assert left == [0]
    assert storage.get_trial(other).params == {"y": 0.5}


def test_a_new_trial_is_retried_longer_than_optuna_does(storage, monkeypatch):
    monkeypatch.setattr(optuna.storages._rdb.storage.random, "random", lambda: 0.0)
    with failing(storage, 7) as left:
        trial = storage.create_new_trial(1)
    assert left == [0]
    assert [t._trial_id for t in storage.get_all_trials(1)] == [trial]


def test_retries_end(storage, levels):
    storage.policy.seconds = 0.2
    with (
        failing(storage, 10**6) as left,
        pytest.raises(StorageInternalError, match=r"did not answer for .* s: server closed") as e,
    ):
        storage.get_all_trials(1)
    assert left[0] < 10**6 - 1
    assert e.value.__cause__ is None
    assert e.value.__suppress_context__
    assert levels() == ["WARNING"]
    assert storage.get_all_trials(1) == []
    assert levels() == ["INFO"]


def test_one_outage_is_logged_once_by_all_threads(storage, levels):
    calls = threading.Barrier(4)

    def work():
        calls.wait()
        storage.get_all_studies()
        storage.remove_session()

    threads = [threading.Thread(target=work) for _ in range(4)]
    with failing(storage, 40) as left:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert left == [0]
    # One that succeeds while others still fail may end it early, but it is not logged four times.
    assert levels().count("WARNING") <= 2


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.get_study_id_from_name("none"), KeyError),
        (lambda s: s.create_new_study([StudyDirection.MAXIMIZE], "s"), DuplicatedStudyError),
        (lambda s: s.set_trial_user_attr(77, "a", 1), KeyError),
        (lambda s: s.set_study_user_attr(1, "a", object()), TypeError),
        (lambda s: s.set_trial_state_values(1, TrialState.FAIL), UpdateFinishedTrialError),
        (lambda s: s.get_best_trial(1), ValueError),
    ],
)
def test_other_errors_are_raised_at_once(storage, call, error, levels, monkeypatch):
    monkeypatch.setattr(retry.tenacity.nap.time, "sleep", lambda _: pytest.fail("a retry"))
    trial = storage.create_new_trial(1)
    storage.set_trial_state_values(trial, TrialState.FAIL)
    with pytest.raises(error):
        call(storage)
    assert levels() == []


def test_a_missing_table_is_not_retried(storage, levels):
    with database_of(storage).engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE study_user_attributes"))
    with pytest.raises(StorageInternalError):
        storage.get_study_user_attrs(1)
    assert levels() == []


def test_a_locked_file_is_retried_without_a_log_line(storage, tmp_path, levels, monkeypatch):
    trial = storage.create_new_trial(1)
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        pauses = []

        def release(seconds):
            pauses.append(seconds)
            if len(pauses) == 3:
                other.rollback()

        monkeypatch.setattr(retry.tenacity.nap.time, "sleep", release)
        storage.set_trial_user_attr(trial, "a", 1)
    other.close()
    assert len(pauses) == 3
    assert storage.get_trial(trial).user_attrs == {"a": 1}
    assert levels() == []


def test_a_file_that_stays_locked_is_named(storage, tmp_path, levels, monkeypatch):
    monkeypatch.setattr(retry, "_LOG_LOCKS_AFTER", 0.01)
    storage.policy.seconds = 0.5
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageInternalError, match=r"s\.db' did not answer .* locked"):
            storage.get_all_studies()
        other.rollback()
    other.close()
    assert levels() == ["WARNING"]
    assert storage.get_all_studies()[0].study_name == "s"


def test_ctrl_c_ends_the_retries(storage, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(retry.tenacity.nap.time, "sleep", interrupt)
    with failing(storage, 10**6), pytest.raises(KeyboardInterrupt):
        storage.get_all_trials(1)
    monkeypatch.undo()
    with failing(storage, 1) as left:  # the next call is retried as before
        storage.get_all_trials(1)
    assert left == [0]


def test_a_storage_can_be_sent_to_another_process(storage):
    again = pickle.loads(pickle.dumps(storage))
    assert (again.policy.seconds, again.policy.longest_pause) == (60.0, 0.02)
    with failing(again, 2) as left:
        assert again.get_all_studies()[0].study_name == "s"
    assert left == [0]


def test_an_outage_is_logged_without_the_password(caplog):
    url = f"mysql+pymysql://me:{SECRET}@host/db"
    policy = RetryPolicy(url, 0.05, first_pause=0.001)

    def call():
        raise unavailable(f"cannot reach {SECRET}@host of {url}")

    with pytest.raises(StorageInternalError) as error:
        policy.call(call)
    assert "mysql+pymysql://me:***@host/db" in caplog.text
    assert "cannot reach" in caplog.text
    assert SECRET not in caplog.text + str(error.value) + repr(error.value) + repr(policy)
