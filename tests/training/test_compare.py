import statistics

import numpy as np
import pytest
from torch import nn

from optuna_robustloss.losses.published.gce_sce_mae import GCELoss
from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.tasks.prepare import prepare_task
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training import compare as compare_module
from optuna_robustloss.training.compare import (
    SCALES,
    Contender,
    Result,
    compare,
    scaled,
    validation_means,
)
from optuna_robustloss.training.score import score
from training.tiny import CPU, Loss, never_the_label, trained

SPEC = TaskSpec.parse(
    "digits,mlp2,symmetric:0.4",
    train=100,
    validation=100,
    recipe={"epochs": 3, "batch_size": 32, "lr": 0.05},
)


def ce(num_classes):
    return nn.CrossEntropyLoss()


def gce(num_classes):
    return GCELoss()


def compared(*contenders, spec=SPEC, seeds=2, **options):
    return compare(spec, contenders, seeds=seeds, device=CPU, **options)


@pytest.fixture
def prepared(monkeypatch):
    """The seeds of the tasks that were prepared, in turn."""
    seeds = []

    def kept(spec, *, seed, root=None):
        seeds.append(seed)
        return prepare_task(spec, seed=seed, root=root)

    monkeypatch.setattr(compare_module, "prepare_task", kept)
    return seeds


@pytest.fixture
def upside_down(tmp_path):
    """A task whose test set calls each digit by the next one's name: what learns most scores least.

    Training and validation images have the right names.
    """
    task = prepare_task(TaskSpec.parse("digits,mlp2"), seed=0)
    ((_, images),) = task.test.images.batches(task.test.index, 500, device=CPU)
    pixels = ((images - images.min()) / (images.max() - images.min()) * 255).byte().numpy()
    labels = task.test.labels.numpy()
    path = tmp_path / "set.npz"
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=(labels + 1) % 10)
    recipe = {"epochs": 2, "batch_size": 32}
    return TaskSpec.parse(f"{path},mlp2", train=300, validation=150, recipe=recipe)


# The numbers


def test_a_result_is_the_last_test_accuracy_of_each_seed(prepared):
    (result,) = compared(Contender("ce", ce))
    expected = []
    for seed in prepared:
        task = prepare_task(SPEC, seed=seed)
        expected.append(trained(task, seed=seed, watch=task.test).curve[-1].accuracy)
    assert result == Result("ce", tuple(expected))
    assert len(set(expected)) == 2


@pytest.mark.parametrize("values", [(0.5, 0.25, 0.75), (0.1, 0.9), (0.3, 0.3, 0.3, 0.6)])
def test_mean_and_sample_standard_deviation_over_the_seeds(values):
    result = Result("a", values)
    assert result.mean == pytest.approx(statistics.mean(values))
    assert result.std == pytest.approx(statistics.stdev(values))


def test_a_single_seed_has_no_deviation():
    assert Result("a", (0.4,)).std == 0.0


def test_progress_is_told_after_each_seed_and_each_tuning():
    told = []
    results = compared(
        Contender("a", ce),
        Contender("b", gce, tuned=True),
        tuning_seeds=1,
        seeds=2,
        on_progress=lambda *progress: told.append(progress),
    )
    assert [result.name for result in results] == ["a", "b"]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_validation_means_are_means_of_scores():
    means = validation_means(SPEC, {1.0: ce, 2.0: gce}, [3, 4], device=CPU)
    for key, criterion in ((1.0, nn.CrossEntropyLoss), (2.0, GCELoss)):
        values = [
            score(
                prepare_task(SPEC, seed=s), criterion, seed=s, device=CPU, stop_at_chance_after=None
            ).value
            for s in (3, 4)
        ]
        assert means[key] == pytest.approx(statistics.mean(values))


# The same for all losses


def test_all_losses_have_the_same_seeds(prepared):
    first, second = compared(Contender("a", ce), Contender("b", ce), seeds=3)
    assert first.accuracies == second.accuracies
    assert len(set(prepared)) == len(prepared) == 3


def test_all_losses_see_the_same_labels_in_the_same_order():
    made = []

    def kept(num_classes):
        made.append(Loss())
        return made[-1]

    compared(Contender("a", kept), Contender("b", scaled(kept, 0.1)), seeds=1)
    assert len(made[0].labels) == 12
    assert made[0].labels == made[1].labels


def test_a_result_does_not_depend_on_who_else_takes_part():
    alone = compared(Contender("gce", gce))
    together = compared(Contender("ce", ce, tuned=True), Contender("gce", gce), tuning_seeds=1)
    assert together[1] == alone[0]


def test_results_are_those_of_the_seed():
    contenders = (Contender("ce", ce), Contender("gce", gce, tuned=True))
    first, again, other = (compared(*contenders, seed=s, tuning_seeds=1) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_loss_near_chance_is_trained_to_the_end():
    loss = Loss(never_the_label)
    (result,) = compared(Contender("bad", lambda num_classes: loss))
    assert len(loss.labels) == 2 * 12
    assert result.mean < 0.15


# The scale


def test_a_scale_multiplies_the_loss():
    task = prepare_task(SPEC, seed=0)
    slower = trained(task, scaled(ce, 0.1)(10))
    assert slower.curve != trained(task).curve
    task = prepare_task(
        SPEC.model_copy(update={"recipe": SPEC.recipe.changed({"lr": 0.005})}), seed=0
    )
    assert slower.curve == trained(task).curve


def test_the_scale_is_the_best_on_validation_even_where_it_is_the_worst_on_test(upside_down):
    tuned, *fixed = compared(
        Contender("tuned", ce, tuned=True),
        *(Contender(f"{scale}", scaled(ce, scale)) for scale in SCALES),
        spec=upside_down,
        tuning_seeds=1,
    )
    assert tuned.scale == 1.0  # two epochs at a small learning rate: the faster, the better
    assert tuned.accuracies == fixed[-1].accuracies
    assert tuned.mean < max(result.mean for result in fixed)


def test_the_scale_is_chosen_on_seeds_that_the_test_does_not_use(prepared):
    compared(Contender("ce", ce, tuned=True), tuning_seeds=3)
    assert len(set(prepared)) == len(prepared) == 3 + 2


def test_a_loss_that_is_not_tuned_has_no_scale_and_needs_no_validation():
    spec = SPEC.model_copy(update={"validation": 0})
    (result,) = compared(Contender("ce", ce), spec=spec)
    assert result.scale is None


def test_tuning_needs_validation_images_and_says_so_before_any_training():
    def never(num_classes):
        raise AssertionError("was trained with")

    spec = SPEC.model_copy(update={"validation": 0})
    with pytest.raises(ValueError, match="needs validation images: set the task's 'validation'"):
        compared(Contender("a", never), Contender("b", never, tuned=True), spec=spec)


# What it is for


def test_a_robust_loss_beats_cross_entropy_that_learnt_the_wrong_labels_by_heart():
    spec = TaskSpec.parse(
        "digits,mlp2,symmetric:0.6",
        train=800,
        recipe={"epochs": 15, "batch_size": 32, "lr": 0.05},
    )
    names = ("ce", "gce*0.5")
    ce_result, robust = compared(
        *(Contender(name, lambda c, name=name: make_loss(name, c)) for name in names), spec=spec
    )
    assert robust.mean > ce_result.mean + 0.2
