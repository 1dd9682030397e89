"""The smallest and largest value a Taylor loss takes, which Eq. 5 normalises by.

Uniform random points of the simplex miss most of the range, the more the more classes there are,
because the extremes of a separable function lie at corners, edges
and points with few distinct values. Here the range is found by dynamic programming instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .polynomial import (
    LOG_EPSILON,
    Theta,
    Variable,
    as_theta,
    check_variable,
    expand,
    hard_polynomials,
)

#: Most classes of a Taylor loss.
MAX_CLASSES = 1_000_000
_ROWS = 512  # rows of the (min, +) table held in memory at a time


def _evaluate(coefficients: Tensor, v: Tensor) -> Tensor:
    """Horner's scheme: ``coefficients (k+1,)`` ascending, ``v`` of any shape."""
    value = torch.zeros_like(v)
    for c in coefficients.flip(0):
        value = value * v + c
    return value


def _written_in(probability: Tensor, variable: Variable) -> Tensor:
    if variable == "probability":
        return probability
    return torch.log1p(probability / LOG_EPSILON) / math.log1p(1 / LOG_EPSILON)


def _min_plus(a: Tensor, b: Tensor) -> Tensor:
    """(min, +) convolution: out[j] = min over i ≤ j of a[i] + b[j − i]; all ``(M+1,)``."""
    m = len(a) - 1
    padded = torch.cat([b.flip(0), b.new_full((m,), torch.inf)])
    table = padded.unfold(0, m + 1, 1)  # row r, column i: b[m − r − i]
    reverse = [(a + table[r : r + _ROWS]).amin(1) for r in range(0, m + 1, _ROWS)]
    return torch.cat(reverse).flip(0)


def _min_of_sum(values: Tensor, count: int) -> Tensor:
    """Least Σ g(x_i) of ``count`` terms by total mass; ``values`` is g on the mass grid."""
    result: Tensor | None = None
    power = values
    while True:
        if count & 1:
            result = power if result is None else _min_plus(result, power)
        count >>= 1
        if count == 0:
            assert result is not None
            return result
        power = _min_plus(power, power)


def loss_range(
    theta: Theta, num_classes: int, *, variable: Variable = "probability"
) -> tuple[float, float]:
    """f_min and f_max of Eq. 5: the range of the class-mean loss over all predictions.

    The domain is Eq. 5's: ŷ any point of the simplex, y one-hot. With the probability of the
    labelled class fixed, the other C − 1 probabilities share the rest, so the least sum
    Σ p0(ŷ_i) is a (min, +) power of one function of mass, by repeated squaring on a grid of
    1/1024 (1/4096 beyond 1 000 classes). Grid points are real predictions, so the range is never
    overestimated; it falls short by far less than 1 %.

    Args:
        theta: ``(12,)``, finite.
        num_classes: C from 2 to 1 000 000.
        variable: what the polynomial is written in.

    Returns:
        ``(f_min, f_max)``.

    Raises:
        ValueError: ``theta`` is not 12 finite numbers, or ``num_classes`` is out of range.

    >>> f_min, f_max = loss_range([0.5, 0.5, 0, 0, 0, 0, -2, 0, 0, 0, 0, 0], 10)  # MAE
    >>> round(f_max - f_min, 6)  # (1/C) of Σ|ŷ − y|, which reaches 2
    0.2

    """
    check_variable(variable)
    values = as_theta(theta).detach().double().cpu()
    if values.ndim != 1:
        raise ValueError(f"loss_range takes one theta (12,), got shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"theta must be finite, got {values.tolist()}")
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(
            f"num_classes must be at least 2, got {num_classes}"
            if num_classes < 2
            else f"num_classes must be at most {MAX_CLASSES}, got {num_classes}"
        )
    p0, label_delta = hard_polynomials(expand(values))
    cells = 16384 if num_classes == 2 else 1024 if num_classes <= 1000 else 4096
    v = _written_in(torch.linspace(0, 1, cells + 1, dtype=torch.float64), variable)
    other = _evaluate(p0, v)
    labelled = other + _evaluate(label_delta, v)
    f_min = (labelled + _min_of_sum(other, num_classes - 1).flip(0)).min()
    f_max = (labelled - _min_of_sum(-other, num_classes - 1).flip(0)).max()
    return float(f_min) / num_classes, float(f_max) / num_classes
