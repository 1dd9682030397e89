"""Losses whose gradient at the logits is known in closed form, described by numbers.

A training loop calls ``closed_form(loss)`` and computes the gradients of many such losses at once
by ``stack_gradients``, without autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .adaptive import AdaptiveRule
from .taylor.gradient import TaylorGradient
from .taylor.polynomial import Variable, hard_polynomials


@dataclass(frozen=True, eq=False)
class TaylorForm:
    """``scale`` × (Taylor polynomial + α · cross-entropy), the mean over the samples.

    Args:
        coefficients: ``(5, 4)`` of v^a·y^b, float64 on the CPU: Eq. 4 and Eq. 5 multiplied out.
        num_classes: C, which the coefficients depend on.
        variable: what the polynomial is written in.
        cross_entropy_weight: α ≥ 0.
        scale: factor of the whole loss.

    """

    coefficients: Tensor
    num_classes: int
    variable: Variable
    cross_entropy_weight: float
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """The closed form of a loss; for a loss with phases, of both and when they change.

    Args:
        early: the loss at first.
        late: the loss in the end; for a loss without phases the same object.
        switch: share of the steps after which the change begins; None for a loss without phases.
        width: share of the steps that the change takes.
        rule: of a loss with an adaptive switch, in place of ``switch`` and ``width``.

    """

    early: TaylorForm
    late: TaylorForm
    switch: float | None = None
    width: float = 0.0
    rule: AdaptiveRule | None = None

    def late_share(self, progress: float) -> float:
        """Return the weight of ``late`` when the share ``progress`` of the steps is done."""
        return 0.0 if self.switch is None else late_share(progress, self.switch, self.width)

    def scaled(self, factor: float) -> ClosedForm:
        """Return the closed form of ``factor`` × this loss."""
        early, late = (replace(form, scale=factor * form.scale) for form in (self.early, self.late))
        return replace(self, early=early, late=late)


def closed_form(loss: nn.Module) -> ClosedForm | None:
    """Return the closed form of a loss, or None where the loss has none.

    A loss has one if its method ``closed_form()`` returns one: ``TaylorLoss`` with
    ``reduction="mean"``, no class weights and a negative ``ignore_index``, and ``PhasedLoss`` (in
    training mode) and ``ScaledLoss`` of such losses.

    >>> closed_form(nn.CrossEntropyLoss()) is None
    True

    """
    method = getattr(loss, "closed_form", None)
    form: ClosedForm | None = None if method is None else method()
    return form


def check_change(switch: float, width: float) -> None:
    """Raise ``ValueError`` unless both are shares of the steps, and so is their sum."""
    if not 0 <= switch <= 1:
        raise ValueError(f"switch is a share of the steps from 0 to 1, or 'adaptive', got {switch}")
    if not 0 <= width <= 1:
        raise ValueError(f"width is a share of the steps from 0 to 1, got {width}")
    if switch + width > 1 + 1e-9:
        raise ValueError(
            f"the change from {switch} to {switch + width} of the steps would not be over by "
            "the end: choose switch + width ≤ 1"
        )


def late_share(progress: float, switch: float, width: float) -> float:
    """Return the weight of the late loss, from 0 to 1, at the share ``progress`` of the steps.

    Args:
        progress: share of the steps that are done.
        switch: share of the steps after which the weight rises above 0.
        width: share of the steps in which it grows linearly to 1; 0 is a change at once.

    >>> [late_share(step / 100, switch=0.08, width=0.04) for step in (8, 9, 11, 12)]
    [0.0, 0.25, 0.75, 1.0]

    """
    since = round(progress - switch, 12)  # so that 12/100 is the end of .08 + .04
    if width == 0:
        return float(since >= 0)
    return min(max(round(since / width, 9), 0.0), 1.0)


def late_shares(progress: Tensor, switch: float, width: float) -> Tensor:
    """Return ``late_share`` of each number in a tensor, for compiled graphs."""
    since = (progress - switch).round(decimals=12)
    if width == 0:
        return (since >= 0).to(since)
    return (since / width).round(decimals=9).clamp(0, 1)


def stack_gradients(
    forms: Sequence[TaylorForm], device: torch.device | str = "cpu"
) -> TaylorGradient:
    """Return the gradients of K losses of one variable as one function of ``(K, N, C)`` logits.

    Raises:
        ValueError: the losses are written in different variables.

    """
    variables = sorted({form.variable for form in forms})
    if len(variables) != 1:
        raise ValueError(f"the losses of one gradient need one variable, got {variables}")
    scales = torch.tensor([form.scale for form in forms], dtype=torch.float64)
    coefficients = torch.stack([form.coefficients for form in forms])
    p0, label_delta = hard_polynomials(coefficients * scales.view(-1, 1, 1))
    alpha = scales * torch.tensor([form.cross_entropy_weight for form in forms]).double()
    return TaylorGradient(
        p0.float().to(device),
        label_delta.float().to(device),
        log=variables == ["log"],
        cross_entropy_weight=alpha.float().to(device) if bool(alpha.any()) else None,
    )
