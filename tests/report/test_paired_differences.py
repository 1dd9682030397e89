import numpy as np
import pytest

from optuna_robustloss.report.paired_differences import paired_differences
from optuna_robustloss.report.statistics import Scores


def scores(**means):
    tasks = tuple(f"t{i}" for i in range(len(next(iter(means.values())))))
    return Scores(tuple(means), tasks, np.array(list(means.values())))


def test_wins_ties_and_losses_are_counted_over_tasks():
    (row,) = paired_differences(scores(ce=[0.5] * 5, gce=[0.6, 0.504, 0.496, 0.4, 0.7]), "ce")
    assert (row.wins, row.ties, row.losses) == (2, 2, 1)
    assert row.difference == pytest.approx(0.04)


def test_the_reference_is_not_compared_with_itself():
    rows = paired_differences(scores(gce=[0.6, 0.6], ce=[0.5, 0.5], mae=[0.4, 0.4]), "ce")
    assert [(row.method, row.reference) for row in rows] == [("gce", "ce"), ("mae", "ce")]


def test_the_interval_is_that_of_resampled_tasks():
    """For many tasks it approaches the normal interval of their mean."""
    random = np.random.default_rng(0)
    differences = random.normal(0.05, 0.02, size=400)
    (row,) = paired_differences(scores(ce=np.zeros(400), gce=differences), "ce")
    half = 1.96 * differences.std() / 20
    assert row.low == pytest.approx(differences.mean() - half, abs=half / 10)
    assert row.high == pytest.approx(differences.mean() + half, abs=half / 10)


def test_the_interval_is_the_same_each_time_and_beside_any_others():
    three = {"ce": [0.5, 0.4, 0.3], "gce": [0.6, 0.7, 0.3], "mae": [0.1, 0.9, 0.2]}
    first = paired_differences(scores(**three), "ce")
    assert first == paired_differences(scores(**three), "ce")
    del three["gce"]
    assert paired_differences(scores(**three), "ce") == first[1:]


def test_equal_differences_have_an_interval_without_width():
    (row,) = paired_differences(scores(ce=[0.5, 0.5], gce=[0.75, 0.75]), "ce")
    assert (row.low, row.high) == (0.25, 0.25)


def test_a_single_task_has_no_interval():
    (row,) = paired_differences(scores(ce=[0.5], gce=[0.6]), "ce")
    assert (row.wins, row.low, row.high) == (1, None, None)
