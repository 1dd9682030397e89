import dataclasses

import pytest

from optuna_robustloss.report.comparison import Conditions, comparisons
from report.sample import TASKS, fixed, measured


def only(rows, **options):
    (comparison,) = comparisons(rows, **options)
    return comparison


def test_each_set_of_conditions_has_a_table_of_its_own():
    longer = [dataclasses.replace(one, horizon=4.0, schedule="cosine") for one in measured()]
    found = comparisons([*measured(), *longer, *measured(regime="clean 1000")])
    assert [one.conditions.label for one in found] == [
        "native",
        "native, 4 × the epochs, cosine learning rate",
        "clean 1000",
    ]


def test_summaries_are_over_seeds():
    comparison = only(fixed({"ce": {"a": [0.2, 0.4]}, "gce": {"a": [0.5]}}))
    two, one = (comparison.summaries[method, "a", "last"] for method in ("ce", "gce"))
    assert (two.mean, two.std, two.seeds) == (pytest.approx(0.3), pytest.approx(0.02**0.5), 2)
    assert (one.mean, one.std, one.seeds) == (0.5, None, 1)


def test_picks_are_ranked_apart():
    rows = [
        *fixed({"ce": {"a": [0.1]}, "gce": {"a": [0.2]}, "sce": {"a": [0.3]}}),
        *fixed({"ce": {"a": [0.9]}, "gce": {"a": [0.8]}, "sce": {"a": [0.7]}}, pick="best"),
    ]
    standings = only(rows).standings
    assert standings["last"].ranking.methods == ("sce", "gce", "ce")
    assert standings["best"].ranking.methods == ("ce", "gce", "sce")


def test_missing_trainings_are_counted():
    rows = [one for one in measured() if (one.method, one.task, one.seed) != ("gce", TASKS[0], 1)]
    comparison = only(rows)
    assert (comparison.missing, comparison.trainings) == (1, 27)
    assert comparison.standings["last"].ranking.tasks == 2
    assert any("gce has 2 of 3 seeds" in note for note in comparison.notes)


def test_a_method_that_is_only_begun_is_not_ranked():
    begun = fixed({"elr": {TASKS[0]: [0.9] * 3}})
    standing = only([*measured(picks=("last",)), *begun]).standings["last"]
    assert set(standing.ranking.methods) == {"ce", "gce", "ar_sym80"}
    assert standing.ranking.tasks == 3


def test_a_method_that_uses_clean_labels_is_shown_and_not_ranked():
    stopped = [dataclasses.replace(one, method="ce-stopped-clean") for one in measured(("ce",))]
    comparison = only([*measured(picks=("last",)), *[one for one in stopped if one.pick == "last"]])
    assert set(comparison.standings["last"].ranking.methods) == {"ce", "gce", "ar_sym80"}
    assert comparison.summaries["ce-stopped-clean", TASKS[0], "last"].seeds == 3
    note = "last epoch: not ranked, as clean labels choose the epoch: ce-stopped-clean"
    assert note in comparison.notes


def test_nothing_to_rank_is_a_note():
    comparison = only(
        fixed({"ce": {"a": [0.1] * 2, "b": [0.1]}, "gce": {"a": [0.1], "b": [0.1] * 2}})
    )
    assert comparison.standings == {}
    assert any("no ranks" in note for note in comparison.notes)
    assert comparison.summaries["ce", "a", "last"].mean == 0.1


def test_a_reference_that_was_not_measured_is_a_note():
    comparison = only(measured(methods=("gce", "sce", "mae")))
    assert comparison.standings["last"].differences == ()
    assert "last epoch: no differences to ce: it is not ranked, or alone" in comparison.notes


def test_published_numbers_are_beside_and_not_ranked():
    comparison = only(measured())
    assert {entry.task for entry in comparison.published} == {TASKS[0], TASKS[2]}
    assert set(comparison.standings["last"].ranking.methods) == {"ce", "gce", "ar_sym80"}


def test_conditions_sort_and_hash():
    assert sorted({Conditions("native"), Conditions("blind")})[0].regime == "blind"
