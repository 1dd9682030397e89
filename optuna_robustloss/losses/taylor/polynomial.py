"""The Taylor polynomial behind the loss: its coefficients, its canonical form, its printed form.

Source of Eq. 4 and Eq. 5: Gao, Gouk, Hospedales, "Searching for Robustness: Loss Learning for
Noisy Classification Tasks". A loss is twelve numbers θ: the expansion point (θ0, θ1) and ten
partial derivatives θ2..θ11 of a function of (predicted probability ŷ, label y).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

NUM_THETA = 12

Variable = Literal["probability", "log"]
Theta = Tensor | Sequence[float]

#: Mean absolute error Σ|ŷ_i − y_i| as a member of the family (with ``eta=2``: exactly).
MAE_THETA: tuple[float, ...] = (0.5, 0.5, 0, 0, 0, 0, -2.0, 0, 0, 0, 0, 0)
#: Mean squared error Σ(ŷ_i − y_i)² as a member of the family (with ``eta=2``: exactly).
MSE_THETA: tuple[float, ...] = (0.5, 0.5, 0, 2.0, 0, 0, -2.0, 0, 0, 0, 0, 0)
#: 1 − ŷ_t² as a member of the family (with ``eta=1``: exactly). Its gradient is small
#: where the label's probability is small: it strengthens what the network predicts already.
CONFIRM_THETA: tuple[float, ...] = (0, 0, 0, 0, 0, 0, 0, 0, -4.0, 0, 0, 0)

#: ε of the bounded log variable log(1 + ŷ/ε) / log(1 + 1/ε).
LOG_EPSILON = 0.01

# Orders (a, b) of (ŷ−θ0)^a (y−θ1)^b that θ2..θ11 multiply, each over a!·b! (Eq. 4, as printed).
_ORDERS = ((1, 0), (2, 0), (3, 0), (4, 0), (1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (2, 2))
_BINOMIAL = tuple(tuple(float(math.comb(a, j)) for j in range(5)) for a in range(5))


def check_variable(variable: str) -> None:
    """Raise ``ValueError`` unless ``variable`` is one of the allowed names."""
    if variable not in get_args(Variable):
        raise ValueError(f"variable must be one of {get_args(Variable)}, got {variable!r}")


def as_theta(theta: Theta) -> Tensor:
    """Return ``theta`` as a floating-point tensor ``(..., 12)``.

    Raises:
        ValueError: the last dimension is not 12.

    """
    tensor = theta if isinstance(theta, Tensor) else torch.tensor(theta, dtype=torch.float64)
    if not tensor.is_floating_point():
        tensor = tensor.double()
    if tensor.ndim == 0 or tensor.shape[-1] != NUM_THETA:
        raise ValueError(f"theta must have 12 numbers (θ0 … θ11), got shape {tuple(tensor.shape)}")
    return tensor


def _shift(x0: Tensor, order: int) -> Tensor:
    """Matrix ``(..., order+1, order+1)``: row a holds the coefficients of (x − x0)^a."""
    powers = [torch.ones_like(x0)]
    for _ in range(order):
        powers.append(powers[-1] * -x0)
    zero = torch.zeros_like(x0)
    rows = [
        torch.stack([_BINOMIAL[a][j] * powers[a - j] if j <= a else zero for j in range(order + 1)])
        for a in range(order + 1)
    ]
    return torch.stack(rows).movedim((0, 1), (-2, -1))


def expand(theta: Tensor) -> Tensor:
    """Multiply Eq. 4 out: ``theta (..., 12)`` → ``(..., 5, 4)`` coefficients of v^a·y^b.

    v is the predicted probability or its bounded logarithm (see ``variable``). Differentiable in
    ``theta``. For hard labels y ∈ {0, 1} the loss needs two quartics only: p0 = ``[..., 0]``
    (y = 0) and p1 = the sum over the last dimension (y = 1); see ``hard_polynomials``.
    """
    grid = [[torch.zeros_like(theta[..., 0])] * 4 for _ in range(5)]
    for k, (a, b) in enumerate(_ORDERS, start=2):
        grid[a][b] = theta[..., k] / (math.factorial(a) * math.factorial(b))
    around_point = torch.stack([torch.stack(row) for row in grid]).movedim((0, 1), (-2, -1))
    left, right = _shift(theta[..., 0], 4), _shift(theta[..., 1], 3)
    # Sums of products instead of matmul, which autocast would run in half precision.
    half_way = (left.unsqueeze(-1) * around_point.unsqueeze(-2)).sum(-3)
    return (half_way.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def hard_polynomials(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``coefficients (..., 5, 4)`` into the quartic p0 ``(..., 5)`` and p1 − p0 ``(..., 4)``.

    p1 − p0 is a cubic: Eq. 4 has no term in ŷ⁴·y.
    """
    return coefficients[..., 0], coefficients[..., :4, 1:].sum(-1)


def canonical(theta: Theta, *, variable: Variable = "probability") -> Tensor:
    """Return the gauge-fixed numbers that the gradient on hard labels depends on.

    With hard labels the loss is (1/C)[Σ_i p0(v_i) + (p1−p0)(v_t)], and adding c·ŷ to both
    polynomials changes nothing, because probabilities sum to one. So of the twelve numbers six
    matter: p0 without its linear term (a2, a3, a4) and the cubic p1 − p0 (d1, d2, d3). The sum of
    the log variable is not constant, so there the linear term counts and seven remain.

    Args:
        theta: ``(..., 12)``.
        variable: what the polynomial is written in.

    Returns:
        ``(..., 6)``: a2, a3, a4, d1, d2, d3; for ``variable="log"`` ``(..., 7)``: a1 first.

    Raises:
        ValueError: ``theta`` is not ``(..., 12)``, or the variable's name is unknown.

    >>> [round(x, 3) for x in canonical(MAE_THETA).tolist()]
    [0.0, 0.0, 0.0, -2.0, 0.0, 0.0]

    """
    check_variable(variable)
    p0, label_delta = hard_polynomials(expand(as_theta(theta)))
    first = 2 if variable == "probability" else 1
    return torch.cat([p0[..., first:], label_delta[..., 1:]], dim=-1)


def canonical_names(variable: Variable = "probability") -> tuple[str, ...]:
    """Names of the numbers that ``canonical`` returns, in their order."""
    check_variable(variable)
    names = ("a1", "a2", "a3", "a4", "d1", "d2", "d3")
    return names if variable == "log" else names[1:]


def from_canonical(values: Theta, *, variable: Variable = "probability") -> Tensor:
    """Return a θ ``(..., 12)`` with these canonical numbers: the inverse of ``canonical``.

    The expansion point is (0, 0) and y enters linearly, so that soft labels interpolate between
    the two polynomials.

    Raises:
        ValueError: the last dimension is not ``len(canonical_names(variable))``.

    """
    names = canonical_names(variable)
    c = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    if c.ndim == 0 or c.shape[-1] != len(names):
        raise ValueError(
            f"the canonical form for variable={variable!r} has {len(names)} numbers "
            f"({', '.join(names)}), got shape {tuple(c.shape)}"
        )
    part = dict(zip(names, c.unbind(-1), strict=True))
    zero = torch.zeros_like(part["a2"])
    theta = [zero] * NUM_THETA
    theta[2] = part.get("a1", zero)
    theta[3], theta[4], theta[5] = 2 * part["a2"], 6 * part["a3"], 24 * part["a4"]
    theta[6], theta[8], theta[9] = part["d1"], 2 * part["d2"], 6 * part["d3"]
    return torch.stack(theta, dim=-1)


def equivalent(
    theta_a: Theta,
    theta_b: Theta,
    *,
    variable: Variable = "probability",
    tolerance: float = 1e-6,
) -> bool:
    """Whether two losses are equal up to gauge and a positive scale (so equal after Eq. 5).

    Args:
        theta_a: ``(12,)``.
        theta_b: ``(12,)``.
        variable: what both polynomials are written in.
        tolerance: largest distance of the two canonical forms, each scaled to length one.

    >>> equivalent([0.5, 0.5, 0, 0, 0, 0, -2, 0, 0, 0, 0, 0], [0] * 6 + [-1] + [0] * 5)
    True

    """
    a = canonical(theta_a, variable=variable).double()
    b = canonical(theta_b, variable=variable).double()
    norm_a, norm_b = float(a.norm()), float(b.norm())
    if norm_a <= tolerance or norm_b <= tolerance:
        return norm_a <= tolerance and norm_b <= tolerance
    return float((a / norm_a - b / norm_b).abs().max()) <= tolerance


def format_polynomial(coefficients: Sequence[float], symbol: str) -> str:
    """Print a polynomial from its coefficients in ascending order.

    >>> format_polynomial([1.0, 0.0, -2.5], "p")
    '1 - 2.5 p²'

    """
    powers = ("", f" {symbol}", f" {symbol}²", f" {symbol}³", f" {symbol}⁴")
    largest = max((abs(c) for c in coefficients), default=0.0)
    text = ""
    for c, power in zip(coefficients, powers, strict=False):
        if abs(c) <= 1e-9 * largest:
            continue
        sign = (" - " if c < 0 else " + ") if text else ("-" if c < 0 else "")
        text += f"{sign}{abs(c):.4g}{power}"
    return text or "0"
