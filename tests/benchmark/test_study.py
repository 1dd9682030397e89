"""A benchmark as a study: every cell once, whoever works on it, however they end."""

import threading
from collections import Counter

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from support.small import small_spec
from tasks import test_clothing1m

from optuna_robustloss.benchmark import worker as worker_module
from optuna_robustloss.benchmark.methods import make_criterion
from optuna_robustloss.benchmark.regimes import measure
from optuna_robustloss.benchmark.runs import Run
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import (
    cell_of,
    claim,
    create_benchmark,
    done,
    open_benchmark,
    open_cells,
    outcomes,
    tell,
)
from optuna_robustloss.benchmark.trainings import Options, arranged, train_cells
from optuna_robustloss.benchmark.worker import chosen, run_cells
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.study import open_study

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
CELLS = SPEC.cells()
clothing = test_clothing1m.root  # a fixture


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/tiny.db"


@pytest.fixture
def study(url):
    return create_benchmark(SPEC, open_storage(url, create=True), "tiny")


def complete(study):
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return Counter(cell_of(trial) for trial in trials)


def each_once(study, cells=CELLS):
    assert complete(study) == Counter(cells)
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_every_cell_is_trained_once_and_read_back(study):
    told = []
    assert run_cells(study, SPEC, CELLS, on_cell=lambda: told.append(done(study, CELLS))) == {}
    each_once(study)
    assert told == list(range(1, len(CELLS) + 1))
    for outcome in outcomes(study):
        assert [m.step for m in outcome.curve] == [2, 4]
        assert outcome.curve[-1].drive == pytest.approx(4 * 0.01)
        last = outcome.curve[-1]
        values = (last.test, last.clean, last.few, last.noisy)
        assert all(0 <= value <= 1 for value in values)
        assert (last.memorised is None) == ("clean" in outcome.cell.task)
        assert last.test * 80 == pytest.approx(round(last.test * 80))  # of 80 images
    (trial,) = [t for t in study.trials if cell_of(t) == CELLS[0]]
    assert trial.value == trial.user_attrs["curve"][-1][3]
    assert run_cells(study, SPEC, CELLS) == {}
    assert len(study.trials) == len(CELLS)


def test_company_changes_nothing():
    """So that it does not matter who has claimed what."""
    together = train_cells(SPEC, CELLS[:3])
    alone = [train_cells(SPEC, [cell])[0] for cell in CELLS[:3]]
    assert [o.curve for o in together] == [o.curve for o in alone]


def test_seeds_tasks_and_methods_differ_and_repeat():
    def last(cell):
        return train_cells(SPEC, [cell])[0].curve[-1]

    cell = CELLS[0]
    assert last(cell) == last(cell)
    others = [Run(**{**vars(cell), **c}) for c in ({"seed": 1}, {"method": "mae"}, {"scale": 2.0})]
    assert len({last(c) for c in (cell, *others)}) == 4


def test_cells_of_two_tasks_are_not_trained_together():
    with pytest.raises(ValueError, match="share task, seed, horizon and schedule"):
        train_cells(SPEC, [CELLS[0], CELLS[-1]])


def test_a_longer_horizon_and_another_schedule():
    cells = SPEC.cells(horizons=[3], schedules=["cosine"])[:1]
    (outcome,) = train_cells(SPEC, cells)
    assert [m.epoch for m in outcome.curve] == [1, 2, 3, 4, 5, 6]
    drives = [m.drive for m in outcome.curve]
    assert drives[-1] == pytest.approx(0.01 * (12 + 1) / 2)  # a cosine's mean, first step whole
    assert drives[0] > drives[-1] - drives[-2]


def test_a_switch_at_steps_times_lr_is_the_same_step_at_every_horizon():
    (task, _) = arranged(SPEC, CELLS[0], Options())
    usual, longer = (
        make_criterion("ce-then-mae@0.02", task, 0.5, epochs=epochs).criterion for epochs in (3, 6)
    )
    assert usual.switch * 3 * 2 == pytest.approx(2)  # steps of lr .01
    assert longer.switch * 6 * 2 == pytest.approx(2)
    assert usual.width == pytest.approx(usual.switch)
    with pytest.raises(
        ValueError, match=r"ends at a cumulative learning rate of 10, the training at 0\.06"
    ):
        make_criterion("ce-then-mae@5", task, epochs=3)


def test_of_two_claims_the_first_counts(study):
    first = claim(study, SPEC, CELLS[0])
    assert first is not None
    assert claim(study, SPEC, CELLS[0]) is None
    assert claim(study, SPEC, CELLS[1]) is not None
    free, running = open_cells(study, CELLS)
    assert free == CELLS[2:]
    assert [cell_of(t) for t in running] == CELLS[:2]
    study._storage.set_trial_state_values(first, TrialState.FAIL)
    assert claim(study, SPEC, CELLS[0]) is not None


def test_many_that_claim_at_once_get_each_cell_once(url, study):
    won = []

    def race():
        mine, _ = open_benchmark(open_storage(url), "tiny")
        barrier.wait()
        won.extend(cell for cell in CELLS[:4] if claim(mine, SPEC, cell) is not None)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(won) == Counter(CELLS[:4])


def test_workers_choose_tasks_that_nobody_is_at():
    assert chosen(CELLS, [], 2) == CELLS[:2]
    assert chosen(CELLS, [], 8) == CELLS[:3]  # one task and seed
    assert chosen(CELLS[1:], CELLS[:1], 8) == CELLS[3:6]
    everywhere = [cell for cell in CELLS if cell.method == "ce"]
    rest = [cell for cell in CELLS if cell.method != "ce"]
    assert chosen(rest, everywhere, 8) == CELLS[1:3]


def test_a_method_that_fails_leaves_the_others_and_is_tried_again(study, monkeypatch):
    usual = worker_module.train_cells

    def fails(spec, cells, options):
        if any(cell.method == "mae" for cell in cells):
            raise RuntimeError("no such kernel")
        return usual(spec, cells, options)

    monkeypatch.setattr(worker_module, "train_cells", fails)
    failed = run_cells(study, SPEC, CELLS)
    assert set(failed.values()) == {"RuntimeError: no such kernel"}
    assert {cell.method for cell in failed} == {"mae"}
    assert len(failed) == 4
    assert done(study, CELLS) == 8
    marked = [t for t in study.trials if "error" in t.user_attrs]
    assert {t.state for t in marked} == {TrialState.FAIL}
    monkeypatch.setattr(worker_module, "train_cells", usual)
    assert run_cells(study, SPEC, CELLS) == {}
    each_once(study)


def test_trouble_of_the_database_is_no_methods_fault(study, monkeypatch):
    def away(*_):
        raise StorageInternalError("the database is away")

    monkeypatch.setattr(worker_module, "tell", away)
    with pytest.raises(StorageInternalError):
        run_cells(study, SPEC, CELLS)
    assert {t.state for t in study.trials} == {TrialState.FAIL}
    assert not any("error" in t.user_attrs for t in study.trials)


def test_an_interruption_gives_the_claimed_cells_back(study, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker_module, "train_cells", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cells(study, SPEC, CELLS)
    assert {t.state for t in study.trials} == {TrialState.FAIL}


def test_a_result_that_comes_too_late_is_dropped(study, monkeypatch, caplog):
    usual = worker_module.train_cells

    def slow(spec, cells, options):
        for trial in study.get_trials(states=(TrialState.RUNNING,)):  # somebody takes them over
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        monkeypatch.setattr(worker_module, "train_cells", usual)
        return usual(spec, cells, options)

    monkeypatch.setattr(worker_module, "train_cells", slow)
    assert run_cells(study, SPEC, CELLS[:3]) == {}
    each_once(study, CELLS[:3])
    assert "taken over" in caplog.text


def test_a_diverged_training_is_told_as_such(study):
    wild = BenchmarkSpec.from_values(
        VALUES | {"recipe": {"epochs": 2, "batch_size": 50, "lr": 1e30}}, "x"
    )
    (outcome,) = train_cells(wild, CELLS[:1])
    assert outcome.diverged
    trial_id = claim(study, SPEC, CELLS[0])
    tell(study, trial_id, outcome)
    assert outcomes(study) == [outcome]


# --- Whose study it is ---


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


def test_data_with_its_own_clean_validation_images_and_unknown_truth(clothing):
    """Clothing1M in small: nobody knows which training labels are wrong."""
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
    found = train_cells(spec, spec.cells(), Options(root=clothing))
    for outcome in found:
        assert [m.epoch for m in outcome.curve] == [1, 2]
        last = outcome.curve[-1]
        assert last.noisy is None
        assert last.memorised is None
        assert last.clean in (0, 0.5, 1)
        assert last.few in (0, 1)
    assert {m.method for m in measure(spec, found)} == {"ce", "jocor", "ce-stopped-clean"}
