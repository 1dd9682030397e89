"""Scores of losses on one and on several tasks, and what is stopped and pruned on the way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.losses import MAE_THETA, TaylorLoss
from optuna_robustloss.training import scoring
from optuna_robustloss.training.evaluation import Evaluation, smoothed_best
from optuna_robustloss.training.scoring import (
    LossScore,
    evaluation_steps,
    score_losses,
)
from optuna_robustloss.training.stopping import chance_threshold, worst_third
from training.tiny import ADAM, CPU, Loss, digits, diverging, never_the_label, trained

pytestmark = pytest.mark.integration  # trains networks

ETAS = (10.0, 6.0, 3.0, 1.0, 0.3, 0.1)
THREE = ("digits,mlp2", "digits,mlp2,symmetric:0.4", "digits,mlp3")


def tasks(*texts, **recipe):
    return [digits(text, epochs=4, **ADAM | recipe) for text in texts or THREE[:2]]


def maes(etas=ETAS):
    return [lambda classes, eta=eta: TaylorLoss(MAE_THETA, classes, eta=eta) for eta in etas]


def six():
    """Four losses that learn, and two that learn to avoid the labels."""
    return [*maes()[:4], *[lambda classes: Loss(never_the_label)] * 2]


def scored(chosen, losses, **options):
    defaults = {"seed": 5, "device": CPU, "stop_at_chance_after": None, "backend": "batch"}
    return score_losses(chosen, losses, **defaults | options)


def score_of(task, make=nn.CrossEntropyLoss, **options):
    """The score of one loss on one task."""
    (result,) = scored([task], [lambda classes: make()], backend=None, **options)
    (score,) = result.scores.values()
    return score


class Reports:
    """Keeps the reports of every loss; that of loss ``index`` raises from step ``at`` on."""

    def __init__(self, count, *, index=None, at=0):
        self.received = [[] for _ in range(count)]
        self.index, self.at = index, at

    def __len__(self):
        return len(self.received)

    def __getitem__(self, position):
        return lambda step, accuracy: self.note(position, step, accuracy)

    def note(self, index, step, accuracy):
        self.received[index].append((step, accuracy))
        if index == self.index and step >= self.at:
            raise ValueError(f"{index} at {step}")

    def steps(self, index):
        return [step for step, _ in self.received[index]]


@pytest.fixture
def runs(monkeypatch):
    """The number of losses and of epochs of each training."""
    seen = []

    def counted(task, criteria, *, epochs, **options):
        seen.append((len(criteria), epochs))
        return train(task, criteria, epochs=epochs, **options)

    train = scoring.train
    monkeypatch.setattr(scoring, "train", counted)
    return seen


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
    steps = evaluation_steps(digits(), epochs, "last")
    gaps = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    assert len(steps) == min(epochs, 10)
    assert steps[-1] == 4 * epochs
    assert min(gaps) > 0
    assert max(gaps) - min(gaps) <= 4
    assert evaluation_steps(digits(), epochs, "best") == [4 * (e + 1) for e in range(epochs)]


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


def test_losses_near_chance_on_one_task_go_on_with_the_next():
    avoiding = Loss(never_the_label)
    chosen = tasks(*THREE)
    results = scored(chosen, [lambda classes: avoiding, maes()[0]], stop_at_chance_after=0.5)
    assert [score.stopped_at_chance for score in results[0].scores.values()] == [True] * 3
    assert [len(result.scores) for result in results] == [3, 3]
    assert len(avoiding.labels) == 3 * 8
    assert results[1] == scored(chosen, maes()[:1], stop_at_chance_after=0.5)[0]


def test_losses_that_diverge_on_one_task_go_on_with_the_next():
    results = scored(tasks(), [lambda classes: diverging(), maes()[0]])
    assert [score.diverged for score in results[0].scores.values()] == [True] * 2
    assert 0 <= results[0].value < 0.5


# Several tasks, and reports


def test_each_task_is_scored_as_it_would_be_by_itself():
    chosen = tasks()
    results = scored(chosen, maes())
    for task in chosen:
        own = [result.scores[task.spec] for result in scored([task], maes())]
        assert [result.scores[task.spec] for result in results] == own
    for result in results:
        assert list(result.scores) == [task.spec for task in chosen]
        assert result.value == pytest.approx(sum(s.value for s in result.scores.values()) / 2)
        assert (result.pruned, result.error) == (False, None)


@pytest.mark.parametrize(
    ("horizons", "recipe", "total"),
    [
        ((1,), {}, 32),
        ((0.5, 1), {}, 32),
        ((0.5, 1), {"schedule": "cosine"}, 48),
        ((1,), {"train": 70}, 24),
    ],
    ids=["one", "read off", "a run each", "uneven batches"],
)
@pytest.mark.parametrize("kind", ["last", "best"])
def test_reports_count_the_steps_of_all_tasks(horizons, recipe, total, kind):
    reports = Reports(2)
    results = scored(tasks(**recipe), maes()[:2], horizons=horizons, kind=kind, reports=reports)
    for received, result in zip(reports.received, results, strict=True):
        steps = [step for step, _ in received]
        assert steps == sorted(set(steps))
        assert steps[-1] == total
        first, second = result.scores.values()
        # The mean of the finished network and the running one.
        expected = (first.value + second.curve[-1].accuracy) / 2
        assert received[-1][1] == pytest.approx(expected)
        assert received[0][1] in {k / 150 for k in range(151)}


@pytest.mark.parametrize(("at", "finished"), [(1, 0), (17, 1), (32, 1)])
def test_an_error_in_a_report_ends_that_loss_only(at, finished):
    reports = Reports(3, index=1, at=at)
    chosen = tasks()
    results = scored(chosen, maes()[:3], reports=reports)
    assert str(results[1].error).startswith("1 at")
    assert len(results[1].scores) == finished
    assert len(reports.steps(1)) == len([s for s in reports.steps(0) if s < at]) + 1
    usual = scored(chosen, maes()[:3])
    for index in (0, 2):
        assert results[index] == usual[index]


def test_all_may_end_before_the_last_task():
    def report(step, accuracy):
        raise ValueError("enough")

    results = scored(tasks(*THREE), [maes()[0], lambda classes: diverging()], reports=[report] * 2)
    assert [str(result.error) for result in results] == ["enough"] * 2
    assert [len(result.scores) for result in results] == [0, 0]


def test_an_interrupt_in_a_report_is_raised_and_random_numbers_stay():
    def report(step, accuracy):
        raise KeyboardInterrupt

    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        scored(tasks(), maes()[:2], reports=[report] * 2)
    scored(tasks(), six(), prune_at=[0.5])
    assert torch.equal(torch.get_rng_state(), before)


# Pruning


@pytest.mark.parametrize(
    ("left", "population", "pruned"),
    [(6, 6, 2), (5, 6, 1), (4, 6, 1), (3, 6, 0), (5, 5, 0), (12, 12, 4), (8, 12, 2), (6, 12, 0)],
)
def test_the_worst_third_is_pruned_and_never_the_better_half(left, population, pruned):
    accuracies = [0.1 * ((7 * k) % left) for k in range(left)]
    found = worst_third(accuracies, population)
    assert len(found) == pruned
    assert left - pruned >= population / 2 or pruned == 0
    assert sorted(accuracies)[:pruned] == sorted(accuracies[i] for i in found)


def test_equal_candidates_are_pruned_in_order():
    assert worst_third([0.5] * 6, 6) == [0, 1]


@pytest.mark.parametrize(
    ("moment", "began", "ended_at"),
    [
        (0.5, [6, 4, 4], 8),
        (1, [6, 4, 4], 16),
        (1.25, [6, 6, 4], 20),
        (2.0, [6, 6, 4], 32),
        (2.5, [6, 6, 6], 40),
    ],
)
def test_moments_of_pruning_are_counted_in_networks(runs, moment, began, ended_at):
    chosen = tasks(*THREE)
    reports, usual_reports = Reports(6), Reports(6)
    results = scored(chosen, six(), prune_at=[moment], reports=reports)
    assert [count for count, _ in runs] == began
    usual = scored(chosen, six(), reports=usual_reports)
    for index, (result, own) in enumerate(zip(results, usual, strict=True)):
        assert result.pruned is (index >= 4)
        if result.pruned:
            assert reports.steps(index)[-1] == ended_at
            assert list(result.scores.values()) == list(own.scores.values())[: math.floor(moment)]
        else:
            assert result == own
            assert set(reports.received[index]) >= set(usual_reports.received[index])


def test_pruning_again_and_again_leaves_the_better_half(runs):
    results = scored(tasks(*THREE), six(), prune_at=[0.5, 1, 1.5, 2, 2.75])
    assert [count for count, _ in runs] == [6, 3, 3]
    assert sum(result.pruned for result in results[:4]) == 1
    assert [result.pruned for result in results[4:]] == [True, True]


def test_populations_of_less_than_six_are_never_pruned():
    results = scored(tasks(), maes()[:5], prune_at=[0.25, 1, 1.5])
    assert not any(result.pruned for result in results)
    assert [len(result.scores) for result in results] == [2] * 5


def test_candidates_near_chance_are_stopped_before_the_others_are_pruned():
    """At the same step; the two near chance are among the worst third, but are not compared."""
    results = scored(tasks(), six(), prune_at=[0.5], stop_at_chance_after=0.5)
    assert [result.pruned for result in results[4:]] == [False, False]
    assert [s.stopped_at_chance for r in results[4:] for s in r.scores.values()] == [True] * 4
    assert sum(result.pruned for result in results[:4]) == 1  # 4 // 3


def test_losses_with_an_error_count_for_the_population_only():
    results = scored(tasks(), six(), prune_at=[1], reports=Reports(6, index=0, at=1))
    assert results[0].error is not None
    assert [result.pruned for result in results] == [False] * 4 + [True, False]  # 5 // 3


@pytest.mark.parametrize("moment", [1 / 12, 1 / 3, 0.5, 0.99, 1 + 1 / 12, 4 / 3, 1.5, 1.99])
def test_pruning_happens_in_any_of_the_horizons_runs(moment):
    """Also between two of them: the runs of 2 and 4 epochs are 8 and 16 steps long."""
    chosen = tasks(schedule="cosine")
    reports = Reports(6)
    results = scored(chosen, six(), horizons=[0.5, 1], prune_at=[moment], reports=reports)
    assert [result.pruned for result in results] == [False] * 4 + [True] * 2
    assert abs(reports.steps(5)[-1] - 24 * moment) <= 1


def test_between_two_networks_the_scores_are_compared(monkeypatch):
    """With several horizons a score is the mean of them, not the last accuracy."""
    seen = []
    monkeypatch.setattr(
        scoring, "worst_third", lambda accuracies, population: seen.append(accuracies) or []
    )
    chosen = tasks()
    results = scored(chosen, six(), horizons=[0.5, 1], prune_at=[1])
    assert seen == [[result.scores[chosen[0].spec].value for result in results]]


@pytest.mark.parametrize("moment", [0, 2, 2.5, -1])
def test_moments_out_of_range_are_refused(moment):
    with pytest.raises(ValueError, match=r"prune_at must lie between 0 and 2 networks, got \[1, "):
        scored(tasks(), six(), prune_at=[1, moment])


def test_a_loss_that_has_finished_nothing_has_no_value():
    with pytest.raises(ZeroDivisionError):
        _ = LossScore({}, pruned=True).value
