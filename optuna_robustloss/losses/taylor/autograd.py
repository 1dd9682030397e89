"""The Taylor loss of given polynomials straight from logits, in few passes over memory.

What ``HardTaylor`` computes for class indices, where the polynomials need no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from ..base import at_label
from .gradient import LOG_SCALE, HardTaylor, slope, softmax, through_softmax, written_in
from .polynomial import LOG_EPSILON


def hard_taylor(
    logits: Tensor, target: Tensor, p0: Tensor, label_delta: Tensor, log: bool
) -> Tensor:
    """Return the losses ``(...)`` of ``logits (..., C)`` and labels by the fastest function."""
    p0, label_delta = p0.to(logits.dtype), label_delta.to(logits.dtype)
    loss: Tensor
    if _transformed():
        return HardTaylor.forward(softmax(logits), target, p0, label_delta, log)
    if p0.ndim == 1 and not (p0.requires_grad or label_delta.requires_grad):
        if torch.compiler.is_compiling():
            if not log:
                loss = CompiledTaylor.apply(logits, target, p0, label_delta)
                return loss
        elif logits.device.type == "cpu":
            loss, _ = EagerTaylor.apply(logits, target, p0, label_delta, log)
            return loss
    loss = HardTaylor.apply(softmax(logits), target, p0, label_delta, log)
    return loss


def _transformed() -> bool:
    """Whether ``torch.func`` or forward mode is active, for which plain operations have rules."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0


class EagerTaylor(torch.autograd.Function):
    """Losses ``(...)`` and probabilities of ``logits (..., C)``; p0 ``(5,)``, p1 − p0 ``(4,)``.

    The probabilities are an output because the backward pass is made of them: as they are
    differentiable, so is it.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, p0: Tensor, label_delta: Tensor, log: bool
    ) -> tuple[Tensor, Tensor]:
        """(1/C)[Σ_i p0(ŷ_i) + (p1−p0)(ŷ_t)], and ŷ."""
        probability = softmax(logits)
        v = written_in(probability, log)
        labelled = at_label(v, target)
        ctx.log = log
        ctx.save_for_backward(probability, v, labelled, target, p0, label_delta)
        ctx.set_materialize_grads(False)
        classes = v.shape[-1]
        c0, c1, c2, c3, c4 = p0.unbind()
        d0, d1, d2, d3 = label_delta.tolist()
        value = torch.add(c3, v, alpha=c4.item())
        value = torch.addcmul(c2, value, v, out=value)
        value = torch.addcmul(c1, value, v, out=value).mul_(v)
        of_label = labelled.mul(d3).add_(d2).mul_(labelled).add_(d1)
        losses = value.sum(-1).addcmul_(labelled, of_label)
        return losses.add_(c0, alpha=classes).add_(d0).div_(classes), probability

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Gradient of the logits."""
        upstream, of_probability = grad_outputs
        probability, v, labelled, target, p0, label_delta = ctx.saved_tensors
        nothing = (None,) * 4
        if upstream is None and of_probability is None:
            return None, *nothing
        if of_probability is None and not torch.is_grad_enabled():
            scale, weight = 1 / v.shape[-1], upstream
            if not any(upstream.stride()) and upstream.numel():  # of a sum or mean of the samples
                scale, weight = scale * upstream[(0,) * upstream.ndim].item(), None
            by_p = _slope_in_place(v, labelled, target, p0, label_delta, scale)
            if ctx.log:
                by_p.div_((probability + LOG_EPSILON).mul_(LOG_SCALE))
            gradient = through_softmax(by_p, probability)
            return gradient if weight is None else gradient.mul_(weight.unsqueeze(-1)), *nothing
        by_p = of_probability
        if upstream is not None:
            v = written_in(probability, ctx.log)
            weight = upstream / v.shape[-1]
            by_v = slope(v, at_label(v, target), target, p0, label_delta, weight)
            if ctx.log:
                by_v = by_v / (LOG_SCALE * (probability + LOG_EPSILON))
            by_p = by_v if by_p is None else by_p + by_v
        return probability * (by_p - (by_p * probability).sum(-1, keepdim=True)), *nothing


def _slope_in_place(
    v: Tensor, labelled: Tensor, target: Tensor, p0: Tensor, label_delta: Tensor, scale: float
) -> Tensor:
    """``slope`` for one number as upstream, which takes its place in the coefficients."""
    _, *lower, s4 = (k * scale * c for k, c in enumerate(p0.tolist()))
    _, d1, d2, d3 = (k * scale * c for k, c in enumerate(label_delta.tolist()))
    s1, s2, s3 = torch.tensor(lower, dtype=v.dtype).unbind()
    by_v = torch.add(s3, v, alpha=s4)
    by_v = torch.addcmul(s2, by_v, v, out=by_v)
    by_v = torch.addcmul(s1, by_v, v, out=by_v)
    of_label = labelled.mul(d3).add_(d2).mul_(labelled).add_(d1)
    return by_v.scatter_add_(-1, target.unsqueeze(-1), of_label.unsqueeze(-1))


class CompiledTaylor(torch.autograd.Function):
    """Losses ``(...)`` from power sums Σ_i ŷ_i^k: loops of a compiler like those of cross-entropy.

    The sums of exp(z)^k are taken in the loop of Σ exp(z); with them, no loop of the backward pass
    has a sum in it.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, p0: Tensor, label_delta: Tensor
    ) -> Tensor:
        """(1/C)[Σ_i p0(ŷ_i) + (p1−p0)(ŷ_t)]."""
        classes = logits.shape[-1]
        c0, c1, c2, c3, c4 = p0.unbind()
        d0, d1, d2, d3 = label_delta.unbind()
        largest = logits.amax(-1)
        exp = (logits - largest.unsqueeze(-1)).exp()
        square = exp * exp
        norm = 1 / exp.sum(-1)  # ŷ = norm · exp(z − largest)
        square_norm = norm * norm
        s2 = c2 * square_norm * square.sum(-1)
        s3 = c3 * square_norm * norm * (square * exp).sum(-1)
        s4 = c4 * square_norm * square_norm * (square * square).sum(-1)
        labelled = (at_label(logits, target) - largest).exp() * norm
        of_label = d0 + labelled * (d1 + labelled * (d2 + labelled * d3))
        # Σ_i ŷ_i · p0'(ŷ_i), less c1 · Σ ŷ
        centre = 2 * s2 + 3 * s3 + 4 * s4
        ctx.save_for_backward(logits, target, p0, label_delta, largest, norm, labelled, centre)
        return (classes * c0 + c1 + s2 + s3 + s4 + of_label) / classes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Gradient ŷ ⊙ (g − Σ g·ŷ) of the logits."""
        logits, target, p0, label_delta, largest, norm, labelled, centre = ctx.saved_tensors
        _, _, c2, c3, c4 = p0.unbind()
        _, d1, d2, d3 = label_delta.unbind()
        probability = (logits - largest.unsqueeze(-1)).exp() * norm.unsqueeze(-1)
        of_label = d1 + labelled * (2 * d2 + labelled * (3 * d3))
        by_p = probability * (2 * c2 + probability * (3 * c3 + probability * (4 * c4)))
        by_p = by_p - (centre + labelled * of_label).unsqueeze(-1)
        classes = torch.arange(logits.shape[-1], device=logits.device)
        is_label = classes == target.unsqueeze(-1)
        by_p = torch.where(is_label, by_p + of_label.unsqueeze(-1), by_p)
        weight = grad_outputs[0] / logits.shape[-1]
        return by_p * (probability * weight.unsqueeze(-1)), None, None, None
