"""The sampler as a user meets it: parameters, enqueued trials, batches, errors, what is stored."""

import math
import threading
import warnings

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from optuna_robustloss.sampler.allocation import GenerationTimeoutError, SearchFinished
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.slots import Slot, slot_of

LINE = {"x": FloatDistribution(-5, 5)}


def make(popsize=4, *, storage=None, pruner=None, direction="minimize", name="s", **options):
    sampler = GenerationalCmaEsSampler(popsize, **({"seed": 1} | options))
    return optuna.create_study(
        storage=storage or InMemoryStorage(),
        study_name=name,
        sampler=sampler,
        pruner=pruner,
        direction=direction,
        load_if_exists=True,
    )


def now(study):
    return study.sampler.generations(study)


def slot(study, trial):
    return slot_of(study.trials[trial.number])


def line(trial):
    return trial.suggest_float("x", -5, 5) ** 2


def every_kind(trial):
    value = trial.suggest_float("x", -5, 5) ** 2
    value += abs(math.log(trial.suggest_float("lr", 1e-6, 1, log=True)) + 5)
    value += (trial.suggest_int("n", 0, 9) - 4) ** 2
    value += trial.suggest_float("grid", 0, 1, step=0.25)
    value += trial.suggest_int("width", 1, 64, log=True) / 64
    value += trial.suggest_int("one", 3, 3) + trial.suggest_float("fixed", 0.5, 0.5)
    if trial.suggest_categorical("kind", ["a", "b"]) == "a":
        value += trial.suggest_float("of_a", 0, 1)
    else:
        value += trial.suggest_int("of_b", 0, 3)
    return value


def test_every_kind_of_parameter():
    studies = [make(8), make(8)]
    for study in studies:
        study.optimize(every_kind, n_trials=240)
        assert list(now(study).space) == ["grid", "lr", "n", "width", "x"]
        assert study.best_value < 5
    assert [t.params for t in studies[0].trials] == [t.params for t in studies[1].trials]


def test_explicit_parameters_are_stored_in_one_go_and_conditional_ones_drawn_beside():
    space = LINE | {"n": IntDistribution(0, 9), "unused": FloatDistribution(0, 1)}
    study = make(search_space=space)
    trial = study.ask()
    assert set(study.trials[0].params) == set(space)
    params = dict(study.trials[0].params)
    assert {"x": trial.suggest_float("x", -5, 5), "n": trial.suggest_int("n", 0, 9)} == {
        n: params[n] for n in ("x", "n")
    }
    assert trial.suggest_categorical("c", ["a", "b"]) in "ab"


@pytest.mark.parametrize("explicit", [True, False])
def test_a_dropped_slot_is_drawn_again_bit_for_bit(explicit):
    study = make(search_space=LINE if explicit else None)
    study.optimize(line, n_trials=4)

    def ask():
        trial = study.ask()
        return trial, trial.suggest_float("x", -5, 5), trial.suggest_categorical("c", [*"abcdefgh"])

    asked = [ask() for _ in range(4)]
    dropped = asked[1]
    study._storage.set_trial_state_values(dropped[0]._trial_id, TrialState.FAIL)
    again = ask()
    assert slot(study, again[0]) == Slot(1, 1)
    assert again[1:] == dropped[1:]


def test_an_objective_that_always_fails_is_tried_again_max_retry_times():
    study = make(max_retry=2)
    tried = []

    def objective(trial):
        x = trial.suggest_float("x", -5, 5)
        if slot(study, trial).index == 2:
            tried.append(x)
            raise RuntimeError
        return x

    while now(study).number == 0:
        study.optimize(objective, n_trials=1, catch=(RuntimeError,))
    assert len(study.trials) == 6
    assert len(set(tried)) == 1
    assert len(tried) == 3


@pytest.mark.parametrize("explicit", [True, False])
def test_enqueued_trials_take_a_slot_and_their_parameters_are_told(explicit, monkeypatch):
    space = LINE | {"y": FloatDistribution(0, 1)}
    study = make(search_space=space if explicit else None)
    for params in ({"x": 4.5, "y": 0.25}, {"x": -4.5}, {"x": 9.0, "other": 1}):
        study.enqueue_trial(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trials = [study.ask(space) for _ in range(4)]
    heard = []
    for trial in trials[:3]:
        study.tell(trial, trial.number)
    replay = now(study)
    monkeypatch.setattr(type(replay.config.optimizer(space)), "tell", lambda _, p: heard.append(p))
    study.tell(trials[3], 3.0)
    assert now(study).number == 1
    assert [p["x"] for p in heard[0][:3]] == [4.5, -4.5, 9.0]
    assert heard[0] == [{n: t.params[n] for n in ("x", "y")} for t in trials]
    assert heard[0][0]["y"] == 0.25


def test_maximising_is_the_mirror_image():
    down, up = make(direction="minimize"), make(direction="maximize")
    down.optimize(line, n_trials=40)
    up.optimize(lambda t: -line(t), n_trials=40)
    assert now(down).optimizer.state == now(up).optimizer.state


def test_the_start_itself_is_the_first_candidate_if_wanted():
    for space in (LINE, None):
        study = make(search_space=space, include_start=True, x0={"x": 1.25}, sigma0={"x": 0.5})
        assert 1.25 in [study.ask(LINE).params["x"] for _ in range(4)]


@pytest.mark.parametrize("explicit", [True, False])
def test_a_start_is_rounded_to_the_grid(explicit):
    space = {"x": FloatDistribution(0, 1, step=0.25)}
    study = make(search_space=space if explicit else None, include_start=True, x0={"x": 0.3})
    assert {study.ask(space).params["x"] % 0.25 for _ in range(4)} == {0.0}


def test_a_start_for_a_parameter_that_is_not_searched_says_so_or_does_no_harm():
    try:
        study = make(search_space=LINE, include_start=True, x0={"x": 1.0, "typo": 2.0})
    except ValueError as error:
        assert "typo" in str(error)  # noqa: PT017  # either is fine
    else:
        assert {t.params.keys() == LINE.keys() for t in (study.ask() for _ in range(4))} == {True}


# Batches and waiting


def test_a_batch_beyond_popsize_is_an_error_and_leaves_no_trial_running():
    study = make()
    trials = [study.ask(LINE) for _ in range(4)]
    with pytest.raises(GenerationTimeoutError, match=r"has not told its trials \[0, 1, 2, 3\]"):
        study.ask(LINE)
    assert study.trials[-1].state == TrialState.FAIL
    for trial in trials:
        study.tell(trial, line(trial))
    assert now(study).number == 1
    study.tell(study.ask(LINE), 0.0)


def test_a_copy_with_parameters_of_its_own_is_no_repetition():
    study = make(search_space=LINE)
    for _ in range(4):
        study.ask()
    state = TrialState.WAITING
    study.add_trial(optuna.create_trial(state=state, params={"x": 4.5}, distributions=LINE))
    copy = study.ask()
    assert copy.params["x"] == 4.5
    assert slot(study, copy) is None


def test_an_enqueued_trial_beside_the_generation_is_not_told():
    study = make(search_space=LINE)
    mine = [study.ask() for _ in range(4)]
    study.enqueue_trial({"x": 4.5})
    beside = study.ask(LINE)
    assert (slot(study, beside), beside.params["x"]) == (None, 4.5)
    for trial in [*mine, beside]:
        study.tell(trial, line(trial))
    assert [t.number for t in now(study).told[0]] == [t.number for t in mine]


def ask_elsewhere(study):
    """Fill the generation from another thread, for which this one waits."""
    thread = threading.Thread(target=lambda: [study.ask() for _ in range(4)])
    thread.start()
    thread.join()


def test_waiting_is_bounded_and_leaves_no_trial_running():
    study = make(max_wait=0.05)
    ask_elsewhere(study)
    with pytest.raises(GenerationTimeoutError, match=r"popsize=4.*raise max_wait"):
        study.ask()
    assert [t.state.name for t in study.trials] == ["RUNNING"] * 4 + ["FAIL"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_an_interruption_while_waiting_leaves_no_trial_running(error, monkeypatch):
    study = make()
    ask_elsewhere(study)

    def interrupted(_):
        raise error

    monkeypatch.setattr("optuna_robustloss.sampler.allocation.time.sleep", interrupted)
    with pytest.raises(error):
        study.ask()
    assert study.trials[4].state == TrialState.FAIL


def test_a_finished_search_gives_no_more_trials():
    study = make(generations=2)
    study.optimize(line)  # stops by itself
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 8
    with pytest.raises(SearchFinished, match="all 2 generations"):
        study.ask()
    assert study.trials[8].state == TrialState.FAIL


def test_a_failure_of_the_last_trial_does_not_end_the_search():
    study, failures = make(generations=1), iter([RuntimeError])

    def objective(trial):
        if trial.number == 3:
            raise next(failures)
        return line(trial)

    study.optimize(objective, n_trials=20, catch=(RuntimeError,))
    assert now(study).number == 1


def test_more_jobs_than_candidates_end_without_an_error():
    study = make(generations=5)
    study.optimize(line, n_jobs=7)
    assert now(study).number == 5
    assert all(t.state.is_finished() for t in study.trials)


def test_two_objectives_are_refused_and_nothing_is_left_running():
    sampler = GenerationalCmaEsSampler(4)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    with pytest.raises(ValueError, match="multi-objective"):
        study.ask()
    assert all(t.state.is_finished() for t in study.trials)
