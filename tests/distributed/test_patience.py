"""A database may go away and come back: calls wait for it, errors of other kinds do not."""

import logging
import pickle
import sqlite3
import threading
import time
from contextlib import contextmanager
from functools import partial

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.exceptions import (
    DuplicatedStudyError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import BaseStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from distributed.test_open_storage import SECRET
from optuna_robustloss.distributed import patience as waiting
from optuna_robustloss.distributed.patience import Patience, PatientStorage
from optuna_robustloss.distributed.trial_io import write_trial

SPACE = {"x": FloatDistribution(0, 1)}
LOGGER = waiting.logger.name


@pytest.fixture
def storage(tmp_path):
    """Gives up after two seconds, tries every few milliseconds, waits for no lock."""
    url = f"sqlite:///{tmp_path}/s.db"
    patience = Patience(url, 2.0, shortest=0.001, longest=0.02)
    storage = PatientStorage(url, {"connect_args": {"timeout": 0.01}}, patience=patience)
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    return storage


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, LOGGER)
    return lambda: [record for record in caplog.records if record.name == LOGGER]


def gone(message="server closed the connection unexpectedly", disconnected=True):
    return sa.exc.OperationalError(
        "SELECT 1", {}, Exception(message), connection_invalidated=disconnected
    )


@contextmanager
def failing(storage, times, error=gone, event="before_cursor_execute", only=""):
    """Let the next statements, or commits, of the storage's database fail."""
    left = [times]

    def fail(*arguments):
        if left[0] > 0 and (not only or only in arguments[2]):
            left[0] -= 1
            raise error()

    sa.event.listen(storage.engine, event, fail)
    try:
        yield left
    finally:
        sa.event.remove(storage.engine, event, fail)


def public_calls(storage, trial, other):
    """A call of each method, in an order in which all succeed."""
    complete = TrialState.COMPLETE
    write = partial(write_trial, storage, other, {"y": 0.5}, {"y": SPACE["x"]}, {"a": 1})
    calls = [
        ("set_study_user_attr", 1, "a", 1),
        ("set_study_system_attr", 1, "a", 1),
        ("get_study_id_from_name", "s"),
        ("get_study_name_from_id", 1),
        ("get_study_directions", 1),
        ("get_study_user_attrs", 1),
        ("get_study_system_attrs", 1),
        ("get_all_studies",),
        ("set_trial_param", trial, "x", 0.5, SPACE["x"]),
        ("get_trial_id_from_study_id_trial_number", 1, 0),
        ("get_trial_number_from_id", trial),
        ("get_trial_param", trial, "x"),
        ("set_trial_intermediate_value", trial, 1, 2.0),
        ("set_trial_user_attr", trial, "a", 1),
        ("set_trial_system_attr", trial, "a", 1),
        ("get_trial", trial),
        ("get_all_trials", 1),
        ("get_n_trials", 1),
        ("get_trial_params", trial),
        ("get_trial_user_attrs", trial),
        ("get_trial_system_attrs", trial),
        ("set_trial_state_values", trial, complete, [1.0]),
        ("get_best_trial", 1),
        ("create_new_study", [StudyDirection.MINIMIZE], "t"),
        ("delete_study", 2),
    ]
    return {name: partial(getattr(storage, name), *a) for name, *a in calls} | {"write": write}


@pytest.mark.parametrize("cached", [False, True])
def test_every_call_outlives_a_blip(storage, cached, log):
    asked = get_storage(storage) if cached else storage
    calls = public_calls(asked, asked.create_new_trial(1), asked.create_new_trial(1))
    # Optuna repeats this one itself first, with seconds in between.
    in_other_tests = {"create_new_trial", "remove_session", "check_trial_is_updatable"}
    public = {name for name in vars(BaseStorage) if not name.startswith("_")}
    assert public - in_other_tests <= set(calls)
    for name, call in calls.items():
        before = len(log())
        with failing(storage, 2) as left:
            call()
        if left[0] == 2:  # answered by the cache
            assert cached, name
            continue
        assert left == [0], name
        assert [record.levelname for record in log()[before:]] == ["WARNING", "INFO"], name


def test_a_new_trial_outlives_more_than_optunas_own_patience(storage, monkeypatch):
    monkeypatch.setattr(optuna.storages._rdb.storage.random, "random", lambda: 0.0)
    with failing(storage, 7) as left:
        trial = get_storage(storage).create_new_trial(1)
    assert left == [0]
    assert [t._trial_id for t in storage.get_all_trials(1)] == [trial]


def test_patience_ends(storage, log):
    storage.patience.seconds = 0.2
    started = time.monotonic()
    with (
        failing(storage, 10**6),
        pytest.raises(
            StorageInternalError, match=r"did not answer for .* s: server closed"
        ) as error,
    ):
        storage.get_all_trials(1)
    # get_all_trials calls _get_trials: each having its own patience, it would be several times it.
    assert 0.15 < time.monotonic() - started < 1.0
    assert error.value.__cause__ is error.value.__context__ is None
    assert [record.levelname for record in log()] == ["WARNING"]
    assert storage.get_all_trials(1) == []
    assert [record.levelname for record in log()] == ["WARNING", "INFO"]


def test_a_call_within_a_call_is_repeated_by_the_outer_one_alone():
    patience = Patience("sqlite:///s.db", 60.0, shortest=0.001)
    errors, outer = [gone(), gone(), gone()], []

    def inner():
        if errors:
            raise errors.pop()
        return len(outer)

    assert patience.run(lambda: outer.append(1) or patience.run(inner)) == 4


def test_the_last_pause_ends_with_the_patience(storage):
    storage.patience.seconds, storage.patience.shortest = 0.2, 60.0
    started = time.monotonic()
    with failing(storage, 10**6), pytest.raises(StorageInternalError):
        storage.get_all_studies()
    assert time.monotonic() - started < 5


def test_one_outage_is_told_once_by_all_threads(storage, log):
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
    # One that succeeds while others still fail may end it early, but it is not told four times.
    assert [record.levelname for record in log()].count("WARNING") <= 2


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
def test_errors_of_other_kinds_are_raised_at_once(storage, call, error, log):
    storage.patience.shortest = storage.patience.longest = 60.0
    trial = storage.create_new_trial(1)
    storage.set_trial_state_values(trial, TrialState.FAIL)
    with pytest.raises(error):
        call(storage)
    assert log() == []


def test_a_table_that_is_missing_is_not_waited_for(storage, log):
    storage.patience.shortest = storage.patience.longest = 60.0
    with storage.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE study_user_attributes"))
    with pytest.raises(StorageInternalError):
        storage.get_study_user_attrs(1)
    assert log() == []


def test_a_locked_file_is_waited_for_quietly(storage, tmp_path, log):
    trial = storage.create_new_trial(1)
    other = sqlite3.connect(tmp_path / "s.db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.3, other.rollback).start()
    started = time.monotonic()
    storage.set_trial_user_attr(trial, "a", 1)
    write_trial(storage, trial, {"x": 0.5}, SPACE, {})
    assert 0.2 < time.monotonic() - started < 1.5
    assert storage.get_trial(trial).user_attrs == {"a": 1}
    assert log() == []
    other.close()


def test_a_file_that_stays_locked_is_told(storage, tmp_path, log, monkeypatch):
    monkeypatch.setattr(waiting, "_UNUSUAL", 0.1)
    storage.patience.seconds = 0.5
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageInternalError, match=r"s\.db did not answer .* locked"):
            storage.get_all_studies()
        other.rollback()
    other.close()
    assert [record.levelname for record in log()] == ["WARNING"]
    assert storage.get_all_studies()[0].study_name == "s"


def test_ctrl_c_ends_the_wait(storage, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting.time, "sleep", interrupted)
    with failing(storage, 10**6), pytest.raises(KeyboardInterrupt):
        storage.get_all_trials(1)
    monkeypatch.undo()
    with failing(storage, 1) as left:  # the next call waits as before
        storage.get_all_trials(1)
    assert left == [0]


def test_the_pauses_grow_to_the_longest(storage, monkeypatch):
    pauses = []
    monkeypatch.setattr(waiting.time, "sleep", pauses.append)
    monkeypatch.setattr(waiting._random, "uniform", lambda low, high: high)
    storage.patience = Patience("sqlite:///s.db", 60.0, shortest=0.1, longest=1.0)
    with failing(storage, 6):
        storage.get_all_studies()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_storage_can_be_sent_to_another_process(storage):
    again = pickle.loads(pickle.dumps(storage))
    assert (again.patience.seconds, again.patience.longest) == (2.0, 0.02)
    with failing(again, 2) as left:
        assert again.get_all_studies()[0].study_name == "s"
    assert left == [0]


def test_an_outage_is_told_without_the_password(caplog, tmp_path):
    url = f"mysql+pymysql://me:{SECRET}@host/db"
    patience = Patience(url, 0.05, shortest=0.001)

    def call():
        raise gone(f"cannot reach {SECRET}@host of {url}")

    with pytest.raises(StorageInternalError) as error:
        patience.run(call)
    assert "mysql+pymysql://me:***@host/db" in caplog.text
    assert "cannot reach" in caplog.text
    assert SECRET not in caplog.text + str(error.value) + repr(error.value)
