"""Trials read and written many rows at a time are those of Optuna's own calls."""

import datetime
import math
import time

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.distributed import bulk
from optuna_robustloss.distributed.bulk import read_trials
from optuna_robustloss.distributed.patience import PatientStorage
from optuna_robustloss.distributed.trial_io import write_trial

KINDS = {
    "lr": (FloatDistribution(1e-5, 1.0, log=True), st.floats(1e-5, 1.0)),
    "momentum": (FloatDistribution(0, 1), st.floats(0, 1)),
    "quarter": (FloatDistribution(-1, 1, step=0.25), st.sampled_from([-1.0, -0.25, 0.0, 1.0])),
    "depth": (IntDistribution(1, 9), st.integers(1, 9)),
    "width": (IntDistribution(1, 1024, log=True), st.integers(1, 1024)),
    "even": (IntDistribution(0, 8, step=2), st.sampled_from([0, 4, 8])),
    "net": (
        CategoricalDistribution(["mlp", 2, 0.5, True, None]),
        st.sampled_from(["mlp", 2, 0.5, True, None]),
    ),
}
PARAMS = {"lr": 0.25, "depth": 3, "net": None, "momentum": 1.0}
SPACE = {name: KINDS[name][0] for name in PARAMS}
FINITE = st.floats(-1e300, 1e300)
INFINITE = st.sampled_from([math.inf, -math.inf])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | FINITE | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
KEYS = st.text("abcdé:% '\"", max_size=6)
TIMES = st.datetimes(datetime.datetime(2024, 1, 1), datetime.datetime(2026, 1, 1))


@st.composite
def trials(draw):
    state = draw(st.sampled_from(list(TrialState)))
    names = draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True))
    values = None
    if state == TrialState.COMPLETE:
        values = draw(st.lists(FINITE | INFINITE, min_size=2, max_size=2))
    started = None if state == TrialState.WAITING else draw(TIMES)
    return FrozenTrial(
        number=0,
        state=state,
        value=None,
        values=values,
        datetime_start=started,
        datetime_complete=draw(TIMES) if state.is_finished() else None,
        params={name: draw(KINDS[name][1]) for name in names},
        distributions={name: KINDS[name][0] for name in names},
        user_attrs=draw(st.dictionaries(KEYS, JSON, max_size=3)),
        system_attrs=draw(st.dictionaries(KEYS, JSON, max_size=3)),
        intermediate_values=draw(
            st.dictionaries(st.integers(0, 99), FINITE | INFINITE | st.just(math.nan), max_size=3)
        ),
        trial_id=0,
    )


def same(fast, slow):
    """Equal, with NaN equal to itself, and parameters in the same order."""

    def content(trial):
        fields = dict(vars(trial))
        fields["_params"] = [(name, type(v), v) for name, v in trial.params.items()]
        fields["_distributions"] = list(trial.distributions.items())
        steps = trial.intermediate_values
        fields["intermediate_values"] = {k: repr(steps[k]) for k in sorted(steps)}
        return fields

    return [content(trial) for trial in fast] == [content(trial) for trial in slow]


def both(storage, study_id, states=None, included=(), after=-1):
    arguments = (study_id, states, set(included), after)
    fast = read_trials(storage, *arguments)
    assert fast is not None
    assert same(fast, RDBStorage._get_trials(storage, *arguments))
    return fast


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return PatientStorage(f"sqlite:///{tmp_path_factory.mktemp('bulk')}/s.db")


@pytest.fixture
def storage(tmp_path):
    return PatientStorage(f"sqlite:///{tmp_path}/s.db")


def new_study(storage):
    return storage.create_new_study([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(trials(), max_size=6), st.sets(st.sampled_from(list(TrialState))), st.data())
def test_the_same_trials_as_optunas(shared, templates, states, data):
    other, study = new_study(shared), new_study(shared)
    ids = []
    for template in templates:
        shared.create_new_trial(other, template)  # of another study, in between
        ids.append(shared.create_new_trial(study, template))
    assert len(both(shared, study)) == len(templates)
    both(shared, study, states=tuple(states))
    after = data.draw(st.sampled_from([-1, 0, *ids]))
    included = data.draw(st.sets(st.sampled_from([*ids, 10**6]))) if ids else set()
    fast = both(shared, study, None, included, after)
    assert [t._trial_id for t in fast] == [i for i in ids if i > after or i in included]
    both(shared, study, tuple(states), included, after)


@pytest.mark.parametrize("few", [0, 1, 3, 500])
def test_many_trials_are_not_named_one_by_one(storage, monkeypatch, few):
    monkeypatch.setattr(bulk, "_FEW", few)
    study = new_study(storage)
    ids = [storage.create_new_trial(study) for _ in range(12)]
    for i in ids:
        storage.set_trial_user_attr(i, "i", i)
        storage.set_trial_param(i, "x", i / 20, FloatDistribution(0, 1))
        if i % 2:
            storage.set_trial_state_values(i, TrialState.COMPLETE, [i, -i])
    both(storage, study)
    for included in ([], ids[:1], ids[1:4], ids[::3]):
        fast = both(storage, study, None, included, ids[8])
        assert [t.user_attrs["i"] for t in fast] == sorted({*included, *ids[9:]})
        both(storage, study, (TrialState.RUNNING,), included, ids[8])


def test_more_unfinished_trials_than_sqlite_takes_variables(storage):
    study = new_study(storage)
    rows = [
        {"trial_id": i, "number": i - 1, "study_id": study, "state": TrialState.WAITING}
        for i in range(1, 40_002)
    ]
    with storage.engine.begin() as connection:
        connection.execute(sa.insert(models.TrialModel.__table__), rows)
    unfinished = set(range(1, 40_001))
    fast = read_trials(storage, study, None, unfinished, 40_000)
    assert [t._trial_id for t in fast] == list(range(1, 40_002))
    fast = read_trials(storage, study, None, unfinished - {5, 40_000}, 40_000)
    assert len(fast) == 39_999


def test_an_enqueued_trial_and_a_trial_that_runs(storage):
    study = optuna.create_study(storage=storage, study_name="s")
    study.enqueue_trial({"x": 0.5}, user_attrs={"start": "ce"})
    [waiting] = both(storage, 1)
    assert waiting.system_attrs == {"fixed_params": {"x": 0.5}}
    assert waiting.datetime_start is None
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(math.nan, 3)
    [running] = both(storage, 1)
    assert running.state == TrialState.RUNNING
    assert abs(running.datetime_start - datetime.datetime.now()) < datetime.timedelta(minutes=1)


def test_a_study_that_is_not_there(storage):
    with pytest.raises(KeyError):
        read_trials(storage, 7, None, set(), -1)
    assert read_trials(storage, new_study(storage), None, set(), -1) == []


def test_unknown_tables_are_left_to_optuna(storage, monkeypatch):
    study = new_study(storage)
    storage.create_new_trial(study)
    monkeypatch.setitem(bulk.COLUMNS, "TrialModel", ("trial_id", "number"))
    bulk.tables_of_optuna.cache_clear()
    try:
        assert read_trials(storage, study, None, set(), -1) is None
        assert len(storage.get_all_trials(study)) == 1
        trial = storage.create_new_trial(study)
        write_trial(storage, trial, {"x": 0.5}, {"x": FloatDistribution(0, 1)}, {})
        assert storage.get_trial(trial).params == {"x": 0.5}
    finally:
        bulk.tables_of_optuna.cache_clear()


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_times_are_those_of_the_worker(storage, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        study = new_study(storage)
        trial = storage.create_new_trial(study)
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [1, 2])
        [done] = both(storage, study)
        now = datetime.datetime.now()
        assert abs(done.datetime_start - now) < datetime.timedelta(minutes=1)
        assert abs(done.datetime_complete - now) < datetime.timedelta(minutes=1)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_times_are_read_the_way_of_the_installed_optuna(monkeypatch):
    class Before5:
        datetime_start = sa.Column(sa.DateTime)

    class Unknown:
        datetime_start = property(lambda self: self._start)

    noon = datetime.datetime(2026, 7, 1, 12)
    monkeypatch.setattr(models, "TrialModel", Before5)
    assert bulk._reader("datetime_start")(noon) == noon
    monkeypatch.setattr(models, "TrialModel", Unknown)
    assert bulk._reader("datetime_start") is None
    assert bulk._reader("datetime_complete") is None


def test_the_texts_of_distributions_are_parsed_once(storage, monkeypatch):
    study = new_study(storage)
    for _ in range(5):
        trial = storage.create_new_trial(study)
        write_trial(storage, trial, PARAMS, SPACE, {})
    bulk._distribution.cache_clear()
    read = read_trials(storage, study, None, set(), -1)
    assert bulk._distribution.cache_info().misses == len(SPACE)
    assert [distribution_to_json(d) for d in read[0].distributions.values()] == (
        [distribution_to_json(d) for d in SPACE.values()]
    )
