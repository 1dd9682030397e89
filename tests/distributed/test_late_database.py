"""A worker that starts before its database waits for it; other commands answer at once."""

import os
import socket
import subprocess
import sys
import threading

import optuna
import pytest
from optuna.storages import get_storage
from support import postgres
from support.small import small_spec
from support.waiting import LIMIT, wait_until

from distributed.test_open_storage import closed_port
from optuna_robustloss.distributed import retry
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.distributed.trial_io import database_of

WAITING = "does not answer; retrying for up to"


@pytest.fixture
def server():
    """A server that has run, and is stopped."""
    if reason := postgres.skip_reason():
        pytest.skip(reason)
    with postgres.PostgresServer() as server:
        server.stop()
        yield server


def test_a_worker_waits_for_a_server_that_starts_later(server, caplog, monkeypatch):
    monkeypatch.setattr(retry.RetryPolicy, "longest_pause", 0.5)
    url = server.url("postgres")
    opened = []
    worker = threading.Thread(target=lambda: opened.append(open_storage(url, wait=True)))
    worker.start()
    wait_until(lambda: WAITING in caplog.text)
    assert not opened
    server.start()
    wait_until(lambda: not worker.is_alive())
    study = optuna.create_study(storage=opened[0], study_name="s")
    study.tell(study.ask(), 1.0)
    database_of(opened[0]).engine.dispose()
    assert server.password not in caplog.text
    server.stop()
    with pytest.raises(ValueError, match=r"did not answer for .* s: .*refused"):
        open_storage(url, wait=True, patience=0.5)


def test_without_waiting_the_answer_comes_at_once(server, caplog):
    with pytest.raises(ValueError, match=r"cannot open the storage .*refused.*check host and port"):
        open_storage(server.url("postgres"))
    assert WAITING not in caplog.text


def test_a_wrong_password_or_name_is_not_waited_for(server, caplog):
    server.start()
    url = server.url("postgres")
    user, _, host = url.rpartition("@")
    wrong = user.rpartition(":")[0] + ":hunter2-secret@" + host
    for other, reason in [
        (wrong, "password authentication failed .*check user and password"),
        (server.url("nowhere"), r'database "nowhere" does not exist .*create it first'),
        (url.replace(f":{server.port}/", ":99999/"), "invalid port"),
    ]:
        with pytest.raises(ValueError, match=f"cannot open the storage .*{reason}") as error:
            open_storage(other, wait=True)
        assert "hunter2" not in str(error.value)
        assert server.password not in str(error.value)
    assert WAITING not in caplog.text


def test_a_worker_waits_for_a_grpc_proxy(tmp_path, caplog, monkeypatch):
    pytest.importorskip("grpc")
    from optuna.storages._grpc.server import make_server

    from optuna_robustloss.distributed import storage as storages

    monkeypatch.setattr(storages, "_GRPC_TIMEOUT", 0.5)
    port, opened = closed_port(), []
    url = f"grpc://localhost:{port}"
    worker = threading.Thread(target=lambda: opened.append(open_storage(url, wait=True)))
    worker.start()
    wait_until(lambda: WAITING in caplog.text)
    behind = get_storage(open_storage(f"sqlite:///{tmp_path}/s.db", create=True))
    server = make_server(behind, "localhost", port)
    server.start()
    wait_until(lambda: not worker.is_alive())
    assert optuna.create_study(storage=opened[0], study_name="s").study_name == "s"
    server.stop(None).wait()


@pytest.mark.slow
def test_the_command_work_waits_and_status_does_not(server, tmp_path):
    command = [sys.executable, "-m", "optuna_robustloss"]
    url = server.url("postgres")
    options = {
        "env": os.environ | {"OPTUNA_STORAGE": url, "OMP_NUM_THREADS": "1"},
        "cwd": tmp_path,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    status = subprocess.run([*command, "status", "small"], check=False, timeout=LIMIT, **options)
    assert status.returncode == 2
    assert "refused" in status.stderr
    assert "Traceback" not in status.stderr
    work = subprocess.Popen([*command, "work", "--study-name", "small"], **options)
    read = []
    reader = threading.Thread(target=lambda: read.extend(iter(work.stderr.readline, "")))
    reader.start()
    wait_until(lambda: WAITING in "".join(read))
    server.start()
    from optuna_robustloss.search.study import create_study

    storage = open_storage(url)
    create_study(small_spec(generations=1), storage, "small")
    assert work.wait(LIMIT) == 0 or "there is no study 'small'" in "".join(read)
    reader.join()
    database_of(storage).engine.dispose()


def test_ipv6_and_a_missing_host_are_read(caplog):
    """No server answers there, but the URL is one."""
    pytest.importorskip("psycopg")
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    for host in (f"[::1]:{port}", ""):
        with pytest.raises(ValueError, match="cannot open the storage"):
            open_storage(f"postgresql+psycopg://{host}/d?connect_timeout=5")
