"""How a study stands: workers, slots, pace, time left; and that looking changes nothing."""

import io
import os
import re
import signal
import time
import warnings
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console
from support.small import small_spec
from typer.testing import CliRunner

from optuna_robustloss.cli.app import app
from optuna_robustloss.cli.tables import status_table
from optuna_robustloss.distributed.lease import Heartbeat, current_heartbeat, machine
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.status import status_of
from optuna_robustloss.search.study import create_study
from optuna_robustloss.search.worker import run_worker

pytestmark = pytest.mark.integration  # runs searches

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = small_spec()
ME = f"{os.uname().nodename}:{os.getpid()}"


class Quick(NoisyLabelObjective):
    """Worth its first coefficient."""

    def evaluate(self, trials):
        values = [0.5 + self.spec.space.suggest(trial).theta[0] / 10 for trial in trials]
        for trial in trials:
            trial.set_user_attr("generation", 0)
        return values


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"sqlite:///{tmp_path}/study.db", create=True)


@pytest.fixture
def study(storage):
    return create_study(SPEC, storage, "mine")


def sign(study, trial, life):
    for key, value in life.attribute().items():
        study._storage.set_trial_system_attr(trial._trial_id, key, value)


def seconds_ago(seconds, host="elsewhere", pid=7):
    return Heartbeat(time.time() - seconds, host, pid, 1)


def slots(status):
    return status.slots_done, status.slots_running, status.slots_stale


def shown(status):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(status_table(status))
    return in_words(console.export_text())


def in_words(table):
    return " ".join(table.replace("│", " ").split())


def ended(hours_ago, state=TrialState.COMPLETE):
    """A trial that took no time."""
    at = datetime.now() - timedelta(hours=hours_ago)
    trial = optuna.trial.create_trial(
        state=state, value=0.5 if state == TrialState.COMPLETE else None
    )
    trial.datetime_start = trial.datetime_complete = at
    return trial


# --- Where a study stands ---


def test_a_fresh_study_has_everything_before_it(study):
    status = status_of(study, SPEC)
    assert (status.study, status.done, status.total, status.finished) == ("mine", 0, 8, False)
    assert (status.generation, status.generations, status.popsize) == (0, 2, 4)
    assert slots(status) == (0, 0, 0)
    assert (status.per_hour, status.left) == (None, None)
    assert (dict(status.workers), status.stale) == ({}, ())
    text = shown(status)
    assert "0 of 8 done (0 %)" in text
    assert "generation 1 of 2" in text
    assert "workers alive 0" in text
    assert "trials none" in text
    assert "per hour" not in text


def test_running_trials_are_their_workers(study):
    first, second, third = study.ask(), study.ask(), study.ask()
    first.set_user_attr("worker", ME)
    third.set_user_attr("worker", ME)
    sign(study, second, seconds_ago(100))
    status = status_of(study, SPEC)
    assert status.workers == {ME: (0, 2), "elsewhere:7": (1,)}
    assert slots(status) == (0, 3, 0)
    assert status.states["RUNNING"] == 3
    text = shown(status)
    assert f"workers alive 2 elsewhere:7 (trial 1) {ME} (trial 0, 2)" in text
    assert "4 slots 0 done, 3 running, 0 stale" in text


def test_a_trial_without_a_heartbeat_for_a_lease_is_stale(study):
    alive, late = study.ask(), study.ask()
    study._storage.create_new_trial(study._study_id)  # never signed, and in no slot
    sign(study, alive, current_heartbeat())
    sign(study, late, seconds_ago(130))
    status = status_of(study, SPEC)
    assert status.stale == (1, 2)
    assert status.workers == {f"{machine()}:{os.getpid()}": (0,)}
    assert slots(status) == (0, 1, 1)
    assert status_of(study, SPEC, lease=200).stale == (2,)
    assert "without a heartbeat trials 1, 2" in shown(status)
    study.tell(late, 0.5)
    assert status_of(study, SPEC).stale == (2,)


def test_slots_count_once_and_failed_trials_not(study):
    study.tell(study.ask(), 0.5)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), 0.5)
    status = status_of(study, SPEC)
    assert (status.done, slots(status)) == (2, (2, 0, 0))
    assert {n: k for n, k in status.states.items() if k} == {"COMPLETE": 2, "FAIL": 1}
    assert "trials 2 complete, 1 fail" in shown(status)
    run_worker(study, Quick(SPEC), n_trials=3)
    status = status_of(study, SPEC)
    assert (status.done, status.generation, slots(status)) == (5, 1, (1, 0, 0))
    assert "generation 2 of 2" in shown(status)


@pytest.mark.parametrize("sampler", ["generational", "optuna-cmaes", "random"])
def test_a_finished_study_has_nothing_left(storage, sampler):
    spec = small_spec(sampler=sampler)
    study = create_study(spec, storage, "done")
    run_worker(study, Quick(spec))
    status = status_of(study, spec)
    assert status.finished
    assert status.done == status.total == spec.n_trials
    assert status.left == timedelta(0)
    text = shown(status)
    assert f"{spec.n_trials} of {spec.n_trials} done (100 %)" in text
    assert "time left" not in text


@pytest.mark.parametrize("sampler", ["optuna-cmaes", "random"])
def test_the_start_loss_of_other_samplers_fills_no_slot(storage, sampler):
    spec = small_spec(sampler=sampler)
    study = create_study(spec, storage, "theirs")
    stood = []
    for _ in range(spec.n_trials):
        run_worker(study, Quick(spec), n_trials=1)
        status = status_of(study, spec)
        stood.append((status.done, status.generation * 4 + status.slots_done))
    assert stood == [(done, done - 1) for done in range(1, 10)]


# --- Pace ---


def test_evaluations_per_hour_give_the_time_left(storage):
    spec = small_spec(sampler="random")
    study = create_study(spec, storage, "slow")
    for hours in (5, 4, 3, 2, 1):
        study.add_trial(ended(hours))
        study.add_trial(ended(hours, TrialState.FAIL))
    status = status_of(study, spec)
    assert status.per_hour == pytest.approx(4 / 5, rel=1e-3)
    assert status.left.total_seconds() == pytest.approx(4 / (4 / 5) * 3600, rel=1e-3)
    assert "time left 5:00:0" in shown(status)


def test_a_slow_study_has_a_pace_too(storage):
    spec = small_spec(sampler="random")
    study = create_study(spec, storage, "slow")
    for hours in (9, 6, 3):
        study.add_trial(ended(hours))
    assert "evaluations per hour 0.2" in shown(status_of(study, spec))


def test_only_the_last_hundred_evaluations_count(storage):
    spec = small_spec(sampler="random", generations=60)
    study = create_study(spec, storage, "long")
    for _ in range(50):
        study.add_trial(ended(1000))
    for k in range(100):
        study.add_trial(ended(1 - k / 100))
    assert status_of(study, spec).per_hour == pytest.approx(99, rel=0.02)


# --- Looking ---


@pytest.mark.parametrize("begun", [False, True])
def test_looking_changes_nothing(study, begun, tmp_path):
    if begun:
        run_worker(study, Quick(SPEC), n_trials=2)
        study.ask()
        study._storage.create_new_trial(study._study_id)
        sign(study, study.ask(), Heartbeat(time.time(), machine(), 999_999_999, 1))
    before = (tmp_path / "study.db").read_bytes(), study.trials, study.user_attrs
    for _ in range(2):
        status_of(study, SPEC, lease=1e-9)
    assert ((tmp_path / "study.db").read_bytes(), study.trials, study.user_attrs) == before


# --- The command ---


@pytest.fixture
def command(tmp_path):
    """``optuna-robustloss status mine`` in words; it leaves this process as it was."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*options):
        storage = f"sqlite:///{tmp_path}/study.db"
        arguments = ["status", "mine", "--storage", storage, *options]
        with warnings.catch_warnings():
            result = CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return in_words(result.output)

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_the_command_shows_workers_generation_slots_pace_and_time_left(study, command, tmp_path):
    assert "evaluations 0 of 8 done (0 %)" in command()
    run_worker(study, Quick(SPEC), n_trials=5)
    study.ask().set_user_attr("worker", "my-host:12")
    before = (tmp_path / "study.db").read_bytes()
    words = command()
    assert (tmp_path / "study.db").read_bytes() == before  # it only looks
    for part in (
        "study 'mine'",
        "evaluations 5 of 8 done (62 %)",
        "generation 2 of 2",
        "its 4 slots 1 done, 1 running, 0 stale",
        "workers alive 1 my-host:12 (trial 5)",
        "trials 1 running, 5 complete",
    ):
        assert part in words
    assert re.search(r"evaluations per hour \d+ time left \d+:\d\d:\d\d", words)


def test_the_command_calls_trials_stale_by_the_lease_it_is_given(study, command):
    sign(study, study.ask(), seconds_ago(30))
    assert "1 running, 0 stale" in command()
    words = command("--lease", "20")
    assert "0 running, 1 stale" in words
    assert "without a heartbeat trials 0" in words
