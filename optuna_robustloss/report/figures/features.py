"""t-SNE of what the last layer sees: Figure 2 of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from sklearn.manifold import TSNE
from torch import Tensor, nn

from optuna_robustloss.report.figures.style import look, named

# Tol's muted palette, safe for the colour-blind; from the tenth class on with another marker.
_COLOURS = (
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#999933"),
    *("#DDCC77", "#CC6677", "#882255", "#AA4499"),
)
_SYMBOLS = ("circle", "x", "square", "diamond", "triangle-up", "cross")
_BATCH = 256


def penultimate(model: nn.Module, images: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the inputs (N, F) of the network's last linear layer, on the CPU.

    Args:
        model: its last ``nn.Linear``, in the order of definition, gives the logits; it is
            evaluated in ``eval`` mode and left in the mode it was in.
        images: (N, ch, H, W), or batches of them; moved to the device of the weights.

    Raises:
        ValueError: the network has no linear layer.

    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear layer")
    features: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(inputs[0].detach().flatten(1).float().cpu())

    was_training = model.training
    handle = layers[-1].register_forward_pre_hook(keep)
    try:
        model.eval()
        with torch.no_grad():
            for batch in torch.split(images, _BATCH) if isinstance(images, Tensor) else images:
                model(batch.to(layers[-1].weight.device))
    finally:
        handle.remove()
        model.train(was_training)
    return torch.cat(features)


def feature_maps(
    features: Mapping[str, Tensor],
    labels: Tensor,
    *,
    title: str = "Penultimate features, t-SNE",
) -> go.Figure:
    """Draw each method's features in two dimensions, coloured by true class.

    Axes of t-SNE have no unit, and distances between far clusters mean nothing.

    Args:
        features: method → (N, F) of the same N images; about 2 000 are enough.
        labels: (N,) true classes.
        title: what the networks were trained on.

    Raises:
        ValueError: features and labels differ in number, or there are fewer than 4 images.

    """
    count = len(labels)
    for method, values in features.items():
        if len(values) != count or count < 4:
            raise ValueError(
                f"features of {method}: {len(values)} images and {count} labels; as many of one as "
                "of the other are needed, 4 or more"
            )
    figure = make_subplots(1, len(features), subplot_titles=[named(method) for method in features])
    for column, values in enumerate(features.values(), start=1):
        tsne = TSNE(perplexity=min(30.0, (count - 1) / 3), init="pca", random_state=0)
        points = tsne.fit_transform(values.numpy())
        for label in sorted(set(labels.tolist())):
            mine = (labels == label).numpy()
            name = str(label)
            figure.add_scatter(
                x=points[mine, 0],
                y=points[mine, 1],
                mode="markers",
                marker={
                    "color": _COLOURS[label % len(_COLOURS)],
                    "symbol": _SYMBOLS[label // len(_COLOURS) % len(_SYMBOLS)],
                    "size": 5,
                },
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate=f"true class {name}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(showticklabels=False, title_text="first dimension")
    figure.update_yaxes(showticklabels=False)
    figure.update_yaxes(title_text="second dimension", col=1)
    return look(figure, title, height=480).update_layout(legend_title_text="true class")
