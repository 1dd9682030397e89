import csv
import html.parser
import io

import pytest

from optuna_robustloss.report.comparison import comparisons
from optuna_robustloss.report.escape import escape_latex
from optuna_robustloss.report.tables import (
    title,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
)
from report.sample import TASKS, fixed, measured

NASTY = "my_<loss>|50%&co.json"


def table(*parts):
    (comparison,) = comparisons([one for part in parts for one in part])
    return comparison


@pytest.fixture
def small():
    last = fixed({"ce": {"a": [0.5, 0.52]}, "gce": {"a": [0.6, 0.64]}})
    best = fixed({"ce": {"a": [0.7, 0.72]}, "gce": {"a": [0.65, 0.65]}}, pick="best")
    return table(last, best)


def rows(markdown):
    lines = [line.strip("| ").split("|") for line in markdown.strip().splitlines()]
    return [[cell.strip() for cell in line] for line in lines]


def test_cells_say_which_is_the_last_epoch_and_which_the_best_on_validation(small):
    header, _, ce, gce = rows(to_markdown(small))
    assert header == ["method", "a", "average", "average rank"]
    assert ce[1] == "51.0 ± 1.4 (best on validation **71.0 ± 1.4**)"
    assert gce[1] == "**62.0 ± 2.8** (best on validation 65.0 ± 0.0)"
    assert ce[3] == "2.00 (best on validation **1.00**)"


def test_a_cell_with_one_pick_shows_that_one():
    *_, row = rows(to_markdown(table(fixed({"ce": {"a": [0.5]}}))))
    assert row == ["CE", "**50.0**", "**50.0**", "**1.00**"]
    *_, row = rows(to_markdown(table(fixed({"ce": {"a": [0.5]}}, pick="best"))))
    assert row[1] == "(best on validation **50.0**)"


def test_every_format_says_which_settings_the_methods_have():
    (comparison,) = comparisons(measured(), settings="cifar10 everywhere")
    for text in (title(comparison), to_latex(comparison), to_html(comparison)):
        assert "; settings of the methods: cifar10 everywhere" in text
    rows = csv.DictReader(io.StringIO(to_csv([comparison])))
    assert {row["settings"] for row in rows} == {"cifar10 everywhere", ""}  # published figures


def test_missing_cells_and_seeds_show():
    text = to_markdown(
        table(fixed({"ce": {"a": [0.5] * 3, "b": [0.5] * 3}, "gce": {"a": [0.4] * 2}}))
    )
    gce = rows(text)[-1]
    assert gce[1:] == ["40.0 ± 0.0, 2 of 3 seeds", "–", "–", "–"]


def test_published_rows_are_marked_and_have_no_rank():
    lines = rows(to_markdown(table(measured())))
    ce = next(line for line in lines if line[0] == "CE, published")
    assert ce[1:] == ["22.1 ± 0.7", "–", "56.4 ± 0.1", "–", "–"]
    measured_ce = next(line for line in lines if line[0] == "CE")
    assert measured_ce[-1] == "3.00 (best on validation 3.00)"


def test_the_best_is_the_best_of_what_was_measured():
    """The paper prints 85.4 for MAE, more than any accuracy of the sample."""
    lines = {line[0]: line for line in rows(to_markdown(table(measured())))}
    assert "**" in lines[r"ar\_sym80"][1]
    assert "**" not in lines["MAE, published"][1]


def test_latex_has_booktabs_rules_and_is_escaped():
    text = to_latex(table(measured(methods=("ce", NASTY))))
    assert r"\toprule" in text
    assert r"\caption{" in text
    assert r"my\_\textless{}loss\textgreater{}\textbar{}50\%\&co.json" in text
    assert r"mnist/mlp2/symmetric 80 \%" in text
    assert r"\textbf{" in text
    assert "±" not in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {line.count(" & ") for line in body.strip().splitlines()} == {len(TASKS) + 2}


def test_every_special_character_of_latex_is_escaped():
    assert (
        escape_latex(r"a\b{c}~^") == r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}"
    )


def test_html_is_escaped_whole_and_balanced():
    text = to_html(table(measured(methods=("ce", NASTY))))
    assert "my_&lt;loss&gt;|50%&amp;co.json" in text
    assert "<loss>" not in text
    assert "..." not in text  # pandas shortens long cells by default
    opened = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Parser().feed(text)
    assert opened == []


def test_markdown_columns_hold_in_spite_of_bars_in_names():
    text = to_markdown(table(measured(methods=("ce", NASTY))))
    assert r"my\_\<loss\>\|50%\&co.json" in text
    bars = {line.replace(r"\|", "").count("|") for line in text.strip().splitlines()}
    assert bars == {len(TASKS) + 4}


def test_csv_has_picks_in_columns_of_their_own(small):
    ce, gce = csv.DictReader(io.StringIO(to_csv([small])))
    assert (ce["method"], ce["source"], ce["regime"]) == ("ce", "measured", "native")
    assert float(ce["a, last epoch: mean"]) == pytest.approx(51)
    assert float(ce["a, best on validation: mean"]) == pytest.approx(71)
    assert float(gce["a, last epoch: std"]) == pytest.approx(2.828, abs=0.001)
    assert gce["a, last epoch: seeds"] == "2"
    assert (ce["average rank, last epoch"], ce["average rank, best on validation"]) == (
        "2.0",
        "1.0",
    )


def test_csv_of_several_regimes_has_one_header():
    found = comparisons([*measured(), *measured(regime="blind")])
    lines = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert {line["regime"] for line in lines} == {"native", "blind"}
    published = [line for line in lines if line["source"] == "published"]
    assert {line["average rank, last epoch"] for line in published} == {""}
    assert {line["method"] for line in published} >= {"CE", "Taylor Loss (AR)"}
