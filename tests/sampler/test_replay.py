"""Replaying a study: what is told, in what order; the order of arrival does not matter."""

import itertools
import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_robustloss.sampler.config import SamplerConfig
from optuna_robustloss.sampler.replay import MAX_LOST, Generations
from optuna_robustloss.sampler.slots import FAILED, Slot

SPACE = {"x": FloatDistribution(-5, 5), "y": FloatDistribution(1e-3, 1, log=True)}
CONFIG = SamplerConfig(popsize=4, seed=7, space=SPACE, max_retry=1)
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


#: Of two generations, as they might be drawn.
POINTS = {Slot(g, i): {"x": i - g / 2, "y": 0.1 * (i + 1)} for g in range(2) for i in range(4)}


class History:
    """Trials in the order of their numbers."""

    def __init__(self, config=CONFIG):
        self.config = config
        self.trials = []

    def add(self, slot, state=COMPLETE, value=None, params=None, steps=None, own=False, attrs=None):
        """Append a trial on ``slot``, which may be an index of generation 0."""
        slot = Slot(0, slot) if isinstance(slot, int) else slot
        drawn = self.now().candidate(slot.index) if slot.generation == 0 else {}
        if state == COMPLETE and value is None:
            value = float(slot.index)
        params = drawn if params is None else params
        trial = optuna.trial.create_trial(
            state=state,
            value=value,
            params=params,
            distributions={n: self.distributions()[n] for n in params},
            intermediate_values=steps,
            system_attrs=slot.claim(len(self.trials), self.config.key)
            | (FAILED if own else {})
            | (attrs or {}),
        )
        trial.number = trial._trial_id = len(self.trials)
        self.trials.append(trial)
        return trial

    def distributions(self):
        return self.config.space or SPACE

    def now(self, direction=StudyDirection.MINIMIZE):
        generations = Generations(self.config, direction)
        generations.update(self.trials)
        return generations


def order_told(history, monkeypatch, direction=StudyDirection.MINIMIZE):
    """Return the points of generation 0, best first."""
    heard = []
    generations = Generations(history.config, direction)
    monkeypatch.setattr(generations.optimizer, "tell", heard.append)
    generations.update(history.trials)
    assert generations.number == 1
    return [p["x"] for p in heard[0]]


def test_a_generation_is_told_when_its_last_slot_is_filled():
    history = History()
    for index in (2, 0, 3):
        history.add(index)
        assert history.now().number == 0
    assert history.now().free() == [Slot(0, 1)]
    history.add(1)
    now = history.now()
    assert (now.number, now.free()) == (1, [Slot(1, i) for i in range(4)])
    assert [t.number for t in now.told[0]] == [1, 3, 0, 2]


def test_complete_before_pruned_by_progress_before_failed(monkeypatch):
    history = History(SamplerConfig(popsize=8, seed=0, space=SPACE, max_retry=0))
    x = [c["x"] for c in map(history.now().candidate, range(8))]
    history.add(0, FAIL, own=True)
    history.add(1, PRUNED)  # pruned before it reported anything
    history.add(2, PRUNED, steps={1: 0.5})
    history.add(3, PRUNED, steps={1: 0.4})
    history.add(4, PRUNED, steps={1: 9.0, 7: math.nan})
    history.add(5, value=math.inf)
    history.add(6, value=3.0)
    history.add(7, value=-math.inf)
    assert order_told(history, monkeypatch) == [x[i] for i in (7, 6, 5, 4, 3, 2, 1, 0)]


def test_maximising_is_minimising_the_negative(monkeypatch):
    values = [3.0, -1.0, 2.0]
    down, up = History(), History()
    for history, sign in ((down, 1), (up, -1)):
        for index, value in enumerate(values):
            history.add(index, value=sign * value)
        history.add(3, PRUNED, steps={0: sign * 5.0})
    directions = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
    states = [h.now(d).optimizer.state for h, d in zip((down, up), directions, strict=True)]
    assert states[0] == states[1]
    orders = [order_told(h, monkeypatch, d) for h, d in zip((down, up), directions, strict=True)]
    assert orders[0] == orders[1]


def test_ties_go_by_slot_whoever_came_first(monkeypatch):
    orders = set()
    for arrival in itertools.permutations(range(4)):
        history = History()
        for index in arrival:
            history.add(index, value=1.0)
        orders.add(tuple(order_told(history, monkeypatch)))
    assert len(orders) == 1


@settings(deadline=None)
@given(st.permutations(range(8)), st.lists(st.integers(0, 8), max_size=5))
def test_neither_order_nor_number_of_readings_matters(arrival, cuts):
    slots = [Slot(0, i) for i in range(4)] + [Slot(1, i) for i in range(4)]
    history, reference = History(), History()
    for slot in slots:
        reference.add(slot, value=float(slot.index), params=POINTS[slot])
    for k in arrival:
        history.add(slots[k], value=float(slots[k].index), params=POINTS[slots[k]])
    running = [optuna.trial.create_trial(state=RUNNING) for _ in arrival]
    for number, (trial, done) in enumerate(zip(running, history.trials, strict=True)):
        trial.number, trial.system_attrs = number, done.system_attrs
    watched = Generations(CONFIG, StudyDirection.MINIMIZE)
    for cut in sorted(cuts):
        watched.update(history.trials[:cut] + running[cut:])
    watched.update(history.trials)
    assert watched.optimizer.state == reference.now().optimizer.state
    assert (watched.number, watched.running) == (2, {})


@pytest.mark.parametrize("state", [COMPLETE, PRUNED, FAIL])
def test_a_bid_for_a_slot_that_is_taken_is_nothing_to_wait_for(state):
    history = History(SamplerConfig(popsize=4, seed=7, space=SPACE, max_retry=0))
    for index in range(4):  # whoever reads now closes the generation
        history.add(index, state if index == 0 else COMPLETE, own=state == FAIL)
    history.add(0, RUNNING)  # decided on by an older reading, and soon withdrawn
    assert history.now().waits_for() == []


def test_lost_workers_are_not_counted_until_there_are_too_many():
    history = History()
    for index in range(1, 4):
        history.add(index)
    for _ in range(MAX_LOST - 1):
        history.add(0, FAIL)
        history.add(0, FAIL, own=True) if len(history.trials) == 5 else None
    assert history.now().free() == [Slot(0, 0)]
    history.add(0, FAIL)
    now = history.now()
    assert now.number == 1
    assert len(now.told[0]) == 4


@pytest.mark.parametrize("lost", [0, 2])
def test_an_abandoned_candidate_is_told_as_the_worst_with_its_drawn_parameters(monkeypatch, lost):
    history = History(SamplerConfig(popsize=4, seed=7, space=SPACE, max_retry=0))
    drawn = history.now().candidate(0)["x"]
    for _ in range(lost):
        history.add(0, FAIL, params={})
    history.add(0, FAIL, params={}, own=True)
    for index in range(1, 4):
        history.add(index, PRUNED)
    assert order_told(history, monkeypatch)[-1] == drawn


def test_the_parameters_told_are_those_evaluated(monkeypatch):
    history = History()
    history.add(0, value=-9.0, params={"x": 4.25, "y": 0.5})
    history.add(1, value=-8.0, params={"x": -4.25})
    history.add(2, value=-7.0, params={})
    history.add(3)
    drawn = history.now().config.optimizer(SPACE).candidate(2)["x"]
    assert order_told(history, monkeypatch)[:3] == [4.25, -4.25, drawn]


@pytest.mark.parametrize("index", [4, 99])
def test_a_claim_on_a_slot_that_does_not_exist_is_ignored(index):
    history = History()
    history.add(index, RUNNING, params={})
    for slot in range(4):
        history.add(slot)
    assert history.now().number == 1


def test_claims_of_another_search_and_waiting_trials_do_not_count():
    history = History()
    key = SamplerConfig(popsize=4, seed=8, space=SPACE).key
    history.add(0, attrs=Slot(0, 0).claim(0, key))
    history.add(1, WAITING, params={})
    assert history.now().free() == [Slot(0, i) for i in range(4)]


def test_the_space_is_what_the_first_generation_has_in_common():
    distributions = SPACE | {
        "c": CategoricalDistribution(["a", "b"]),
        "one": IntDistribution(1, 1),
        "only": FloatDistribution(0, 1),
    }
    history = History(SamplerConfig(popsize=4, seed=7))
    history.distributions = lambda: distributions
    for index in range(4):
        params = {"y": 0.1, "x": index / 2, "c": "a", "one": 1}
        history.add(index, params=params | ({"only": 0.5} if index else {}))
    now = history.now()
    assert now.space == SPACE
    assert list(now.optimizer.transform.parameters) == sorted(SPACE)
    assert now.optimizer.generation == 1


@pytest.mark.parametrize("state", [PRUNED, FAIL])
def test_a_first_generation_without_a_complete_trial_does_not_end_the_search(state):
    history = History(SamplerConfig(popsize=4, seed=7, max_retry=0))
    history.distributions = lambda: SPACE
    for index in range(4):
        history.add(index, state, params={"x": 1.0, "y": 0.1}, own=state == FAIL)
    for index in range(4):
        history.add(Slot(1, index), params={"x": float(index), "y": 0.1})
    now = history.now()
    assert now.number == 2
    assert now.space == SPACE
