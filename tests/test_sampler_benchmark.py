"""The benchmark runs, and measures what it says; no timing is asserted here."""

import json

import optuna
import pytest
from optuna.trial import TrialState

from benchmarks import overhead, sampler, simulation
from benchmarks.simulation import Problem, simulate

pytestmark = pytest.mark.integration  # runs searches

POPSIZE, GENERATIONS = 6, 4


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def pasts():
    made = (overhead.optunas, overhead.ours)
    return {contender: overhead.past(contender(), 30) for contender in made}


@pytest.mark.parametrize("workers", [1, 5, 20])
def test_ours_uses_every_evaluation(workers):
    run = simulate(
        "GenerationalCmaEsSampler", Problem("sphere", 0), POPSIZE, workers, POPSIZE * GENERATIONS
    )
    assert run.used >= 0.97
    assert (run.told, run.generations) == (POPSIZE * GENERATIONS, GENERATIONS)


def test_the_same_is_found_whatever_the_number_of_workers():
    values = {
        workers: simulate(
            "GenerationalCmaEsSampler", Problem("ellipsoid", 1), POPSIZE, workers, 24
        ).value()
        for workers in (1, 4, 9)
    }
    assert len(set(values.values())) == 1


def test_optunas_drops_evaluations_of_asynchronous_workers():
    problem, budget = Problem("sphere", 0), 20 * POPSIZE
    alone = simulate("CmaEsSampler", problem, POPSIZE, 1, budget)
    many = simulate("CmaEsSampler", problem, POPSIZE, 10, budget)
    assert alone.evaluations == many.evaluations == budget
    assert alone.used > 0.9  # the first trial is random, the last generation incomplete
    assert many.used < 0.6
    assert many.end < alone.end


def test_a_study_is_copied_into_a_database_as_it_is(pasts, tmp_path):
    for number, source in enumerate(pasts.values()):
        url = f"sqlite:///{tmp_path}/{number}.db"
        overhead.copy(source, 26, url)
        copied = optuna.load_study(study_name=overhead.STUDY, storage=url)
        for one, other in zip(source.trials[:26], copied.trials, strict=True):
            assert one.number == other.number
            assert one.params == other.params
            assert one.distributions == other.distributions
            assert one.value == other.value
            assert one.system_attrs == other.system_attrs


@pytest.mark.slow
def test_the_contenders_go_on_with_their_studies(pasts, tmp_path):
    def new_url(name):
        return f"sqlite:///{tmp_path}/{name}.db"

    rows = list(overhead.measure("SQLite", new_url, pasts, 26, warm_rounds=2, cold_rounds=2))
    assert [row.contender for row in rows] == [c.name for c in overhead.CONTENDERS]
    assert all(row.warm.low <= row.warm.median <= row.warm.high for row in rows)
    trials = 26 + 2 + overhead.WARM_UP + 2
    for number, contender in enumerate(overhead.CONTENDERS):
        study = overhead.load(contender, new_url(f"overhead_26_{number}"))
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        assert states == [TrialState.COMPLETE] * trials
        if contender.sampler is overhead.ours:
            read = study.sampler.generations(study)
            assert read.number == trials // overhead.POPSIZE
            assert not read.optimizer.converged
        overhead.close(study._storage)


def test_the_command_writes_both_tables(pasts, tmp_path, monkeypatch, capsys):
    runs = [simulate(name, Problem("sphere", 0), 4, 2, 8) for name in simulation.SAMPLERS]
    rows = [
        overhead.Row("SQLite", 10, contender.name, seconds, seconds)
        for contender in overhead.CONTENDERS
        for seconds in [overhead.Quartiles.of([0.1, 0.2, 0.3])]
    ]
    monkeypatch.setattr(sampler.simulation, "runs", lambda quick, seeds: runs)
    monkeypatch.setattr(sampler.overhead, "rows", lambda quick, postgresql: rows)
    sampler.main(["--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert "100%" in printed
    assert "200.0 (150.0 … 250.0)" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["used"] for row in figures["simulation"][1:]] == [1]
    assert len(figures["runs"]) == len(simulation.SAMPLERS)
    assert len(figures["overhead"]) == len(overhead.CONTENDERS)
