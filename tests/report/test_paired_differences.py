"""Differences to a reference, and their intervals over data sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from optuna_robustloss.report.paired_differences import paired_differences
from optuna_robustloss.report.statistics import mean_scores
from report.sample import fixed, scores


def differences(datasets=None, **means):
    return paired_differences(scores(tuple(means), list(means.values()), datasets), "ce")


def measured(values):
    """Scores of ce, at 0, and gce at data set → task → list over seeds."""
    gce = {f"{d}/{t}": list(own) for d, tasks in values.items() for t, own in tasks.items()}
    ce = {task: [0.0] * len(own) for task, own in gce.items()}
    return mean_scores(fixed({"ce": ce, "gce": gce}))


def test_wins_ties_and_losses_are_counted_over_tasks():
    (row,) = differences(ce=[0.5] * 5, gce=[0.6, 0.504, 0.496, 0.4, 0.7])
    assert (row.wins, row.ties, row.losses) == (2, 2, 1)
    assert row.difference == pytest.approx(0.04)


def test_each_data_set_has_the_same_weight():
    (row,) = differences("aaab", ce=[0.0] * 4, gce=[0.1, 0.2, 0.3, 0.8])
    assert row.difference == pytest.approx(0.5)


def test_the_reference_is_not_compared_with_itself():
    rows = differences(gce=[0.6, 0.6], ce=[0.5, 0.5], mae=[0.4, 0.4])
    assert [(row.method, row.reference) for row in rows] == [("gce", "ce"), ("mae", "ce")]


def test_with_one_seed_and_one_task_each_the_interval_is_scipys():
    values = np.random.default_rng(0).normal(0.05, 0.02, size=40)
    (row,) = differences(ce=np.zeros(40), gce=values)
    expected = bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=3e-4)


def test_the_interval_is_that_of_a_slow_cluster_bootstrap():
    random = np.random.default_rng(3)
    values = {
        d: {t: random.normal(0.1, 0.1, 4) for t in "xyz"[:n]}
        for d, n in zip("abcd", (1, 3, 2, 2), strict=True)
    }
    (row,) = paired_differences(measured(values), "ce")
    means = []
    for _ in range(4000):
        drawn = []
        for d in random.choice(list("abcd"), 4):
            seeds = random.integers(4, size=4)
            drawn.append(np.mean([own[seeds].mean() for own in values[d].values()]))
        means.append(np.mean(drawn))
    width = row.high - row.low
    assert (row.low, row.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=width / 20)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_tasks_that_are_there_again_do_not_shrink_an_interval(seed, seeds, copies):
    random = np.random.default_rng(seed)
    once = {d: {"x": random.random(seeds), "y": random.random(seeds)} for d in "abc"}
    again = {
        d: {f"{t}{i}": v for t, v in own.items() for i in range(copies)} for d, own in once.items()
    }
    (first,) = paired_differences(measured(once), "ce")
    (second,) = paired_differences(measured(again), "ce")
    assert (second.low, second.high) == pytest.approx((first.low, first.high), abs=1e-9)


def test_seeds_widen_the_interval_where_data_sets_agree():
    apart = {d: {"x": [0.1, 0.5]} for d in "ab"}
    (row,) = paired_differences(measured(apart), "ce")
    assert (row.low, row.high) == (pytest.approx(0.1), pytest.approx(0.5))


def test_the_interval_is_the_same_each_time_and_beside_any_others():
    three = {"ce": [0.5, 0.4, 0.3], "gce": [0.6, 0.7, 0.3], "mae": [0.1, 0.9, 0.2]}
    first = differences(**three)
    assert first == differences(**three)
    del three["gce"]
    assert differences(**three) == first[1:]


def test_equal_differences_have_an_interval_without_width():
    (row,) = differences(ce=[0.5, 0.5], gce=[0.75, 0.75])
    assert (row.low, row.high) == (0.25, 0.25)


def test_many_tasks_on_one_data_set_have_no_interval():
    (row,) = differences("aaa", ce=[0.5] * 3, gce=[0.6, 0.7, 0.8])
    assert (row.wins, row.low, row.high) == (3, None, None)
