"""Studies in a real PostgreSQL, whose workers are killed, stopped, and cut off from it."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from cli.commands import invoke
from optuna.trial import TrialState
from support.chaos import Zygote
from support.chaos_checks import WorkerGroup, check_study, evaluated, state, stored_text
from support.small import small_spec
from support.waiting import wait_until

from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.study import attach_spec, create_study, read_generations

DROPPED = "was taken over while this worker was away: its result is dropped"

#: A pickle of protocol 4 or 5, as bytes in hexadecimal digits or as base64.
PICKLE = re.compile(r"80(02|03|04|05)(95|7d|5d|63)[0-9a-f]{8}|gASV|gAWV", re.IGNORECASE)


@pytest.fixture(scope="module")
def server(postgres_server):
    return postgres_server


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with Zygote(tmp_path_factory.mktemp("logs")) as zygote:
        yield zygote


def order(url, spec, lease=3.0, **more):
    create_study(spec, open_storage(url), "s", lease=lease)
    return {"url": url, "study": "s", "lease": lease, "pause": (0.05, 0.4), **more}


class Trouble:
    """Stops the server in the middle, and lets a stopped worker sleep longer than its lease."""

    def __init__(self, server, sleeper, *, kills):
        self.server, self.sleeper, self.kills = server, sleeper, kills
        self.woken = self.down = self.up = None

    def __call__(self, crew):
        now = time.monotonic()
        if self.woken is None:
            if self.sleeper.stopped and crew.took_over(evaluated(self.sleeper)[-1]):
                self.sleeper.send(signal.SIGCONT)
                self.woken = now
        elif self.down is None:
            if crew.killed >= self.kills and now > self.woken + 1:
                crew.outage = True
                self.server.stop("immediate")
                self.down = now
        elif self.up is None:
            if now > self.down + 3:
                self.server.start()
                self.up = now
        elif now > self.up + 1:
            crew.outage = False


@pytest.mark.slow
def test_thirty_killed_workers_leave_the_state_of_an_undisturbed_one(server, zygote):
    url = server.create_database("chaos")
    spec = small_spec(popsize=8, generations=9)
    orders = order(url, spec)
    crew = WorkerGroup([zygote], orders, hosts=["", "", "elsewhere"], kills=30)
    sleeper = crew.start(fate=["asked", 2, signal.SIGSTOP])
    trouble = Trouble(server, sleeper, kills=12)
    for _ in range(7):
        crew.start()
    crew.run(trouble)
    crew.check()
    assert trouble.up is not None
    assert DROPPED in sleeper.log()
    assert len(evaluated(sleeper)) > 2
    study = check_study(url, "s", spec)
    assert [t for t in study.trials if t.state == TrialState.FAIL]
    check_nothing_secret_or_executable(server, url, crew)


def check_nothing_secret_or_executable(server, url, crew):
    secret = server.password[:16]  # the part that is never quoted
    assert secret in url
    stored = stored_text(url)
    assert any(stored["trial_system_attributes.value_json"])
    for column, values in stored.items():
        for value in values:
            assert secret not in value, column
            assert not PICKLE.search(value), column
            assert "cma:optimizer" not in value, column
    assert not [w.path for w in crew.workers if secret in w.log()]


@pytest.mark.slow
def test_more_workers_than_candidates_that_are_killed_leave_one_state_for_all(server, zygote):
    url = server.create_database("surplus")
    spec = small_spec(popsize=4, generations=6)
    crew = WorkerGroup([zygote], order(url, spec), hosts=["", "elsewhere"], kills=8, seed=1)
    for _ in range(8):
        crew.start()
    crew.run()
    crew.check()
    study = check_study(url, "s", spec)
    program = (
        "import sys, optuna; from optuna_robustloss.search.study import read_generations;"
        "study = optuna.load_study(storage=sys.argv[1], study_name='s');"
        "print(b''.join(read_generations(study).optimizer.state).hex())"
    )
    argv = [sys.executable, "-c", program, url]
    fresh = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in fresh] == [b"".join(state(study)).hex()] * 2


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_planted_pickle_is_never_loaded(server, zygote, tmp_path):
    url = server.create_database("bomb")
    spec = small_spec(popsize=4, generations=2)
    orders = order(url, spec)
    marker = tmp_path / "exploded"
    study = optuna.load_study(storage=open_storage(url), study_name="s")
    planted = {"cma:optimizer:0": pickle.dumps(Bomb(marker)).hex(), "cma:n_restarts": 0}
    for key, value in planted.items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    study.add_trial(
        optuna.create_trial(
            value=0.5,
            params=spec.space.start_point,
            distributions=spec.space.distributions,
            system_attrs=planted | {"cma:generation": 0},
        )
    )
    crew = WorkerGroup([zygote], orders)
    for _ in range(2):
        crew.start()
    crew.run()
    crew.check()
    assert not marker.exists()
    told = {t.number for g in read_generations(study).told for t in g}
    assert len(told) == spec.n_trials
    assert 0 not in told
    pickle.loads(bytes.fromhex(planted["cma:optimizer:0"]))
    assert marker.exists()


@pytest.mark.parametrize("wrong", ["password", "port", "database"])
def test_a_wrong_url_is_one_message_without_the_password(server, wrong):
    url = server.url("postgres")
    if wrong == "password":
        url = url.replace(":" + server.password[:4], ":x")
    elif wrong == "port":
        url = url.replace(f":{server.port}/", ":1/")
    else:
        url += "-not"
    # A worker waits for a server that does not answer.
    command = ["status", "s"] if wrong == "port" else ["work", "--study-name", "s"]
    done = invoke(*command, "--storage", url)
    assert done.exit_code == 2
    assert server.password[4:16] not in done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("cannot open the storage") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_workers_that_start_at_once_agree(server, zygote, tmp_path, workers):
    url = server.create_database(f"late{workers}")
    spec = small_spec(popsize=5, generations=2)
    path = tmp_path / "spec.yaml"
    path.write_text(spec.model_dump_json())
    create = ["create-study", "--storage", url, "--study-name", "s", "--direction", "maximize"]
    subprocess.run(
        [Path(sys.executable).with_name("optuna"), *create], check=True, capture_output=True
    )
    argv, at = ["worker.py", "s", "--storage", url, "--spec", str(path)], time.time() + 1
    crew = WorkerGroup([zygote], {})
    crew.workers = [zygote.start("script", argv=argv, at=at) for _ in range(workers)]
    crew.run()
    crew.check()
    study = optuna.load_study(storage=open_storage(url), study_name="s")
    assert not [t for t in study.trials if not t.state.is_finished()]
    assert [len(told) for told in read_generations(study).told] == [5, 5]
    stored = stored_text(url)
    keys = stored["study_user_attributes.key"] + stored["study_system_attributes.key"]
    assert sorted(keys) == sorted(set(keys))
    assert {"spec", "generational-cma:config"} <= set(keys)
    assert attach_spec(study, None) == spec
    check_nothing_secret_or_executable(server, url, crew)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_workers_behind_a_grpc_proxy_come_to_the_same_state(server, zygote):
    pytest.importorskip("grpc")
    url, port = server.create_database("proxy"), free_port()
    spec = small_spec(popsize=4, generations=5)
    orders = order(url, spec)
    proxy = zygote.start("proxy", url=url, port=port)
    wait_until(lambda: accepts(port))
    crew = WorkerGroup(
        [zygote],
        orders | {"url": f"grpc://127.0.0.1:{port}"},
        kills=1,
        deaths=["asked", "done"],
    )
    for _ in range(3):
        crew.start()
    crew.run()
    proxy.send(signal.SIGKILL)
    crew.check()
    check_study(url, "s", spec)


def accepts(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 60):
        return True
    return False


@pytest.mark.slow
def test_workers_on_a_journal_come_to_the_same_state(zygote, tmp_path):
    url = f"journal:{tmp_path / 'study.log'}"
    spec = small_spec(popsize=4, generations=5)
    create_study(spec, open_storage(url, create=True), "s", lease=3.0)
    orders = {"url": url, "study": "s", "lease": 3.0, "pause": (0.05, 0.4)}
    crew = WorkerGroup([zygote], orders, kills=1, deaths=["asked", "done"])
    for _ in range(3):
        crew.start()
    crew.run()
    crew.check()
    check_study(url, "s", spec)


@pytest.mark.slow
def test_a_worker_that_freezes_with_a_lock_does_not_keep_the_others(server, zygote):
    url = server.create_database("frozen")
    spec = small_spec(popsize=4, generations=2)
    crew = WorkerGroup([zygote], order(url, spec))
    frozen = crew.start(fate=["lock", 1, signal.SIGSTOP])
    wait_until(lambda: frozen.stopped)
    crew.start()

    def wake(crew):
        if crew.workers[1].code == 0 and frozen.stopped:
            frozen.send(signal.SIGCONT)

    crew.run(wake)
    crew.check()
    check_study(url, "s", spec)
