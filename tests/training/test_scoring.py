"""The score of a loss on one task: horizons, chance and divergence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from optuna_robustloss.training.evaluation import Evaluation, smoothed_best
from optuna_robustloss.training.stopping import chance_threshold
from optuna_robustloss.training.train import spread_over_epochs
from training.scored import maes, score_of, scored, tasks
from training.tiny import Loss, digits, diverging, never_the_label, trained

pytestmark = pytest.mark.integration  # trains networks

# One horizon


def test_last_is_the_accuracy_after_the_last_epoch():
    task = digits(epochs=5, lr=0.05)
    score = score_of(task)
    run = trained(task, evaluate_at=[4, 8, 12, 16])
    assert score.value == run.curve[-1].accuracy
    assert score.curve == run.curve
    assert (score.diverged, score.stopped_at_chance) == (False, False)


def moving_means(values):
    """Means of each value and its neighbours, one by one."""
    means = []
    for i in range(len(values)):
        near = [values[j] for j in (i - 1, i, i + 1) if 0 <= j < len(values)]
        means.append(sum(near) / len(near))
    return means


def test_best_is_the_best_mean_of_three_neighbouring_epochs():
    task = digits(epochs=12, lr=0.3)
    score = score_of(task, kind="best")
    accuracies = [e.accuracy for e in trained(task, evaluate_at=range(4, 49, 4)).curve]
    means = moving_means(accuracies)
    assert score.value == pytest.approx(max(means))
    assert score.value != accuracies[-1]
    assert score.best_epoch == 1 + means.index(max(means))


@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_smoothed_best_is_the_first_best_moving_mean(values):
    best = smoothed_best([Evaluation(4 * i, float(i), v) for i, v in enumerate(values)])
    means = moving_means(values)
    assert best.accuracy == pytest.approx(max(means))
    assert best.accuracy == pytest.approx(means[int(best.epoch)])


def test_an_empty_curve_has_no_best():
    with pytest.raises(ValueError, match="empty"):
        smoothed_best([])


@settings(deadline=None)
@given(epochs=st.integers(1, 400))
def test_evaluations_are_spread_evenly_over_ends_of_epochs(epochs):
    steps = spread_over_epochs(digits(), epochs, 10)
    gaps = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    assert len(steps) == min(epochs, 10)
    assert steps[-1] == 4 * epochs
    assert min(gaps) > 0
    assert max(gaps) - min(gaps) <= 4
    assert spread_over_epochs(digits(), epochs, epochs) == [4 * (e + 1) for e in range(epochs)]


# Several horizons


@pytest.mark.parametrize("kind", ["last", "best"])
def test_with_a_constant_rate_all_horizons_are_read_off_the_longest_run(runs, kind):
    task = digits(lr=0.05)
    both = score_of(task, kind=kind, horizons=[1, 2])
    assert runs == [(1, 6)]
    alone = [score_of(task, kind=kind, horizons=[h]) for h in (1, 2)]
    assert both.value == pytest.approx((alone[0].value + alone[1].value) / 2)


@pytest.mark.parametrize("kind", ["last", "best"])
def test_with_a_schedule_each_horizon_is_a_run_of_its_own(runs, kind):
    task = digits(lr=0.1, schedule="cosine")
    both = score_of(task, kind=kind, horizons=[1, 2])
    assert runs == [(1, 3), (1, 6)]
    alone = [score_of(task, kind=kind, horizons=[h]) for h in (1, 2)]
    assert both.value == pytest.approx((alone[0].value + alone[1].value) / 2)
    assert both.curve == alone[1].curve


def test_a_horizon_between_two_evaluations_is_measured():
    task = digits(epochs=21, lr=0.05)
    half = score_of(digits(epochs=7, lr=0.05))
    both = score_of(task, horizons=[1 / 3, 1])
    assert both.value == pytest.approx((half.value + score_of(task).value) / 2)


def test_a_loss_that_depends_on_the_progress_is_trained_for_each_horizon(runs):
    seen = []

    def following():
        loss = Loss(lambda z, y: seen.append(loss.progress) or F.cross_entropy(z, y))
        loss.progress = 0.0
        return loss

    score_of(digits(), following, horizons=[1, 2])
    assert runs == [(1, 3), (1, 6)]
    assert seen == [k / 12 for k in range(12)] + [k / 24 for k in range(24)]


def test_equal_horizons_count_once_and_none_is_shorter_than_an_epoch(runs):
    score_of(digits(), horizons=[1, 1.01, 0.01])
    score_of(digits(schedule="cosine"), horizons=[1, 1.01, 0.01])
    assert runs == [(1, 3), (1, 1), (1, 3)]


def test_each_run_gets_a_new_loss():
    made = []

    def fresh():
        made.append(Loss())
        return made[-1]

    score_of(digits(schedule="cosine"), fresh, horizons=[1, 2])
    assert sorted(len(loss.labels) for loss in made if loss.labels) == [12, 24]


# Candidates near chance, and diverged ones


def test_the_threshold_is_one_and_a_half_times_chance_for_many_classes():
    for classes, accuracy in {2: 0.55, 3: 0.3833, 10: 0.15, 100: 0.015}.items():
        assert chance_threshold(classes) == pytest.approx(accuracy, abs=1e-4)


@pytest.mark.parametrize(
    ("share", "epochs", "stops_at"),
    [(0.07, 25, 7), (0.07, 26, 8), (0.07, 50, 14), (0.3, 25, 30), (1e-9, 2, 1)],
)
def test_candidates_near_chance_are_stopped_after_the_share_of_steps_rounded_up(
    share, epochs, stops_at
):
    loss = Loss(never_the_label)
    score = score_of(digits(lr=0.5, epochs=epochs), lambda: loss, stop_at_chance_after=share)
    assert score.stopped_at_chance is (score.curve[0].accuracy < 0.15)
    if score.stopped_at_chance:
        assert score.curve[-1].step == stops_at
        assert not score.diverged
    assert len(loss.labels) == (stops_at if score.stopped_at_chance else 4 * epochs)


def test_candidates_near_chance_are_stopped_with_clean_validation_labels_only():
    counts = {}
    for labels in ("clean", "noisy"):
        loss = Loss(never_the_label)
        task = digits("digits,mlp2,symmetric:0.2", epochs=5, lr=0.5, validation_labels=labels)
        score = score_of(task, lambda loss=loss: loss, stop_at_chance_after=0.07)
        assert score.stopped_at_chance is (labels == "clean")
        assert score.value < 0.15
        counts[labels] = len(loss.labels)
    assert counts == {"clean": 2, "noisy": 20}


@pytest.mark.parametrize("kind", ["last", "best"])
def test_the_check_does_not_change_the_score_of_those_that_go_on(kind):
    task = digits(epochs=25, lr=0.05)  # 100 steps: checked after step 7, in the second epoch
    checked, unchecked = (score_of(task, kind=kind, stop_at_chance_after=s) for s in (0.07, None))
    assert checked == unchecked


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {share}"):
        scored(tasks(), maes()[:1], stop_at_chance_after=share)


@pytest.mark.parametrize("kind", ["last", "best"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_diverged_loss_scores_the_accuracy_it_has_then(runs, kind, schedule):
    score = score_of(
        digits(schedule=schedule),
        diverging,
        kind=kind,
        horizons=[1, 2],
        stop_at_chance_after=0.07,
    )
    assert score.diverged
    assert len(runs) == 1  # the longer horizons would end no better
    assert 0 <= score.value <= 0.3
    assert score.value == score.curve[-1].accuracy
