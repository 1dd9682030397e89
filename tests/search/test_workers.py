"""Workers side by side: what dead ones leave, what others' samplers do, two at once."""

import os
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from support.small import left_running, small_spec
from support.waiting import LIMIT

from optuna_robustloss.distributed.lease import Heartbeat, current_heartbeat, machine
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.slots import objective_failed, slot_of
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.study import (
    create_study,
    open_study,
    read_generations,
)
from optuna_robustloss.search.worker import run_worker

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = small_spec(generations=1)
WORKER = Path(__file__).parents[2] / "studies" / "worker.py"
#: A process of this machine that is no more.
DEAD = Heartbeat(time.time(), machine(), 999_999_999, 1)


class Quick(NoisyLabelObjective):
    """Worth its first coefficient."""

    def evaluate(self, trials):
        return [0.5 + self.spec.space.suggest(trial).theta[0] / 10 for trial in trials]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def study(url):
    return create_study(SPEC, open_storage(url, create=True), "small")


def states(study):
    return [trial.state.name for trial in study.trials]


def in_slots(study):
    """All trials that had a slot; one asked for as the search ended had none, and is failed."""
    assert {t.state.name for t in study.trials if slot_of(t) is None} <= {"FAIL"}
    assert not any(objective_failed(t) for t in study.trials)
    return [t for t in study.trials if slot_of(t) is not None]


# --- What others leave ---


def test_a_trial_whose_process_is_no_more_is_failed_at_once(study, caplog):
    left_running(study, DEAD)
    run_worker(study, Quick(SPEC), n_trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert not objective_failed(study.trials[0])
    assert "trial 0 is stale" in caplog.text


def test_a_process_with_the_number_of_a_dead_one_does_not_keep_its_trial(study):
    own = current_heartbeat()
    left_running(study, replace(own, started=own.started + 1))
    run_worker(study, Quick(SPEC), n_trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("sampler", ["generational", "random"])
def test_a_trial_that_got_no_further_than_its_row_is_failed_after_a_lease(url, sampler):
    spec = small_spec(generations=1, sampler=sampler)
    study = create_study(spec, open_storage(url, create=True), "small")
    number = left_running(study)
    begin = time.monotonic()
    run_worker(study, Quick(spec), lease=1.5)
    assert time.monotonic() - begin > 1.5
    assert study.trials[number].state == TrialState.FAIL
    assert states(study).count("COMPLETE") == spec.n_trials
    assert "RUNNING" not in states(study)


def test_a_trial_of_another_host_is_failed_when_its_lease_ran_out(study):
    left_running(study, Heartbeat(time.time() + 1e6, "elsewhere", 1, 1))  # its clock is wrong
    run_worker(study, Quick(SPEC), n_trials=1, lease=60)
    assert states(study) == ["RUNNING", "COMPLETE"]
    run_worker(study, Quick(SPEC), lease=1.0)
    assert states(study) == ["FAIL", *["COMPLETE"] * 4]


@pytest.mark.parametrize(
    "attributes", [[("worker", "their-host:1")], [("anything", 1)]], ids=["worker", "any"]
)
def test_trials_without_a_lease_of_another_program_are_left_alone(study, attributes):
    number = left_running(study, attributes=attributes)
    run_worker(study, Quick(SPEC), lease=1.0)  # which would not end if it waited for them
    assert study.trials[number].state == TrialState.RUNNING
    assert states(study).count("COMPLETE") == SPEC.n_trials


def test_trials_of_another_samplers_worker_are_left_alone(study):
    theirs = optuna.load_study(
        study_name="small", storage=study._storage, sampler=optuna.samplers.RandomSampler(0)
    )
    trial = theirs.ask()
    SPEC.space.suggest(trial)
    run_worker(study, Quick(SPEC), lease=1.0)
    assert study.trials[trial.number].state == TrialState.RUNNING
    assert states(study).count("COMPLETE") == SPEC.n_trials
    theirs.tell(trial, 0.5)


def test_a_trial_of_another_running_worker_is_waited_for(study, url):
    """Another worker has the last slot: this one ends when that one does, not before."""
    other = open_study(open_storage(url), "small")
    trial = other.ask()
    begin = time.monotonic()
    teller = threading.Timer(3.0, lambda: other.tell(trial, 0.25))
    teller.start()
    run_worker(study, Quick(SPEC), lease=1.0)
    assert time.monotonic() - begin > 3.0
    assert states(study) == ["COMPLETE"] * 4
    assert study.trials[0].value == 0.25


def test_hosts_that_share_an_sqlite_file_are_warned_of(study):
    left_running(study, Heartbeat(time.time(), "elsewhere", 1, 1), [("worker", "far:1")])
    with pytest.warns(UserWarning, match=r"trial 0 runs on another host, far:1, and SQLite"):
        run_worker(study, Quick(SPEC), n_trials=2)
    alone = create_study(SPEC, study._storage, "alone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_worker(alone, Quick(SPEC))


# --- Two at once ---


@pytest.mark.slow
def test_two_processes_share_the_slots_and_waste_none(url, tmp_path):
    """As one would: the same candidates, the same values, whoever trains them."""
    spec = small_spec()
    study = create_study(spec, open_storage(url, create=True), "small")
    command = [sys.executable, str(WORKER), "small", "--storage", url]
    workers = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    printed = [worker.communicate(timeout=LIMIT)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    trials = in_slots(study)
    assert {t.state.name for t in trials} == {"COMPLETE"}
    slots = [slot_of(t) for t in trials]
    assert len(set(slots)) == len(slots)
    assert len(slots) == spec.n_trials
    alone = create_study(spec, optuna.storages.InMemoryStorage(), "alone")
    run_worker(alone, NoisyLabelObjective(spec))
    expected = {slot_of(t): (t.params, t.value) for t in alone.trials}
    assert {slot_of(t): (t.params, t.value) for t in trials} == expected
    assert read_generations(study).means == read_generations(alone).means
