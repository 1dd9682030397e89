"""What all figures share: their look, and lines with bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from optuna_robustloss.report.escape import escape_plotly
from optuna_robustloss.report.styles import Style, display_name


def named(method: str) -> str:
    """Return a method's name for Plotly."""
    return escape_plotly(display_name(method))


def look(figure: go.Figure, title: str, **layout: Any) -> go.Figure:
    """Give a figure the common look, and return it."""
    return figure.update_layout(
        template="plotly_white",
        title_text=escape_plotly(title),
        font_size=13,
        legend_title_text="method",
        legend_tracegroupgap=2,
        **layout,
    )


def add_line(
    figure: go.Figure,
    method: str,
    style: Style,
    x: Sequence[float | None],
    mean: Sequence[float | None],
    *,
    std: Sequence[float] | None = None,
    place: tuple[int, int] = (1, 1),
    legend: bool = True,
    hover: str = "",
    data: Sequence[Sequence[object]] | None = None,
    mode: str = "lines",
) -> None:
    """Add a method's curve and, around it, a band of one standard deviation.

    Args:
        figure: with subplots.
        method: short name.
        style: of the method.
        x: positions; None ends a line, and another begins.
        mean: values there, likewise.
        std: half of the band's height; only for a single line.
        place: row and column of the subplot, from 1.
        legend: whether this curve stands for the method in the legend.
        hover: Plotly template of the text behind the method's name.
        data: further values at each point, for ``hover``.
        mode: Plotly's: lines, markers or both.

    """
    row, column = place
    if std is not None and any(std):
        high = [m + s for m, s in zip(mean, std, strict=True) if m is not None]
        low = [m - s for m, s in zip(mean, std, strict=True) if m is not None]
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=style.colour,
            opacity=0.15,
            line_width=0,
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=method,
            row=row,
            col=column,
        )
    figure.add_scatter(
        x=list(x),
        y=list(mean),
        mode=mode,
        name=named(method),
        legendgroup=method,
        showlegend=legend,
        line={"color": style.colour, "dash": style.dash, "width": 2},
        marker={"color": style.colour, "symbol": style.symbol, "size": 7},
        customdata=data,
        hovertemplate=f"{named(method)}<br>{hover}<extra></extra>",
        row=row,
        col=column,
    )
