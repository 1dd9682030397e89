"""Servers that are restarted while workers use them."""

import logging
import threading
import time

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import get_storage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from support import postgres
from support.waiting import wait_until

from distributed.test_open_storage import closed_port
from optuna_robustloss.distributed import retry
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.distributed.trial_io import database_of, write_trial

SPACE = {"x": FloatDistribution(0, 1)}


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, retry._logger.name)
    return lambda: [record for record in caplog.records if record.name == retry._logger.name]


def test_a_grpc_proxy_may_be_restarted(tmp_path, log):
    pytest.importorskip("grpc")
    from optuna.storages._grpc.server import make_server

    behind = get_storage(open_storage(f"sqlite:///{tmp_path}/s.db", create=True))
    port = closed_port()

    def start():
        server = make_server(behind, "localhost", port)
        server.start()
        return server

    servers = [start()]
    storage = open_storage(f"grpc://localhost:{port}")
    storage.policy.longest_pause = 0.1
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    servers[0].stop(None).wait()

    def start_when_missed():
        wait_until(log)
        servers.append(start())

    restart = threading.Thread(target=start_when_missed)
    restart.start()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 1.0)
    assert [record.levelname for record in log()] == ["WARNING", "INFO"]
    assert behind.get_trial(trial._trial_id).values == [1.0]
    restart.join()
    servers[1].stop(None).wait()
    storage.policy.seconds = 0.2
    with pytest.raises(StorageInternalError, match=rf"grpc://localhost:{port}' did not answer"):
        storage.get_all_studies()
    servers.append(start())
    storage.policy.seconds = 30
    with pytest.raises(KeyError):
        storage.get_trial(77)
    servers[2].stop(None).wait()


def test_a_connection_to_what_is_now_a_standby_is_dropped(postgres_url, log):
    storage = open_storage(postgres_url, patience=60)
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    connections = [
        database_of(storage).engine.connect() for _ in range(2)
    ]  # all that the pool keeps
    for connection in connections:
        connection.execute(sa.text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
        connection.commit()
        connection.close()
    storage.set_study_user_attr(1, "a", 1)
    assert storage.get_study_user_attrs(1) == {"a": 1}
    assert "read-only" in log()[0].getMessage()
    database_of(storage).engine.dispose()


def test_a_database_server_is_restarted_in_the_middle_of_the_work(log):
    if reason := postgres.skip_reason():
        pytest.skip(reason)
    stop, done, failed = threading.Event(), [], []

    def warnings():
        return [record.levelname for record in log()].count("WARNING")

    def work():
        try:
            while not stop.is_set():
                trial = cached.create_new_trial(1)
                write_trial(cached, trial, {"x": 0.5}, SPACE, {"generation": 1})
                cached.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
                cached.get_all_trials(1, deepcopy=False)
                done.append(trial)
        except Exception as error:
            failed.append(error)

    def heartbeat():  # Optuna repeats a new trial by itself, but not this
        try:
            while not stop.wait(0.01):
                storage.set_study_user_attr(1, "alive", time.time())
        except Exception as error:
            failed.append(error)

    def restart(server, mode):
        before, warned = len(done), warnings()
        server.stop(mode)
        wait_until(lambda: warnings() > warned or failed)
        server.start()
        wait_until(lambda: len(done) >= before + 10 or failed)

    with postgres.PostgresServer() as server:
        url = server.create_database("d")
        storage = open_storage(url)
        storage.policy.longest_pause = 0.5
        storage.create_new_study([StudyDirection.MAXIMIZE], "s")
        cached = storage
        workers = [threading.Thread(target=task) for task in (work, work, heartbeat)]
        for worker in workers:
            worker.start()
        restart(server, "fast")
        restart(server, "immediate")
        stop.set()
        for worker in workers:
            worker.join()
        assert failed == []
        trials = storage.get_all_trials(1)
        assert len(done) >= 20
        database_of(storage).engine.dispose()
    assert {t._trial_id for t in trials if t.state == TrialState.COMPLETE} >= set(done)
    assert [t.number for t in trials] == list(range(len(trials)))
    assert all(t.params == {"x": 0.5} for t in trials if t.state == TrialState.COMPLETE)
    assert warnings() >= 2
    assert not any(server.password in record.getMessage() for record in log())
