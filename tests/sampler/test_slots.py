"""What the sampler keeps in the database: claims, a config, and nothing that could run."""

import json
import pickle

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from support.waiting import LIMIT

from optuna_robustloss.sampler.config import SamplerConfig
from optuna_robustloss.sampler.optimizer import StartDistribution
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.slots import (
    FAILED,
    NO_CLAIM,
    Slot,
    objective_failed,
    slot_of,
)


def trial(attrs, number=5, state=TrialState.RUNNING):
    value = 0.0 if state == TrialState.COMPLETE else None
    made = optuna.trial.create_trial(state=state, value=value, system_attrs=attrs)
    made.number = number
    return made


@pytest.mark.parametrize("slot", [Slot(0, 0), Slot(12, 3)])
def test_a_claim_survives_the_database(slot):
    attrs = json.loads(json.dumps(slot.claim(5, "key")))
    assert slot_of(trial(attrs), "key") == slot
    assert slot_of(trial(attrs)) == slot
    assert slot_of(trial(attrs), "another") is None


@pytest.mark.parametrize("state", list(TrialState))
def test_a_waiting_trial_claims_nothing(state):
    claimed = slot_of(trial(Slot(1, 2).claim(5, "key"), state=state))
    assert (claimed is None) == (state == TrialState.WAITING)


def test_a_claim_that_came_with_a_copy_does_not_count():
    assert slot_of(trial(Slot(1, 2).claim(4, "key"))) is None


(ATTRIBUTE,) = NO_CLAIM
PREFIX = "generational-cma:"


def test_anything_else_is_ignored():
    for value in [
        None,
        {},
        "",
        0,
        [],
        [0, 0, 5],
        [0, 0, 5, "key", 1],
        [-1, 0, 5, "key"],
        [0, -1, 5, "key"],
        [0, 1.0, 5, "key"],
        [0, True, 5, "key"],
        ["0", 0, 5, "key"],
        [0, None, 5, "key"],
        [0, [0], 5, "key"],
        [0, 0, "5", "key"],
        [0, 0, 5, ["key"]],
        [0, 0, 5, None],
    ]:
        assert slot_of(trial({ATTRIBUTE: value}), "key") is None


def test_a_claim_is_given_back_by_overwriting_it():
    attrs = Slot(1, 2).claim(5, "key")
    assert attrs.keys() == NO_CLAIM.keys()
    assert slot_of(trial(attrs | NO_CLAIM)) is None
    assert all(name.startswith(PREFIX) for name in NO_CLAIM | FAILED)


def test_only_a_failed_objective_is_its_own_fault():
    assert objective_failed(trial(FAILED, state=TrialState.FAIL))
    assert not objective_failed(trial({}, state=TrialState.FAIL))
    assert not objective_failed(trial(FAILED, state=TrialState.RUNNING))


# What is stored


SPACE = {"x": FloatDistribution(-5, 5), "lr": FloatDistribution(1e-4, 1, log=True)}


def make(storage, **options):
    sampler = GenerationalCmaEsSampler(4, **({"seed": 1, "max_wait": LIMIT} | options))
    return optuna.create_study(
        study_name="s", storage=storage, sampler=sampler, load_if_exists=True
    )


def work(study, trials):
    for _ in range(trials):
        asked = study.ask(SPACE)
        study.tell(asked, asked.params["x"] ** 2 + asked.params["lr"])


def state(study):
    return study.sampler.generations(study).optimizer.state


@pytest.fixture(scope="module")
def undisturbed():
    study = make(InMemoryStorage())
    work(study, 12)
    return state(study)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_planted_in_the_database_is_never_opened(tmp_path, undisturbed):
    study = make(InMemoryStorage())
    bomb = pickle.dumps(Bomb(tmp_path / "exploded")).hex()
    for prefix in ("cma:", "sepcma:", "cmawm:", PREFIX):
        planted = {f"{prefix}optimizer:{part}": bomb for part in range(3)}
        planted |= {f"{prefix}generation": 0, f"{prefix}state": bomb}
        study.add_trial(optuna.create_trial(value=0.0, system_attrs=planted))
    work(study, 12)
    late = make(study._storage)
    assert state(late) == state(study) == undisturbed
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("sources", [False, True])
def test_nothing_is_stored_but_numbers_and_short_texts(sources):
    old = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    work(old, 20)
    study = make(InMemoryStorage(), **({"source_studies": [old]} if sources else {}))
    work(study, 9)
    for done in study.get_trials(deepcopy=False):
        for name, value in done.system_attrs.items():
            assert name.startswith(PREFIX)
            assert json.loads(json.dumps(value)) == value
            assert len(json.dumps(value)) < 100
    for name, value in study._storage.get_study_system_attrs(study._study_id).items():
        assert name.startswith(PREFIX)
        assert isinstance(json.loads(value), dict)


@pytest.mark.parametrize("claim", ["held", "lease", "copied"])
def test_what_others_plant_disturbs_nothing(claim, undisturbed):
    study = make(InMemoryStorage())
    key = study.sampler.generations(study).config.key
    attrs = {
        "held": {ATTRIBUTE: [0, 0, -1, key]},
        "lease": {f"{PREFIX}lease": {"at": "now"}},
        "copied": Slot(0, 1).claim(99, key) | FAILED,
    }[claim]
    study.add_trial(optuna.create_trial(value=-99.0, system_attrs=attrs))
    trial_id = study._storage.create_new_trial(study._study_id)
    for name, value in attrs.items():
        study._storage.set_trial_system_attr(trial_id, name, value)
    work(study, 12)
    assert state(study) == undisturbed


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_retried_copy_takes_a_slot_of_its_own_and_rewinds_nothing():
    study = make(InMemoryStorage())
    work(study, 6)
    lost = study.ask(SPACE)
    study._storage.set_trial_state_values(lost._trial_id, TrialState.FAIL)
    stale = study._storage.get_trial(lost._trial_id)
    optuna.storages.RetryFailedTrialCallback(max_retry=3)(study, stale)
    copy = study.ask(SPACE)
    assert copy.params == lost.params
    assert slot_of(study.trials[lost.number]) is not None
    held = slot_of(study.trials[copy.number])
    assert held.generation == 1
    study.tell(copy, 0.0)
    work(study, 5)
    now = study.sampler.generations(study)
    assert now.number == 3
    assert [t.number for t in now.told[1]].count(copy.number) == 1
    assert state(make(study._storage)) == state(study)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"popsize": 4}', '{"space": 3, "start": null}']
)
def test_a_damaged_config_is_an_error(text):
    study = make(InMemoryStorage())
    study._storage.set_study_system_attr(study._study_id, f"{PREFIX}config", text)
    with pytest.raises(ValueError, match=r"."):
        study.ask()
    assert study.trials[0].state == TrialState.FAIL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2}, r"seed: 2 / 1"),
        ({"x0": {"x": 1}}, r"x0: \{'x': 1.0\} / None"),
        ({"sigma0": 0.5}, r"sigma0: 0.5 / None"),
        ({"search_space": SPACE}, r"space: .* / None"),
        ({"lr_adapt": True, "max_retry": 9}, r"lr_adapt: True / False; max_retry: 9 / 3"),
    ],
)
def test_workers_must_agree(options, message):
    study = make(InMemoryStorage())
    work(study, 1)
    with pytest.raises(ValueError, match=f"was begun with another .*{message}"):
        make(study._storage, **options).ask()


def test_without_a_seed_workers_agree_by_the_name_of_the_study():
    storage = InMemoryStorage()
    first, second = make(storage, seed=None), make(storage, seed=None)
    work(first, 5)
    work(second, 7)
    alone = make(InMemoryStorage(), seed=None)
    work(alone, 12)
    assert state(first) == state(second) == state(alone)
    given = make(InMemoryStorage(), seed=3)
    work(given, 1)
    work(make(given._storage, seed=None), 3)
    assert given.sampler.generations(given).number == 1


def test_a_configuration_survives_the_database():
    start = StartDistribution((0.1, 0.3), 0.2, ((1.0, 0.5), (0.5, 2.0)))
    config = SamplerConfig(5, 2**62, {"x": 0.1}, {"x": 1e-300}, dict(sorted(SPACE.items())), start)
    again = SamplerConfig.from_json(config.to_json())
    assert again == config
    assert again.key == config.key
    assert list(again.optimizer(again.space).transform.parameters) == sorted(SPACE)
