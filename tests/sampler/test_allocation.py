"""The race for slots, step by step: no schedule gives one slot to two trials, and none hangs."""

import itertools
import random
import threading
from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_robustloss.distributed.lease import Heartbeat, Watch
from optuna_robustloss.sampler import allocation as taking
from optuna_robustloss.sampler.allocation import GenerationTimeoutError, SlotTaker
from optuna_robustloss.sampler.config import Definition
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
            thread.join(timeout=10)
            assert not thread.is_alive()

    def _let(self, me):
        self.turns[me].release()
        assert self.back.acquire(timeout=10)

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

    def __init__(self, monkeypatch, free, surplus="wait", seed=0, max_retry=99):
        self.stage = Stage()
        monkeypatch.setattr(taking, "time", self.stage)
        monkeypatch.setattr(taking, "_random", random.Random(seed))
        self.storage = SteppedStorage(self.stage)
        self.study = optuna.create_study(storage=self.storage)
        self.definition = Definition(popsize=4, seed=0, space=SPACE, max_retry=max_retry)
        self.surplus = surplus
        self.holds = {}
        for index in range(4 - free):
            trial = self.study.ask()
            self.claim(trial, index)
            self.study.tell(trial, 0.0)

    def claim(self, trial, index, replicate=0):
        slot = taking.Slot(0, index, replicate)
        for key, value in slot.attribute(trial.number, self.definition.key).items():
            self.storage.set_trial_system_attr(trial._trial_id, key, value)

    def taker(self, held=(), **options):
        return SlotTaker(
            self.study,
            Generations(self.definition, StudyDirection.MINIMIZE),
            Heartbeat(99.0),
            Watch(),
            options.get("surplus", self.surplus),
            options.get("max_wait", 1e9),
            options.get("limit"),
            lambda: list(held),
        )

    def worker(self, end):
        """Add a worker that takes a slot, holds it for a step, and finishes as ``end`` says."""
        taker, trial = self.taker(), self.study.ask()
        frozen = self.storage.get_trial(trial._trial_id)

        def act():
            self.holds[trial.number] = taker.take(frozen)
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
            claimed = slot_of(trials[number], self.definition.key)
            let_go = slot is not None and slot.replicate and claimed is None
            assert slot is None or let_go or claimed == slot


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
    surplus=st.sampled_from(["wait", "replicate"]),
    seed=st.integers(0, 3),
)
def test_no_schedule_gives_a_slot_to_two(schedule, ends, free, surplus, seed):
    with pytest.MonkeyPatch.context() as patch:
        race = Race(patch, free, surplus, seed)
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


def test_a_thread_that_holds_a_slot_repeats_instead_of_waiting_for_itself(monkeypatch, caplog):
    race = Race(monkeypatch, free=1)
    mine = race.study.ask()
    race.claim(mine, 3)
    taker = race.taker(held=[mine.number])
    slots = []
    for _ in range(8):
        trial = race.study.ask()
        slots.append(taker.take(race.storage.get_trial(trial._trial_id)))
    assert [s.replicate for s in slots] == [1] * 4 + [2] * 4
    assert {s.index for s in slots[:4]} == {s.index for s in slots[4:]} == set(range(4))
    assert (
        caplog.text.count("more trials were asked for than a generation of popsize=4 has free") == 1
    )


def test_surplus_workers_repeat_only_while_half_of_the_candidates_run(monkeypatch):
    race = Race(monkeypatch, free=2, surplus="replicate")
    first, second, third = (race.storage.get_trial(race.study.ask()._trial_id) for _ in range(3))
    race.claim(first, 2)
    race.claim(second, 3)
    assert race.taker().take(third).replicate == 1
    race.study.tell(second.number, 0.0)
    monkeypatch.setattr(race.stage, "sleep", lambda s: setattr(race.stage, "clock", 9))
    with pytest.raises(GenerationTimeoutError):
        race.taker(max_wait=1.0).wait()


def test_repetitions_of_ones_own_are_given_back_when_nothing_else_runs(monkeypatch):
    race = Race(monkeypatch, free=1)
    primary, repeat = race.study.ask(), race.study.ask()
    race.claim(primary, 3)
    taker = race.taker(held=[repeat.number])
    other = race.taker(held=[primary.number])
    assert other.take(race.storage.get_trial(repeat._trial_id)).replicate == 1
    race.study.tell(primary, 0.0)
    assert taker.wait().generation == 1
    assert slot_of(race.storage.get_trial(repeat._trial_id)) is None


@pytest.mark.parametrize("meanwhile", ["filled", "failed", "no value missing", "held by a later"])
@pytest.mark.parametrize("told", [False, True], ids=["seen late", "seen before the bid"])
def test_a_bid_that_comes_too_late_is_lost(monkeypatch, meanwhile, told):
    race = Race(monkeypatch, free=1, max_retry=0)
    late, other = race.study.ask(), race.study.ask()
    taker = race.taker()
    (slot,) = taker.read().free()
    race.claim(other, slot.index)
    if meanwhile == "failed":
        for name, value in FAILED.items():
            race.storage.set_trial_system_attr(other._trial_id, name, value)
        race.storage.set_trial_state_values(other._trial_id, FAIL)
    elif meanwhile != "held by a later":
        race.study.tell(other, 0.0)
    if told:
        taker.read()
    slot = replace(slot, replicate=int(meanwhile == "no value missing"))
    monkeypatch.setattr(
        race.stage, "sleep", lambda s: setattr(race.stage, "clock", race.stage.clock + 9)
    )
    assert not taker._bid(race.storage.get_trial(late._trial_id), slot)
    assert slot_of(race.storage.get_trial(late._trial_id)) is None


def test_a_late_repetition_that_moved_on_keeps_its_new_claim(monkeypatch):
    race = Race(monkeypatch, free=1)
    last, bidder, other = (race.storage.get_trial(race.study.ask()._trial_id) for _ in range(3))
    race.claim(last, 3)
    race.claim(bidder, 0, replicate=1)
    race.study.tell(last.number, 0.0)
    owner, watcher, moved, write = race.taker(), race.taker(), [], taking.write_trial

    def slow_write(*args):
        if not moved:  # between the watcher's reading and its write the owner goes on
            moved.append(None)
            moved[0] = owner.take(bidder)
        write(*args)

    monkeypatch.setattr(taking, "write_trial", slow_write)
    watcher.read()
    assert moved[0].generation == 1
    assert not race.taker()._bid(other, moved[0])
