"""Workers in processes of their own: real ones, that are stopped, killed, and fail."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from support.small import left_running, small_spec
from support.waiting import LIMIT, wait_until

from optuna_robustloss.cli.console import set_up_process
from optuna_robustloss.cli.worker_pool import WorkerPool
from optuna_robustloss.distributed import processes
from optuna_robustloss.distributed.lease import Heartbeat, fail_orphaned_trials, heartbeat_of
from optuna_robustloss.distributed.processes import run_processes
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.slots import slot_of
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.study import create_study, finished_study, read_generations
from optuna_robustloss.search.worker import run_worker
from optuna_robustloss.search.worker_job import SearchJob, candidates_each, devices_each, shares

SPEC = small_spec()
#: So long that it is interrupted, killed or failed first.
ENDLESS = small_spec(recipe={"epochs": 100_000}, stop_at_chance_after=None)
COMMAND = [sys.executable, "-c", "from optuna_robustloss.cli.app import main; main()"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(processes, "_POLL", 0.1)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def make(url, spec=SPEC):
    return create_study(spec, open_storage(url, create=True), "small")


def jobs(url, workers, **options):
    return [SearchJob(url, "small", partial(set_up_process, 1), **options) for _ in range(workers)]


def states(study):
    return Counter(t.state.name for t in study.get_trials())


def running(study):
    """Process numbers of the workers that have begun to train, by trial number."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    # A reading is of several tables, one after another: the heartbeat may be missing.
    heartbeats = {t.number: heartbeat_of(t) for t in trials if "generation" in t.user_attrs}
    return {number: beat.pid for number, beat in heartbeats.items() if beat is not None}


def alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


# --- Who does what ---


@pytest.mark.parametrize(("popsize", "workers"), [(12, 1), (12, 2), (12, 5), (5, 2), (4, 6)])
def test_workers_share_a_generation(popsize, workers):
    each = candidates_each(small_spec(popsize=popsize), workers)
    assert len(each) == workers
    assert max(each) == -(-popsize // workers)
    assert sum(each) == max(popsize, workers)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "optuna-cmaes"])
def test_a_sampler_that_learns_from_each_trial_is_asked_for_one(sampler):
    assert candidates_each(small_spec(sampler=sampler), 2) == [1, 1]


def test_trials_of_a_command_are_shared_exactly():
    assert shares(7, 3) == [3, 2, 2]
    own = [
        j.n_trials for j in WorkerPool(3, 2).jobs("small", NoisyLabelObjective(SPEC), "sqlite:///s")
    ]
    assert own == [1, 1]  # the third worker has nothing to do
    own = [
        j.n_trials for j in WorkerPool(2).jobs("small", NoisyLabelObjective(SPEC), "sqlite:///s")
    ]
    assert own == [None, None]


@pytest.mark.parametrize(
    ("given", "count", "expected"),
    [
        (None, 0, [None] * 3),
        (None, 1, [None] * 3),
        (None, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cpu", 2, ["cpu"] * 3),
    ],
)
def test_workers_take_cuda_devices_in_turn(given, count, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    device = torch.device(given) if given else None
    assert [d if d is None else str(d) for d in devices_each(device, 3)] == expected


def test_a_job_does_not_show_its_storage():
    assert "secret" not in repr(SearchJob("postgresql://me:secret@host/db", "small", set))


# --- Two processes ---


def test_two_processes_fill_every_slot_once_as_one_would(url):
    study, polls = make(url), []
    each = candidates_each(SPEC, 2)
    work = [job for k in each for job in jobs(url, 1, candidates=k)]
    run_processes(study, work, on_poll=lambda: polls.append(states(study)))
    assert polls
    assert finished_study(study, SPEC)
    complete = [t for t in study.trials if t.state != TrialState.FAIL]
    assert Counter(slot_of(t) for t in complete) == Counter({slot_of(t): 1 for t in complete})
    assert states(study)["COMPLETE"] == SPEC.n_trials
    assert states(study)["RUNNING"] == 0
    alone = create_study(SPEC, optuna.storages.InMemoryStorage(), "alone")
    run_worker(alone, NoisyLabelObjective(SPEC), candidates=SPEC.popsize)
    ours, theirs = read_generations(study).means, read_generations(alone).means
    assert len(ours) == len(theirs) == SPEC.generations
    for mean, other in zip(ours, theirs, strict=True):
        assert mean == pytest.approx(other, abs=1e-6)


def test_a_worker_that_was_killed_is_replaced_by_the_others(url, caplog):
    """Its trial is drawn again at once, before its lease has run out."""
    spec = small_spec(generations=1, recipe={"epochs": 300}, stop_at_chance_after=None)
    study, killed = make(url, spec), []

    def kill():
        if not killed and (pids := running(study)):
            killed.extend(list(pids.items())[:1])
            os.kill(killed[0][1], signal.SIGKILL)

    run_processes(study, jobs(url, 2, candidates=2), on_poll=kill)
    assert killed
    assert study.trials[killed[0][0]].state == TrialState.FAIL
    assert states(study)["COMPLETE"] == spec.n_trials
    assert states(study)["RUNNING"] == 0
    assert caplog.text.count("was killed by SIGKILL: the others take its trials over") == 1


@pytest.mark.slow
def test_when_all_were_killed_that_is_an_error(url):
    study = make(url, ENDLESS)

    def kill():
        for pid in filter(alive, set(running(study).values())):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match="all workers were killed"):
        run_processes(study, jobs(url, 2, candidates=2), on_poll=kill)
    assert set(states(study)) == {"FAIL"}


def test_what_goes_wrong_in_the_parent_stops_the_workers(url):
    study, seen = make(url, ENDLESS), []

    def fail():
        seen.extend(set(running(study).values()))
        if seen:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_processes(study, jobs(url, 2, candidates=2), on_poll=fail)
    assert not any(alive(pid) for pid in seen)
    assert set(states(study)) == {"FAIL"}


def test_a_trial_whose_worker_stopped_before_its_first_heartbeat_is_failed(url):
    study = make(url, ENDLESS)
    trial_id = study._storage.create_new_trial(study._study_id)
    foreign = study._storage.create_new_trial(study._study_id)
    study._storage.set_trial_user_attr(foreign, "somebody", "else's")
    fail_orphaned_trials(study)
    found = {t._trial_id: t.state.name for t in study.get_trials(deepcopy=False)}
    assert found == {trial_id: "FAIL", foreign: "RUNNING"}


def test_the_error_of_a_worker_is_raised_once_with_its_traceback(url, tmp_path, monkeypatch):
    """All of them miss the data; one error is raised."""
    monkeypatch.chdir(tmp_path)
    spec = small_spec(datasets=["mnist"], architectures=["mlp2"])
    study = make(url, spec)
    with pytest.raises((OSError, ValueError), match="mnist") as caught:
        run_processes(study, jobs(url, 3, root=tmp_path / "nothing"))
    assert "In the worker:\nTraceback" in caught.value.__notes__[0]
    assert study.trials == []


def test_warnings_of_several_workers_are_shown_once(url, caplog):
    """Of a trial that says it runs on another host, which SQLite is not for."""
    study = make(url)
    left_running(study, Heartbeat(time.time(), "another-host", 1, 1), [("worker", "far:1")])
    run_processes(study, jobs(url, 2, n_trials=1, candidates=1))
    assert caplog.text.count("UserWarning: trial 0 runs on another host, far:1") == 1
    assert "worker " in caplog.text
    assert "processes.py" not in caplog.messages[0]


# --- The command ---


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
            env=os.environ | {"OPTUNA_STORAGE": url} | environment,
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


def workers_of(url, count):
    """Wait until so many workers train, and return the study and their process numbers."""
    path = Path(url.removeprefix("sqlite:///"))
    wait_until(path.is_file)

    def study():
        try:
            return optuna.load_study(study_name="small", storage=url)
        except Exception:  # its tables are being made
            return None

    opened = wait_until(study)
    return opened, wait_until(
        lambda: len(pids := set(running(opened).values())) == count and sorted(pids)
    )


@pytest.mark.parametrize(
    ("number", "everybody"),
    [
        pytest.param(signal.SIGINT, False, id="SIGINT", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to all", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_stops_the_workers_who_give_their_candidates_back(command, url, number, everybody):
    """A terminal sends it to the children too."""
    process = command("search", "endless.yaml", "--workers", "2")
    study, pids = workers_of(url, 2)
    (os.killpg if everybody else os.kill)(process.pid, number)
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
    assert set(states(study)) == {"FAIL"}  # they gave their candidates back


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
