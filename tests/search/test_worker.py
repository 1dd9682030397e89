"""A worker and its own trials: finished, taken over, interrupted, failed, drawn again."""

import math
from unittest.mock import patch

import optuna
import pytest
from optuna.trial import TrialState
from support.small import small_spec

from optuna_robustloss.distributed.lease import LEASE, lease_keeper
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.slots import Slot, objective_failed, slot_of
from optuna_robustloss.search import worker as worker_module
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.study import (
    create_study,
    finished_study,
    read_generations,
    trials_done,
)
from optuna_robustloss.search.worker import run_worker

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = small_spec(generations=1)
COMPLETE, FAIL = TrialState.COMPLETE, TrialState.FAIL


class Quick(NoisyLabelObjective):
    """Worth its first coefficient; ``happens`` is called with every trial after its suggestions."""

    def __init__(self, spec=SPEC, happens=lambda trial: None):
        super().__init__(spec)
        self.happens = happens

    def evaluate(self, trials):
        return [self.outcome(trial) for trial in trials]

    def outcome(self, trial):
        try:
            theta = self.spec.space.suggest(trial).theta
            self.happens(trial)
        except Exception as error:
            return error
        return 0.5 + theta[0] / 10


class Sometimes(Quick):
    """Not a number where ``happens`` says so."""

    def outcome(self, trial):
        value = super().outcome(trial)
        return math.nan if self.happens(trial) else value


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"sqlite:///{tmp_path}/study.db", create=True)


@pytest.fixture
def study(storage):
    return create_study(SPEC, storage, "small")


def states(study):
    return [trial.state.name for trial in study.trials]


def on(number, action):
    """Do something with trial ``number``, nothing with the others."""
    return lambda trial: action(trial) if trial.number == number else None


def taken_over(study, state=FAIL, values=None):
    return lambda trial: study._storage.set_trial_state_values(trial._trial_id, state, values)


def redrawn(study, number):
    """Return the complete trials with the parameters of a failed one."""
    params = study.trials[number].params
    return [t.number for t in study.trials if t.state == COMPLETE and t.params == params]


# --- Several candidates at once ---


def test_candidates_are_asked_for_together_and_told_one_by_one(storage):
    spec = small_spec(generations=2)
    study = create_study(spec, storage, "small")
    asked, seen = [], []
    objective = Quick(spec, lambda trial: asked.append(len(study.get_trials(deepcopy=False))))
    run_worker(study, objective, candidates=3, on_trial=lambda _, t: seen.append(t.number))
    assert asked == [3, 3, 3, 4, 7, 7, 7, 8]  # the fourth slot of a generation is a batch alone
    assert seen == list(range(8))
    alone = create_study(spec, storage, "alone")
    run_worker(alone, Quick(spec))
    values = [sorted(t.value for t in s.trials) for s in (study, alone)]
    assert values[0] == values[1]


@pytest.mark.parametrize("sampler", ["generational", "random"])
def test_a_worker_asks_for_no_more_than_its_share(storage, sampler):
    spec = small_spec(sampler=sampler)
    study = create_study(spec, storage, "small")
    run_worker(study, Quick(spec), n_trials=4, candidates=3)
    assert states(study) == ["COMPLETE"] * 4
    run_worker(study, Quick(spec), candidates=3)
    assert states(study) == ["COMPLETE"] * spec.n_trials


# --- Taken over ---


@pytest.mark.parametrize("where", ["sqlite", "memory"])
def test_a_trial_taken_over_while_it_trains_is_dropped(where, storage, caplog, monkeypatch):
    """The objective's own report finds out."""
    study = create_study(SPEC, storage if where == "sqlite" else None, "small")
    scores, seen = NoisyLabelObjective.scores, []

    def slow(self, losses, seed, *, reports, stop_early):
        (trial,) = (report.args[0] for report in reports)
        if trial.number == 1:
            taken_over(study)(trial)
        return scores(self, losses, seed, reports=reports, stop_early=stop_early)

    monkeypatch.setattr(NoisyLabelObjective, "scores", slow)
    objective = NoisyLabelObjective(SPEC)
    run_worker(study, objective, on_trial=lambda _, t: seen.append(t.number))
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert redrawn(study, 1) == [4]
    assert seen == [0, 2, 3, 4]
    assert caplog.text.count("trial 1 was taken over while this worker was away") == 1
    assert not lease_keeper(LEASE).holds(study._storage, study.trials[1]._trial_id)


@pytest.mark.parametrize(
    ("candidates", "during"), [(1, 1), (3, 1), (3, 0)], ids=["alone", "batch", "while it waits"]
)
def test_a_trial_taken_over_before_it_is_told_is_dropped(study, candidates, during, caplog):
    """Trial 1, while it is trained, or the one before it in a batch."""

    def take_over(_):
        (lost,) = [t for t in study.get_trials(deepcopy=False) if t.number == 1]
        study._storage.set_trial_state_values(lost._trial_id, FAIL)

    run_worker(study, Quick(SPEC, on(during, take_over)), candidates=candidates)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert redrawn(study, 1) == [4]
    assert "trial 1 was taken over" in caplog.text


def test_a_result_that_somebody_else_has_told_stands(study, caplog):
    run_worker(study, Quick(SPEC, on(1, taken_over(study, COMPLETE, [0.125]))))
    assert states(study) == ["COMPLETE"] * 4
    assert study.trials[1].value == 0.125
    assert "trial 1 was taken over" in caplog.text


# --- Interrupted ---


def test_a_failed_candidate_is_marked_and_the_others_of_its_population_are_told(study):
    def fails(trial):
        raise ZeroDivisionError("one over nothing")

    with pytest.raises(ZeroDivisionError, match="one over nothing"):
        run_worker(study, Quick(SPEC, on(1, fails)), candidates=3)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert [objective_failed(t) for t in study.trials] == [False, True, False]
    assert not any(lease_keeper(LEASE).holds(study._storage, t._trial_id) for t in study.trials)
    run_worker(study, Quick())
    assert states(study)[3:] == ["COMPLETE"] * 2
    assert len(redrawn(study, 1)) == 1
    assert trials_done(study, SPEC) == 4


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_gives_all_candidates_of_the_population_back(study, interrupt):
    def stop(trial):
        raise interrupt

    with pytest.raises(interrupt):
        run_worker(study, Quick(SPEC, on(1, stop)), candidates=3)
    assert states(study) == ["FAIL", "FAIL", "FAIL"]
    assert not any(objective_failed(t) for t in study.trials)
    run_worker(study, Quick())
    assert states(study)[3:] == ["COMPLETE"] * 4
    assert [len(redrawn(study, number)) for number in range(3)] == [1, 1, 1]


def test_a_pruned_candidate_is_told_below_the_others_of_its_population(storage):
    def prune(trial):
        trial.report(0.9, 10 + trial.number)
        raise optuna.TrialPruned

    spec = small_spec(generations=1)
    study = create_study(spec, storage, "small")
    happens = {1: prune, 3: prune}
    run_worker(study, Quick(spec, lambda t: happens.get(t.number, id)(t)), candidates=4)
    assert states(study) == ["COMPLETE", "PRUNED", "COMPLETE", "PRUNED"]
    assert finished_study(study, spec)
    ranking = [t.number for t in read_generations(study).told[0]]
    assert sorted(ranking) == [0, 1, 2, 3]


def test_ctrl_c_while_candidates_are_asked_for_gives_them_back(study):
    ask, calls = study.ask, []

    def interrupted():
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask()

    with patch.object(study, "ask", interrupted), pytest.raises(KeyboardInterrupt):
        run_worker(study, Quick(), candidates=4)
    assert states(study) == ["FAIL", "FAIL"]
    assert not any(objective_failed(t) for t in study.trials)


@pytest.mark.parametrize("late", [False, True], ids=["before it asks", "while it asks"])
def test_the_end_of_the_search_ends_a_worker(study, monkeypatch, late):
    """Another worker fills the last slot after this one has counted."""
    run_worker(study, Quick())
    monkeypatch.setattr(worker_module, "finished_study", lambda *_: False)
    if late:
        monkeypatch.setattr(GenerationalCmaEsSampler, "wait", lambda *_: None)
    run_worker(study, Quick())
    assert states(study) == ["COMPLETE"] * 4 + ["FAIL"] * late


@pytest.mark.filterwarnings("ignore:The value nan is not acceptable")
@pytest.mark.parametrize("sampler", ["generational", "optuna-cmaes"])
def test_a_value_that_is_not_a_number_fails_and_the_study_goes_on(sampler, storage):
    spec = small_spec(generations=1, sampler=sampler)
    study = create_study(spec, storage, "small")
    run_worker(study, Sometimes(spec, lambda trial: trial.number == 2))
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * (spec.n_trials - 2)]
    # The generational sampler draws the candidate again, Optuna's another one.
    assert len(redrawn(study, 2)) == (sampler == "generational")


@pytest.mark.filterwarnings("ignore:The value nan is not acceptable")
def test_a_candidate_that_is_never_a_number_is_told_as_the_worst(storage):
    spec = small_spec(max_retry=2)
    study = create_study(spec, storage, "small")
    run_worker(study, Sometimes(spec, lambda t: slot_of(study.trials[t.number]) == Slot(0, 3)))
    failed = [t for t in study.trials if t.state == FAIL]
    assert len(failed) == 1 + spec.max_retry
    assert len({tuple(t.params.items()) for t in failed}) == 1
    assert states(study).count("COMPLETE") == spec.n_trials - 1
    told = read_generations(study).told
    assert [len(generation) for generation in told] == [4, 4]
    assert told[0][3].number == failed[0].number
    assert finished_study(study, spec)
