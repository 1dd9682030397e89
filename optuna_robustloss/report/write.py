"""The report of a benchmark: tables, ranks and figures in a folder."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from torch import nn

from optuna_robustloss.benchmark.runs import Measured, Run, RunResult
from optuna_robustloss.report.comparison import PICKS, Comparison, Conditions, comparisons
from optuna_robustloss.report.escape import escape_html, to_csv_text
from optuna_robustloss.report.figures.cumulative_lr import accuracy_against_cumulative_lr
from optuna_robustloss.report.figures.curves import learning_curves
from optuna_robustloss.report.figures.losses import loss_shapes
from optuna_robustloss.report.figures.noise import accuracy_against_noise
from optuna_robustloss.report.figures.ranks import critical_difference_diagram
from optuna_robustloss.report.html import write_html, write_text_atomically
from optuna_robustloss.report.markdown import markdown
from optuna_robustloss.report.styles import Style, styles
from optuna_robustloss.report.tables import to_csv, to_html, to_latex

_LONGEST_NAME = 120
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Benchmark</title><style>
body {{ font-family: sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3em .8em; text-align: left; border-bottom: 1px solid #ccc; }}
</style></head><body>
<h1>Benchmark</h1>
{facts}
{tables}</body></html>
"""


def write_report(
    out: Path,
    results: Sequence[RunResult],
    measured: Sequence[Measured],
    *,
    reference: str = "ce",
    settings: str = "",
    facts: Mapping[str, str] | None = None,
    runs: Sequence[Run] = (),
    rates: Mapping[str, tuple[str, float]] | None = None,
    criteria: Mapping[str, nn.Module] | None = None,
    num_classes: int = 2,
) -> None:
    """Write ``table.md``, ``.csv``, ``.tex``, ``.html``, ``ranks.csv``, ``measured.csv``, figures.

    Files of an earlier report are replaced as a whole. Trainings that are missing are counted.

    Args:
        out: folder; made if it does not exist.
        results: for learning curves and accuracy against cumulative learning rate.
        measured: for tables and ranks.
        reference: method that the others are compared with.
        settings: of the methods, for the titles.
        facts: name → text, printed above the tables: sizes, versions, hardware.
        runs: all trainings of the benchmark.
        rates: task → (group, noise rate), for ``accuracy_against_noise``.
        criteria: method → criterion, for ``loss_shapes``.
        num_classes: of the criteria.

    Raises:
        ValueError: nothing was measured.

    """
    if not measured:
        raise ValueError("nothing was measured: there is nothing to report")
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    compared = comparisons(measured, reference, settings)
    told = {**(facts or {}), **_state(results, runs), **_blind_state(measured)}
    write_text_atomically(out / "measured.csv", to_csv_text([vars(one) for one in measured]))
    write_text_atomically(out / "table.csv", to_csv(compared))
    write_text_atomically(
        out / "ranks.csv", to_csv_text([row for one in compared for row in _rank_rows(one)])
    )
    write_text_atomically(out / "table.md", markdown(compared, told))
    write_text_atomically(out / "table.tex", "\n".join(map(to_latex, compared)))
    listed = "".join(f"<li>{escape_html(f'{k}: {v}')}</li>" for k, v in told.items())
    tables = "\n".join(map(to_html, compared))
    page = _PAGE.format(facts=f"<ul>{listed}</ul>" if listed else "", tables=tables)
    write_text_atomically(out / "table.html", page)
    drawn = [one.method for one in measured] + [o.run.method for o in results]
    looks = styles([*drawn, *(criteria or ())])
    written: set[str] = set()
    for name, figure in _figures(results, measured, compared, rates or {}, looks):
        path = slug(name) if slug(name) not in written else f"{slug(name)}-{_digest(name)}"
        written.add(path)
        write_html(figure, figures / f"{path}.html")
    if criteria:
        write_html(loss_shapes(criteria, num_classes, looks), figures / "loss-shapes.html")


def _state(results: Sequence[RunResult], runs: Sequence[Run]) -> dict[str, str]:
    """Say how many trainings are missing and how many diverged, where there are any."""
    state = {}
    if left := set(runs) - {result.run for result in results}:
        state["missing"] = f"{len(left)} of {len(set(runs))} trainings"
    if diverged := sum(result.diverged for result in results):
        state["diverged"] = f"{diverged} of {len(results)} trainings"
    return state


def _blind_state(measured: Sequence[Measured]) -> dict[str, str]:
    """Say why there is no blind regime, where scales are chosen and a single data set is there."""
    datasets = {one.dataset for one in measured}
    if len(datasets) > 1 or all(one.regime == "native" for one in measured):
        return {}
    return {
        "blind": f"empty: its scales are chosen on other data sets, and all tasks here are on "
        f"{', '.join(datasets)}"
    }


def _rank_rows(comparison: Comparison) -> Iterator[dict[str, object]]:
    """Yield one row for each pick and ranked method; accuracies and differences in percent."""
    for pick, standing in comparison.standings.items():
        ranking = standing.ranking
        test = vars(ranking.friedman) if ranking.friedman else {}
        against = {row.method: row for row in standing.differences}
        for method, rank in zip(ranking.methods, ranking.ranks, strict=True):
            row: dict[str, object] = {
                **vars(comparison.conditions),
                "pick": pick,
                "method": method,
                "average_rank": rank,
                "average_accuracy": 100 * standing.averages[method],
                "tasks": ranking.tasks,
                "datasets": ranking.datasets,
            }
            for field in ("chi2", "p", "f", "p_f"):
                row[f"friedman_{field}"] = test.get(field)
            row |= {"alpha": ranking.alpha, "critical_difference": ranking.critical_difference}
            difference = against.get(method)
            for field in ("reference", "wins", "ties", "losses"):
                row[field] = getattr(difference, field, None)
            for field in ("difference", "low", "high"):
                value = getattr(difference, field, None)
                row[field] = None if value is None else 100 * value
            yield row


def _figures(
    results: Sequence[RunResult],
    measured: Sequence[Measured],
    compared: Sequence[Comparison],
    rates: Mapping[str, tuple[str, float]],
    looks: Mapping[str, Style],
) -> Iterator[tuple[str, go.Figure]]:
    """Yield names of files and figures."""
    for comparison in compared:
        conditions, label = comparison.conditions, comparison.conditions.label
        for pick, standing in comparison.standings.items():
            name = f"{label}, {PICKS[pick]}"
            figure = critical_difference_diagram(standing.ranking, f"Average ranks: {name}", looks)
            yield f"ranks {name}", figure
        mine = [one for one in measured if Conditions.of(one) == conditions]
        for pick, text in PICKS.items():
            if any(one.pick == pick and one.task in rates for one in mine):
                heading = f"Accuracy against noise: {label}"
                yield (
                    f"noise {label} {text}",
                    accuracy_against_noise(
                        mine, rates, pick=pick, title=heading, method_styles=looks
                    ),
                )
    tasks = tuple(dict.fromkeys(o.run.task for o in results if o.curve))
    for task in tasks:
        if any(o.run.native and o.run.task == task and o.curve for o in results):
            yield f"curves {task}", learning_curves(results, task, method_styles=looks)
    means = (None,) if len(tasks) > 1 else ()
    for drawn in (*tasks, *means):
        try:
            figure = accuracy_against_cumulative_lr(results, drawn, method_styles=looks)
        except ValueError:
            continue  # no method has all seeds, or tasks, yet
        yield f"cumulative lr {drawn or 'mean'}", figure


def slug(text: str) -> str:
    """Return a name of a file, in ASCII and not too long.

    >>> slug("curves mnist/mlp2/symmetric 80 %")
    'curves-mnist-mlp2-symmetric-80'

    """
    name = re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-").lower()
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{_digest(text)}"


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='backslashreplace')):08x}"
