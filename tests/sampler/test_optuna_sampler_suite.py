"""Optuna's own tests of samplers, and the parts of Optuna that a sampler meets."""

import pickle
import warnings

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from support.waiting import LIMIT

from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.slots import slot_of

try:
    from optuna.testing.pytest_samplers import (
        BasicSamplerTestCase,
        RelativeSamplerTestCase,
        SingleOnlySamplerTestCase,
    )
except ImportError:  # before Optuna 4.6 or so
    BasicSamplerTestCase = RelativeSamplerTestCase = SingleOnlySamplerTestCase = None

suite = pytest.mark.skipif(BasicSamplerTestCase is None, reason="this Optuna has no such suite")
LINE = {"x": FloatDistribution(-5, 5)}


@suite
class TestBasic(BasicSamplerTestCase or object):
    @pytest.fixture
    def sampler(self):
        return lambda: GenerationalCmaEsSampler(4, seed=0)


@suite
class TestRelative(RelativeSamplerTestCase or object):
    @pytest.fixture
    def sampler(self):
        return lambda: GenerationalCmaEsSampler(4, seed=0)

    # These call ``sample_relative`` for a trial that was never asked for, which has no slot, and
    # with parameters that no generation has shown.
    test_sample_relative_numerical = None
    test_sample_relative_categorical = None  # categories are drawn independently, too
    test_sample_relative_mixed = None


@suite
class TestSingleOnly(SingleOnlySamplerTestCase or object):
    @pytest.fixture
    def sampler(self):
        return lambda: GenerationalCmaEsSampler(4, seed=0)


# MultiObjectiveSamplerTestCase does not apply: the sampler is for one objective.


def make(storage=None, pruner=None, name="s", **options):
    sampler = GenerationalCmaEsSampler(4, **({"seed": 1, "max_wait": LIMIT} | options))
    return optuna.create_study(
        study_name=name,
        storage=storage or InMemoryStorage(),
        sampler=sampler,
        pruner=pruner,
        load_if_exists=True,
    )


def line(trial):
    return trial.suggest_float("x", -5, 5) ** 2


def state(study):
    return study.sampler.generations(study).optimizer.state


def test_a_pickled_sampler_goes_on_where_it_was():
    study, alone = make(), make()
    study.optimize(line, n_trials=9)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(line, n_trials=7)
    alone.optimize(line, n_trials=16)
    assert state(study) == state(alone)


def test_a_trial_can_be_made_again_by_its_number():
    study = make()
    study.optimize(line, n_trials=12)
    asked = study.ask()
    elsewhere = make(study._storage)
    again = optuna.trial.Trial(elsewhere, asked._trial_id)
    assert again.suggest_float("x", -5, 5) == asked.relative_params["x"]


def test_one_sampler_for_two_studies_of_the_same_name():
    first = make()
    second = optuna.create_study(study_name="s", sampler=first.sampler)
    ours = [study.ask() for study in (first, second, first, second)]
    slots = {(id(t.study), slot_of(t.study.trials[t.number])) for t in ours}
    assert len(slots) == 4
    for trial in ours:
        trial.study.tell(trial, line(trial))
    for study in (first, second):
        study.optimize(line, n_trials=6)
        assert study.sampler.generations(study).number == 2
    assert first.trials[0].params == second.trials[0].params


@pytest.mark.parametrize("database", [False, True])  # SQLite uses the study's number again
def test_a_study_that_was_deleted_and_made_again_begins_anew(database, tmp_path):
    study = make(f"sqlite:///{tmp_path}/s.db" if database else None)
    study.optimize(line, n_trials=5)
    optuna.delete_study(study_name="s", storage=study._storage)
    again = optuna.create_study(study_name="s", storage=study._storage, sampler=study.sampler)
    again.optimize(line, n_trials=4)
    assert again.sampler.generations(again).number == 1


def report_and_prune(trial):
    value = line(trial)
    for step in range(9):
        trial.report(value + 9 - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


@pytest.mark.parametrize(
    "pruner",
    [optuna.pruners.MedianPruner(2, 2), optuna.pruners.HyperbandPruner(1, 9, 3)],
    ids=["median", "hyperband"],
)
def test_with_a_pruner(pruner):
    study = make(pruner=pruner, generations=4)
    study.optimize(report_and_prune)
    assert study.sampler.generations(study).number == 4
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED"}


def test_with_some_parameters_fixed():
    study = make()
    study.optimize(lambda t: line(t) + t.suggest_float("y", 0, 1), n_trials=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.sampler = optuna.samplers.PartialFixedSampler({"y": 0.75}, study.sampler)
    study.optimize(lambda t: line(t) + t.suggest_float("y", 0, 1), n_trials=8)
    assert {t.params["y"] for t in study.trials[4:]} == {0.75}
    assert make(study._storage).sampler.generations(study).number == 3


def test_trials_of_other_samplers_are_neither_told_nor_waited_for():
    study, alone = make(), make()
    study.add_trial(optuna.create_trial(params={"x": 0.0}, distributions=LINE, value=-99.0))
    ours, study.sampler = study.sampler, optuna.samplers.RandomSampler()
    study.optimize(line, n_trials=3)
    study.ask()  # and runs for ever
    study.sampler = ours
    study.optimize(line, n_trials=12)
    alone.optimize(line, n_trials=12)
    assert state(study) == state(alone)


def test_wrong_options_are_refused_at_once():
    for options, message in [
        ({"popsize": 3}, "popsize must be at least 4 and at most 10000, got 3"),
        ({"seed": -1}, "seed must not be negative"),
        ({"max_retry": -1}, "max_retry must not be negative"),
        ({"max_wait": 0}, "seconds > 0"),
        ({"lease": 0}, "seconds > 0"),
        ({"generations": 0}, "generations must be at least 1"),
        ({"lr_adapt": True, "separable": True}, "leave out separable"),
        ({"search_space": LINE, "x0": {"x": 9}}, "the start 9.0 is not within"),
        ({"search_space": LINE, "sigma0": -1}, "sigma0 must be a positive number"),
    ]:
        with pytest.raises(ValueError, match=message):
            GenerationalCmaEsSampler(**options)
