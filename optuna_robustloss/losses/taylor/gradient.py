"""Value and analytic gradient of the Taylor loss, per sample, classes last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import at_label
from .polynomial import LOG_EPSILON, Variable

#: log(1 + 1/ε): the range of log(1 + ŷ/ε).
LOG_SCALE = math.log1p(1 / LOG_EPSILON)
#: Numbers of float32 in the widest CPU register.
_VECTOR = 16


def softmax(logits: Tensor, *, log: bool = False) -> Tensor:
    """Probabilities ``(..., C)``, or their logarithms."""
    function = torch.log_softmax if log else torch.softmax
    if classes_first(logits):
        return function(logits.mT, -2).mT
    return function(logits, -1)


def classes_first(logits: Tensor) -> bool:
    """Whether a last dimension of so few classes leaves the CPU's vector registers unfilled.

    PyTorch then takes one exponential at a time, ten times slower than along the samples.
    """
    return (
        logits.shape[-1] < _VECTOR
        and logits.ndim > 1
        and logits.device.type == "cpu"
        and not torch.compiler.is_compiling()  # Inductor writes its own loops
    )


def _horner(coefficients: Sequence[Tensor], v: Tensor) -> Tensor:
    """Polynomial with these coefficients, ascending, each broadcast against ``v``.

    In place where no derivative of it is recorded: fresh memory costs more than the arithmetic.
    """
    *lower, following, highest = coefficients
    value = (v * highest).add_(following)
    for coefficient in reversed(lower):
        if torch.is_grad_enabled():
            value = torch.addcmul(coefficient, value, v)
        else:
            value.mul_(v).add_(coefficient)
    return value


def _slopes(coefficients: Tensor) -> list[Tensor]:
    """Coefficients of the derivative of ``coefficients (..., k+1)``, ascending, each ``(...)``."""
    _, first, *higher = coefficients.unbind(-1)
    return [first, *(k * c for k, c in enumerate(higher, start=2))]


def written_in(probability: Tensor, log: bool) -> Tensor:
    """Return v(ŷ): the probability itself, or its bounded logarithm."""
    if not log:
        return probability
    # log1p is more exact next to 0, which does not matter here, and on a CPU ten times slower.
    v = (probability * (1 / LOG_EPSILON)).add_(1)
    return v.log() / LOG_SCALE if torch.is_grad_enabled() else v.log_().div_(LOG_SCALE)


def _powers(v: Tensor, count: int) -> Tensor:
    """Stack v^0 … v^(count−1) along a new last dimension."""
    powers = [torch.ones_like(v)]
    for _ in range(count - 1):
        powers.append(powers[-1] * v)
    return torch.stack(powers, dim=-1)


class HardTaylor(torch.autograd.Function):
    """(1/C)[Σ_i p0(ŷ_i) + (p1−p0)(ŷ_t)] for class-index targets: Eq. 4 with y ∈ {0, 1}.

    ``probability (..., C)``, ``target (...)``; p0 ``(5,)`` and p1 − p0 ``(4,)``, or with one set
    per candidate ``(K, 1, 1, 5)`` and ``(K, 1, 4)`` for ``probability (K, N, C)``. The backward
    pass needs the probabilities, which the softmax keeps anyway, and no power of them. It is made
    of differentiable operations, so that double backward works.
    """

    @staticmethod
    def forward(
        probability: Tensor, target: Tensor, p0: Tensor, label_delta: Tensor, log: bool
    ) -> Tensor:
        """Losses ``(...)``."""
        v = written_in(probability, log)
        if torch.compiler.is_compiling():
            value = _horner(p0.unbind(-1), v)
            more = _horner(_by_class(label_delta, p0).unbind(-1), v)
            return torch.where(_is_label(v, target), value + more, value).mean(-1)
        labelled = _horner(label_delta.unbind(-1), at_label(v, target))
        return (_horner(p0.unbind(-1), v).sum(-1) + labelled) / v.shape[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs."""
        probability, target, p0, label_delta, ctx.log = inputs
        ctx.save_for_backward(probability, target, p0, label_delta)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the probabilities and of the coefficients."""
        probability, target, p0, label_delta = ctx.saved_tensors
        upstream = grad_outputs[0] / probability.shape[-1]
        v = written_in(probability, ctx.log)
        labelled = at_label(v, target)
        by_probability = by_p0 = by_label_delta = None
        if ctx.needs_input_grad[0]:
            by_probability = slope(v, labelled, target, p0, label_delta, upstream)
            if ctx.log:  # chain rule through v(ŷ)
                scale = (probability + LOG_EPSILON).mul_(LOG_SCALE)
                in_place = not torch.is_grad_enabled()
                by_probability = by_probability.div_(scale) if in_place else by_probability / scale
        if ctx.needs_input_grad[2]:  # the loss is linear in its coefficients
            by_p0 = (_powers(v, 5) * upstream[..., None, None]).sum_to_size(p0.shape)
        if ctx.needs_input_grad[3]:
            powers = _powers(labelled, 4) * upstream.unsqueeze(-1)
            by_label_delta = powers.sum_to_size(label_delta.shape)
        return by_probability, None, by_p0, by_label_delta, None


def _is_label(v: Tensor, target: Tensor) -> Tensor:
    """Mask ``(..., C)``: what a compiler makes one loop of, as it cannot with gather or scatter."""
    classes = torch.arange(v.shape[-1], device=v.device)
    return classes == at_label(classes.expand_as(v), target).unsqueeze(-1)  # in range, or an error


def _by_class(label_delta: Tensor, p0: Tensor) -> Tensor:
    """Give p1 − p0 of each candidate, ``(K, 1, 4)``, the class dimension that p0 has."""
    return label_delta.unsqueeze(-2) if p0.ndim > 1 else label_delta


def slope(
    v: Tensor, labelled: Tensor, target: Tensor, p0: Tensor, label_delta: Tensor, upstream: Tensor
) -> Tensor:
    """Gradient ``(..., C)`` of ``upstream (...)`` · [Σ_i p0(v_i) + (p1−p0)(v_t)] by v."""
    weight, index = upstream.unsqueeze(-1), target.unsqueeze(-1)
    if torch.compiler.is_compiling():
        slope, more = _horner(_slopes(p0), v), _horner(_slopes(_by_class(label_delta, p0)), v)
        return torch.where(_is_label(v, target), slope + more, slope) * weight
    slope = _horner([c * weight for c in _slopes(p0)], v)
    more = (_horner(_slopes(label_delta), labelled) * upstream).unsqueeze(-1)
    if torch.is_grad_enabled():
        return slope.scatter_add(-1, index, more)
    return slope.scatter_add_(-1, index, more)


def soft_taylor(
    probability: Tensor, target: Tensor, coefficients: Tensor, variable: Variable
) -> Tensor:
    """(1/C) Σ_i Σ_ab c_ab·v_i^a·y_i^b for class-probability targets ``(..., C)`` (Eq. 4 in full).

    ``coefficients (5, 4)``, or ``(K, 1, 1, 5, 4)`` for ``probability (K, N, C)``.
    """
    target, coefficients = target.to(probability.dtype), coefficients.to(probability.dtype)
    v = written_in(probability, variable == "log")
    in_v = [_horner(row.unbind(-1), target) for row in coefficients.unbind(-2)]
    return _horner(in_v, v).mean(-1)


class TaylorGradient:
    """Gradients of the mean losses of K candidates by their logits, written down without autograd.

    Candidate k's loss is the mean of ``HardTaylor`` over the samples, plus α_k · cross-entropy.
    Nothing here waits for the device or depends on its values, so that a CUDA graph can hold it.

    Args:
        p0: ``(K, 5)`` coefficients of the quartic for the classes that are not the label.
        label_delta: ``(K, 4)`` coefficients of p1 − p0.
        log: whether the polynomials are written in the bounded logarithm.
        cross_entropy_weight: α ``(K,)``, or None for none.

    >>> mae = TaylorGradient(torch.tensor([[0, 1.0, 0, 0, 0]]), torch.tensor([[2, -2.0, 0, 0]]))
    >>> mae(torch.zeros(1, 1, 2), torch.tensor([0]))
    tensor([[[-0.2500,  0.2500]]])

    """

    def __init__(
        self,
        p0: Tensor,
        label_delta: Tensor,
        *,
        log: bool = False,
        cross_entropy_weight: Tensor | None = None,
    ) -> None:
        alpha = p0.new_zeros(len(p0)) if cross_entropy_weight is None else cross_entropy_weight
        of_p0, of_label_delta = torch.stack(_slopes(p0)), torch.stack(_slopes(label_delta))
        if log:
            # d/dŷ of c·(w/L)^k with w = log(1 + ŷ/ε): k·c·w^(k−1) / L^k / (ŷ + ε).
            scale = torch.logspace(-1, -4, 4, LOG_SCALE, dtype=torch.float64).to(of_p0)[:, None]
            of_p0, of_label_delta = of_p0 * scale, of_label_delta * scale[:3]
        self._log = log
        self._cross_entropy = cross_entropy_weight is not None
        # (9, K, 1, 1): four slopes of p0, three of p1 − p0, α and −α.
        rows = torch.cat([of_p0, of_label_delta, torch.stack([alpha, -alpha]).to(of_p0)])
        self._coefficients = rows[:, :, None, None]

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with the candidates ``indices``, in this order."""
        chosen = torch.tensor(indices, dtype=torch.long, device=self._coefficients.device)
        self._coefficients = self._coefficients.index_select(1, chosen)

    def blend(self, early: TaylorGradient, late: TaylorGradient, weight: Tensor) -> None:
        """Become ``early`` + ``weight`` (K,) · (``late`` − ``early``), candidate by candidate.

        The numbers change where they are: a CUDA graph that holds them goes on with the new ones.
        """
        share = weight.to(self._coefficients)[:, None, None]
        torch.lerp(early._coefficients, late._coefficients, share, out=self._coefficients)
        self._cross_entropy |= early._cross_entropy or late._cross_entropy

    @torch.no_grad()
    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the gradient ``(K, N, C)`` by ``logits (K, N, C)`` for labels ``target (N,)``.

        On a CPU the result for few classes is laid out classes first. Half precision is computed
        in float32.
        """
        population, samples, classes = logits.shape
        p = softmax(logits if logits.dtype == torch.float64 else logits.float())
        coefficients = self._coefficients.to(p.dtype) * (1 / (classes * samples))
        s1, s2, s3, s4, d1, d2, d3, alpha, minus_alpha = coefficients.unbind(0)
        index = target.expand(population, samples)
        x = p.mul(1 / LOG_EPSILON).add_(1) if self._log else p
        v = x.log() if self._log else p
        labelled = at_label(v, index).unsqueeze(-1)
        index = index.unsqueeze(-1)
        by_p = v.mul(s4).add_(s3).mul_(v).add_(s2).mul_(v)
        if self._log:
            by_p.add_(s1)  # In ŷ itself, s1 · Σ ŷ is constant.
        by_p.scatter_add_(-1, index, labelled.mul(d3).add_(d2).mul_(labelled).add_(d1))
        if self._log:
            by_p.div_(x.mul_(LOG_EPSILON))
        gradient = through_softmax(by_p, p)
        if self._cross_entropy:
            gradient.addcmul_(p, alpha * classes)
            gradient.scatter_add_(-1, index, (minus_alpha * classes).expand_as(index))
        return gradient.to(logits.dtype)


def through_softmax(by_p: Tensor, p: Tensor) -> Tensor:
    """ŷ ⊙ (g − Σ g·ŷ), in place of ``by_p`` where that is faster."""
    if classes_first(p):
        return torch._softmax_backward_data(by_p.mT, p.mT, -2, p.dtype).mT
    return torch._softmax_backward_data(by_p, p, -1, p.dtype, grad_input=by_p)
