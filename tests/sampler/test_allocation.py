"""The race for slots, step by step: no schedule gives one slot to two trials, and none hangs."""

import itertools
import random
import threading

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from support.waiting import LIMIT

from optuna_robustloss.distributed.lease import LeaseKeeper, LeaseMonitor
from optuna_robustloss.sampler import allocation
from optuna_robustloss.sampler.allocation import GenerationTimeoutError, SlotAllocator
from optuna_robustloss.sampler.config import SamplerConfig
from optuna_robustloss.sampler.replay import Generations
from optuna_robustloss.sampler.slots import FAILED, slot_of

SPACE = {"x": FloatDistribution(-5, 5)}


class Curtain(BaseException):
    """Ends the actors that still play when the schedule is over."""


class Stage:
    """Lets one actor at a time do one step: a call of the storage, or a sleep, of 0.02 s."""

    def __init__(self):
        self.clock = 0.0
        self.over = False
        self.local = threading.local()
        self.back = threading.Semaphore(0)
        self.turns, self.threads, self.done = [], [], []

    def step(self, *_):
        """Called by an actor before each of its steps: wait for the turn."""
        me = getattr(self.local, "me", None)
        if me is None:
            return
        self.back.release()
        self.turns[me].acquire()
        if self.over:
            raise Curtain

    def add(self, act):
        me = len(self.turns)

        def run():
            self.local.me = me
            self.turns[me].acquire()
            try:
                if not self.over:
                    act()
            except Curtain:
                pass
            finally:
                self.done[me] = True
                self.back.release()

        self.turns.append(threading.Semaphore(0))
        self.done.append(False)
        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[me].start()

    def play(self, schedule, after_each):
        for turn in schedule:
            if all(self.done):
                break
            alive = [i for i, done in enumerate(self.done) if not done]
            self.clock += 0.02
            self._let(alive[turn % len(alive)])
            after_each()
        self.over = True
        for me, done in enumerate(self.done):
            if not done:
                self._let(me)
        for thread in self.threads:
            thread.join(timeout=LIMIT)
            assert not thread.is_alive()

    def _let(self, me):
        self.turns[me].release()
        assert self.back.acquire(timeout=LIMIT)

    # What the protocol knows as the module ``time``

    def monotonic(self):
        return self.clock

    def sleep(self, _seconds):
        self.step()


class SteppedStorage(InMemoryStorage):
    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def get_all_trials(self, *args, **kwargs):
        self.stage.step()
        return super().get_all_trials(*args, **kwargs)

    def set_trial_system_attr(self, *args):
        self.stage.step()
        super().set_trial_system_attr(*args)

    def set_trial_state_values(self, *args, **kwargs):
        self.stage.step()
        return super().set_trial_state_values(*args, **kwargs)


class Race:
    """Several workers, each with one trial, and only some slots free."""

    def __init__(self, monkeypatch, free, seed=0, max_retry=99):
        self.stage = Stage()
        monkeypatch.setattr(allocation, "time", self.stage)
        monkeypatch.setattr(allocation, "_random", random.Random(seed))
        self.storage = SteppedStorage(self.stage)
        self.study = optuna.create_study(storage=self.storage)
        self.config = SamplerConfig(popsize=4, seed=0, space=SPACE, max_retry=max_retry)
        self.holds = {}
        for index in range(4 - free):
            trial = self.study.ask()
            self.bid(trial, index)
            self.study.tell(trial, 0.0)

    def bid(self, trial, index):
        slot = allocation.Slot(0, index)
        for key, value in slot.claim(trial.number, self.config.key).items():
            self.storage.set_trial_system_attr(trial._trial_id, key, value)

    def allocator(self, held=(), **options):
        return SlotAllocator(
            self.study,
            Generations(self.config, StudyDirection.MINIMIZE),
            LeaseKeeper(99.0),
            LeaseMonitor(),
            options.get("max_wait", 1e9),
            options.get("limit"),
            lambda: list(held),
        )

    def worker(self, end):
        """Add a worker that takes a slot, holds it for a step, and finishes as ``end`` says."""
        allocator, trial = self.allocator(), self.study.ask()
        frozen = self.storage.get_trial(trial._trial_id)

        def act():
            self.holds[trial.number] = allocator.allocate(frozen)
            self.stage.step()
            values = [1.0] if end == TrialState.COMPLETE else None
            if end is not None:
                self.storage.set_trial_state_values(trial._trial_id, end, values)

        self.stage.add(act)
        return trial.number

    def at_most_one_holder(self):
        trials = InMemoryStorage.get_all_trials(self.storage, self.study._study_id, deepcopy=False)
        holding = [s for n, s in self.holds.items() if s and trials[n].state != TrialState.FAIL]
        assert len(holding) == len(set(holding)), self.holds
        for number, slot in self.holds.items():
            claimed = slot_of(trials[number], self.config.key)
            assert slot is None or claimed == slot


COMPLETE, FAIL = TrialState.COMPLETE, TrialState.FAIL


@pytest.mark.parametrize("ends", list(itertools.product([COMPLETE, FAIL, None], repeat=2)), ids=str)
def test_two_bidders_in_every_order_of_their_first_steps(monkeypatch, ends):
    for prefix in itertools.product((0, 1), repeat=6):
        race = Race(monkeypatch, free=1)
        for end in ends:
            race.worker(end)
        race.stage.play([*prefix, *[0, 1] * 40], race.at_most_one_holder)
        assert race.holds  # one of the two has got it


@settings(max_examples=120, deadline=None)
@given(
    schedule=st.lists(st.integers(0, 11), min_size=10, max_size=150),
    ends=st.lists(st.sampled_from([COMPLETE, FAIL, None]), min_size=2, max_size=5),
    free=st.integers(1, 2),
    seed=st.integers(0, 3),
)
def test_no_schedule_gives_a_slot_to_two(schedule, ends, free, seed):
    with pytest.MonkeyPatch.context() as patch:
        race = Race(patch, free, seed)
        for end in ends:
            race.worker(end)
        race.stage.play(schedule, race.at_most_one_holder)


@settings(max_examples=25, deadline=None)
@given(turns=st.randoms(use_true_random=False), workers=st.integers(2, 5), free=st.integers(1, 2))
def test_under_any_fair_schedule_the_free_slots_find_owners(turns, workers, free):
    with pytest.MonkeyPatch.context() as patch:
        race = Race(patch, free)
        for _ in range(workers):
            race.worker(None)
        race.stage.play((turns.randrange(60) for _ in range(600)), race.at_most_one_holder)
        assert len(race.holds) == min(workers, free)


def test_a_thread_that_asks_beyond_the_popsize_gets_an_error(monkeypatch):
    """It would wait for a generation that waits for its own trial."""
    race = Race(monkeypatch, free=1)
    own, further = race.study.ask(), race.study.ask()
    race.bid(own, 3)
    frozen = race.storage.get_trial(further._trial_id)
    message = rf"beyond popsize=4 and has not told its trials \[{own.number}\]"
    with pytest.raises(GenerationTimeoutError, match=message):
        race.allocator(held=[own.number]).allocate(frozen)
    race.study.tell(own, 0.0)
    assert race.allocator().allocate(frozen).generation == 1


@pytest.mark.parametrize("meanwhile", ["filled", "failed", "held by a later"])
@pytest.mark.parametrize("told", [False, True], ids=["seen late", "seen before the bid"])
def test_a_bid_that_comes_too_late_is_lost(monkeypatch, meanwhile, told):
    race = Race(monkeypatch, free=1, max_retry=0)
    late, other = race.study.ask(), race.study.ask()
    allocator = race.allocator()
    (slot,) = allocator.read().free()
    race.bid(other, slot.index)
    if meanwhile == "failed":
        for name, value in FAILED.items():
            race.storage.set_trial_system_attr(other._trial_id, name, value)
        race.storage.set_trial_state_values(other._trial_id, FAIL)
    elif meanwhile != "held by a later":
        race.study.tell(other, 0.0)
    if told:
        allocator.read()
    monkeypatch.setattr(
        race.stage, "sleep", lambda s: setattr(race.stage, "clock", race.stage.clock + 9)
    )
    assert not allocator._bid(race.storage.get_trial(late._trial_id), slot)
    assert slot_of(race.storage.get_trial(late._trial_id)) is None
