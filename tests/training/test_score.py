import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.training import score as score_module
from optuna_robustloss.training.evaluation import Evaluation
from optuna_robustloss.training.score import evaluation_steps, score, smoothed_best
from training.tiny import CPU, Loss, digits, never_the_label, trained

ACCURACIES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def scored(task, criterion=nn.CrossEntropyLoss, *, seed=5, stop_at_chance_after=None, **options):
    return score(
        task, criterion, seed=seed, device=CPU, stop_at_chance_after=stop_at_chance_after, **options
    )


def accuracies(run):
    return [point.accuracy for point in run.curve]


def moving_means(values):
    """Means of each value and its neighbours, one by one."""
    means = []
    for i in range(len(values)):
        near = [values[j] for j in (i - 1, i, i + 1) if 0 <= j < len(values)]
        means.append(sum(near) / len(near))
    return means


@pytest.fixture
def runs(monkeypatch):
    """The number of epochs of each training run."""
    lengths = []

    def counted(*args, epochs, **options):
        lengths.append(epochs)
        return train(*args, epochs=epochs, **options)

    train = score_module.train_population
    monkeypatch.setattr(score_module, "train_population", counted)
    return lengths


# One horizon


def test_last_is_the_accuracy_after_the_last_epoch():
    task = digits(epochs=5, lr=0.05)
    result = scored(task)
    run = trained(task, watch_at=[4, 8, 12, 16])
    assert result.value == run.curve[-1].accuracy
    assert result.curve == run.curve
    assert (result.diverged, result.hopeless) == (False, False)


def test_best_is_the_best_mean_of_three_neighbouring_epochs():
    task = digits(epochs=12, lr=0.3)
    result = scored(task, kind="best")
    run = trained(task, watch_at=range(4, 49, 4))
    means = moving_means(accuracies(run))
    assert result.value == pytest.approx(max(means))
    assert result.value != accuracies(run)[-1]
    assert result.best_epoch == 1 + means.index(max(means))


@settings(deadline=None)
@given(values=ACCURACIES)
def test_the_smoothed_best_is_the_first_best_moving_mean(values):
    curve = [Evaluation(10 * k, float(k), value) for k, value in enumerate(values, start=1)]
    best, means = smoothed_best(curve), moving_means(values)
    assert best.accuracy == max(means)
    assert best.epoch == 1 + means.index(max(means))
    assert best.step == 10 * best.epoch


def test_one_lucky_epoch_does_not_win():
    values = [0.2, 0.2, 0.8, 0.2, 0.6, 0.6, 0.6]
    best = smoothed_best([Evaluation(k, float(k), value) for k, value in enumerate(values)])
    assert (best.step, best.accuracy) == (5, pytest.approx(0.6))


def test_an_empty_curve_has_no_best():
    with pytest.raises(ValueError, match="empty"):
        smoothed_best([])


@pytest.mark.parametrize(
    ("epochs", "kind", "expected"),
    [
        (3, "last", [1, 2, 3]),
        (20, "last", [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (12, "best", list(range(1, 13))),
        (1, "best", [1]),
    ],
)
def test_evaluations_are_at_ends_of_epochs(epochs, kind, expected):
    assert evaluation_steps(digits(), epochs, kind) == [4 * epoch for epoch in expected]


@settings(deadline=None)
@given(epochs=st.integers(1, 400))
def test_at_most_ten_evaluations_are_spread_evenly_up_to_the_last_epoch(epochs):
    steps = evaluation_steps(digits(), epochs, "last")
    gaps = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    assert len(steps) == min(epochs, 10)
    assert steps[-1] == 4 * epochs
    assert min(gaps) > 0
    assert max(gaps) - min(gaps) <= 4


def test_every_measured_point_is_told():
    told = []
    result = scored(digits(), observe=told.append)
    assert told == list(result.curve)
    assert [point.step for point in told] == [4, 8, 12]


# Several horizons


@pytest.mark.parametrize("kind", ["last", "best"])
def test_with_a_constant_rate_all_horizons_are_read_off_the_longest_run(runs, kind):
    task = digits(lr=0.05)
    both = scored(task, kind=kind, horizons=[1, 2])
    assert runs == [6]
    assert both.value == pytest.approx(
        (scored(task, kind=kind).value + scored(task, kind=kind, horizons=[2]).value) / 2
    )


@pytest.mark.parametrize("kind", ["last", "best"])
def test_with_a_schedule_each_horizon_is_a_run_of_its_own(runs, kind):
    task = digits(lr=0.1, schedule="cosine")
    both = scored(task, kind=kind, horizons=[1, 2])
    assert runs == [3, 6]
    alone = [scored(task, kind=kind, horizons=[h]) for h in (1, 2)]
    assert both.value == pytest.approx((alone[0].value + alone[1].value) / 2)
    assert both.curve == alone[1].curve


def test_a_horizon_between_two_evaluations_is_measured():
    task = digits(epochs=21, lr=0.05)
    half = scored(digits(epochs=7, lr=0.05))
    both = scored(task, horizons=[1 / 3, 1])
    assert both.value == pytest.approx((half.value + scored(task).value) / 2)


def test_a_loss_that_follows_the_progress_is_trained_for_each_horizon(runs):
    told = []

    def follower():
        loss = Loss(lambda z, y: told.append(loss.progress) or F.cross_entropy(z, y))
        loss.progress = 0.0
        return loss

    scored(digits(), follower, horizons=[1, 2])
    assert runs == [3, 6]
    assert told == [k / 12 for k in range(12)] + [k / 24 for k in range(24)]


def test_equal_horizons_count_once_and_none_is_shorter_than_an_epoch(runs):
    scored(digits(), horizons=[1, 1.01, 0.01])
    assert runs == [3]
    scored(digits(schedule="cosine"), horizons=[1, 1.01, 0.01])
    assert runs == [3, 1, 3]


def test_each_run_gets_a_new_loss():
    made = []

    def fresh():
        made.append(Loss())
        return made[-1]

    scored(digits(schedule="cosine"), fresh, horizons=[1, 2])
    assert sorted(len(loss.labels) for loss in made if loss.labels) == [12, 24]


# Runs that stop early


def test_a_hopeless_loss_is_given_up_with_clean_validation_labels_only():
    losses = {}
    for labels in ("clean", "noisy"):
        losses[labels] = Loss(never_the_label)
        task = digits("digits,mlp2,symmetric:0.2", epochs=5, lr=0.5, validation_labels=labels)
        result = scored(task, partial(losses.get, labels), stop_at_chance_after=0.07)
        assert result.hopeless is (labels == "clean")
        assert result.value < 0.15
    assert [len(loss.labels) for loss in losses.values()] == [2, 20]


@pytest.mark.parametrize("kind", ["last", "best"])
def test_being_found_not_hopeless_changes_nothing(kind):
    task = digits(epochs=25, lr=0.05)  # 100 steps: judged after step 7, amid the second epoch
    judged, not_judged = (scored(task, kind=kind, stop_at_chance_after=h) for h in (0.07, None))
    assert judged == not_judged


@pytest.mark.parametrize("kind", ["last", "best"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(
    "broken",
    [lambda z, y: z.sum() * math.nan, lambda z, y: F.cross_entropy(z, y) * 1e30],
    ids=["nan", "overflow"],
)
def test_a_diverged_loss_scores_the_accuracy_it_has_then(runs, kind, schedule, broken):
    result = scored(
        digits(schedule=schedule),
        lambda: Loss(broken),
        kind=kind,
        horizons=[1, 2],
        stop_at_chance_after=0.07,
    )
    assert result.diverged
    assert len(runs) == 1  # the longer horizons would end no better
    assert 0 <= result.value <= 0.3
    assert result.value == result.curve[-1].accuracy
