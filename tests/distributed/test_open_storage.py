"""Storages of every kind by their URL; what cannot be opened says why, and never a password."""

import multiprocessing
import socket
import sqlite3
import sys
import threading
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from support import postgres
from support.waiting import LIMIT

from optuna_robustloss.distributed import databases
from optuna_robustloss.distributed import storage as storages
from optuna_robustloss.distributed.retrying_storage import RetryingStorage
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.distributed.trial_io import database_of

postgres_server = postgres.postgres_server
postgres_url = postgres.postgres_url

SECRET = "hunter2-secret"


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def whole_chain(error):
    """Everything a traceback prints."""
    texts = []
    while error is not None:
        texts.append(f"{error!s} {error!r}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return " ".join(texts)


def two_trials(storage):
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    return [trial.params for trial in study.trials]


def test_an_sqlite_file_is_retried_and_without_optunas_heartbeat(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", create=True, patience=7)
    assert isinstance(storage, RetryingStorage)
    assert storage.policy.seconds == 7
    assert not isinstance(storage, BaseHeartbeat)
    written = two_trials(storage)
    again = open_storage(f"sqlite:///{tmp_path}/s.db")
    assert [trial.params for trial in optuna.load_study(study_name="s", storage=again).trials] == (
        written
    )


@pytest.mark.parametrize("form", ["journal:{}", "journal://{}", "{}"])
def test_a_journal_by_its_path(tmp_path, form):
    url = form.format(tmp_path / "search.log")
    if ":" in form:
        with pytest.raises(FileNotFoundError, match=r"there is no journal .*search\.log"):
            open_storage(url)
        assert not list(tmp_path.iterdir())
    two_trials(open_storage(f"journal:{tmp_path}/search.log", create=True))
    storage = open_storage(url)
    assert isinstance(storage, JournalStorage)
    assert len(storage.get_all_trials(storage.get_study_id_from_name("s"))) == 2


def test_a_relative_journal_is_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    storage = open_storage("journal:runs/search.log", create=True)
    monkeypatch.chdir("/")  # the lock must not move with the process
    two_trials(storage)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["search.log"]


def test_a_journal_waits_for_the_lock_of_optunas_own_commands(tmp_path):
    path = str(tmp_path / "search.log")
    storage = open_storage(f"journal:{path}", create=True)
    theirs = JournalFileSymlinkLock(path)
    theirs.acquire()
    writer = threading.Thread(target=two_trials, args=(storage,))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()
    assert Path(path).read_bytes() == b""
    theirs.release()
    writer.join()
    assert len(two_trials(JournalStorage(JournalFileBackend(path)))) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SQLite format 3\0 and so on", r"it is an SQLite database: write sqlite:///"),
        (b"task: digits\nnoise: 0.6\n", "it is not a journal of Optuna"),
        (b'{"a": 1}\n', "it is not a journal of Optuna"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\n", "it is not a journal of Optuna"),
    ],
)
def test_another_file_is_not_taken_for_a_journal(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_storage(str(path))
    assert path.read_bytes() == content


def test_a_grpc_proxy_shows_the_storage_behind_it(tmp_path):
    pytest.importorskip("grpc")
    from optuna.storages._grpc.server import make_server

    behind = optuna.storages.get_storage(open_storage(f"sqlite:///{tmp_path}/s.db", create=True))
    port = closed_port()
    server = make_server(behind, "localhost", port)
    server.start()
    try:
        written = two_trials(open_storage(f"grpc://localhost:{port}"))
    finally:
        server.stop(None)
    assert [trial.params for trial in behind.get_all_trials(1)] == written


def test_a_grpc_proxy_that_is_not_there(monkeypatch):
    pytest.importorskip("grpc")
    monkeypatch.setattr(storages, "_GRPC_TIMEOUT", 0.2)
    with pytest.raises(ValueError, match="no gRPC server answers there; start one with"):
        open_storage(f"grpc://localhost:{closed_port()}")


@pytest.mark.parametrize(
    ("url", "module", "fix"),
    [
        ("grpc://localhost:1", "grpc", r"pip install 'optuna-robustloss\[grpc\]'"),
        ("grpc://localhost", "google.protobuf", r"pip install 'optuna-robustloss\[grpc\]'"),
        (
            "postgresql+psycopg://u:{}@h/d",
            "psycopg",
            r"psycopg\): pip install '.*loss\[postgresql\]'",
        ),
        ("postgresql+psycopg2://u:{}@h/d", "psycopg2", r"write postgresql\+psycopg://… and pip"),
        (
            "mysql+pymysql://u:{}@h/d",
            "pymysql",
            r"pymysql\): pip install 'optuna-robustloss\[mysql\]'",
        ),
        ("mysql://u:{}@h/d", "MySQLdb", r"write mysql\+pymysql://… and pip .*\[mysql\]"),
        ("mssql+pyodbc://u:{}@h/d", "pyodbc", r"not installed: pip install pyodbc"),
        ("redis://:{}@h:1/0", "redis", r"not installed: pip install redis"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(monkeypatch, url, module, fix):
    monkeypatch.setitem(sys.modules, module, None)
    if module == "redis":
        from optuna.storages.journal import _redis

        monkeypatch.setattr(_redis, "_imports", _failed_import(module))
    with pytest.raises(ValueError, match=fix) as error:
        open_storage(url.format(SECRET))
    assert "not installed" in str(error.value)
    assert SECRET not in whole_chain(error.value)


def _failed_import(module):
    from optuna._imports import try_import

    with try_import() as imports:
        raise ImportError(module)
    return imports


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:{}@127.0.0.1:{}/db?connect_timeout=5",
        "postgresql+psycopg://127.0.0.1:{1}/db?user=me&password={0}",
        "mysql+pymysql://user:{}@127.0.0.1:{}/db",
    ],
)
@pytest.mark.parametrize("password", [SECRET, "s{e}c%25re{t/t0p"])
def test_a_server_that_does_not_answer(url, password):
    pytest.importorskip("psycopg" if "psycopg" in url else "pymysql")
    with pytest.raises(ValueError, match=r"cannot open the storage .*refused") as error:
        open_storage(url.format(password, closed_port()))
    assert "re{t" not in whole_chain(error.value)
    assert SECRET not in whole_chain(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql:user:{SECRET}@host/db",
        f"postgresql:/user:{SECRET}@host/db",
        f"postgresql//user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}@host:port/db",
        f"postgresql://me@cloud:{SECRET}@host:port/db",
        f"postgresql://user:a@{SECRET}@host:port/db",
        f"user:{SECRET}@host/db",
        f"oracel://user:{SECRET}@host/db",
        f"oracel://host/db?Password={SECRET}",
        f"grpc://user:{SECRET}@host:1",
        f"grpc://host:{'9' * 6}",
        "journal:",
        "journal://relative.log",
        "sqlite:/study.db",
        "",
    ],
)
def test_a_malformed_url(url):
    with pytest.raises(ValueError, match=r"is not (a storage URL|the URL of|a journal)") as error:
        open_storage(url)
    assert SECRET not in whole_chain(error.value)


def test_a_password_does_not_show_in_the_storage(tmp_path, monkeypatch):
    monkeypatch.setattr(databases, "TolerantRDBStorage", lambda *_: InMemoryStorage())
    storage = open_storage(f"postgresql+psycopg://user:{SECRET}@host/db")
    assert SECRET not in repr(storage) + repr(storage.policy)


def test_tables_of_another_optuna_give_optunas_advice(tmp_path):
    open_storage(f"sqlite:///{tmp_path}/s.db", create=True)
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v3.0.0.a'")
    connection.close()
    with pytest.raises(ValueError, match="optuna storage upgrade --storage"):
        open_storage(f"sqlite:///{tmp_path}/s.db")


def _open_and_close(url, start, results):
    start.wait()
    try:
        open_storage(url, create=True)
    except Exception as error:
        results.put(repr(error))
    else:
        results.put("opened")


def test_workers_may_make_one_database_together(tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    arguments = (f"sqlite:///{tmp_path}/s.db", start, results)
    workers = [context.Process(target=_open_and_close, args=arguments) for _ in range(6)]
    for worker in workers:
        worker.start()
    start.set()
    assert [results.get(timeout=LIMIT) for _ in workers] == ["opened"] * 6
    for worker in workers:
        worker.join()


def test_a_worker_takes_few_connections_to_a_server(postgres_url):
    storage = database_of(open_storage(postgres_url))
    assert storage.engine.pool.size() == 2
    held = [storage.engine.connect() for _ in range(4)]
    storage.engine.pool._timeout = 0.1
    with pytest.raises(Exception, match="QueuePool limit"):
        storage.engine.connect()
    for connection in held:
        connection.close()
    storage.engine.dispose()


def test_the_urls_own_time_limits_have_precedence():
    options = databases._engine_options("mysql+pymysql://u@h/d?read_timeout=5")
    assert "read_timeout" not in options["connect_args"]
    assert options["connect_args"]["connect_timeout"] == 10
    assert options["pool_pre_ping"] is True


def test_an_sqlite_file_on_a_network_file_system_is_warned_of(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(databases, "network_file_system", lambda p, text: asked.append(p) or "nfs4")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(UserWarning, match=r"network file system \(nfs4\).*use a database") as record:
        open_storage(f"sqlite:///{tmp_path}/link/s.db", create=True)
    assert record[0].filename == __file__
    assert asked == [(tmp_path / "s.db").resolve()]
    monkeypatch.setattr(databases, "network_file_system", lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_storage(f"sqlite:///{tmp_path}/s.db")
