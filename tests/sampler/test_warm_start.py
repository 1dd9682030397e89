"""Starting where earlier searches ended."""

import cmaes
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection

from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.config import stored_config
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.transform import SearchSpaceTransform
from optuna_robustloss.sampler.warm_start import estimate_start

SPACE = {
    "x": FloatDistribution(-5, 5),
    "lr": FloatDistribution(1e-5, 1, log=True),
    "n": IntDistribution(0, 20),
}


def value(params, optimum=2.0):
    lr = np.log10(params["lr"]) + 4
    return (params["x"] - optimum) ** 2 + lr**2 + ((params["n"] - 15) / 4) ** 2


def source(trials=60, direction="minimize", space=SPACE, storage=None, name=None, seed=0):
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(
        storage=storage, study_name=name, direction=direction, sampler=sampler
    )
    sign = 1 if direction == "minimize" else -1
    for _ in range(trials):
        trial = study.ask(space)
        study.tell(trial, sign * value({"x": 0, "lr": 1, "n": 0} | trial.params))
    return study


def transformed(study):
    transform = SearchSpaceTransform.unit(dict(sorted(SPACE.items())))
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return [(transform.internal(t.params), sign * t.value) for t in study.trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("trials", [10, 59, 60])
def test_the_estimate_is_that_of_the_paper(direction, trials):
    old = source(trials, direction)
    space, start = estimate_start([old], StudyDirection[direction.upper()])
    mean, sigma, covariance = cmaes.get_warm_start_mgd(transformed(old), gamma=0.1, alpha=0.1)
    assert list(space) == sorted(SPACE)
    assert space == SPACE
    np.testing.assert_array_equal(start.mean, mean)
    np.testing.assert_array_equal(start.sigma, sigma)
    np.testing.assert_array_equal(start.covariance, covariance)


def test_each_source_gives_its_own_best_tenth():
    easy, hard = source(40, seed=1), source(60, seed=2)
    for trial in hard.get_trials(deepcopy=False):
        trial.values = [trial.value + 1e6]
    _, start = estimate_start([easy, hard], StudyDirection.MINIMIZE)
    best = sorted(transformed(easy), key=lambda p: p[1])[:4]
    best += sorted(transformed(hard), key=lambda p: p[1])[:6]
    mean, *_ = cmaes.get_warm_start_mgd([(p, 0.0) for p, _ in best], gamma=1.0, alpha=0.1)
    assert start.mean == pytest.approx(mean)


def test_trials_with_other_parameters_are_left_out():
    old = source(20)
    for _ in range(30):
        trial = old.ask({"x": FloatDistribution(-9, 9)})
        old.tell(trial, -99.0)
    for bad in (float("inf"), -float("inf")):
        old.tell(old.ask(SPACE), bad)
    old.tell(old.ask(SPACE), state=optuna.trial.TrialState.PRUNED)
    _, start = estimate_start([old], StudyDirection.MINIMIZE)
    assert start == estimate_start([source(20)], StudyDirection.MINIMIZE)[1]


def test_a_source_that_cannot_be_used_is_named():
    for sources, message in [
        (lambda: [source(9)], "has 9 complete trials with the parameters lr, n, x"),
        (lambda: [source(0)], r"has 0 complete trials with the parameters \(none\)"),
        (lambda: [source(20), source(9)], "has 9 complete trials"),
        (lambda: [source(20, "maximize")], "has the direction MAXIMIZE, the new study MINIMIZE"),
        (lambda: [source(20), source(20, space={"x": SPACE["x"]})], "has 0 complete trials"),
        (lambda: [(optuna.storages.InMemoryStorage(), "gone")], "'gone' is not in its storage"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimate_start(sources(), StudyDirection.MINIMIZE)


def test_a_source_without_numbers_is_an_error():
    old = source(20, space={"c": CategoricalDistribution(["a", "b"])})
    with pytest.raises(ValueError, match=r"\(none\)"):
        estimate_start([old], StudyDirection.MINIMIZE)


def test_a_source_with_other_ranges_is_an_error():
    space = SPACE | {"x": FloatDistribution(-4, 5)}
    with pytest.raises(ValueError, match="and their ranges"):
        estimate_start([source(20)], StudyDirection.MINIMIZE, space)


def test_it_takes_the_place_of_other_starts():
    for options in ({"x0": {"x": 1}}, {"sigma0": 1.0}, {"separable": True}):
        with pytest.raises(ValueError, match="source_studies gives the start"):
            GenerationalCmaEsSampler(source_studies=[("sqlite:///a.db", "a")], **options)


def test_the_second_worker_does_not_look_at_the_source(tmp_path):
    url = f"sqlite:///{tmp_path}/old.db"
    source(20, storage=open_storage(url, create=True), name="old")
    storage = optuna.storages.InMemoryStorage()

    def worker(sources):
        sampler = GenerationalCmaEsSampler(4, seed=1, source_studies=sources)
        return optuna.create_study(
            study_name="new", storage=storage, sampler=sampler, load_if_exists=True
        )

    first = worker([(url, "old")])
    asked = [first.ask(SPACE) for _ in range(4)]
    first._storage.set_trial_state_values(asked[2]._trial_id, optuna.trial.TrialState.FAIL)
    (tmp_path / "old.db").unlink()
    second = worker([(url, "old")])
    assert second.ask(SPACE).params == asked[2].params
    assert stored_config(second).start is not None


def test_a_worker_without_the_source_is_refused():
    storage = optuna.storages.InMemoryStorage()
    sampler = GenerationalCmaEsSampler(4, seed=1, source_studies=[source(20)])
    optuna.create_study(study_name="new", storage=storage, sampler=sampler).ask()
    other = GenerationalCmaEsSampler(4, seed=1, search_space=SPACE)
    with pytest.raises(ValueError, match="was begun with source_studies: give the same"):
        optuna.load_study(study_name="new", storage=storage, sampler=other).ask()


def test_a_source_comes_too_late_for_a_study_that_was_begun_without():
    storage = optuna.storages.InMemoryStorage()
    sampler = GenerationalCmaEsSampler(4, seed=1)
    optuna.create_study(study_name="new", storage=storage, sampler=sampler).ask()
    late = GenerationalCmaEsSampler(4, seed=1, source_studies=[source(20)])
    with pytest.raises(ValueError, match="begun"):
        optuna.load_study(study_name="new", storage=storage, sampler=late).ask()


def test_a_warm_search_begins_better():
    old = optuna.create_study(sampler=GenerationalCmaEsSampler(8, seed=3))
    for _ in range(160):
        trial = old.ask(SPACE)
        old.tell(trial, value(trial.params))

    def first_generations(**options):
        found = []
        for seed in range(5):
            study = optuna.create_study(sampler=GenerationalCmaEsSampler(8, seed=seed, **options))
            for _ in range(16):
                trial = study.ask(SPACE)
                study.tell(trial, value(trial.params, optimum=2.2))
            found.append(np.mean([t.value for t in study.trials]))
        return np.median(found)

    assert first_generations(source_studies=[old]) < first_generations() / 4
