"""Against the example of Demšar (2006) and against scikit-posthocs."""

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare

from optuna_robustloss.report.statistics import (
    critical_difference,
    iman_davenport,
    mean_scores,
    methods_with_most,
    rank,
)
from report import sample
from report.sample import METHODS, TASKS, fixed, measured

# Demšar, Table 6: AUC of C4.5 as it is, with m, with cf, with both. The ranks printed for "voting"
# tell the last two apart, which print alike: .0001 is added.
C45 = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def scores(means, methods=None, datasets=None):
    """Scores of (N, k) means."""
    return sample.scores(methods or [f"m{i}" for i in range(means.shape[1])], means.T, datasets)


@pytest.fixture
def c45():
    return rank(scores(C45, ("c4.5", "m", "cf", "m+cf")))


def test_average_ranks_of_demsars_example(c45):
    assert c45.methods == ("m+cf", "m", "cf", "c4.5")
    assert np.round(c45.ranks, 3).tolist() == [1.964, 2.000, 2.893, 3.143]


def test_friedman_of_demsars_example(c45):
    """He prints χ² = 9.28, not corrected for ties, and F = 3.69 from it."""
    tied = 3 * (2**3 - 2) + (4**3 - 4)  # three pairs and one task where all four tie
    uncorrected = c45.friedman.chi2 * (1 - tied / (14 * (4**3 - 4)))
    assert uncorrected == pytest.approx(9.28, abs=0.005)
    assert iman_davenport(uncorrected, 4, 14)[0] == pytest.approx(3.69, abs=0.005)
    assert c45.friedman.p < 0.0258  # that of 9.28


def test_critical_difference_of_demsars_example(c45):
    assert c45.critical_difference == pytest.approx(1.25, abs=0.005)
    assert rank(scores(C45), alpha=0.1).critical_difference == pytest.approx(1.12, abs=0.005)


def test_quantiles_of_demsars_table_5a():
    for alpha, row in [
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ]:
        for k, q in enumerate(row, start=2):
            n = k * (k + 1) / 6  # CD = q
            assert critical_difference(k, n, alpha) == pytest.approx(q, abs=0.0011)


@pytest.mark.parametrize("seed", range(5))
def test_methods_differ_where_scikit_posthocs_says_so(seed):
    random = np.random.default_rng(seed)
    means = random.normal(size=(15, 6)) + np.linspace(0, 2, 6)
    ranking = rank(scores(means))
    p = scikit_posthocs.posthoc_nemenyi_friedman(means).to_numpy()
    differ = 0
    for i in range(6):
        for j in range(i):
            apart = abs(ranking.rank_of(f"m{i}") - ranking.rank_of(f"m{j}"))
            assert (apart > ranking.critical_difference) == (p[i, j] < 0.05)
            together = any({f"m{i}", f"m{j}"} <= set(clique) for clique in ranking.cliques)
            assert together == (p[i, j] >= 0.05)
            differ += p[i, j] < 0.05
    assert 0 < differ < 15


def test_no_clique_is_part_of_another():
    means = np.random.default_rng(0).normal(size=(20, 8)) + np.linspace(0, 3, 8)
    cliques = [set(clique) for clique in rank(scores(means)).cliques]
    assert len(cliques) > 1
    assert not any(a < b for a in cliques for b in cliques)


def test_higher_accuracy_has_the_lower_rank_and_ties_share():
    ranking = rank(scores(np.array([[0.9, 0.5, 0.5], [0.9, 0.5, 0.5 + 1e-16]])))
    assert ranking.rank_of("m0") == 1
    assert ranking.rank_of("m1") == ranking.rank_of("m2") == 2.5


@pytest.mark.parametrize(
    ("shape", "reason"), [((6, 2), "there are 6 and 2"), ((5, 4), "there are 5 and 4")]
)
def test_too_few_for_p_values_is_a_note(shape, reason):
    ranking = rank(scores(np.random.default_rng(0).normal(size=shape)))
    assert ranking.friedman is None
    assert ranking.critical_difference is None
    assert reason in ranking.notes[0]
    assert len(ranking.ranks) == shape[1]


def test_methods_that_all_tie_are_a_note():
    ranking = rank(scores(np.ones((6, 3))))
    assert ranking.friedman is None
    assert ranking.ranks == (2, 2, 2)
    assert "tie" in ranking.notes[0]


def test_the_same_order_everywhere_is_an_infinite_f():
    friedman = rank(scores(np.tile([0.1, 0.2, 0.3], (6, 1)))).friedman
    assert friedman.chi2 == pytest.approx(12)
    assert (friedman.f, friedman.p_f) == (np.inf, 0)


# --- Tasks on the same images ---


def test_p_values_are_those_of_scipy_over_data_sets():
    random = np.random.default_rng(1)
    means = random.random((18, 4))
    datasets = [f"d{i % 7}" for i in range(18)]
    found = rank(scores(means, datasets=datasets))
    of_dataset = pd.DataFrame(means).groupby(datasets).mean()
    expected = friedmanchisquare(*of_dataset.to_numpy().T)
    assert (found.friedman.chi2, found.friedman.p) == pytest.approx(tuple(expected))
    assert (found.tasks, found.datasets) == (18, 7)
    assert found.critical_difference == critical_difference(4, 7)
    ranks = of_dataset.rank(axis=1, ascending=False).mean()
    assert [found.rank_of(f"m{i}") for i in range(4)] == pytest.approx(list(ranks))


def test_twelve_tasks_on_two_data_sets_have_no_p_value():
    found = rank(scores(C45[:12], datasets=["mnist"] * 8 + ["kmnist"] * 4))
    assert (found.friedman, found.critical_difference, found.cliques) == (None, None, ())
    assert "tasks on the same images are not independent" in found.notes[0]
    assert "they need 6 data sets and 3 methods; there are 2 and 4" in found.notes[0]


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_tasks_that_are_there_several_times_change_no_rank_and_no_p_value(seed, times):
    means = np.random.default_rng(seed).random((7, 4))
    once = rank(scores(means, datasets=list("abcdefg")))
    again = rank(
        scores(np.repeat(means, [times, *[1] * 6], axis=0), datasets=["a"] * times + list("bcdefg"))
    )
    assert again.ranks == once.ranks
    assert again.friedman == once.friedman


# --- From measured accuracies ---


def test_means_are_over_seeds():
    table = {"ce": {"a": [0.1, 0.3], "b": [0.5, 0.5]}, "gce": {"a": [0.4, 0.6], "b": [0.0, 1.0]}}
    found = mean_scores(fixed(table))
    assert (found.methods, found.tasks, found.notes) == (("ce", "gce"), ("a", "b"), ())
    np.testing.assert_allclose(found.means, [[0.2, 0.5], [0.5, 0.5]])


def test_a_task_without_all_seeds_is_left_out_with_a_note():
    table = {"ce": {"b": [0.5] * 3, "a": [0.1] * 2}, "gce": {"b": [0.5] * 2, "a": [0.1] * 2}}
    found = mean_scores(fixed(table))
    assert found.tasks == ("a",)
    assert found.notes == ("left out of the ranks: b, where gce has 2 of 3 seeds",)


def test_a_method_that_is_not_chosen_leaves_the_tasks_alone():
    table = {"ce": {"a": [0.1], "b": [0.1]}, "gce": {"a": [0.1], "b": [0.1]}, "elr": {"a": [0.2]}}
    assert mean_scores(fixed(table), ["ce", "gce"]).tasks == ("a", "b")
    assert mean_scores(fixed(table)).tasks == ("a",)
    assert methods_with_most(fixed(table), share=0.6) == ("ce", "gce")


def test_no_complete_task_is_an_error_that_says_what_is_missing():
    with pytest.raises(ValueError, match=r"no task has all .* ce, gce: .*a, where gce has 0"):
        mean_scores(fixed({"ce": {"a": [0.1]}, "gce": {"b": [0.1]}}))


def test_the_order_of_methods_and_tasks_is_kept():
    found = mean_scores(measured(picks=("last",)))
    assert (found.methods, found.tasks) == (METHODS, TASKS)
