"""The command with worker processes: Ctrl-C, SIGTERM, a killed parent, and what ``ps`` shows."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import yaml
from support.waiting import LIMIT, wait_until

from distributed.test_processes import ENDLESS, alive, running, states

COMMAND = [sys.executable, "-c", "from optuna_robustloss.cli.app import main; main()"]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def command(tmp_path, url):
    """Starts the command in a session of its own, where Ctrl-C works as in a terminal."""
    (tmp_path / "endless.yaml").write_text(yaml.safe_dump(ENDLESS.model_dump(mode="json")))
    started = []

    def start(*arguments, **environment):
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPTUNA_STORAGE": url} | environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def has_study(path):
    """Whether the command has created its study; reads without creating tables, as Optuna would."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT 1 FROM studies").fetchall())
    except sqlite3.OperationalError:  # no file, no table yet, or locked
        return False


def workers_of(url, count):
    """Wait until so many workers train, and return the study and their process numbers."""
    wait_until(lambda: has_study(url.removeprefix("sqlite:///")))
    study = optuna.load_study(study_name="small", storage=url)
    return study, wait_until(
        lambda: len(pids := set(running(study).values())) == count and sorted(pids)
    )


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        pytest.param(signal.SIGINT, False, id="SIGINT", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to all", marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_stops_the_workers_which_fail_their_trials(command, url, number, to_all):
    """A terminal sends Ctrl-C to the children too."""
    process = command("search", "endless.yaml", "--workers", "2")
    study, pids = workers_of(url, 2)
    (os.killpg if to_all else os.kill)(process.pid, number)
    printed, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert "stopped: 0 of 8 trials are done and kept" in printed
    assert "Traceback" not in errors
    assert not any(alive(pid) for pid in pids)
    assert set(states(study)) == {"FAIL"}


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_no_orphans(command, url):
    process = command("search", "endless.yaml", "--workers", "2")
    study, pids = workers_of(url, 2)
    os.kill(pids[0], signal.SIGSTOP)  # does not answer the first
    os.kill(process.pid, signal.SIGINT)
    wait_until(lambda: not alive(pids[1]))
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert not any(alive(pid) for pid in pids)
    assert set(states(study)) == {"FAIL"}


@pytest.mark.slow
def test_workers_end_when_their_parent_was_killed(command, url):
    process = command("search", "endless.yaml", "--workers", "2")
    study, pids = workers_of(url, 2)
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))
    assert set(states(study)) == {"FAIL"}


@pytest.mark.slow
def test_neither_arguments_nor_environment_show_the_storage(command, url):
    """A user's own environment is inherited; so the storage is given as an option here."""
    process = command(
        "search", "endless.yaml", "--workers", "2", "--storage", url, OPTUNA_STORAGE=""
    )
    _, pids = workers_of(url, 2)
    for pid in pids:
        shown = [Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ")]
        assert "multiprocessing" in shown[0]
        assert "study.db" not in shown[0] + shown[1]
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert process.returncode == 130
