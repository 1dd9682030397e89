"""The result table of a comparison as Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from optuna_robustloss.benchmark.runs import Pick
from optuna_robustloss.report.comparison import PICKS, Comparison, Summary
from optuna_robustloss.report.escape import (
    escape_html,
    escape_latex,
    escape_markdown,
    to_csv_text,
)
from optuna_robustloss.report.published import SOURCE, Published
from optuna_robustloss.report.styles import display_name

NOTHING = "–"


@dataclass(frozen=True)
class Markup:
    """How a format writes text as it is, and bold."""

    escape: Callable[[str], str]
    bold: str
    """With ``{}`` in the place of the text, which is escaped."""


MARKDOWN = Markup(escape_markdown, "**{}**")
LATEX = Markup(escape_latex, r"\textbf{{{}}}")
HTML = Markup(escape_html, "<strong>{}</strong>")


def title(comparison: Comparison) -> str:
    """Return what the table shows; not escaped."""
    return (
        f"Test accuracy, %, mean ± standard deviation over {comparison.seeds} seeds: "
        f"{comparison.conditions.label}"
        + (" (scales chosen on the other data sets)" * (comparison.conditions.regime == "blind"))
        + (f"; settings of the methods: {comparison.settings}" if comparison.settings else "")
    )


def source(comparison: Comparison) -> str | None:
    """Return where the published rows come from; None without such rows."""
    tables = sorted({entry.table for entry in comparison.published})
    if not tables:
        return None
    where = ", ".join(map(str, tables))
    return f"Published: {SOURCE}, Table {where}: all training images, accuracy at convergence."


def to_markdown(comparison: Comparison) -> str:
    """Return the table, without its title."""
    return str(_frame(comparison, MARKDOWN).to_markdown(index=False, disable_numparse=True)) + "\n"


def to_latex(comparison: Comparison) -> str:
    r"""Return a ``table`` as wide as the text; needs ``\usepackage{booktabs,graphicx}``."""
    caption = escape_latex(" ".join(filter(None, (title(comparison) + ".", source(comparison)))))
    frame = _frame(comparison, LATEX)
    table = str(frame.to_latex(index=False, escape=False, caption=caption))
    return table.replace(
        r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}"
    ).replace(r"\end{tabular}", "\\end{tabular}}")


def to_html(comparison: Comparison) -> str:
    """Return a heading and a ``table`` element."""
    with pd.option_context("display.max_colwidth", None):
        table = _frame(comparison, HTML).to_html(index=False, escape=False, border=0)
    note = source(comparison)
    return f"<h2>{escape_html(title(comparison))}</h2>\n{table}\n" + (
        f"<p>{escape_html(note)}</p>\n" if note else ""
    )


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Return all tables under one header; accuracies in percent, picks in separate columns."""
    rows = [row for comparison in comparisons for row in _csv_rows(comparison)]
    return to_csv_text(rows)


def percent(mean: float, std: float | None = None) -> str:
    """Return an accuracy in percent.

    >>> percent(0.871, 0.0042)
    '87.1 ± 0.4'

    """
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def _frame(comparison: Comparison, markup: Markup) -> pd.DataFrame:
    """One row of texts for each method, then for each published one."""
    rows = [_measured_row(comparison, method, markup) for method in comparison.methods]
    names = dict.fromkeys(entry.method for entry in comparison.published)
    rows += [_published_row(comparison, name, markup) for name in names]
    columns = ["method", *comparison.tasks, "average", "average rank"]
    return pd.DataFrame(rows, columns=[markup.escape(column) for column in columns])


def _measured_row(comparison: Comparison, method: str, markup: Markup) -> list[str]:
    cells = [markup.escape(display_name(method))]
    for task in comparison.tasks:
        texts: dict[Pick, str] = {}
        for pick in PICKS:
            if summary := comparison.summaries.get((method, task, pick)):
                text = markup.escape(_with_seeds(summary, comparison.seeds))
                best = max(
                    other.mean
                    for name in comparison.methods
                    if (other := comparison.summaries.get((name, task, pick)))
                )
                texts[pick] = markup.bold.format(text) if summary.mean == best else text
        cells.append(_both(texts))
    averages: dict[Pick, str] = {}
    ranks: dict[Pick, str] = {}
    for pick, standing in comparison.standings.items():
        if method in standing.averages:
            average, rank = standing.averages[method], standing.ranking.rank_of(method)
            for texts, text, best in (
                (averages, percent(average), average == max(standing.averages.values())),
                (ranks, f"{rank:.2f}", rank == standing.ranking.ranks[0]),
            ):
                texts[pick] = markup.bold.format(text) if best else text
    return [*cells, _both(averages), _both(ranks)]


def _with_seeds(summary: Summary, seeds: int) -> str:
    text = percent(summary.mean, summary.std)
    return text if summary.seeds == seeds else f"{text}, {summary.seeds} of {seeds} seeds"


def _both(texts: dict[Pick, str]) -> str:
    """Last epoch, then best on validation in brackets; each only if there is one."""
    best = f"({PICKS['best']} {texts['best']})" if "best" in texts else ""
    return " ".join(filter(None, (texts.get("last"), best))) or NOTHING


def _published_row(comparison: Comparison, name: str, markup: Markup) -> list[str]:
    entries = {entry.task: entry for entry in comparison.published if entry.method == name}
    cells = [
        percent(entries[task].mean, entries[task].std) if task in entries else NOTHING
        for task in comparison.tasks
    ]
    return [markup.escape(cell) for cell in (f"{name}, published", *cells, NOTHING, NOTHING)]


def _csv_rows(comparison: Comparison) -> list[dict[str, object]]:
    conditions = vars(comparison.conditions)
    rows = []
    for method in comparison.methods:
        row: dict[str, object] = {**conditions, "method": method, "source": "measured"}
        row |= {"settings": comparison.settings} if comparison.settings else {}
        for task in comparison.tasks:
            for pick, label in PICKS.items():
                summary = comparison.summaries.get((method, task, pick))
                row |= _csv_cell(f"{task}, {label}", summary)
                row[f"{task}, {label}: seeds"] = summary.seeds if summary else 0
        for pick, label in PICKS.items():
            standing = comparison.standings.get(pick)
            average = rank = None
            if standing and method in standing.averages:
                average, rank = standing.averages[method], standing.ranking.rank_of(method)
            row[f"average, {label}"] = None if average is None else 100 * average
            row[f"average rank, {label}"] = rank
        rows.append(row)
    for name in dict.fromkeys(entry.method for entry in comparison.published):
        mine = [entry for entry in comparison.published if entry.method == name]
        row = {**conditions, "method": name, "source": "published"}
        for entry in mine:
            row |= _csv_cell(f"{entry.task}, {PICKS['last']}", entry)
        rows.append(row)
    return rows


def _csv_cell(column: str, value: Summary | Published | None) -> dict[str, object]:
    std = value.std if value else None
    return {
        f"{column}: mean": 100 * value.mean if value else None,
        f"{column}: std": 100 * std if std is not None else None,
    }
