"""Losses on several tasks, one after another, and the rungs on the way."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.losses import MAE_THETA, TaylorLoss
from optuna_robustloss.training import loop, suite
from optuna_robustloss.training.score import score_population, training_steps
from optuna_robustloss.training.suite import SuiteScore, score_suite, worst_third
from training.test_population_loop import ADAM
from training.tiny import CPU, Loss, digits, never_the_label

ETAS = [10.0, 6.0, 3.0, 1.0, 0.3, 0.1]


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch):
    monkeypatch.setattr(loop, "fastest_backend", lambda *_: "batch")


def tasks(*texts, **recipe):
    texts = texts or ("digits,mlp2", "digits,mlp2,symmetric:0.4")
    return [digits(text, epochs=4, **ADAM | recipe) for text in texts]


THREE = ("digits,mlp2", "digits,mlp2,symmetric:0.4", "digits,mlp3")


def maes(etas=ETAS):
    return [lambda classes, eta=eta: TaylorLoss(MAE_THETA, classes, eta=eta) for eta in etas]


def six():
    """Four losses that learn, and two that learn to avoid the labels."""
    return [*maes()[:4], *[lambda classes: Loss(never_the_label)] * 2]


def scored(chosen, losses, **options):
    defaults = {"seed": 5, "device": CPU, "stop_at_chance_after": None}
    return score_suite(chosen, losses, **defaults | options)


class Reports:
    """What every loss was told; one of them may raise."""

    def __init__(self, count, *, index=None, at=0):
        self.told = [[] for _ in range(count)]
        self.index, self.at = index, at

    def __iter__(self):
        return (lambda step, merit, i=i: self.note(i, step, merit) for i in range(len(self.told)))

    def note(self, index, step, merit):
        self.told[index].append((step, merit))
        if index == self.index and step >= self.at:
            raise ValueError(f"{index} at {step}")

    def steps(self, index):
        return [step for step, _ in self.told[index]]


# The scores


def test_each_task_is_scored_as_it_would_be_by_itself():
    chosen = tasks()
    results = scored(chosen, maes())
    for task in chosen:
        makers = [lambda make=make, task=task: make(task.num_classes) for make in maes()]
        own = score_population(task, makers, seed=5, device=CPU, stop_at_chance_after=None)
        assert [result.scores[task.spec] for result in results] == own
    for result in results:
        assert list(result.scores) == [task.spec for task in chosen]
        assert result.value == pytest.approx(sum(s.value for s in result.scores.values()) / 2)
        assert (result.dropped, result.error) == (False, None)


@pytest.mark.parametrize(
    ("horizons", "recipe"),
    [((1,), {}), ((0.5, 1), {}), ((0.5, 1), {"schedule": "cosine"}), ((1,), {"train": 70})],
    ids=["one", "read off", "a run each", "uneven batches"],
)
@pytest.mark.parametrize("kind", ["last", "best"])
def test_reports_count_the_steps_of_all_tasks(horizons, recipe, kind):
    chosen = tasks(**recipe)
    reports = Reports(2)
    results = scored(chosen, maes()[:2], horizons=horizons, kind=kind, reports=list(reports))
    total = sum(training_steps(task, horizons) for task in chosen)
    for told, result in zip(reports.told, results, strict=True):
        steps = [step for step, _ in told]
        assert steps == sorted(set(steps))
        assert steps[-1] == total
        first, second = result.scores.values()
        # The mean of the finished network and the running one.
        expected = (first.value + second.curve[-1].accuracy) / 2
        assert told[-1][1] == pytest.approx(expected)
        assert told[0][1] in {0.0, *(k / 150 for k in range(151))}


class Following(nn.Module):
    progress = 0.0

    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("criterion", [Following, nn.CrossEntropyLoss])
def test_the_steps_increase_for_losses_that_are_trained_anew_for_each_horizon(criterion):
    reports = Reports(1)
    scored(tasks(), [lambda classes: criterion()], horizons=[0.5, 1], reports=list(reports))
    steps = reports.steps(0)
    assert steps == sorted(set(steps))
    assert steps[-1] == (48 if criterion is Following else 32)


def test_what_is_hopeless_on_one_task_goes_on_with_the_next():
    hopeless = Loss(never_the_label)
    chosen = tasks(*THREE)
    results = scored(chosen, [lambda classes: hopeless, maes()[0]], stop_at_chance_after=0.5)
    assert [score.hopeless for score in results[0].scores.values()] == [True] * 3
    assert [len(result.scores) for result in results] == [3, 3]
    assert len(hopeless.labels) == 3 * 8
    assert results[1] == scored(chosen, maes()[:1], stop_at_chance_after=0.5)[0]


def test_what_diverges_on_one_task_goes_on_with_the_next():
    results = scored(tasks(), [lambda classes: Loss(lambda z, y: z.sum() * math.nan), maes()[0]])
    assert [score.diverged for score in results[0].scores.values()] == [True] * 2
    assert 0 <= results[0].value < 0.5


@pytest.mark.parametrize(("at", "finished"), [(1, 0), (17, 1), (32, 1)])
def test_what_one_report_raises_ends_that_loss_only(at, finished):
    reports = Reports(3, index=1, at=at)
    chosen = tasks()
    results = scored(chosen, maes()[:3], reports=list(reports))
    assert str(results[1].error).startswith("1 at")
    assert len(results[1].scores) == finished
    assert len(reports.steps(1)) == len([s for s in reports.steps(0) if s < at]) + 1
    usual = scored(chosen, maes()[:3])
    for index in (0, 2):
        assert results[index].value == usual[index].value
        assert results[index].error is None


def test_all_may_end_before_the_last_task():
    def report(step, merit):
        raise ValueError("enough")

    results = scored(tasks(*THREE), maes()[:2], reports=[report] * 2)
    assert [str(result.error) for result in results] == ["enough"] * 2
    assert [len(result.scores) for result in results] == [0, 0]


# The rungs


@pytest.mark.parametrize(
    ("left", "population", "stopped"),
    [(6, 6, 2), (5, 6, 1), (4, 6, 1), (3, 6, 0), (5, 5, 0), (12, 12, 4), (8, 12, 2), (6, 12, 0)],
)
def test_the_worst_third_is_stopped_and_never_the_better_half(left, population, stopped):
    merits = [0.1 * ((7 * k) % left) for k in range(left)]
    found = worst_third(merits, population)
    assert len(found) == stopped
    assert left - stopped >= population / 2 or stopped == 0
    assert sorted(merits)[:stopped] == sorted(merits[i] for i in found)


def test_equal_merits_are_stopped_in_order():
    assert worst_third([0.5] * 6, 6) == [0, 1]


@pytest.fixture
def trained_together(monkeypatch):
    """How many losses each task began with."""
    counts = []

    def counted(task, criteria, **options):
        counts.append(len(criteria))
        return score_population(task, criteria, **options)

    monkeypatch.setattr(suite, "score_population", counted)
    return counts


@pytest.mark.parametrize(
    ("rung", "began", "stopped_at"),
    [
        (0.5, [6, 4, 4], 8),
        (1, [6, 4, 4], 16),
        (1.25, [6, 6, 4], 20),
        (2.0, [6, 6, 4], 32),
        (2.5, [6, 6, 6], 40),
    ],
)
def test_rungs_are_counted_in_networks(trained_together, rung, began, stopped_at):
    chosen = tasks(*THREE)
    reports = Reports(6)
    usual_reports = Reports(6)
    results = scored(chosen, six(), rungs=[rung], reports=list(reports))
    assert trained_together == began
    usual = scored(chosen, six(), reports=list(usual_reports))
    for index, (result, own) in enumerate(zip(results, usual, strict=True)):
        assert result.dropped is (index >= 4)
        if result.dropped:
            assert reports.steps(index)[-1] == stopped_at
            assert list(result.scores.values()) == list(own.scores.values())[: math.floor(rung)]
        else:
            assert result == own
            assert set(reports.told[index]) >= set(usual_reports.told[index])


def test_rungs_follow_each_other_down_to_the_better_half(trained_together):
    results = scored(tasks(*THREE), six(), rungs=[0.5, 1, 1.5, 2, 2.75])
    assert trained_together == [6, 3, 3]
    assert sum(result.dropped for result in results[:4]) == 1
    assert [result.dropped for result in results[4:]] == [True, True]


@pytest.mark.parametrize("rungs", [[0.5], [1], [0.25, 1, 1.5]])
def test_populations_of_less_than_six_are_never_judged(rungs):
    results = scored(tasks(), maes()[:5], rungs=rungs)
    assert not any(result.dropped for result in results)
    assert [len(result.scores) for result in results] == [2] * 5


def test_those_that_raised_are_no_part_of_the_judgement_but_of_the_population():
    reports = Reports(6, index=0, at=1)
    results = scored(tasks(), six(), rungs=[1], reports=list(reports))
    assert results[0].error is not None
    assert [result.dropped for result in results] == [False] * 4 + [True, False]  # 5 // 3


@pytest.mark.parametrize("rung", [1 / 12, 1 / 3, 0.5, 0.99])
@pytest.mark.parametrize("second", [False, True])
def test_a_rung_falls_into_any_of_the_horizons_runs(rung, second):
    """Also between two of them: the runs of 2 and 4 epochs are 8 and 16 steps long."""
    chosen = tasks(schedule="cosine")
    reports = Reports(6)
    results = scored(chosen, six(), horizons=[0.5, 1], rungs=[rung + second], reports=list(reports))
    assert [result.dropped for result in results] == [False] * 4 + [True] * 2
    last = reports.steps(5)[-1] - 24 * second
    assert abs(last - 24 * rung) <= 1


def test_at_the_end_of_a_network_its_score_is_what_counts(monkeypatch):
    """With several horizons that is the mean of them, not the last accuracy."""
    seen = []
    monkeypatch.setattr(suite, "worst_third", lambda merits, population: seen.append(merits) or [])
    chosen = tasks()
    results = scored(chosen, six(), horizons=[0.5, 1], rungs=[1])
    assert seen == [[result.scores[chosen[0].spec].value for result in results]]


def test_a_suite_leaves_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    scored(tasks(), six(), rungs=[0.5])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_has_finished_nothing_has_no_value():
    with pytest.raises(ZeroDivisionError):
        _ = SuiteScore({}, dropped=True).value
