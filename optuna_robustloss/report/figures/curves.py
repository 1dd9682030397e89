"""Learning curves: accuracy and memorised labels, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_robustloss.benchmark.runs import RunResult
from optuna_robustloss.report.figures.style import add_line, look
from optuna_robustloss.report.styles import Style, in_order, styles

_PANELS = {
    "test": "test accuracy, %",
    "memorised": "memorised wrong labels, %",
}


def learning_curves(
    results: Sequence[RunResult],
    task: str,
    *,
    method_styles: Mapping[str, Style] | None = None,
) -> go.Figure:
    """Draw test accuracy and memorised wrong labels against epochs, for native trainings.

    A line is the mean over the seeds that have a value at that epoch, a band one standard
    deviation. Diverged trainings end early; the hover text gives the number of seeds left.

    Args:
        results: of any trainings.
        task: label of the task.
        method_styles: colours; by default those of the methods drawn.

    Raises:
        ValueError: there is no native training on the task.

    """
    chosen = [o for o in results if o.run.task == task and o.run.native]
    if not chosen:
        raise ValueError(f"no native training on {task}")
    table = pd.DataFrame(
        [
            {"method": o.run.method, "epoch": m.epoch} | {p: getattr(m, p) for p in _PANELS}
            for o in chosen
            for m in o.curve
        ]
    ).astype({panel: float for panel in _PANELS})
    drawn = method_styles or styles(table["method"])
    shown = [panel for panel in _PANELS if table[panel].notna().any()]
    figure = make_subplots(1, len(shown), subplot_titles=[_PANELS[panel] for panel in shown])
    for column, panel in enumerate(shown, start=1):
        for method in in_order(table["method"]):
            values = 100 * table[table["method"] == method].set_index("epoch")[panel].dropna()
            curve = values.groupby("epoch").agg(["mean", "std", "count"]).fillna({"std": 0.0})
            add_line(
                figure,
                method,
                drawn[method],
                curve.index.tolist(),
                curve["mean"].tolist(),
                std=curve["std"].tolist(),
                place=(1, column),
                legend=column == 1,
                hover="epoch %{x:g}<br>%{y:.1f} ± %{customdata[0]:.1f} %<br>%{customdata[1]} seeds",
                data=curve[["std", "count"]].to_numpy().tolist(),
            )
        figure.update_yaxes(title_text=_PANELS[panel], range=[0, 100], col=column)
    figure.update_xaxes(title_text="epoch")
    return look(figure, f"Learning curves: {task}", height=480)
