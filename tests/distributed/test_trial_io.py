"""A trial written in one transaction is one written by Optuna's own calls."""

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from support import postgres

from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.distributed.trial_io import database_of, write_trial

postgres_server = postgres.postgres_server
postgres_url = postgres.postgres_url

PARAMS = {"lr": 0.25, "depth": 3, "net": None, "momentum": 1.0}
SPACE = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "depth": IntDistribution(1, 9),
    "net": CategoricalDistribution(["mlp", 2, 0.5, True, None]),
    "momentum": FloatDistribution(0, 1),
}
ATTRS = {"generation": 3, "a:b": [1.5, None], "é": {"x": "'\"%"}}


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"sqlite:///{tmp_path}/s.db", create=True)


@pytest.fixture
def postgres_storage(postgres_url):
    storage = open_storage(postgres_url)
    yield storage
    database_of(storage).engine.dispose()


def new_study(storage):
    return storage.create_new_study([StudyDirection.MAXIMIZE], "s")


@pytest.fixture(params=["retrying", "plain", "cached", "postgresql", "memory", "journal"])
def any_storage(request, tmp_path):
    file = f"sqlite:///{tmp_path}/s.db"
    if request.param == "retrying":
        return open_storage(file, create=True)
    if request.param == "plain":
        return RDBStorage(file)
    if request.param == "cached":
        return get_storage(RDBStorage(file))
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_storage")
    if request.param == "memory":
        return InMemoryStorage()
    return JournalStorage(JournalFileBackend(str(tmp_path / "s.log")))


def test_a_trial_is_written_as_by_optunas_calls(any_storage):
    study = new_study(any_storage)
    fast, slow = any_storage.create_new_trial(study), any_storage.create_new_trial(study)
    any_storage.get_all_trials(study)  # fills the cache
    for trial in (fast, slow):
        any_storage.set_trial_system_attr(trial, "generation", 2)
        any_storage.set_trial_user_attr(trial, "generation", 1)
    write_trial(any_storage, fast, PARAMS, SPACE, ATTRS)
    for name, value in PARAMS.items():
        internal = SPACE[name].to_internal_repr(value)
        any_storage.set_trial_param(slow, name, internal, SPACE[name])
    for key, value in ATTRS.items():
        any_storage.set_trial_system_attr(slow, key, value)
    for first, second in (
        any_storage.get_all_trials(study),
        (any_storage.get_trial(fast), any_storage.get_trial(slow)),
    ):
        assert list(first.params.items()) == list(PARAMS.items())
        assert list(first.params.items()) == list(second.params.items())
        assert first.distributions == second.distributions == SPACE
        assert first.system_attrs == second.system_attrs == ATTRS
        assert first.user_attrs == {"generation": 1}


def test_a_finished_trial_is_not_touched(any_storage):
    study = new_study(any_storage)
    trial = any_storage.create_new_trial(study)
    any_storage.set_trial_state_values(trial, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        write_trial(any_storage, trial, PARAMS, SPACE, ATTRS)
    assert any_storage.get_trial(trial).params == {}
    assert any_storage.get_trial(trial).system_attrs == {}
    with pytest.raises(KeyError):
        write_trial(any_storage, 12345, PARAMS, SPACE, ATTRS)


def test_all_is_written_in_one_transaction(storage):
    trial = storage.create_new_trial(new_study(storage))
    commits = []
    sa.event.listen(database_of(storage).engine, "commit", commits.append)
    write_trial(storage, trial, PARAMS, SPACE, ATTRS)
    assert len(commits) == 1
    write_trial(storage, trial, {}, {}, {"generation": 4})
    assert len(commits) == 2
    assert storage.get_trial(trial).system_attrs == {**ATTRS, "generation": 4}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_parameter_that_is_there_with_another_value(request, storage, kind):
    if kind == "postgresql":
        storage = request.getfixturevalue("postgres_storage")
    trial = storage.create_new_trial(new_study(storage))
    storage.set_trial_param(trial, "depth", 4, SPACE["depth"])
    with pytest.raises(ValueError, match=r"already has the parameters \['depth'\]"):
        write_trial(storage, trial, PARAMS, SPACE, ATTRS)
    assert storage.get_trial(trial).params == {"depth": 4}
    assert storage.get_trial(trial).system_attrs == {}


def test_what_is_no_json_or_no_parameter_writes_nothing(storage):
    trial = storage.create_new_trial(new_study(storage))
    with pytest.raises(TypeError):
        write_trial(storage, trial, PARAMS, SPACE, {"a": 1, "b": object()})
    with pytest.raises(ValueError, match="resnet"):
        write_trial(storage, trial, {**PARAMS, "net": "resnet"}, SPACE, {"a": 1})
    with pytest.raises(KeyError):
        write_trial(storage, trial, {"lr": 0.5, "eta": 1.0}, SPACE, {"a": 1})
    assert storage.get_trial(trial).params == storage.get_trial(trial).system_attrs == {}


def test_a_trial_goes_on_with_other_parameters_after(storage):
    study = optuna.create_study(storage=storage, study_name="s")
    trial_id = study._storage.create_new_trial(study._study_id)
    write_trial(study._storage, trial_id, PARAMS, SPACE, {"generation": 1})
    trial = optuna.Trial(study, trial_id)
    assert trial.suggest_float("lr", 1e-5, 1.0, log=True) == PARAMS["lr"]
    eta = trial.suggest_float("eta", 1, 2)
    study.tell(trial, 0.5)
    [done] = study.trials
    assert done.params == {**PARAMS, "eta": eta}
    later = study.ask()
    later.suggest_int("depth", 1, 9)
    with pytest.raises(ValueError, match=r"incompatible|dynamic|Cannot set"):
        later.suggest_categorical("lr", [1, 2])
