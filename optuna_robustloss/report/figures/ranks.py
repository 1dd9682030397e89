"""The critical-difference diagram: Demšar (JMLR 7, 2006), Figure 1a."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from optuna_robustloss.report.figures.style import look, named
from optuna_robustloss.report.statistics import Ranking
from optuna_robustloss.report.styles import Style, styles

# Heights, in lines of names; the axis is at 0, its numbers and title above it.
_LINE = 24  # pixels
_BAR_STEP = 0.4
_DIFFERENCE = 2.6
_TOP = 3.6


def critical_difference_diagram(
    ranking: Ranking, title: str, method_styles: Mapping[str, Style] | None = None
) -> go.Figure:
    """Draw average ranks on an axis, best to the right; bars join methods that do not differ.

    Without a critical difference there are no bars.

    Args:
        ranking: to draw.
        title: what was ranked; the number of tasks is added.
        method_styles: colours; by default those of the ranking's methods.

    """
    drawn = method_styles or styles(ranking.methods)
    count = len(ranking.methods)
    figure = go.Figure()
    names_from = -_BAR_STEP * (len(ranking.cliques) + 1) - 0.5
    right = (count + 1) // 2
    for place, (method, rank) in enumerate(zip(ranking.methods, ranking.ranks, strict=True)):
        on_right = place < right
        line = place if on_right else count - 1 - place
        side = 1 if on_right else count
        height = names_from - line
        figure.add_scatter(
            x=[rank, rank, side],
            y=[0, height, height],
            mode="lines",
            line={"color": drawn[method].colour, "dash": drawn[method].dash, "width": 2},
            name=named(method),
            showlegend=False,
            hovertemplate=f"{named(method)}<br>average rank {rank:.2f}<extra></extra>",
        )
        figure.add_annotation(
            x=side,
            y=height,
            text=f"{named(method)} ({rank:.2f})",
            xanchor="left" if on_right else "right",
            xshift=6 if on_right else -6,
            showarrow=False,
        )
    for number, clique in enumerate(ranking.cliques, start=1):
        ends = [ranking.rank_of(clique[0]) - 0.03, ranking.rank_of(clique[-1]) + 0.03]
        _bar(
            figure, ends, -_BAR_STEP * number, 5, f"no difference: {', '.join(map(named, clique))}"
        )
    level = f"α = {ranking.alpha:g}"
    if ranking.critical_difference is not None:
        width = ranking.critical_difference
        _bar(
            figure,
            [1, 1 + width],
            _DIFFERENCE,
            3,
            f"critical difference {width:.2f} (Nemenyi, {level})",
        )
        text = f"CD = {width:.2f}"
        figure.add_annotation(x=1 + width / 2, y=_DIFFERENCE, yshift=12, showarrow=False, text=text)
    lowest = names_from - right
    far = max(count, 1 + (ranking.critical_difference or 0))
    figure.update_xaxes(
        title_text=f"average rank over {ranking.datasets} data sets (1 is best)",
        range=[far + 0.1, 0.9],
        dtick=1,
        side="top",
        anchor="free",
        position=-lowest / (_TOP - lowest),
        showgrid=False,
        zeroline=False,
        showline=True,
        linecolor="#444444",
        ticks="inside",
    )
    figure.update_yaxes(visible=False, range=[lowest, _TOP])
    margin = {"l": 230, "r": 230, "t": 60, "b": 20}
    return look(figure, f"{title}, {level}", height=80 + _LINE * (_TOP - lowest), margin=margin)


def _bar(figure: go.Figure, ends: list[float], y: float, width: int, hover: str) -> None:
    figure.add_scatter(
        x=ends,
        y=[y, y],
        mode="lines",
        line={"color": "#444444", "width": width},
        showlegend=False,
        hovertemplate=f"{hover}<extra></extra>",
    )
