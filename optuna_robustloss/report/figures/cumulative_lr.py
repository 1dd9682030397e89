"""Draw accuracy against the cumulative learning rate: scale × learning rate × steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from optuna_robustloss.benchmark.runs import RunResult
from optuna_robustloss.report.escape import escape_plotly
from optuna_robustloss.report.figures.style import add_line, look, named
from optuna_robustloss.report.styles import Style, in_order, styles

_RUN = ["method", "scale", "horizon", "schedule"]


def accuracy_against_cumulative_lr(
    results: Sequence[RunResult],
    task: str | None = None,
    *,
    method_styles: Mapping[str, Style] | None = None,
) -> go.Figure:
    """Draw test accuracy against scale × Σ of the learning rates so far, on a log axis.

    Under SGD a loss of scale a at learning rate b equals one of scale 1 at a·b. If accuracy
    depended on this product and the steps only, the lines of a method, one for each scale, horizon
    and schedule, would coincide. The larger marker is the point with the best accuracy on clean
    validation images, over all lines of the method.

    Points are means over seeds. Moments that a training of the line lacks, and lines that lack a
    task, are left out.

    Args:
        results: of any trainings.
        task: label of the task; None is the mean over the tasks with the most lines, at the
            geometric mean of their positions.
        method_styles: colours; by default those of the methods drawn.

    Raises:
        ValueError: there is no training on the task, or no moment that all trainings have.

    """
    tasks = _with_most_lines(results) if task is None else {task}
    points = _points([o for o in results if o.run.task in tasks])
    if points.empty:
        raise ValueError(f"nothing to draw for {task or 'the mean over tasks'}")
    drawn = method_styles or styles(points["method"])
    figure = go.Figure().set_subplots(1, 1)
    for method in in_order(points["method"]):
        mine = points[points["method"] == method]
        x: list[float | None] = []
        y: list[float | None] = []
        conditions: list[tuple[object, ...]] = []
        for run, line in mine.groupby(_RUN[1:]):
            x += [*line["position"], None]  # None ends a line
            y += [*line["test"], None]
            conditions += [(*run[:2], escape_plotly(run[2]))] * (len(line) + 1)
        add_line(
            figure,
            method,
            drawn[method],
            x,
            y,
            hover="scale × Σ lr = %{x:.3g}<br>accuracy %{y:.1f} %<br>scale %{customdata[0]}, "
            "%{customdata[1]} × the epochs, schedule %{customdata[2]}",
            data=conditions,
            mode="lines+markers",
        )
        if mine["clean"].notna().any():
            _mark_stop(figure, method, drawn[method], mine.loc[mine["clean"].idxmax()])
    figure.update_traces(marker_size=4, selector={"mode": "lines+markers"})
    figure.update_xaxes(title_text="scale × Σ of the learning rates of all steps", type="log")
    figure.update_yaxes(title_text="test accuracy, %")
    return look(
        figure,
        f"Accuracy against cumulative learning rate: {task or f'mean over {len(tasks)} tasks'}",
        height=560,
    )


def _with_most_lines(results: Sequence[RunResult]) -> set[str]:
    """Return the tasks on which as many methods, scales and so on were trained as on any."""
    lines: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for o in results:
        lines[o.run.task].add(tuple(getattr(o.run, name) for name in _RUN))
    most = max(map(len, lines.values()), default=0)
    return {task for task, own in lines.items() if len(own) == most}


def _points(results: Sequence[RunResult]) -> pd.DataFrame:
    """One row for each run and moment that all its trainings have; accuracies in percent."""
    # One that diverged stops early.
    steps: dict[tuple[str, float, str], int] = defaultdict(int)
    for o in results:
        for moment in o.curve:
            length = o.run.task, o.run.horizon, o.run.schedule
            steps[length] = max(steps[length], moment.step)
    rows = [
        vars(o.run)
        | {
            "share": round(m.step / steps[o.run.task, o.run.horizon, o.run.schedule], 6),
            "log": np.log(o.run.scale * m.cumulative_lr),
            "test": 100 * m.test,
            "clean": np.nan if m.clean is None else 100 * m.clean,
        }
        for o in results
        for m in o.curve
        if m.step > 0
    ]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    trainings = pd.DataFrame([vars(o.run) for o in results]).groupby([*_RUN, "task"]).size()
    # First over the seeds of a task, then over tasks.
    moments = table.groupby([*_RUN, "task", "share"])[["log", "test", "clean"]]
    of_task = moments.mean()[moments.size().eq(trainings)]
    tasks = of_task.groupby([*_RUN, "share"])
    means = tasks.mean()[tasks.size() == table["task"].nunique()]
    return means.assign(position=np.exp(means["log"])).reset_index()


def _mark_stop(figure: go.Figure, method: str, style: Style, point: pd.Series[float]) -> None:
    figure.add_scatter(
        x=[point["position"]],
        y=[point["test"]],
        mode="markers",
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "size": 13,
            "line": {"color": "white", "width": 2},
        },
        legendgroup=method,
        showlegend=False,
        hovertemplate=f"{named(method)}<br>best on clean validation: {point['clean']:.1f} % there, "
        f"test %{{y:.1f}} %<br>scale × Σ lr = %{{x:.3g}}<extra></extra>",
    )
