"""The learned loss: the function ``taylor_loss`` and the module ``TaylorLoss``.

Eq. 4 and Eq. 5 of Gao, Gouk, Hospedales, "Searching for Robustness: Loss Learning for Noisy
Classification Tasks".
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from ..base import (
    ClassificationLoss,
    Reduction,
    TaskOptions,
    check_factors,
    check_reduction,
    cross_entropy,
    expectation,
    reduce_samples,
)
from ..closed_form import ClosedForm, TaylorForm
from ..layout import check_dtypes, class_last, full_precision
from .autograd import hard_taylor
from .gradient import soft_taylor, softmax
from .polynomial import (
    Theta,
    Variable,
    as_theta,
    check_variable,
    expand,
    format_polynomial,
    hard_polynomials,
)
from .range import loss_range

#: Range of a loss whose ``eta`` is not given. MAE and MSE as commonly written have this range.
DEFAULT_ETA = 2.0
#: Buffers of ``TaylorLoss``: Eq. 4 and 5 multiplied out, and what is left of it for hard labels.
_EXACT = ("coefficients", "p0", "label_delta")


def _per_sample(logits: Tensor, target: Tensor, coefficients: Tensor, variable: Variable) -> Tensor:
    """Losses ``(...)`` for classes-last ``logits (..., C)``, in float32 or wider."""
    if coefficients.ndim > 2:  # one set per candidate, against (K, N, C)
        coefficients = coefficients[:, None, None]
    if target.is_floating_point():
        return soft_taylor(softmax(full_precision(logits)), target, coefficients, variable)
    p0, label_delta = hard_polynomials(coefficients)
    if label_delta.ndim > 1:
        label_delta = label_delta.squeeze(1)
    return hard_taylor(full_precision(logits), target, p0, label_delta, log=variable == "log")


def taylor_loss(
    logits: Tensor,
    target: Tensor,
    theta: Theta,
    *,
    reduction: Reduction = "mean",
    variable: Variable = "probability",
) -> Tensor:
    """Return the Taylor loss of Eq. 4 of logits, without the normalisation of Eq. 5.

    The softmax is inside, and the loss is the mean over the classes.

    Differentiable in ``logits`` (analytic gradient through the softmax for class indices) and in
    ``theta``; twice, too. Half-precision logits are computed in float32.

    Args:
        logits: ``(..., C)`` or ``(N, C, d1, ...)`` as in ``F.cross_entropy``.
        target: class indices, shaped as ``logits`` without its classes; or class probabilities
            (soft labels, mixup), shaped as ``logits``, for the full polynomial in both variables.
        theta: ``(12,)``; or ``(K, 12)`` for a population with ``logits (K, N, C)`` and a target
            for all, ``(N,)`` or ``(N, C)``, or one each, ``(K, N)`` or ``(K, N, C)``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, over samples; a population keeps its K.
        variable: what the polynomial is written in: the ``"probability"`` p (the paper), or
            ``"log"``: log(1 + p/.01) / log(101).

    Raises:
        ValueError: shapes that do not fit, an unknown name.
        IndexError: a label outside 0 … C−1 (on CUDA: a device-side assertion, as PyTorch's own).

    >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
    >>> mae = [0.5, 0.5, 0, 0, 0, 0, -2, 0, 0, 0, 0, 0]
    >>> loss = taylor_loss(logits, torch.tensor([0]), mae)
    >>> bool((3 * loss + 1.5 - 2 * (1 - logits.softmax(-1)[0, 0])).abs() < 1e-6)
    True

    """
    check_reduction(reduction)
    check_variable(variable)
    coefficients = expand(as_theta(theta).to(logits.device))
    if coefficients.ndim == 2:
        rows, target = class_last(logits, target)
        return reduce_samples(_per_sample(rows, target, coefficients, variable), target, reduction)
    target = _expand_population(logits, check_dtypes(logits, target), coefficients)
    losses = _per_sample(logits, target, coefficients, variable)
    if reduction == "none":
        return losses
    return losses.sum(1) if reduction == "sum" else losses.mean(1)


def _expand_population(logits: Tensor, target: Tensor, coefficients: Tensor) -> Tensor:
    """Return a ``target`` for each of K candidates: ``(K, N)``, or ``(K, N, C)`` probabilities.

    Raises:
        ValueError: ``logits`` are not ``(K, N, C)`` for ``coefficients (K, 5, 4)``, or the target
            does not fit.

    """
    population = coefficients.shape[0]
    if coefficients.ndim != 3 or logits.ndim != 3 or logits.shape[0] != population:
        raise ValueError(
            f"theta {tuple(coefficients.shape[:-2])} × 12 needs logits (K, N, C) with the same K, "
            f"got {tuple(logits.shape)}"
        )
    shape = logits.shape if target.is_floating_point() else logits.shape[:2]
    if target.shape not in (shape, shape[1:]):
        raise ValueError(
            f"targets of a population need shape {tuple(shape)} or {tuple(shape[1:])}, "
            f"got {tuple(target.shape)}"
        )
    return target.expand(shape)


class TaylorLoss(ClassificationLoss):
    """A Taylor loss as a drop-in replacement for ``nn.CrossEntropyLoss``.

    The polynomial of Eq. 4 is normalised by Eq. 5 to run from 0 to ``eta`` over all predictions
    and one-hot labels; scale and offset are folded into its coefficients once, here. The input
    and target shapes are those of ``taylor_loss``; computation is in float32 or wider.

    Args:
        theta: ``(12,)`` θ0 … θ11, finite.
        num_classes: C from 2 to 1 000 000; Eq. 5 depends on it.
        eta: range of the normalised loss, > 0. For SGD, eta × learning rate is what counts.
            ``None`` leaves Eq. 4 as it is.
        cross_entropy_weight: α ≥ 0 of a term α · cross-entropy, outside Eq. 5.
        variable: what the polynomial is written in, ``"probability"`` or ``"log"``.
        task: ``reduction``, ``ignore_index`` and ``weight`` as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError: any of the above is out of its domain, or the loss is constant, so that
            Eq. 5 would divide by zero.

    >>> from .polynomial import MAE_THETA
    >>> criterion = TaylorLoss(MAE_THETA, num_classes=10, eta=2)
    >>> loss = criterion(torch.zeros(4, 10), torch.tensor([0, 1, 2, 3]))
    >>> round(loss.item(), 4)  # Σ|ŷ − y| at ŷ = 1/10
    1.8

    """

    coefficients: Tensor
    p0: Tensor
    label_delta: Tensor

    def __init__(
        self,
        theta: Theta,
        num_classes: int,
        *,
        eta: float | None = DEFAULT_ETA,
        cross_entropy_weight: float = 0.0,
        variable: Variable = "probability",
        **task: Unpack[TaskOptions],
    ) -> None:
        super().__init__(**task)
        weight = self.weight
        check_variable(variable)
        if eta is not None and not 0 < eta <= torch.finfo(torch.float32).max:
            raise ValueError(f"eta must be a positive number or None, got {eta}")
        check_factors(cross_entropy_weight=cross_entropy_weight)
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(f"weight must be ({num_classes},), got {tuple(weight.shape)}")
        values = as_theta(theta).detach().double().cpu()
        f_min, f_max = loss_range(values, num_classes, variable=variable)
        coefficients = expand(values)
        if eta is not None:
            if f_max - f_min <= 1e-9 * float(coefficients.abs().max()) / num_classes:
                raise ValueError(
                    f"theta {values.tolist()} is a constant loss for {num_classes} classes "
                    f"(f_min = f_max = {f_min:.6g}), which Eq. 5 cannot normalise; its gradient "
                    "is zero, so nothing would be learned"
                )
            coefficients *= eta / (f_max - f_min)
            coefficients[0, 0] -= eta * f_min / (f_max - f_min)
        if not coefficients.abs().max() <= torch.finfo(torch.float32).max:
            raise ValueError(
                f"theta {values.tolist()} with eta = {eta} has coefficients beyond float32"
            )
        dtype = torch.get_default_dtype()
        if isinstance(theta, Tensor) and theta.dtype == torch.float64:
            dtype = torch.float64
        exact = (coefficients, *hard_polynomials(coefficients))
        for name, tensor in zip(_EXACT, exact, strict=True):
            self.register_buffer(name, tensor.to(dtype).contiguous(), persistent=False)
        self.theta: tuple[float, ...] = tuple(values.tolist())
        self.num_classes = num_classes
        self.eta = eta
        self.cross_entropy_weight = float(cross_entropy_weight)
        self.variable: Variable = variable
        self.provenance: dict[str, Any] = {}  # set by ``load_loss``

    def _apply(self, fn: Any, recurse: bool = True) -> TaylorLoss:
        """Move the module, but never round its coefficients to half precision."""
        exact = [getattr(self, name) for name in _EXACT]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in zip(_EXACT, exact, strict=True):
            now: Tensor = getattr(self, name)
            if now.dtype.itemsize < 4:
                setattr(self, name, before.to(now.device))
        return self

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Eq. 4 and Eq. 5, plus α · cross-entropy.

        Raises:
            ValueError: the logits have another number of classes than the loss.

        """
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the logits have {logits.shape[-1]} classes, the loss was built for "
                f"{self.num_classes}"
            )
        log_probability = softmax(logits, log=True) if self.cross_entropy_weight else None
        if target.is_floating_point():
            probability = softmax(logits) if log_probability is None else log_probability.exp()
            losses = soft_taylor(probability, target, self.coefficients, self.variable)
        else:
            log = self.variable == "log"
            losses = hard_taylor(logits, target, self.p0, self.label_delta, log=log)
        if log_probability is not None:
            losses = losses - self.cross_entropy_weight * expectation(log_probability, target)
        return losses

    def linear_part(self, logits: Tensor, target: Tensor) -> Tensor | None:
        """α · cross-entropy."""
        alpha = self.cross_entropy_weight
        return alpha * cross_entropy(logits, target) if alpha else None

    def closed_form(self) -> ClosedForm | None:
        """Return the gradient in closed form; None with class weights or another reduction."""
        plain = self.weight is None and self.reduction == "mean" and self.ignore_index < 0
        if type(self) is not TaylorLoss or not plain:  # a subclass may compute anything
            return None
        form = TaylorForm(
            self.coefficients.double().cpu(),
            self.num_classes,
            self.variable,
            self.cross_entropy_weight,
        )
        return ClosedForm(form, form)

    def extra_repr(self) -> str:
        """Print the arguments and the two normalised polynomials."""
        symbol = "p" if self.variable == "probability" else "q"
        p0, label_delta = hard_polynomials(self.coefficients.double().cpu())
        p1 = p0.clone()
        p1[:4] += label_delta
        lines = [
            f"num_classes={self.num_classes}, eta={self.eta}, reduction={self.reduction!r}",
            f"y=0: {format_polynomial(p0.tolist(), symbol)}",
            f"y=1: {format_polynomial(p1.tolist(), symbol)}",
        ]
        if self.variable == "log":
            lines.append("q = log(1 + p/.01) / log(101)")
        if self.cross_entropy_weight:
            lines.append(f"+ {self.cross_entropy_weight:.4g} · cross-entropy")
        return "\n".join(lines)
