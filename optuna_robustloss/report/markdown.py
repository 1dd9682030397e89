"""A benchmark as one Markdown text: tables, ranks, differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from optuna_robustloss.report.comparison import PICKS, Comparison, Standing
from optuna_robustloss.report.escape import escape_markdown
from optuna_robustloss.report.paired_differences import LEVEL, TIE, PairedDifference
from optuna_robustloss.report.styles import display_name
from optuna_robustloss.report.tables import (
    NOTHING,
    source,
    title,
    to_markdown,
)


def markdown(compared: Sequence[Comparison], facts: Mapping[str, str]) -> str:
    """Return the text.

    Args:
        compared: a section for each.
        facts: name → text, as a list at the top.

    """
    lines = ["# Benchmark", ""]
    lines += [f"- {escape_markdown(f'{name}: {text}')}" for name, text in facts.items()]
    for comparison in compared:
        lines += ["", f"## {escape_markdown(title(comparison))}", "", *_section(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def _section(comparison: Comparison) -> Iterator[str]:
    if comparison.missing:
        yield f"Missing: {comparison.missing} of {comparison.trainings} trainings of this table."
        yield ""
    yield to_markdown(comparison)
    if said := source(comparison):
        yield f"{escape_markdown(said)} Not ranked."
        yield ""
    for pick, standing in comparison.standings.items():
        yield f"### Ranks, {PICKS[pick]}"
        yield ""
        yield from _ranks(standing)
    yield from (f"- {escape_markdown(note)}" for note in comparison.notes)


def _ranks(standing: Standing) -> Iterator[str]:
    ranking = standing.ranking
    against = {row.method: row for row in standing.differences}
    columns = ["method", "average rank"]
    if standing.differences:
        other = escape_markdown(display_name(standing.differences[0].reference))
        columns.append(f"wins / ties / losses against {other}")
        columns.append(f"difference to {other} over data sets, points [{100 * LEVEL:g} % interval]")
    rows = [
        [escape_markdown(display_name(method)), f"{rank:.2f}", *_against(against.get(method))]
        for method, rank in zip(ranking.methods, ranking.ranks, strict=True)
    ]
    table = pd.DataFrame([row[: len(columns)] for row in rows], columns=columns)
    yield table.to_markdown(index=False, disable_numparse=True)
    yield ""
    tasks, datasets = ranking.tasks, ranking.datasets
    size = f"{tasks} task{'s' * (tasks > 1)} on {datasets} data set{'s' * (datasets > 1)}."
    if ranking.friedman and ranking.critical_difference:
        test = ranking.friedman
        yield (
            f"{size} Friedman χ² = {test.chi2:.2f}, p = {test.p:.2g}; "
            f"Iman–Davenport F = {test.f:.2f}, p = {test.p_f:.2g}. Nemenyi's critical difference "
            f"at α = {ranking.alpha:g} is {ranking.critical_difference:.2f}."
        )
        groups = "; ".join(", ".join(map(display_name, clique)) for clique in ranking.cliques)
        yield f"No significant difference within: {escape_markdown(groups or 'no group')}."
    else:
        yield size
    yield "Ranks and differences: means over the tasks of a data set, then over data sets."
    if standing.differences:
        yield f"Wins, ties (less than {100 * TIE:g} points) and losses count tasks."
        yield (
            "Intervals: percentile bootstrap over data sets, then seeds, not corrected for the "
            "number of methods and too narrow for few data sets."
            if datasets > 1
            else "No intervals: there is one data set, and tasks on the same images are not "
            "independent."
        )
    yield ""


def _against(row: PairedDifference | None) -> tuple[str, str]:
    if row is None:
        return NOTHING, NOTHING
    difference = f"{100 * row.difference:+.1f}"
    if row.low is not None and row.high is not None:
        difference += f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    return f"{row.wins} / {row.ties} / {row.losses}", difference.replace("-", "−")
