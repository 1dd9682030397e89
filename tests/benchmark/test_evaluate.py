"""Losses side by side on one task: the closing table of a search and the command evaluate."""

import statistics

import numpy as np
import pytest
from training.tiny import CPU, trained

from optuna_robustloss.benchmark import worker as worker_module
from optuna_robustloss.benchmark.evaluate import LossEntry, LossResult, evaluate_losses
from optuna_robustloss.benchmark.trainings import Options
from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.prepare import prepare_task
from optuna_robustloss.tasks.spec import TaskSpec

pytestmark = pytest.mark.integration  # trains networks

TASK = TaskSpec.parse(
    "digits,mlp2,symmetric:0.4",
    train=100,
    validation=100,
    recipe={"epochs": 3, "batch_size": 32, "optimizer": "adam", "lr": 0.005},
)


def evaluated(*names, task=TASK, seeds=2, **options):
    entries = [LossEntry.parse(name) for name in names]
    return evaluate_losses(task, entries, seeds=seeds, options=Options(device=CPU), **options)


@pytest.fixture
def upside_down(tmp_path):
    """A task whose test labels are each one too high: what learns most scores least.

    Training and validation labels are right.
    """
    task = prepare_task(TaskSpec.parse("digits,mlp2"), seed=0)
    ((_, images),) = task.test.images.batches(task.test.index, 500, device=CPU)
    pixels = ((images - images.min()) / (images.max() - images.min()) * 255).byte().numpy()
    labels = task.test.labels.numpy()
    path = tmp_path / "set.npz"
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=(labels + 1) % 10)
    recipe = {"epochs": 2, "batch_size": 32}
    return TaskSpec.parse(f"{path},mlp2", train=300, validation=150, recipe=recipe)


def test_a_result_is_the_last_test_accuracy_of_each_seed():
    (result,) = evaluated("gce", seed=3)
    seeds = [derive_seed(3, "benchmark", number) for number in range(2)]
    expected = []
    for seed in seeds:
        task = prepare_task(TASK, seed=seed)
        run = trained(task, make_loss("gce", 10), seed=seed, evaluate_on=task.test)
        expected.append(run.curve[-1].accuracy)
    assert result == LossResult("gce", tuple(expected), None)
    assert len(set(expected)) == 2


def test_mean_and_sample_standard_deviation_over_the_seeds():
    for values in ((0.5, 0.25, 0.75), (0.1, 0.9), (0.3, 0.3, 0.3, 0.6)):
        result = LossResult("a", values, None)
        assert result.mean == pytest.approx(statistics.mean(values))
        assert result.std == pytest.approx(statistics.stdev(values))
    assert LossResult("a", (0.4,), None).std == 0.0


def test_all_losses_have_the_same_seeds_and_do_not_depend_on_each_other():
    ce, same, _, tuned = evaluated("ce", "ce*1", "gce", "gce*best")
    assert ce.accuracies == same.accuracies
    assert evaluated("ce") == [ce]
    assert evaluated("gce*best") == [tuned]
    assert evaluated("ce", seed=1) != [ce]


def test_the_scale_is_the_best_on_validation_even_where_it_is_the_worst_on_test(upside_down):
    scales = ("0.05", "0.1", "0.2", "0.5", "1", "2")
    tuned, *fixed = evaluated("ce*best", *(f"ce*{s}" for s in scales), task=upside_down)
    assert tuned.scales == (2.0, 2.0)  # two epochs at a small learning rate
    assert tuned.accuracies == fixed[-1].accuracies
    assert tuned.mean < max(result.mean for result in fixed)


def test_a_scale_may_be_chosen_on_noisy_labels():
    noisy = TASK.model_copy(update={"validation_labels": "noisy"})
    (result,) = evaluated("ce*best", task=noisy)
    assert len(result.scales) == 2


def test_tuning_needs_validation_images_and_says_so_before_any_training(monkeypatch):
    monkeypatch.setattr(worker_module, "train_runs", None)
    task = TASK.model_copy(update={"validation": 0})
    with pytest.raises(ValueError, match="needs validation images: set the task's 'validation'"):
        evaluated("ce", "gce*best", task=task)


def test_without_validation_images_the_task_trains_on_all_others():
    task = TaskSpec.parse("digits,mlp2", recipe={"epochs": 1})
    (result,) = evaluated("ce", task=task, seeds=1)
    assert result.scales is None


def test_every_finished_training_is_counted():
    seen = []
    evaluated("ce", "gce*best", on_progress=lambda *progress: seen.append(progress))
    assert seen == [(done, 14) for done in range(1, 15)]


def test_a_loss_that_fails_is_left_out_with_a_warning(monkeypatch, caplog):
    usual = worker_module.train_runs

    def train(spec, runs, options):
        if any(run.method == "gce" for run in runs):
            raise RuntimeError("no such kernel")
        return usual(spec, runs, options)

    monkeypatch.setattr(worker_module, "train_runs", train)
    assert [result.label for result in evaluated("ce", "gce")] == ["ce"]
    assert "gce is left out: it has 0 of 2 seeds" in caplog.text
    with pytest.raises(ValueError, match="every training failed: RuntimeError: no such kernel"):
        evaluated("gce")


@pytest.mark.slow
def test_a_robust_loss_beats_cross_entropy_that_memorised_the_wrong_labels():
    task = TaskSpec.parse(
        "digits,mlp2,symmetric:0.6",
        train=800,
        recipe={"epochs": 15, "batch_size": 32, "lr": 0.05},
    )
    ce, robust = evaluated("ce", "gce*0.5", task=task)
    assert robust.mean > ce.mean + 0.2
