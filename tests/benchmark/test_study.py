"""A benchmark as a study: every run once, with any workers, however they end."""

import threading
from collections import Counter

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from support.small import small_spec
from tasks import test_clothing1m

from optuna_robustloss.benchmark import worker as worker_module
from optuna_robustloss.benchmark.regimes import measure
from optuna_robustloss.benchmark.rows import run_of
from optuna_robustloss.benchmark.runs import Run
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import (
    claim_run,
    count_done,
    create_benchmark,
    open_benchmark,
    open_runs,
    store_result,
    stored_results,
)
from optuna_robustloss.benchmark.trainings import Options, train_runs
from optuna_robustloss.benchmark.worker import choose_runs, run_benchmark
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.study import open_study

pytestmark = pytest.mark.integration  # trains networks

VALUES = {
    "name": "tiny",
    "methods": ["ce", "mae", "gce"],
    "tasks": [{"datasets": "digits", "architectures": "mlp2", "noise": ["symmetric:0.4", "none"]}],
    "recipe": {"epochs": 2, "batch_size": 50},
    "train": 100,
    "validation": 60,
    "few": 20,
    "test": 80,
    "evaluations": 2,
    "seeds": 2,
}
SPEC = BenchmarkSpec.from_values(VALUES, "tiny.yaml")
RUNS = SPEC.runs()
clothing = test_clothing1m.root  # a fixture


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/tiny.db"


@pytest.fixture
def study(url):
    return create_benchmark(SPEC, open_storage(url, create=True), "tiny")


def complete(study):
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return Counter(run_of(trial) for trial in trials)


def each_once(study, runs=RUNS):
    assert complete(study) == Counter(runs)
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_every_run_is_trained_once_and_read_back(study):
    counts = []
    failed = run_benchmark(study, SPEC, RUNS, on_run=lambda: counts.append(count_done(study, RUNS)))
    assert failed == {}
    each_once(study)
    assert counts == list(range(1, len(RUNS) + 1))
    for result in stored_results(study):
        assert [m.step for m in result.curve] == [2, 4]
        assert result.curve[-1].cumulative_lr == pytest.approx(4 * 0.01)
        last = result.curve[-1]
        values = (last.test, last.clean, last.few, last.noisy)
        assert all(0 <= value <= 1 for value in values)
        assert (last.memorised is None) == ("clean" in result.run.task)
        assert last.test * 80 == pytest.approx(round(last.test * 80))  # of 80 images
    (trial,) = [t for t in study.trials if run_of(t) == RUNS[0]]
    assert trial.value == trial.user_attrs["curve"][-1][3]
    assert run_benchmark(study, SPEC, RUNS) == {}
    assert len(study.trials) == len(RUNS)


def test_a_result_does_not_depend_on_the_runs_beside_it():
    together = train_runs(SPEC, RUNS[:3])
    alone = [train_runs(SPEC, [run])[0] for run in RUNS[:3]]
    assert [o.curve for o in together] == [o.curve for o in alone]


def test_seeds_tasks_and_methods_differ_and_repeat():
    def last(run):
        return train_runs(SPEC, [run])[0].curve[-1]

    run = RUNS[0]
    assert last(run) == last(run)
    others = [Run(**{**vars(run), **c}) for c in ({"seed": 1}, {"method": "mae"}, {"scale": 2.0})]
    assert len({last(c) for c in (run, *others)}) == 4


def test_of_two_claims_the_first_counts(study):
    first = claim_run(study, SPEC, RUNS[0])
    assert first is not None
    assert claim_run(study, SPEC, RUNS[0]) is None
    assert claim_run(study, SPEC, RUNS[1]) is not None
    free, running = open_runs(study, RUNS)
    assert free == RUNS[2:]
    assert [run_of(t) for t in running] == RUNS[:2]
    study._storage.set_trial_state_values(first, TrialState.FAIL)
    assert claim_run(study, SPEC, RUNS[0]) is not None


def test_many_that_claim_at_once_get_each_run_once(url, study):
    won = []

    def race():
        mine, _ = open_benchmark(open_storage(url), "tiny")
        barrier.wait()
        won.extend(run for run in RUNS[:4] if claim_run(mine, SPEC, run) is not None)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(won) == Counter(RUNS[:4])


def test_workers_choose_tasks_that_no_worker_has_claimed():
    assert choose_runs(RUNS, [], 2) == RUNS[:2]
    assert choose_runs(RUNS, [], 8) == RUNS[:3]  # one task and seed
    assert choose_runs(RUNS[1:], RUNS[:1], 8) == RUNS[3:6]
    everywhere = [run for run in RUNS if run.method == "ce"]
    rest = [run for run in RUNS if run.method != "ce"]
    assert choose_runs(rest, everywhere, 8) == RUNS[1:3]


def test_a_method_that_fails_leaves_the_others_and_is_tried_again(study, monkeypatch):
    usual = worker_module.train_runs

    def fails(spec, runs, options):
        if any(run.method == "mae" for run in runs):
            raise RuntimeError("no such kernel")
        return usual(spec, runs, options)

    monkeypatch.setattr(worker_module, "train_runs", fails)
    failed = run_benchmark(study, SPEC, RUNS)
    assert set(failed.values()) == {"RuntimeError: no such kernel"}
    assert {run.method for run in failed} == {"mae"}
    assert len(failed) == 4
    assert count_done(study, RUNS) == 8
    marked = [t for t in study.trials if "error" in t.user_attrs]
    assert {t.state for t in marked} == {TrialState.FAIL}
    monkeypatch.setattr(worker_module, "train_runs", usual)
    assert run_benchmark(study, SPEC, RUNS) == {}
    each_once(study)


def test_an_error_of_the_database_is_raised_and_no_method_is_marked(study, monkeypatch):
    def away(*_):
        raise StorageInternalError("the database is away")

    monkeypatch.setattr(worker_module, "store_result", away)
    with pytest.raises(StorageInternalError):
        run_benchmark(study, SPEC, RUNS)
    assert {t.state for t in study.trials} == {TrialState.FAIL}
    assert not any("error" in t.user_attrs for t in study.trials)


def test_an_interruption_gives_the_claimed_runs_back(study, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker_module, "train_runs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(study, SPEC, RUNS)
    assert {t.state for t in study.trials} == {TrialState.FAIL}


def test_a_result_whose_run_was_claimed_again_is_dropped(study, monkeypatch, caplog):
    usual = worker_module.train_runs

    def slow(spec, runs, options):
        for trial in study.get_trials(states=(TrialState.RUNNING,)):  # as another worker would
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        monkeypatch.setattr(worker_module, "train_runs", usual)
        return usual(spec, runs, options)

    monkeypatch.setattr(worker_module, "train_runs", slow)
    assert run_benchmark(study, SPEC, RUNS[:3]) == {}
    each_once(study, RUNS[:3])
    assert "another worker has claimed the run since" in caplog.text


def test_a_diverged_training_is_stored_as_diverged(study):
    wild = BenchmarkSpec.from_values(
        VALUES | {"recipe": {"epochs": 2, "batch_size": 50, "lr": 1e30}}, "x"
    )
    (result,) = train_runs(wild, RUNS[:1])
    assert result.diverged
    trial_id = claim_run(study, SPEC, RUNS[0])
    store_result(study, trial_id, result)
    assert stored_results(study) == [result]


# --- Which study it is ---


def test_a_changed_file_is_refused_with_its_keys(study):
    other = BenchmarkSpec.from_values(VALUES | {"seeds": 3, "train": 90}, "tiny.yaml")
    with pytest.raises(ValueError, match=r"another spec .*train: .*; seeds: "):
        create_benchmark(other, study._storage, "tiny")


def test_a_study_that_is_no_benchmark_is_left_alone(url):
    storage = open_storage(url, create=True)
    foreign = optuna.create_study(storage=storage, study_name="mine")
    foreign.set_user_attr("a", 1)
    with pytest.raises(ValueError, match="not a benchmark"):
        create_benchmark(SPEC, storage, "mine")
    with pytest.raises(ValueError, match="not a benchmark"):
        open_benchmark(storage, "mine")
    with pytest.raises(ValueError, match="no study 'tiny' in the storage; it has: mine"):
        open_benchmark(storage, "tiny")
    assert foreign.user_attrs == {"a": 1}


def test_a_search_leaves_a_benchmark_alone(url, study):
    before = dict(study.user_attrs)
    for spec in (small_spec(), None):
        with pytest.raises(ValueError, match="study 'tiny': this is a benchmark: run it with"):
            open_study(open_storage(url), "tiny", spec)
    assert study.user_attrs == before


def test_many_that_create_it_at_once_agree(url):
    open_storage(url, create=True)
    barrier, made = threading.Barrier(4), []

    def create():
        storage = open_storage(url)
        barrier.wait()
        made.append(create_benchmark(SPEC, storage, "tiny").user_attrs)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert all(attrs == made[0] and attrs["spec"]["hash"] == SPEC.hash for attrs in made)


def test_the_study_carries_its_spec(url, study):
    again, spec = open_benchmark(open_storage(url), "tiny")
    assert spec == SPEC
    assert again.metric_names == ["test accuracy at the last epoch"]


@pytest.mark.slow
def test_data_with_its_own_clean_validation_images_and_unknown_truth(clothing):
    """Clothing1M in small: which training labels are wrong is unknown."""
    spec = BenchmarkSpec.from_values(
        {
            "name": "clothes",
            "methods": ["ce", "jocor"],
            "tasks": [
                {"datasets": "clothing1m", "architectures": "timm/test_resnet", "noise": "given"}
            ],
            "recipe": {"epochs": 2, "schedule": "constant"},
            "validation": 2,
            "few": 1,
            "seeds": 1,
        },
        "clothes.yaml",
    )
    found = train_runs(spec, spec.runs(), Options(root=clothing))
    for result in found:
        assert [m.epoch for m in result.curve] == [1, 2]
        last = result.curve[-1]
        assert last.noisy is None
        assert last.memorised is None
        # Two clean validation images, of which one is the few; JoCoR's is the mean of two networks.
        assert last.clean in (0, 0.25, 0.5, 0.75, 1)
        assert last.few in (0, 0.5, 1)
    assert {m.method for m in measure(spec, found)} == {"ce", "jocor", "ce-stopped-clean"}
