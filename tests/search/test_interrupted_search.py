"""Searches in other processes: interrupted, killed and resumed, with the same trials."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from support.small import small_spec
from support.waiting import LIMIT, wait_until

from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.study import create_study, open_study, trials_done
from optuna_robustloss.search.worker import run_worker

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = small_spec(generations=1)
WORKER = Path(__file__).parents[2] / "studies" / "worker.py"

#: The command line, with a trial that never ends: what is interrupted is surely running.
STUCK = """
import sys, time
from optuna_robustloss.cli.app import main
from optuna_robustloss.search.objective import NoisyLabelObjective as Objective
scores = Objective.scores
def stuck(self, losses, seed, *, reports=None, stop_early=False):
    if reports is not None and any(report.args[0].number == 2 for report in reports):
        time.sleep(600)
    return scores(self, losses, seed, reports=reports, stop_early=stop_early)
Objective.scores = stuck
main()
"""


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def states(study):
    return [trial.state.name for trial in study.trials]


def heed_ctrl_c():
    """A test run in the background ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_another_process(*command, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
        preexec_fn=heed_ctrl_c,
        **options,
    )


def wait_until_trial_2_trains(url, process):
    study = optuna.load_study(study_name="small", storage=url)

    def trial_2_trains():
        assert process.poll() is None, process.stdout.read()
        return len(study.trials) == 3 and "generation" in study.trials[2].user_attrs

    wait_until(trial_2_trains)
    return study


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interrupted_search_keeps_what_is_done_and_goes_on(name, tmp_path, url):
    """Ctrl-C and a stop end cleanly; what a killed worker leaves, the next one clears away."""
    spec_file = tmp_path / "small.yaml"
    spec_file.write_text(SPEC.model_dump_json())  # JSON is YAML
    create_study(SPEC, url, "small")
    command = ["search", spec_file, "--storage", url, "--seeds", "0", "--candidates", "1"]
    process = in_another_process("-c", STUCK, *command, cwd=tmp_path)
    study = wait_until_trial_2_trains(url, process)
    kept = [(t.params, t.value) for t in study.trials[:2]]
    process.send_signal(signal.Signals[name])
    printed, _ = process.communicate(timeout=LIMIT)
    if name == "SIGKILL":
        assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING"]
    else:
        assert process.returncode == 130, printed
        assert "stopped: 2 of 4 trials are done and kept" in printed
        assert "Traceback" not in printed
        assert states(study) == ["COMPLETE", "COMPLETE", "FAIL"]
    run_worker(create_study(SPEC, url, "small"), NoisyLabelObjective(SPEC))
    assert [(t.params, t.value) for t in study.trials[:2]] == kept
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials_done(study, SPEC) == SPEC.n_trials
    lost = study.trials[2].params
    assert [t.params == lost for t in study.trials].count(True) == 2


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_in_another_process(url, tmp_path):
    """The script for workers, on a study that Optuna's own command would make."""
    spec = small_spec(generations=2)
    spec_file = tmp_path / "small.yaml"
    spec_file.write_text(spec.model_dump_json())
    optuna.create_study(storage=url, study_name="theirs", direction="maximize")
    process = in_another_process(WORKER, "theirs", "--storage", url, "--spec", spec_file)
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, printed
    theirs = open_study(url, "theirs")
    ours = create_study(spec, optuna.storages.InMemoryStorage(), "ours")
    run_worker(ours, NoisyLabelObjective(spec))
    assert [t.params for t in theirs.trials] == [t.params for t in ours.trials]
    assert [t.values for t in theirs.trials] == [t.values for t in ours.trials]
    assert all(t.state == TrialState.COMPLETE for t in theirs.trials)
    workers = {t.user_attrs["worker"] for t in theirs.trials}
    assert workers == {f"{os.uname().nodename}:{process.pid}"}
