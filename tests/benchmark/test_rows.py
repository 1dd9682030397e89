"""Trials that another client wrote into the database of a benchmark."""

import math
import sqlite3
from dataclasses import asdict, astuple
from datetime import datetime
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.benchmark import rows
from optuna_robustloss.benchmark import worker as worker_module
from optuna_robustloss.benchmark.regimes import measure
from optuna_robustloss.benchmark.rows import result_of, run_of
from optuna_robustloss.benchmark.runs import RunEvaluation, RunResult
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import (
    count_done,
    create_benchmark,
    failed_runs,
    open_benchmark,
    open_runs,
    stored_results,
)
from optuna_robustloss.benchmark.trainings import Options
from optuna_robustloss.benchmark.worker import run_benchmark
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.report.write import write_report

SPEC = BenchmarkSpec.from_values(
    {
        "name": "tiny",
        "methods": ["ce", "gce"],
        "tasks": [{"datasets": "digits", "architectures": "mlp2", "noise": "none"}],
        "seeds": 2,
    },
    "tiny.yaml",
)
RUNS = SPEC.runs()
CURVE = [[2, 1.0, 0.02, 0.4, 0.5, None, 0.5, None], [4, 2.0, 0.04, 0.6, 0.5, None, 0.5, None]]
numbers = count()


def trial(state=TrialState.COMPLETE, values=(0.6,), params=None, **attrs):
    params = asdict(RUNS[0]) if params is None else params
    now = datetime.now()
    return FrozenTrial(
        number=next(numbers),
        trial_id=next(numbers),
        state=state,
        value=None,
        values=values,
        datetime_start=now,
        datetime_complete=now,
        params=params,
        distributions={name: CategoricalDistribution(["x"]) for name in params},
        user_attrs={"curve": CURVE} | attrs,
        system_attrs={},
        intermediate_values={},
    )


class Study:
    """What is read of a study."""

    def __init__(self, *trials):
        self.trials = trials

    def get_trials(self, deepcopy, states=tuple(TrialState)):
        return [one for one in self.trials if one.state in states]


def test_a_whole_trial_is_a_result():
    assert result_of(trial()) == RunResult(RUNS[0], tuple(RunEvaluation(*row) for row in CURVE))
    assert result_of(trial(run_diverged=True)).diverged


WRONG = [
    (trial(values=None), "its value is None, not an accuracy"),
    (trial(values=[math.nan]), "its value is [nan], not an accuracy"),
    (trial(values=[0.1] * 5), "its value is [0.1, 0.1"),
    (trial(params=asdict(RUNS[0]) | {"method": 3}), "its parameter 'method' is 3"),
    (trial(params=asdict(RUNS[0]) | {"seed": True}), "its parameter 'seed' is True"),
    (trial(params=asdict(RUNS[0]) | {"scale": math.nan}), "its parameter 'scale' is nan"),
    (trial(params=asdict(RUNS[0]) | {"lr": 1}), "it has the parameter 'lr', which no run has"),
    (trial(params={}), "its parameter 'method' is None"),
    (trial(curve=None), "its attribute 'curve' holds no evaluations"),
    (trial(curve=[]), "its attribute 'curve' holds no evaluations"),
    (trial(curve=[[1, 2]]), "its attribute 'curve' holds [1, 2], which is no evaluation"),
    (trial(curve=[[*CURVE[0][:3], 7.0, *CURVE[0][4:]]]), "which is no evaluation"),
    (trial(curve=CURVE[::-1]), "its attribute 'curve' is not in the order of its steps"),
    (trial(run_diverged="no"), "its attribute 'run_diverged' is 'no'"),
]


def test_a_damaged_trial_is_left_out_with_one_warning_and_its_run_is_open(caplog):
    for wrong, why in WRONG:
        study = Study(wrong, trial(params=asdict(RUNS[1])))
        caplog.clear()
        assert [result.run for result in stored_results(study)] == [RUNS[1]], why
        assert open_runs(study, RUNS)[0] == [RUNS[0], *RUNS[2:]]
        assert count_done(study, RUNS) == 1
        (record,) = caplog.records
        assert record.getMessage().startswith(f"trial {wrong.number} is left out: ")
        assert why in record.getMessage()


def test_pruned_and_waiting_trials_claim_nothing():
    study = Study(*(trial(state=s) for s in (TrialState.PRUNED, TrialState.WAITING)))
    assert open_runs(study, RUNS) == (RUNS, [])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
ROWS = st.lists(st.one_of(st.sampled_from(CURVE), ANYTHING), max_size=3)


def fuzzed(examples):
    def decorate(test):
        return settings(max_examples=examples, deadline=None)(
            given(
                state=st.sampled_from(list(TrialState)),
                values=st.none() | st.lists(st.floats(), min_size=1, max_size=5),
                params=st.none()
                | st.dictionaries(st.sampled_from([*asdict(RUNS[0]), "lr"]), ANYTHING, max_size=7),
                curve=st.one_of(ROWS, ANYTHING),
                diverged=ANYTHING,
                error=ANYTHING,
            )(test)
        )

    return decorate


def check_a_fuzzed_trial(state, values, params, curve, diverged, error):
    """Nothing that reads a benchmark raises an error, and the whole trial beside it is read."""
    params = params if params is None else asdict(RUNS[0]) | params
    strange = trial(state, values, params, curve=curve, run_diverged=diverged, error=error)
    study = Study(strange, trial(params=asdict(RUNS[1])))
    results = stored_results(study)
    assert RUNS[1] in {result.run for result in results}
    assert count_done(study, RUNS) in (1, 2)
    open_runs(study, RUNS)
    failed_runs(study, RUNS)
    assert {"ce", "gce"} >= {one.method for one in measure(SPEC, results)} - {
        "ce-stopped-clean",
        "ce-stopped-noisy",
    } or (run_of(strange).method not in SPEC.methods)


@fuzzed(100)
def test_no_trial_stops_the_others(**fields):
    check_a_fuzzed_trial(**fields)


@pytest.mark.slow
@fuzzed(5000)
def test_no_trial_of_thousands_stops_the_others(**fields):
    check_a_fuzzed_trial(**fields)


@pytest.mark.integration
def test_damaged_rows_of_a_database_are_trained_again_and_reported(tmp_path, monkeypatch):
    def train(spec, runs, options):
        return [RunResult(run, tuple(RunEvaluation(*row) for row in CURVE)) for run in runs]

    monkeypatch.setattr(worker_module, "train_runs", train)
    path = tmp_path / "tiny.db"
    study = create_benchmark(SPEC, open_storage(f"sqlite:///{path}", create=True), "tiny")
    assert run_benchmark(study, SPEC, RUNS, Options(together=2)) == {}
    with sqlite3.connect(path) as database:
        damage = [
            "UPDATE trial_values SET value = 7.5 WHERE trial_id = 1",
            "UPDATE trial_user_attributes SET value_json = '[[1]]' "
            "WHERE trial_id = 2 AND key = 'curve'",
            "DELETE FROM trial_user_attributes WHERE trial_id = 3 AND key = 'curve'",
        ]
        for statement in damage:
            assert database.execute(statement).rowcount == 1
    monkeypatch.setattr(rows, "_results", {})  # as in another process
    study, spec = open_benchmark(open_storage(f"sqlite:///{path}"), "tiny")
    assert count_done(study, RUNS) == 1
    write_report(tmp_path / "before", stored_results(study), measure(spec, stored_results(study)))
    assert run_benchmark(study, spec, RUNS) == {}
    assert count_done(study, RUNS) == len(RUNS)
    assert len(study.trials) == len(RUNS) + 3
    assert all(astuple(m) for result in stored_results(study) for m in result.curve)
