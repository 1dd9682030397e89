"""Workers in processes of their own: real ones, that share a study, are killed, and fail."""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from support.jobs import FailJob, HoldJob, WarnJob
from support.small import small_spec

from optuna_robustloss.cli.console import set_up_process
from optuna_robustloss.distributed import processes
from optuna_robustloss.distributed.lease import fail_orphaned_trials, heartbeat_of
from optuna_robustloss.distributed.processes import run_processes
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.slots import slot_of
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.study import create_study, finished_study, read_generations
from optuna_robustloss.search.worker import run_worker
from optuna_robustloss.search.worker_job import SearchJob, candidates_each

SPEC = small_spec()
#: So long that it is interrupted, killed or failed first.
ENDLESS = small_spec(recipe={"epochs": 100_000}, stop_at_chance_after=None)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_worker_that_was_killed_is_named_and_its_trial_failed(url, caplog):
    study, killed = make(url), []

    def kill():
        if not killed and len(pids := running(study)) == 2:
            killed.extend(list(pids.items())[:1])
            os.kill(killed[0][1], signal.SIGKILL)
        if "was killed by SIGKILL: the others take its trials over" in caplog.text:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_processes(study, [HoldJob(url)] * 2, on_poll=kill)
    assert study.trials[killed[0][0]].state == TrialState.FAIL
    assert set(states(study)) == {"FAIL"}
    assert caplog.text.count("was killed by") == 1


def test_when_all_were_killed_that_is_an_error(url):
    study = make(url)

    def kill():
        for pid in filter(alive, set(running(study).values())):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match="all workers were killed"):
        run_processes(study, [HoldJob(url)] * 2, on_poll=kill)
    assert set(states(study)) == {"FAIL"}


def test_an_error_in_the_parent_stops_the_workers(url):
    """No process and no thread is left that would keep the interpreter alive."""
    study, seen = make(url), []
    threads = {t for t in threading.enumerate() if not t.daemon}

    def fail():
        seen.extend(running(study).values())
        if len(set(seen)) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_processes(study, [HoldJob(url)] * 2, on_poll=fail)
    assert not any(alive(pid) for pid in seen)
    assert multiprocessing.active_children() == []
    assert {t for t in threading.enumerate() if not t.daemon} == threads
    assert set(states(study)) == {"FAIL"}


def test_a_trial_whose_worker_stopped_before_its_first_heartbeat_is_failed(url):
    study = make(url, ENDLESS)
    trial_id = study._storage.create_new_trial(study._study_id)
    foreign = study._storage.create_new_trial(study._study_id)
    study._storage.set_trial_user_attr(foreign, "somebody", "else's")
    fail_orphaned_trials(study)
    found = {t._trial_id: t.state.name for t in study.get_trials(deepcopy=False)}
    assert found == {trial_id: "FAIL", foreign: "RUNNING"}


def test_the_error_of_a_worker_is_raised_once_with_its_traceback(url):
    study = make(url)
    with pytest.raises(ValueError, match="nothing can be done with sqlite:") as caught:
        run_processes(study, [HoldJob(url), FailJob(url), FailJob(url)])
    assert "In the worker:\nTraceback" in caught.value.__notes__[0]
    assert set(states(study)) <= {"FAIL"}


def test_warnings_of_several_workers_are_shown_once(url, caplog):
    run_processes(make(url), [WarnJob(url)] * 2)
    assert caplog.text.count("UserWarning: all of us see this") == 1
    assert "worker " in caplog.text
    assert "jobs.py" not in caplog.messages[0]
