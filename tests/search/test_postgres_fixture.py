"""The server that other tests rely on: what it keeps, what it refuses, and that it goes away."""

import os
import select
import subprocess
import sys
from pathlib import Path

import optuna
import psycopg
import pytest
from sqlalchemy import make_url
from support import postgres
from support.postgres import PostgresServer
from support.waiting import LIMIT

FOLDER = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def server(postgres_server):
    return postgres_server


def connect(url, **options):
    # psycopg reads the quoted password itself; the driver's name is SQLAlchemy's.
    return psycopg.connect(url.replace("+psycopg", ""), connect_timeout=120, **options)


def wait_for_end(process):
    assert select.select([process], [], [], LIMIT)[0], "still running"


def test_the_server_is_real_and_does_not_run_as_root(server):
    process = Path(f"/proc/{server.pid}")
    assert (process / "comm").read_text().strip() == "postgres"
    assert process.stat().st_uid != 0
    with connect(server.url("postgres")) as connection:
        version = connection.execute("SHOW server_version_num").fetchone()[0]
        assert connection.execute("SHOW max_connections").fetchone() == ("200",)
    assert int(version) >= 130000


def test_the_password_needs_quoting_and_is_asked_for(server):
    url = server.create_database("quoted")
    assert make_url(url).password == server.password
    assert server.password not in url
    with connect(url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("quoted",)
    for right in (server.url("quoted"), server.local_url("quoted")):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(right.replace(":" + server.password[:4], ":"))


def test_optuna_opens_the_url_and_the_socket_shows_the_same(server):
    url = server.create_database("optuna")
    study = optuna.create_study(storage=url, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    again = optuna.load_study(storage=server.local_url("optuna"), study_name="s")
    assert [t.value for t in again.trials] == [t.value for t in study.trials]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_url_and_data(server, mode):
    url = server.create_database(f"kept_{mode}")
    with connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 17 AS x")
    before = server.pid
    server.restart(mode)
    assert server.pid != before
    with connect(url) as connection:
        assert connection.execute("SELECT x FROM t").fetchone() == (17,)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_stop_ends_connections_and_refuses_new_ones(server, mode):
    url = server.url("postgres")
    with connect(url, autocommit=True) as connection:
        server.stop(mode)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(url)
    server.start()
    connect(url).close()


@pytest.mark.slow
def test_settings_are_the_servers_and_a_wrong_one_is_shown():
    if reason := postgres.skip_reason():
        pytest.skip(reason)
    with PostgresServer(listen="*", settings={"max_connections": "7"}) as server:
        with connect(server.url("postgres")) as connection:
            assert connection.execute("SHOW max_connections").fetchone() == ("7",)
    wrong = PostgresServer(settings={"no_such_setting": "1"})
    with pytest.raises(RuntimeError, match="no_such_setting"):
        wrong.__enter__()
    assert wrong.directory is None


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_an_empty_database_of_one_server(postgres_server, postgres_url, turn):
    assert make_url(postgres_url).port == postgres_server.port
    with connect(postgres_url) as connection:
        connection.execute("CREATE TABLE t ()")
    with connect(postgres_server.url("postgres")) as connection:
        query = "SELECT count(*) FROM pg_database WHERE datname LIKE 'test_%'"
        assert connection.execute(query).fetchone() == (1,)


@pytest.mark.slow
def test_a_closed_server_leaves_nothing():
    if reason := postgres.skip_reason():
        pytest.skip(reason)
    with PostgresServer() as server:
        directory, process = server.directory, os.pidfd_open(server.pid)
    wait_for_end(process)  # it removes its file postmaster.pid shortly before it ends
    assert not directory.exists()


def test_the_server_dies_with_a_killed_test_process():
    if reason := postgres.skip_reason():
        pytest.skip(reason)
    program = """if True:
        import sys
        from postgres import PostgresServer
        with PostgresServer() as server:
            print(server.directory, server.pid, server._guardian.pid, flush=True)
            sys.stdin.read()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=FOLDER, **pipes) as tests:
        directory, *pids = tests.stdout.readline().split()
        processes = [os.pidfd_open(int(pid)) for pid in pids]
        assert Path(directory).exists()
        tests.kill()
    for process in processes:
        wait_for_end(process)
    assert not Path(directory).exists()


def test_without_a_server_the_reason_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    assert "apt-get install postgresql" in postgres.skip_reason()


def test_the_newest_of_debians_versions_is_taken(monkeypatch, tmp_path):
    monkeypatch.delenv("PG_BIN", raising=False)
    for version in ("9", "13", "17"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for program in postgres.PROGRAMS:
            (folder / program).touch()
    (tmp_path / "17/bin/initdb").unlink()
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    assert postgres.binaries() == tmp_path / "13/bin"
