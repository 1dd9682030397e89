"""Value and analytic gradient of the Taylor loss, per sample, classes last."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .layout import at_label
from .polynomial import LOG_EPSILON, Variable

_LOG_SCALE = math.log1p(1 / LOG_EPSILON)


def _horner(coefficients: Tensor, v: Tensor) -> Tensor:
    """``coefficients (..., k+1)`` ascending, each broadcast against ``v``."""
    value = coefficients[..., -1]
    for k in range(coefficients.shape[-1] - 2, -1, -1):
        value = torch.addcmul(coefficients[..., k], value, v)
    return value


def _slope(coefficients: Tensor) -> Tensor:
    """Coefficients ``(..., k)`` of the derivative of ``coefficients (..., k+1)``."""
    order = torch.arange(1, coefficients.shape[-1], device=coefficients.device)
    return coefficients[..., 1:] * order.to(coefficients.dtype)


def _written_in(probability: Tensor, log: bool) -> Tensor:
    return torch.log1p(probability / LOG_EPSILON) / _LOG_SCALE if log else probability


def _powers(v: Tensor, count: int) -> Tensor:
    """Stack v^0 … v^(count−1) along a new last dimension."""
    powers = [torch.ones_like(v)]
    for _ in range(count - 1):
        powers.append(powers[-1] * v)
    return torch.stack(powers, dim=-1)


class HardTaylor(torch.autograd.Function):
    """(1/C)[Σ_i p0(ŷ_i) + (p1−p0)(ŷ_t)] for class-index targets: Eq. 4 with y ∈ {0, 1}.

    ``logits (..., C)``, ``target (...)``; p0 ``(5,)`` and p1 − p0 ``(4,)``, or with one set per
    candidate ``(K, 1, 1, 5)`` and ``(K, 1, 4)`` for ``logits (K, N, C)``. The backward pass
    recomputes the softmax from the logits, so nothing of size C is kept in between, and is itself
    made of differentiable operations, so that double backward works.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, p0: Tensor, difference: Tensor, log: bool
    ) -> Tensor:
        """Losses ``(...)``."""
        probability = logits.softmax(-1)
        v = _written_in(probability, log)
        labelled = at_label(v, target)
        return (_horner(p0, v).sum(-1) + _horner(difference, labelled)) / logits.shape[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs."""
        logits, target, p0, difference, ctx.log = inputs
        ctx.save_for_backward(logits, target, p0, difference)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the logits and of the coefficients."""
        logits, target, p0, difference = ctx.saved_tensors
        upstream = grad_outputs[0] / logits.shape[-1]
        probability = logits.softmax(-1)
        v = _written_in(probability, ctx.log)
        labelled = at_label(v, target)
        grad_logits = grad_p0 = grad_difference = None
        if ctx.needs_input_grad[0]:
            inner = _horner(_slope(p0), v)
            inner = inner.scatter_add(
                -1, target.unsqueeze(-1), _horner(_slope(difference), labelled).unsqueeze(-1)
            )
            if ctx.log:  # chain rule through v(ŷ)
                inner = inner / ((probability + LOG_EPSILON) * _LOG_SCALE)
            # Through the softmax: ŷ ⊙ (g − Σ g·ŷ).
            mean = (inner * probability).sum(-1, keepdim=True)
            grad_logits = probability * (inner - mean) * upstream.unsqueeze(-1)
        if ctx.needs_input_grad[2]:  # the loss is linear in its coefficients
            grad_p0 = (_powers(v, 5) * upstream[..., None, None]).sum_to_size(p0.shape)
        if ctx.needs_input_grad[3]:
            powers = _powers(labelled, 4) * upstream.unsqueeze(-1)
            grad_difference = powers.sum_to_size(difference.shape)
        return grad_logits, None, grad_p0, grad_difference, None


def soft_taylor(logits: Tensor, target: Tensor, coefficients: Tensor, variable: Variable) -> Tensor:
    """(1/C) Σ_i Σ_ab c_ab·v_i^a·y_i^b for class-probability targets ``(..., C)`` (Eq. 4 in full).

    ``coefficients (5, 4)``, or ``(K, 1, 1, 5, 4)`` for ``logits (K, N, C)``.
    """
    v = _written_in(logits.softmax(-1), variable == "log")
    value = _horner(coefficients[..., 4, :], target)
    for a in range(3, -1, -1):
        value = torch.addcmul(_horner(coefficients[..., a, :], target), value, v)
    return value.mean(-1)
