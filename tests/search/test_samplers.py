"""The samplers a spec may name, and what it may say about them."""

import numpy as np
import optuna
import pytest
from support.small import small_spec

from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.slots import slot_of
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.samplers import make_sampler
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import create_study, finished_study, open_study
from optuna_robustloss.search.worker import run_worker

pytestmark = pytest.mark.integration  # runs searches

optuna.logging.set_verbosity(optuna.logging.WARNING)

OTHERS = ["optuna-cmaes", "tpe", "random", "gp"]
EARLIER = small_spec(name="earlier", generations=5)
SECRET = "hunter2"


class Quick(NoisyLabelObjective):
    """Worth its first coefficient."""

    def evaluate(self, trials):
        return [0.5 + self.spec.space.suggest(trial).theta[0] / 10 for trial in trials]


def refused(**changes):
    values = small_spec().model_dump(mode="json") | changes
    with pytest.raises(ValueError, match=r"^study\.yaml: ") as error:
        StudySpec.from_values(values, "study.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Every sampler runs to its end ---


@pytest.mark.parametrize("sampler", ["generational", *OTHERS])
def test_every_sampler_runs_to_its_end_and_begins_with_the_start_loss(sampler):
    spec = small_spec(sampler=sampler)
    study = create_study(spec, optuna.storages.InMemoryStorage(), sampler)
    run_worker(study, NoisyLabelObjective(spec))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * spec.n_trials
    assert finished_study(study, spec)
    assert [t.user_attrs.get("start") for t in study.trials] == ["mae"] + [None] * (
        spec.n_trials - 1
    )
    generations = [t.user_attrs["generation"] for t in study.trials]
    assert generations[-8:] == [0] * 4 + [1] * 4
    assert len({tuple(t.params.values()) for t in study.trials}) == spec.n_trials


@pytest.mark.parametrize(
    ("sampler", "made"),
    [
        ("optuna-cmaes", optuna.samplers.CmaEsSampler),
        ("tpe", optuna.samplers.TPESampler),
        ("random", optuna.samplers.RandomSampler),
        ("gp", optuna.samplers.GPSampler),
        ("generational", GenerationalCmaEsSampler),
    ],
)
def test_the_name_of_a_sampler_makes_it(sampler, made):
    storage = optuna.storages.InMemoryStorage()
    assert type(make_sampler(small_spec(sampler=sampler), storage)) is made
    create_study(small_spec(sampler=sampler), storage, "mine")
    assert type(open_study(storage, "mine").sampler) is made


@pytest.mark.parametrize("made_by", ["generational", "optuna-cmaes"])
def test_plain_optimize_with_optunas_cmaes_works(made_by):
    """On our studies, with our objective, without ``run_worker``."""
    spec = small_spec(sampler=made_by)
    study = create_study(spec, optuna.storages.InMemoryStorage(), "plain")
    study.sampler = optuna.samplers.CmaEsSampler(seed=0, popsize=4, warn_independent_sampling=False)
    study.optimize(NoisyLabelObjective(spec), n_trials=9)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 9
    assert [t.user_attrs["generation"] for t in study.trials] == [0] * 5 + [1] * 4
    assert all("worker" in t.user_attrs for t in study.trials)


def test_plain_optimize_with_the_generational_sampler_ends_by_itself():
    spec = small_spec()
    study = create_study(spec, optuna.storages.InMemoryStorage(), "plain")
    study.optimize(Quick(spec), n_trials=100)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 8


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_workers_of_a_random_sampler_draw_different_points(sampler, monkeypatch):
    """The generational one draws the same, whoever asks."""
    points = []
    for number in (1, 2):
        monkeypatch.setattr("os.getpid", lambda number=number: 10_000_000 + number)
        spec = small_spec(sampler=sampler)
        study = create_study(spec, optuna.storages.InMemoryStorage(), "same")
        run_worker(study, Quick(spec), n_trials=2)
        points.append([tuple(t.params.values()) for t in study.trials])
    assert points[0][0] == points[1][0]  # the start
    assert points[0][1] != points[1][1]


# --- Options ---


def test_an_unknown_sampler_is_named_with_the_known_ones():
    text = refused(sampler="cmaes")
    assert all(repr(name) in text for name in ["generational", *OTHERS, "cmaes"])


def test_options_of_the_generational_sampler_are_refused_for_others():
    options = {
        "lr_adapt": True,
        "separable": True,
        "source_studies": "earlier",
        "sigma0": 0.25,
        "max_retry": 0,
        "prune_at": 0.5,
    }
    for sampler in OTHERS:
        for option, value in options.items():
            text = refused(sampler=sampler, **{option: value})
            assert f"{option} is an option of sampler: generational" in text


def test_a_wrong_option_is_refused_when_the_spec_is_read():
    for changes, parts in [
        ({"sigma0": 0}, ["sigma0", "greater than or equal to"]),
        ({"max_retry": -1}, ["max_retry", "greater than or equal to 0"]),
        ({"source_studies": [{"study": ""}]}, ["source_studies.0.study", "at least 1 char"]),
        ({"source_studies": [{"study": "a", "url": "b"}]}, ["unknown key 'source_studies.0.url'"]),
        ({"lr_adapt": True, "separable": True}, ["lr_adapt", "separable"]),
        ({"source_studies": ["a"], "separable": True}, ["source_studies", "separable"]),
        ({"source_studies": ["a"], "sigma0": 0.25}, ["source_studies", "sigma0"]),
    ]:
        text = refused(**changes)
        assert all(part in text for part in parts), text


def test_options_reach_the_generational_sampler():
    """A study that was begun with other ones is refused with the difference."""
    storage = optuna.storages.InMemoryStorage()
    spec = small_spec(sigma0=0.25, separable=True, max_retry=1, seed=3)
    study = create_study(spec, storage, "mine")
    run_worker(study, Quick(spec), n_trials=1)
    study.sampler = make_sampler(small_spec(), storage)
    with pytest.raises(ValueError, match="was begun with another Generational") as error:
        run_worker(study, Quick(spec))
    for part in ("seed: 0 / 3", "separable: False / True", "max_retry: 3 / 1", "sigma0: {"):
        assert part in str(error.value)


# --- Earlier studies ---


@pytest.fixture
def earlier(tmp_path):
    """A storage with a study of twenty trials, by its URL."""
    url = f"sqlite:///{tmp_path}/old.db"
    study = create_study(EARLIER, open_storage(url, create=True), "earlier")
    run_worker(study, Quick(EARLIER))
    return url


def begun(spec, storage):
    """The first generation of a new study."""
    study = create_study(spec, storage, "new")
    run_worker(study, Quick(spec), n_trials=4)
    return [t.params for t in sorted(study.trials, key=lambda t: slot_of(t).index)]


def test_a_search_starts_where_an_earlier_one_in_the_same_storage_ended(earlier):
    storage = open_storage(earlier)
    params = begun(small_spec(source_studies="earlier"), storage)
    source = optuna.load_study(study_name="earlier", storage=storage).trials
    best = sorted(source, key=lambda t: -t.value)[:2]  # a tenth
    for name, value in params[0].items():
        assert value == pytest.approx(np.mean([t.params[name] for t in best]), abs=1e-9)
    assert params != begun(small_spec(), optuna.storages.InMemoryStorage())


def test_a_source_in_another_storage_is_found_through_the_environment(earlier, monkeypatch):
    monkeypatch.setenv("OLD_STORAGE", earlier)
    sources = [{"study": "earlier", "storage": "$OLD_STORAGE"}]
    params = begun(small_spec(source_studies=sources), optuna.storages.InMemoryStorage())
    plain = [{"study": "earlier", "storage": earlier}]
    assert params == begun(small_spec(source_studies=plain), optuna.storages.InMemoryStorage())
    assert params == begun(small_spec(source_studies="earlier"), open_storage(earlier))


def test_a_source_is_read_by_the_first_worker_only(earlier):
    storage = open_storage(earlier)
    spec = small_spec(source_studies="earlier")
    run_worker(create_study(spec, storage, "new"), Quick(spec), n_trials=1)
    optuna.delete_study(study_name="earlier", storage=storage)
    study = open_study(storage, "new")
    run_worker(study, Quick(spec))
    assert finished_study(study, spec)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "source study 'none' is not in its storage"),
        ({"study": "a", "storage": "$NO_SUCH_VARIABLE"}, r"\$NO_SUCH_VARIABLE"),
        ({"study": "a", "storage": "sqlite:///none.db"}, "there is no database none.db"),
    ],
)
def test_a_source_that_is_not_there_is_named_and_nothing_is_begun(source, message):
    spec = small_spec(source_studies=[source])
    storage = optuna.storages.InMemoryStorage()
    with pytest.raises(ValueError, match=message):
        create_study(spec, storage, "new")
    assert optuna.get_all_study_names(storage) == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:{}@host/db",
        "postgresql://me:{}$x@host/db",
        "postgresql://me:{}@$HOST/db",
        "mysql://$HOST/db?password={}",
    ],
)
def test_a_password_in_a_spec_is_refused_and_not_shown(url):
    text = refused(source_studies=[{"study": "a", "storage": url.format(SECRET)}])
    assert "has a password" in text
    assert SECRET not in text


def test_variables_may_stand_for_passwords():
    for url in ("$OLD", "postgresql://me:$PW@host/db", "postgresql://me@host/db"):
        spec = small_spec(source_studies=[{"study": "a", "storage": url}])
        assert spec.source_studies[0].storage == url
