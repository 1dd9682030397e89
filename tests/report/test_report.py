"""The folder that a benchmark's report is written to."""

import csv

import pytest
from torch import nn

from optuna_robustloss.benchmark.runs import Run
from optuna_robustloss.losses import GCELoss
from optuna_robustloss.report import html
from optuna_robustloss.report import write as benchmark
from optuna_robustloss.report.write import write_report
from report.sample import METHODS, TASKS, measured, result, results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "report"
    write_report(
        out,
        results(),
        [*measured(), *measured(regime="clean 1000", picks=("best",))],
        facts={"test images": "10 000", "network_size": "<small>"},
        rates={TASKS[0]: ("mnist/mlp2", 0.8), TASKS[1]: ("mnist/mlp2", 0.4)},
        criteria={"ce": nn.CrossEntropyLoss(), "gce": GCELoss()},
    )
    return out


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there_and_nothing_else(folder):
    tables = {f"table.{ending}" for ending in ("md", "csv", "tex", "html")}
    assert {p.name for p in folder.iterdir()} == tables | {"ranks.csv", "measured.csv", "figures"}
    slugs = ("cifar10-vgg11-asymmetric-40", "mnist-mlp2-symmetric-40", "mnist-mlp2-symmetric-80")
    assert sorted(p.name for p in (folder / "figures").iterdir()) == sorted(
        [
            *(f"curves-{slug}.html" for slug in slugs),
            *(f"cumulative-lr-{slug}.html" for slug in (*slugs, "mean")),
            "loss-shapes.html",
            *("noise-clean-1000-best-on-validation.html", "noise-native-best-on-validation.html"),
            "noise-native-last-epoch.html",
            "plotly.min.js",
            *("ranks-clean-1000-best-on-validation.html", "ranks-native-best-on-validation.html"),
            "ranks-native-last-epoch.html",
        ]
    )


def test_pages_take_plotly_from_beside_them(folder):
    page = (folder / "figures" / "loss-shapes.html").read_text(encoding="utf-8")
    assert 'src="plotly.min.js"' in page
    assert len(page) < 200_000


def test_the_markdown_says_what_was_compared(folder):
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "- test images: 10 000" in text
    assert r"\<small\>" in text
    assert "over 3 seeds: native" in text
    assert "over 3 seeds: clean 1000" in text
    assert "3 tasks on 2 data sets." in text
    assert "Friedman" not in text
    assert "no p-values and no critical difference" in text
    assert "they need 6 data sets and 3 methods; there are 2 and 3" in text
    assert "| 3 / 0 / 0 " in text
    assert "Gao, Gouk and Hospedales" in text
    assert "Missing" not in text


def test_ranks_csv_has_a_row_for_each_pick_and_method(folder):
    rows = read(folder / "ranks.csv")
    assert len(rows) == 3 * 3
    row = next(r for r in rows if (r["pick"], r["method"]) == ("last", "gce"))
    assert (row["average_rank"], row["tasks"], row["reference"]) == ("2.0", "3", "ce")
    assert (row["wins"], row["ties"], row["losses"]) == ("3.0", "0.0", "0.0")
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert float(row["difference"]) == pytest.approx(10, abs=2)
    assert (row["datasets"], row["friedman_chi2"]) == ("2", "")


def test_measured_csv_has_every_accuracy(folder):
    rows = read(folder / "measured.csv")
    assert len(rows) == 27 * 2 + 27
    assert rows[0]["accuracy"] == str(measured()[0].accuracy)


def test_the_page_of_tables_is_one_document(folder):
    text = (folder / "table.html").read_text(encoding="utf-8")
    assert text.count("<table") == 2
    assert '<meta charset="utf-8">' in text
    assert "&lt;small&gt;" in text


def test_a_partial_benchmark_says_what_is_missing(tmp_path):
    some = [
        one for one in measured() if (one.task, one.seed) != (TASKS[1], 2) or one.method == "ce"
    ]
    trained = [*results()[:5], result(seed=1, steps=(10,), diverged=True)]
    runs = [Run(method, task, seed) for method in METHODS for task in TASKS for seed in range(3)]
    write_report(tmp_path, trained, some, runs=runs)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Missing: 2 of 27 trainings of this table." in text
    assert "- diverged: 1 of 6 trainings" in text
    assert "- missing: 25 of 27 trainings" in text
    assert "2 of 3 seeds" in text
    assert "2 tasks on 2 data sets." in text


@pytest.mark.parametrize("methods", [("ce",), ("gce",), ("ce", "gce")])
def test_few_methods_are_reported_without_a_test(tmp_path, methods):
    write_report(tmp_path, [], measured(methods=methods, tasks=TASKS[:1]))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "1 task on 1 data set." in text
    assert "no p-values" in text
    if len(methods) > 1:
        assert "No intervals: there is one data set" in text


def test_six_data_sets_have_p_values(tmp_path):
    write_report(tmp_path, [], measured(tasks=tuple(f"d{i}/mlp2/clean" for i in range(6))))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "6 tasks on 6 data sets. Friedman χ² = 12.00, p = 0.0025" in text
    assert "critical difference at α = 0.05 is 1.35" in text
    assert r"No significant difference within: ar\_sym80, GCE; GCE, CE." in text
    assert "Intervals: percentile bootstrap over data sets, then seeds" in text


def test_a_single_data_set_has_no_blind_scales_and_one_sentence_says_why(tmp_path):
    chosen = measured(tasks=TASKS[:2], regime="clean 1000")
    write_report(tmp_path, [], [*measured(tasks=TASKS[:2]), *chosen])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "- blind: empty: its scales are chosen on other data sets, and all tasks here" in text
    assert "are on mnist" in text
    write_report(tmp_path, [], [*measured(), *measured(regime="blind")])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "blind: empty" not in text
    assert "over 3 seeds: blind (scales chosen on the other data sets)" in text


def test_the_same_accuracies_give_the_same_files(tmp_path):
    for name in ("one", "two"):
        write_report(tmp_path / name, [], measured())
    for file in ("table.md", "table.csv", "ranks.csv", "table.tex"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_nothing_measured_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(tmp_path / "out", results(), [])
    assert not (tmp_path / "out").exists()


def test_a_crash_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    html.write_text_atomically(path, "old")

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        html.write_text_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_labels_make_names_of_files():
    assert benchmark.slug("curves folder:/a b/c, 5 %") == "curves-folder-a-b-c-5"
