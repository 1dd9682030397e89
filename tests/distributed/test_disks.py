"""Full, read-only, deleted and damaged SQLite files: the driver's own reason, and which file."""

import os
import sqlite3

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from support.waiting import wait_until

from optuna_robustloss.distributed.lease import LeaseKeeper
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.distributed.trial_io import database_of, write_trial


@pytest.fixture
def path(tmp_path, monkeypatch):
    # Optuna repeats a new trial by itself, with pauses.
    monkeypatch.setattr(optuna.storages._rdb.storage.random, "random", lambda: 0.0)
    return tmp_path / "s.db"


@pytest.fixture
def storage(path):
    storage = open_storage(f"sqlite:///{path}", create=True)
    optuna.create_study(storage=storage, study_name="s")
    yield storage
    database_of(storage).engine.dispose()


def each_new_connection(storage, pragma):
    engine = database_of(storage).engine
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute(pragma))
    engine.dispose()


def failures(storage):
    """Messages of calls that write, in their different ways."""
    messages = []
    for call in (
        lambda: storage.set_study_user_attr(1, "a", "x" * 2000),
        lambda: storage.create_new_trial(1),
        lambda: write_trial(storage, 1, {}, {}, {"a": "x" * 2000}),
        lambda: storage.set_trial_state_values(1, optuna.trial.TrialState.COMPLETE, [1.0]),
    ):
        with pytest.raises(StorageInternalError) as error:
            call()
        assert error.value.__suppress_context__
        messages.append(str(error.value))
    return messages


def check_messages(messages, path, reason):
    for message in messages:
        assert message.startswith(f"the storage 'sqlite:///{path}' failed: "), message
        assert reason in message
        assert "invalid data" not in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("pragma", "reason"),
    [
        ("PRAGMA max_page_count = 1", "database or disk is full (free some space"),
        ("PRAGMA query_only = 1", "attempt to write a readonly database (make the file and its"),
    ],
)
def test_a_disk_that_is_full_or_read_only(storage, path, pragma, reason):
    storage.create_new_trial(1)
    each_new_connection(storage, pragma)

    def fill():
        for _ in range(100):  # until no page is left
            storage.set_study_user_attr(1, "a", "x" * 2000)
            storage.create_new_trial(1)

    with pytest.raises(StorageInternalError) as error:
        fill()
    check_messages([str(error.value)], path, reason)


@pytest.mark.parametrize("new_connections", [False, True])
def test_a_file_that_was_deleted_is_not_made_again(storage, path, new_connections):
    storage.create_new_trial(1)
    path.unlink()
    if new_connections:
        database_of(storage).engine.dispose()
    reason = "unable to open database file" if new_connections else "readonly database"
    check_messages(failures(storage)[:3], path, reason)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no such table"),
        (b"hello world, " * 1000, "file is not a database"),
        (None, "database disk image is malformed"),
    ],
)
def test_a_file_that_was_replaced_or_damaged(storage, path, content, reason):
    storage.create_new_trial(1)
    database_of(storage).engine.dispose()
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    check_messages(failures(storage), path, reason)
    if content != b"":
        with pytest.raises(ValueError, match=rf"cannot open the storage '.*s\.db': {reason}"):
            open_storage(f"sqlite:///{path}")


def test_a_database_without_one_table(storage, path):
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE trial_system_attributes")
    connection.close()
    with pytest.raises(StorageInternalError, match=r"s\.db' failed: no such table: trial_system"):
        storage.get_all_trials(1), storage.get_trial(storage.create_new_trial(1))


def test_a_heartbeat_that_fails_says_why(storage, path, caplog):
    trial = storage.create_new_trial(1)
    keeper = LeaseKeeper(0.01)
    each_new_connection(storage, "PRAGMA query_only = 1")
    keeper.hold(storage, trial)
    wait_until(lambda: "a heartbeat failed: the storage" in caplog.text)
    keeper.release(storage, trial)
    assert "readonly database" in caplog.text
