"""Accuracy against the noise level: Figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_robustloss.benchmark.runs import Measured, Pick
from optuna_robustloss.report.comparison import PICKS
from optuna_robustloss.report.escape import escape_plotly
from optuna_robustloss.report.figures.style import add_line, look
from optuna_robustloss.report.styles import Style, in_order, styles

_COLUMNS = 3  # of panels


def accuracy_against_noise(
    measured: Sequence[Measured],
    rates: Mapping[str, tuple[str, float]],
    *,
    pick: Pick = "last",
    title: str = "Accuracy against noise",
    method_styles: Mapping[str, Style] | None = None,
) -> go.Figure:
    """Draw mean and standard deviation over seeds, a panel for each group of tasks.

    Args:
        measured: of one regime, horizon and schedule.
        rates: task → (group, noise rate in [0, 1]), such as ``("mnist/mlp2, symmetric", 0.8)``;
            other tasks are not drawn.
        pick: which accuracies.
        title: the pick is added.
        method_styles: colours; by default those of the methods measured.

    Raises:
        ValueError: nothing is left to draw.

    """
    chosen = [one for one in measured if one.pick == pick and one.task in rates]
    if not chosen:
        raise ValueError(f"no accuracy of the pick {pick!r} on a task with a noise rate")
    drawn = method_styles or styles(one.method for one in chosen)
    table = pd.DataFrame(
        {
            "method": [one.method for one in chosen],
            "group": [rates[one.task][0] for one in chosen],
            "rate": [100 * rates[one.task][1] for one in chosen],
            "accuracy": [100 * one.accuracy for one in chosen],
        }
    )
    groups = list(dict.fromkeys(table["group"]))
    summary = table.groupby(["method", "group", "rate"])["accuracy"].agg(["mean", "std", "count"])
    rows = ceil(len(groups) / _COLUMNS)
    titles = [escape_plotly(group) for group in groups]
    figure = make_subplots(rows, min(_COLUMNS, len(groups)), subplot_titles=titles)
    in_legend: set[str] = set()
    for method in in_order(table["method"]):
        for place, group in enumerate(groups):
            if (method, group) not in summary.index:
                continue
            curve = summary.loc[method, group].fillna({"std": 0.0})
            add_line(
                figure,
                method,
                drawn[method],
                curve.index.tolist(),
                curve["mean"].tolist(),
                std=curve["std"].tolist(),
                place=(1 + place // _COLUMNS, 1 + place % _COLUMNS),
                legend=method not in in_legend,
                hover="noise %{x:g} %<br>accuracy %{y:.1f} ± %{customdata[0]:.1f} %"
                "<br>%{customdata[1]} seeds",
                data=curve[["std", "count"]].to_numpy().tolist(),
                mode="lines+markers",
            )
            in_legend.add(method)
    figure.update_xaxes(title_text="wrong labels, %")
    figure.update_yaxes(title_text="test accuracy, %", col=1)
    return look(figure, f"{title}, {PICKS[pick]}", height=120 + 360 * rows)
