"""Names from users and databases in every output of a report."""

import csv
import errno
import html.parser
import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optuna_robustloss.report.comparison import comparisons
from optuna_robustloss.report.escape import escape_controls, escape_csv, to_csv_text
from optuna_robustloss.report.figures.cumulative_lr import accuracy_against_cumulative_lr
from optuna_robustloss.report.figures.noise import accuracy_against_noise
from optuna_robustloss.report.html import write_text_atomically
from optuna_robustloss.report.markdown import markdown
from optuna_robustloss.report.tables import to_csv, to_html, to_latex
from optuna_robustloss.report.write import slug, write_report
from report.sample import fixed, result

NASTY = "=1|<img src=x>\n%{x} \x1b[31m\u202e$a$ &amp; _*`[a](b)\ud800"
DANGEROUS = ("Cc", "Cf", "Cs", "Zl", "Zp")
NAMES = st.text(
    st.sampled_from("=+-@|<>&%{}$#_^~`*[]()!\\\"'\n\r\t\x00\x1b\x9b\u202e\u2028\ud800\uff1d a1é"),
    min_size=1,
    max_size=12,
)


def check_tables(method, task):
    """No character is obeyed, no cell is torn, no cell is a formula."""
    (comparison,) = comparisons(fixed({"ce": {task: [0.5, 0.4]}, method: {task: [0.6, 0.2]}}))
    texts = {
        "md": markdown([comparison], {method: task}),
        "html": to_html(comparison),
        "tex": to_latex(comparison),
        "csv": to_csv([comparison]),
    }
    for text in texts.values():
        assert not [c for c in text if c != "\n" and unicodedata.category(c) in DANGEROUS]
    table = [line for line in texts["md"].splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table]
    assert set(bars[:4]) == {5}  # method, task, average, average rank
    assert "<" not in re.sub(r"\\.", "", texts["md"])
    tags = set()
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)
    parser.feed(texts["html"])
    assert tags <= {"h2", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    bare = re.sub(r"\\[&%$#_{}]", "", texts["tex"].split(r"\midrule")[1].split(r"\bottomrule")[0])
    assert {line.count("&") for line in bare.strip().splitlines()} == {3}
    for row in csv.reader(io.StringIO(texts["csv"])):
        for cell in row:
            assert not cell.startswith(("=", "+", "-", "@", "\uff1d"))


@example(NASTY, NASTY)
@given(NAMES, NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_names_are_escaped_in_every_table(method, task):
    check_tables(method, task)


@pytest.mark.slow
@given(NAMES, NAMES)
@settings(max_examples=3000, deadline=None)
def test_thousands_of_names_are_escaped_in_every_table(method, task):
    check_tables(method, task)


def test_figures_take_no_markup_and_no_template_from_names():
    rates = {"a": (NASTY, 0.2), "b": (NASTY, 0.4)}
    noise = accuracy_against_noise(fixed({NASTY: {"a": [0.5], "b": [0.6]}}), rates, title=NASTY)
    lines = accuracy_against_cumulative_lr([result(NASTY, NASTY)], NASTY)
    for figure in (noise, lines):
        drawn = json.loads(figure.to_json())
        texts = [
            *[str(trace.get("name", "")) for trace in drawn["data"]],
            *[
                re.sub("%{[xy]:|%{customdata|<br>|<extra></extra>", "", t["hovertemplate"])
                for t in drawn["data"]
                if "hovertemplate" in t
            ],
            *[note["text"] for note in drawn["layout"].get("annotations", [])],
            drawn["layout"]["title"]["text"],
        ]
        assert any("&lt;img" in text for text in texts)
        for text in texts:
            assert "<" not in text
            assert "%{" not in text
            assert escape_controls(text) == text


def test_numbers_stay_numbers_in_csv():
    text = to_csv_text([{"x": -1.5, "n": None, "-t": "-1.5"}, {"x": 2, "n": 3, "-t": " =a"}])
    assert text == "x,n,'-t\n-1.5,,'-1.5\n2.0,3.0,' =a\n"
    assert escape_csv("gce") == "gce"


def test_figures_whose_names_meet_are_both_kept(tmp_path):
    tasks = ("a/b c", "a/b-c", "x" * 300)
    write_report(tmp_path, [result(task=task) for task in tasks], fixed({"ce": {"a": [0.5]}}))
    assert len(list((tmp_path / "figures").glob("curves-*.html"))) == 3
    assert len(slug("é/" * 300)) < 200


def test_an_unwritable_file_is_named_with_the_reason_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*table\.md'"):
        write_text_atomically(tmp_path / "table.md", "text")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match="out"):
        write_report(tmp_path / "out", [], fixed({"ce": {"a": [0.5]}}))
    with pytest.raises(OSError, match="too long"):
        write_text_atomically(tmp_path / ("x" * 300), "text")
