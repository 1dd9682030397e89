"""Shapes of losses: Figure 1 of the paper."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from optuna_robustloss.report.figures.style import add_line, look
from optuna_robustloss.report.styles import Style, in_order, styles

_EDGE = 1e-3  # cross-entropy is infinite at 0
_POINTS = 199


def loss_curve(criterion: nn.Module, num_classes: int, labelled: bool) -> tuple[Tensor, Tensor]:
    """Return ŷ and the loss there, (199,) each, ŷ from .001 to .999.

    ŷ is the probability of one class; all the others, C − 1, have the same. That one class is the
    label (y = 1), or it is not and the label is among the others (y = 0).

    Args:
        criterion: called with logits (1, C) and a label (1,): one image at a time, so that it may
            average over the batch or not.
        num_classes: C.
        labelled: whether y = 1.

    Raises:
        ValueError: the criterion's value is not finite.

    """
    probability = torch.linspace(_EDGE, 1 - _EDGE, _POINTS)
    others = ((1 - probability) / (num_classes - 1))[:, None].expand(-1, num_classes - 1)
    logits = torch.cat([probability[:, None], others], dim=1).log()
    label = torch.tensor([0 if labelled else 1])
    with torch.no_grad():
        loss = torch.stack([criterion(one[None], label).sum() for one in logits])
    if not loss.isfinite().all():
        raise ValueError(f"the loss {criterion} is not finite for ŷ in [{_EDGE}, {1 - _EDGE}]")
    return probability, loss


def loss_shapes(
    criteria: Mapping[str, nn.Module],
    num_classes: int = 2,
    method_styles: Mapping[str, Style] | None = None,
) -> go.Figure:
    """Draw each loss against the predicted probability ŷ of a class, for y = 1 and for y = 0.

    Each is brought to the range [0, 1] over both panels, so that shapes can be compared, not sizes.
    See ``loss_curve`` for what the other classes get; for two classes the panels are mirror images.

    Args:
        criteria: method → criterion for ``num_classes`` classes.
        num_classes: C.
        method_styles: colours; by default those of the methods given.

    """
    drawn = method_styles or styles(criteria)
    figure = make_subplots(
        1, 2, shared_yaxes=True, subplot_titles=("y = 1: the label", "y = 0: another class")
    )
    for method in in_order(criteria):
        panels = [loss_curve(criteria[method], num_classes, labelled) for labelled in (True, False)]
        both = torch.cat([loss for _, loss in panels])
        span = float(both.max() - both.min()) or 1.0
        for column, (probability, loss) in enumerate(panels, start=1):
            add_line(
                figure,
                method,
                drawn[method],
                probability.tolist(),
                ((loss - both.min()) / span).tolist(),
                place=(1, column),
                legend=column == 1,
                hover="ŷ = %{x:.3f}<br>loss %{y:.3f} of its range<br>%{customdata[0]:.4g} as it is",
                data=loss[:, None].tolist(),
            )
    figure.update_xaxes(title_text="predicted probability ŷ", range=[0, 1])
    figure.update_yaxes(title_text="loss, share of its range", col=1)
    return look(figure, f"Shapes of losses, {num_classes} classes", height=480)
