"""The slow reference: Eq. 4 term by term as printed, and points of the domain of Eq. 5."""

import functools
import math

import torch
from hypothesis import strategies as st
from torch import Tensor

#: θ of moderate size, as a search draws them.
thetas = st.lists(st.floats(-3, 3, width=16, allow_subnormal=False), min_size=12, max_size=12)


def random_theta(seed: int, population: int | None = None) -> Tensor:
    """θ ``(12,)`` or ``(population, 12)`` in float64, standard normal."""
    generator = torch.Generator().manual_seed(seed)
    shape = (12,) if population is None else (population, 12)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_labels(seed: int, num_classes: int, *shape: int) -> Tensor:
    return torch.randint(num_classes, shape, generator=torch.Generator().manual_seed(seed))


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    return torch.eye(num_classes, dtype=torch.float64)[target]


def written_in(p: Tensor, variable: str) -> Tensor:
    return p if variable == "probability" else torch.log(1 + p / 0.01) / math.log(101)


def eq4_terms(v: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """Eq. 4 for one class, elementwise."""
    t = theta
    u, w = v - t[0], y - t[1]
    return (
        t[2] * u
        + 1 / 2 * t[3] * u**2
        + 1 / 6 * t[4] * u**3
        + 1 / 24 * t[5] * u**4
        + t[6] * u * w
        + 1 / 2 * t[7] * u * w**2
        + 1 / 2 * t[8] * u**2 * w
        + 1 / 6 * t[9] * u**3 * w
        + 1 / 6 * t[10] * u * w**3
        + 1 / 4 * t[11] * u**2 * w**2
    )


def eq4(p: Tensor, y: Tensor, theta: Tensor, variable: str = "probability") -> Tensor:
    """Class mean of Eq. 4 for probabilities and (soft) labels, both ``(..., C)``."""
    return eq4_terms(written_in(p, variable), y, theta).mean(-1)


def eq4_of_logits(
    logits: Tensor, target: Tensor, theta: Tensor, variable: str = "probability"
) -> Tensor:
    """Per-sample losses of ``logits (..., C)``; indices become one-hot labels."""
    p = logits.softmax(-1)
    y = target if target.is_floating_point() else one_hot(target, logits.shape[-1]).to(p.dtype)
    return eq4(p, y, theta, variable)


@functools.cache
def few_valued_points(num_classes: int) -> Tensor:
    """Predictions ``(P, C)`` for label 0: ŷ_0 free, the others take at most two values.

    The spacing is quadratic towards zero, where the log variable is steep.
    """
    others = num_classes - 1
    sizes = [size for size in (1, 2, 3, 4, 6, 9, 13, 18, 25, others // 2) if 0 < size < others]
    points = []
    for labelled in torch.linspace(0, 1, 33, dtype=torch.float64) ** 2:
        for size in sorted({*sizes, others}):
            share = torch.linspace(0, 1, 17, dtype=torch.float64) ** 2 if size < others else [1.0]
            for s in share:
                point = torch.zeros(num_classes, dtype=torch.float64)
                point[0] = labelled
                point[1 : 1 + size] = (1 - labelled) * s / size
                if size < others:
                    point[1 + size :] = (1 - labelled) * (1 - s) / (others - size)
                points.append(point)
    return torch.stack(points)
