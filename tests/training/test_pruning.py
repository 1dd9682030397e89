"""Scores on several tasks, reports on the way, and what is pruned."""

import math

import pytest
import torch

from optuna_robustloss.training import scoring
from optuna_robustloss.training.scoring import LossScore
from optuna_robustloss.training.stopping import worst_third
from training.scored import THREE, Reports, maes, scored, six, tasks
from training.tiny import Loss, diverging, never_the_label

pytestmark = pytest.mark.integration  # trains networks

# Several tasks, and reports


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
    ("horizons", "recipe", "total", "kind"),
    [
        ((0.5, 1), {}, 32, "best"),
        ((0.5, 1), {"schedule": "cosine"}, 48, "last"),
        ((1,), {"train": 70}, 24, "last"),
    ],
    ids=["read off", "a run each", "uneven batches"],
)
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


def test_an_error_in_a_report_ends_that_loss_only():
    chosen = tasks()
    usual = scored(chosen, maes()[:3])
    for at, finished in ((1, 0), (17, 1), (32, 1)):
        reports = Reports(3, index=1, at=at)
        results = scored(chosen, maes()[:3], reports=reports)
        assert str(results[1].error).startswith("1 at")
        assert len(results[1].scores) == finished
        assert len(reports.steps(1)) == len([s for s in reports.steps(0) if s < at]) + 1
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


@pytest.mark.slow
def test_moments_of_pruning_are_counted_in_networks(runs):
    chosen = tasks(*THREE)
    usual_reports = Reports(6)
    usual = scored(chosen, six(), reports=usual_reports)
    for moment, began, ended_at in (
        (0.5, [6, 4, 4], 8),
        (1, [6, 4, 4], 16),
        (1.25, [6, 6, 4], 20),
        (2.5, [6, 6, 6], 40),
    ):
        runs.clear()
        reports = Reports(6)
        results = scored(chosen, six(), prune_at=[moment], reports=reports)
        assert [count for count, _ in runs] == began
        for index, (result, own) in enumerate(zip(results, usual, strict=True)):
            assert result.pruned is (index >= 4)
            if result.pruned:
                assert reports.steps(index)[-1] == ended_at
                before = list(own.scores.values())[: math.floor(moment)]
                assert list(result.scores.values()) == before
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


@pytest.mark.parametrize("moment", [1 / 12, 1 / 3, 0.5, 1.99])
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
