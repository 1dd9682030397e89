"""Workers side by side: what dead ones leave, what others' samplers do, two at once."""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from support.small import left_running, small_spec

from optuna_robustloss.distributed.lease import SignOfLife, machine, now
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.slots import failed_itself, slot_of
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.selection import candidates
from optuna_robustloss.search.study import (
    create_study,
    finished_study,
    open_study,
    read_generations,
    replay,
)
from optuna_robustloss.search.worker import run_trials

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = small_spec(generations=1)
WORKER = Path(__file__).parents[2] / "studies" / "worker.py"
#: A process of this machine that is no more.
DEAD = SignOfLife(time.time(), machine(), 999_999_999, 1)


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
    assert not any(failed_itself(t) for t in study.trials)
    return [t for t in study.trials if slot_of(t) is not None]


# --- What others leave ---


def test_a_trial_whose_process_is_no_more_is_failed_at_once(study, caplog):
    left_running(study, DEAD)
    run_trials(study, Quick(SPEC), n_trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert not failed_itself(study.trials[0])
    assert "trial 0: its worker is gone" in caplog.text


def test_a_process_with_the_number_of_a_dead_one_does_not_keep_its_trial(study):
    sign = now()
    left_running(study, SignOfLife(sign.at, sign.machine, sign.pid, sign.started + 1))
    run_trials(study, Quick(SPEC), n_trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("sampler", ["generational", "random"])
def test_a_trial_that_got_no_further_than_its_row_is_failed_after_a_lease(url, sampler):
    spec = small_spec(generations=1, sampler=sampler)
    study = create_study(spec, open_storage(url, create=True), "small")
    number = left_running(study)
    begin = time.monotonic()
    run_trials(study, Quick(spec), lease=1.5)
    assert time.monotonic() - begin > 1.5
    assert study.trials[number].state == TrialState.FAIL
    assert states(study).count("COMPLETE") == spec.n_trials
    assert "RUNNING" not in states(study)


def test_a_trial_of_another_host_is_failed_when_its_lease_ran_out(study):
    left_running(study, SignOfLife(time.time() + 1e6, "elsewhere", 1, 1))  # its clock is wrong
    run_trials(study, Quick(SPEC), n_trials=1, lease=60)
    assert states(study) == ["RUNNING", "COMPLETE"]
    run_trials(study, Quick(SPEC), lease=1.0)
    assert states(study) == ["FAIL", *["COMPLETE"] * 4]


@pytest.mark.parametrize(
    "attributes", [[("worker", "their-host:1")], [("anything", 1)]], ids=["worker", "any"]
)
def test_trials_without_a_lease_that_are_somebodys_are_left_alone(study, attributes):
    number = left_running(study, attributes=attributes)
    begin = time.monotonic()
    run_trials(study, Quick(SPEC), lease=1.0)
    assert time.monotonic() - begin < 30  # nor are they waited for
    assert study.trials[number].state == TrialState.RUNNING
    assert states(study).count("COMPLETE") == SPEC.n_trials


def test_trials_of_another_samplers_worker_are_left_alone(study):
    theirs = optuna.load_study(
        study_name="small", storage=study._storage, sampler=optuna.samplers.RandomSampler(0)
    )
    trial = theirs.ask()
    SPEC.space.suggest(trial)
    run_trials(study, Quick(SPEC), lease=1.0)
    assert study.trials[trial.number].state == TrialState.RUNNING
    assert states(study).count("COMPLETE") == SPEC.n_trials
    theirs.tell(trial, 0.5)  # and may be told


def test_a_living_workers_trial_is_waited_for_and_told(study, url):
    """Another worker has the last slot: this one ends when that one does, not before."""
    other = open_study(open_storage(url), "small")
    trial = other.ask()
    begin = time.monotonic()
    teller = threading.Timer(3.0, lambda: other.tell(trial, 0.25))
    teller.start()
    run_trials(study, Quick(SPEC), lease=1.0)
    assert time.monotonic() - begin > 3.0
    assert states(study) == ["COMPLETE"] * 4
    assert study.trials[0].value == 0.25


def test_hosts_that_share_an_sqlite_file_are_warned_of(study):
    left_running(study, SignOfLife(time.time(), "elsewhere", 1, 1), [("worker", "far:1")])
    with pytest.warns(UserWarning, match=r"trial 0 runs on another host, far:1, and SQLite"):
        run_trials(study, Quick(SPEC), n_trials=2)
    alone = create_study(SPEC, study._storage, "alone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_trials(alone, Quick(SPEC))


# --- Two at once ---


def test_a_surplus_worker_repeats_a_candidate_while_the_others_are_running(url):
    """One worker holds three of four candidates; the other repeats one of them meanwhile."""
    spec = small_spec(generations=1, surplus="replicate")
    study = create_study(spec, open_storage(url, create=True), "small")
    repeated = threading.Event()

    class Patient(Quick):
        def evaluate(self, trials):
            assert repeated.wait(60)
            return super().evaluate(trials)

    def told(theirs, trial):
        if slot_of(trial).replicate:
            repeated.set()

    first = threading.Thread(
        target=run_trials, args=(study, Patient(spec)), kwargs={"candidates": 3}
    )
    first.start()
    while states(study).count("RUNNING") < 3:
        time.sleep(0.02)
    second = open_study(open_storage(url), "small")
    run_trials(second, Quick(spec), on_trial=told)
    first.join(60)
    assert not first.is_alive()
    trials = in_slots(study)
    assert {t.state.name for t in trials} == {"COMPLETE"}
    assert finished_study(study, spec)
    assert read_generations(study).number == 1
    assert any(slot_of(t).replicate for t in trials)
    assert len({(slot_of(t).index, *t.params.values()) for t in trials}) == 4
    assert len({slot_of(t) for t in trials}) == len(trials)


@pytest.fixture
def repeating():
    """A study whose four candidates have values, while one is repeated; with that trial."""
    spec = small_spec(generations=1, surplus="replicate", finalists=5)
    study = create_study(spec, optuna.storages.InMemoryStorage(), "small")
    trials = [study.ask() for _ in range(5)]
    assert slot_of(study.trials[4]).replicate == 1
    for trial in trials[:4]:
        study.tell(trial, Quick(spec)(trial))
    return study, spec, trials[4]


def test_a_study_is_finished_when_its_last_generation_is_told(repeating):
    """A repetition that still runs is let go: nobody waits for it, and it is never told."""
    study, spec, trial = repeating
    assert replay(study).number == 0
    assert finished_study(study, spec)
    assert slot_of(study.trials[4]) is None
    state = replay(study).evolution.state
    study.tell(trial, 0.5)
    assert replay(study).evolution.state == state


def test_a_candidate_that_was_repeated_is_one_finalist(repeating):
    study, spec, trial = repeating
    study.tell(trial, 1.0)
    finalists = [tuple(f.params.values()) for f in candidates(study, spec)]
    assert len(set(finalists)) == len(finalists)


@pytest.mark.parametrize("surplus", [pytest.param("wait", marks=pytest.mark.slow), "replicate"])
def test_two_processes_share_the_slots_and_waste_none(url, tmp_path, surplus):
    """As one would: the same candidates, the same values, whoever trains them."""
    spec = small_spec(surplus=surplus)
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
    printed = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    trials = in_slots(study)
    assert {t.state.name for t in trials} == {"COMPLETE"}
    slots = [slot_of(t) for t in trials]
    assert len(set(slots)) == len(slots)
    assert sum(not slot.replicate for slot in slots) == spec.n_trials
    alone = create_study(spec, optuna.storages.InMemoryStorage(), "alone")
    run_trials(alone, NoisyLabelObjective(spec))
    if surplus == "wait" or len(slots) == spec.n_trials:
        expected = {slot_of(t): (t.params, t.value) for t in alone.trials}
        assert {slot_of(t): (t.params, t.value) for t in trials} == expected
        assert read_generations(study).means == read_generations(alone).means


def test_a_repetition_that_was_let_go_is_no_finalist(repeating):
    study, spec, trial = repeating
    assert finished_study(study, spec)  # reading lets it go
    before = [f.name for f in candidates(study, spec)]
    study.tell(trial, 1.0)
    assert [f.name for f in candidates(study, spec)] == before
