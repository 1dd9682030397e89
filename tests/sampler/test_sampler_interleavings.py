"""Same seed, any number of workers, any order of events: the same optimiser, bit for bit."""

import math
import multiprocessing
import threading
from collections import Counter, defaultdict

import optuna
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from support.waiting import LIMIT

from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler import config as definition_module
from optuna_robustloss.sampler.allocation import SearchFinished
from optuna_robustloss.sampler.optimizer import GenerationalCma
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.slots import objective_failed, slot_of

SPACE = {
    "lr": FloatDistribution(1e-4, 1, log=True),
    "n": IntDistribution(0, 9),
    "x": FloatDistribution(-5, 5),
}
POPSIZE, MAX_RETRY = 4, 2


class Recorded(GenerationalCma):
    """Keeps its state after every generation."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.states = [self.state]

    def tell(self, points):
        super().tell(points)
        self.states.append(self.state)


@pytest.fixture(autouse=True, scope="module")
def _recorded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition_module, "GenerationalCma", Recorded)
        yield


def fate(params):
    """What the objective does with a candidate, decided by its parameters alone."""
    value = params["x"] ** 2 + (params["n"] - 3) ** 2 + math.log(params["lr"]) ** 2
    chance = math.modf(abs(math.sin(1e3 * value)) * 1e4)[0]
    return value, "fails" if chance < 0.1 else "pruned" if chance < 0.25 else "complete"


class Worker:
    """As a process of its own would be: its own sampler and, in a database, its own storage."""

    def __init__(self, storage, explicit, sign=1.0, **options):
        self.sign = sign
        self.sampler = GenerationalCmaEsSampler(
            POPSIZE,
            seed=11,
            search_space=SPACE if explicit else None,
            max_retry=MAX_RETRY,
            max_wait=LIMIT,
            **options,
        )
        direction = "minimize" if sign > 0 else "maximize"
        self.study = optuna.create_study(
            storage=storage,
            study_name="s",
            sampler=self.sampler,
            load_if_exists=True,
            direction=direction,
        )

    @property
    def now(self):
        return self.sampler.generations(self.study)

    def ask(self):
        trial = self.study.ask()
        for name, d in SPACE.items():
            suggest = trial.suggest_int if isinstance(d, IntDistribution) else trial.suggest_float
            suggest(name, d.low, d.high, log=d.log)
        return trial

    def tell(self, trial):
        value, how = fate(trial.params)
        if how == "complete":
            self.study.tell(trial, self.sign * value)
        elif how == "pruned":
            trial.report(self.sign * value, int(value) % 3)
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def finish(self, generations):
        """Go on alone until so many generations are complete."""
        while self.now.number < generations:
            self.tell(self.ask())

    def states(self, generations):
        return self.now.optimizer.states[: generations + 1]


def reference(explicit, generations, sign=1.0):
    worker = Worker(optuna.storages.InMemoryStorage(), explicit, sign)
    worker.finish(generations)
    return worker.states(generations)


def act(workers, events, generations):
    """Let ``workers`` do what ``events`` say, then finish; return how often what happened."""
    running, happened, failures = [], Counter(), defaultdict(int)
    for kind, which in events:
        worker = workers[which % len(workers)]
        now = worker.now
        if kind == "ask" and now.number < generations and now.free():
            running.append((worker, worker.ask()))
        elif kind != "ask" and running:
            worker, trial = running.pop(which % len(running))
            if kind == "lose":
                worker.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            elif kind == "break" and fate(trial.params)[1] != "fails":
                slot = slot_of(worker.study.trials[trial.number])
                failures[slot] += 1
                if failures[slot] > MAX_RETRY:
                    worker.tell(trial)
                else:
                    worker.study.tell(trial, state=TrialState.FAIL)
            else:
                worker.tell(trial)
        else:
            continue
        happened[kind] += 1
    for worker, trial in running:
        worker.tell(trial)
    workers[0].finish(generations)
    return happened


def check(workers, expected, generations):
    for worker in workers:
        assert worker.states(generations) == expected
    now = workers[-1].now
    trials = workers[-1].study.get_trials(deepcopy=False)
    filled = defaultdict(list)
    for trial in trials:
        slot = slot_of(trial, now.config.key)
        if slot and trial.state != TrialState.FAIL:
            filled[slot.generation, slot.index].append(trial.number)
    assert all(len(owners) == 1 for owners in filled.values())
    for number, told in enumerate(now.told):
        assert len(told) == POPSIZE
        assert [slot_of(t).index for t in told] == list(range(POPSIZE))
        assert {slot_of(t).generation for t in told} == {number}
        assert all(t.state != TrialState.FAIL or objective_failed(t) for t in told)
    told = {t.number for members in now.told for t in members}
    assert {n for owners in filled.values() for n in owners} <= told


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "tell", "tell", "lose", "break"]),
        st.integers(0, 999),
    ),
    min_size=10,
    max_size=90,
)
REFERENCES = {}


def same_as_alone(make, count, explicit, events, generations, sign):
    key = explicit, generations
    if key not in REFERENCES:
        REFERENCES[key] = reference(*key)
    workers = [make(explicit, sign) for _ in range(count)]
    happened = act(workers, events, generations)
    for kind, times in happened.items():
        event(f"{kind}: {times // 5 * 5} or more")
    check(workers, REFERENCES[key], generations)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 5), st.booleans(), EVENTS, st.sampled_from([1.0, -1.0]))
def test_any_interleaving_of_workers_gives_the_same_states(count, explicit, events, sign):
    storage = optuna.storages.InMemoryStorage()
    same_as_alone(
        lambda explicit, sign: Worker(storage, explicit, sign), count, explicit, events, 5, sign
    )


@pytest.mark.slow
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=EVENTS, explicit=st.booleans())
def test_so_it_is_in_a_database(tmp_path_factory, events, explicit):
    url = f"sqlite:///{tmp_path_factory.mktemp('db')}/s.db"
    same_as_alone(
        lambda explicit, sign: Worker(open_storage(url, create=True), explicit, sign),
        3,
        explicit,
        events[:40],
        2,
        1.0,
    )


def test_a_worker_that_comes_later_replays_the_same_states():
    storage = optuna.storages.InMemoryStorage()
    Worker(storage, False).finish(4)
    late = Worker(storage, False)
    assert late.states(4) == reference(False, 4)


def test_more_threads_than_candidates():
    worker = Worker(optuna.storages.InMemoryStorage(), False, generations=4)

    def objective(trial):
        x = trial.suggest_float("x", -5, 5)
        trial.suggest_int("n", 0, 9)
        lr = trial.suggest_float("lr", 1e-4, 1, log=True)
        return fate({"x": x, "lr": lr, "n": trial.params["n"]})[0]

    def run():
        try:
            while True:
                trial = worker.study.ask()
                worker.study.tell(trial, objective(trial))
        except SearchFinished:
            pass

    threads = [threading.Thread(target=run, daemon=True) for _ in range(POPSIZE + 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=LIMIT)
    assert not any(t.is_alive() for t in threads)
    now = worker.now
    assert now.number == 4
    alone = Worker(optuna.storages.InMemoryStorage(), False)
    while alone.now.number < 4:
        trial = alone.study.ask()
        alone.study.tell(trial, objective(trial))
    assert worker.states(4) == alone.states(4)
    assert not [t for t in worker.study.trials if not t.state.is_finished()]


def _search(url, generations):
    worker = Worker(open_storage(url), True, generations=generations)
    try:
        while True:
            worker.tell(worker.ask())
    except SearchFinished:
        pass


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="starts processes by fork"
)
def test_processes_on_one_database_fill_every_slot_once(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    generations = 3
    first = Worker(open_storage(url, create=True), True)
    first.study._storage.remove_session()
    processes = [
        multiprocessing.get_context("fork").Process(
            target=_search, args=(url, generations), daemon=True
        )
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=LIMIT)
    assert [p.exitcode for p in processes] == [0] * 4
    check([first], reference(True, generations), generations)
