"""Linear layers of K candidates at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# What F.linear calls compiled for the CPU. Eager mode has MKL multiply single-precision matrices,
# which takes twice as long on CPUs that are not Intel's.
_MKLDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x (K or 1, M, F)`` times ``weight (K, O, F)`` plus ``bias (K, O)``: ``(K, M, O)``."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    lowered = torch.is_autocast_enabled(x.device.type)
    if _MKLDNN and x.numel() and not lowered and all(map(_is_single_on_cpu, tensors)):
        y: Tensor = _BatchedLinear.apply(x, weight, bias)
        return y
    x = x.expand(weight.shape[0], -1, -1)
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _is_single_on_cpu(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu"


class _BatchedLinear(torch.autograd.Function):
    """Compute ``batched_linear`` by oneDNN: one wide product of shared inputs, else K products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        if len(x) == 1:
            y = _times(x[0], weight.flatten(0, 1), None if bias is None else bias.flatten())
            return torch.unflatten(y, 1, weight.shape[:2]).transpose(0, 1).contiguous()
        biases = [None] * len(x) if bias is None else bias
        return torch.stack([_times(*of_one) for of_one in zip(x, weight, biases, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient, needed = gradient.contiguous(), ctx.needs_input_grad
        of_x = of_weight = None
        if needed[0]:
            pairs = zip(gradient, weight, strict=True)
            of_x = torch.stack([_times(g, w.t().contiguous()) for g, w in pairs])
            of_x = of_x.sum(0, keepdim=True) if len(x) < len(weight) else of_x
        if needed[1] and len(x) == 1:
            of_weight = _times(gradient.mT.reshape(-1, x.shape[1]), x[0].t().contiguous())
            of_weight = of_weight.view_as(weight)
        elif needed[1]:
            turned = zip(gradient.mT.contiguous(), x.mT.contiguous(), strict=True)
            of_weight = torch.stack([_times(g, one) for g, one in turned])
        return of_x, of_weight, gradient.sum(1) if needed[2] else None


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = _MKLDNN(x, weight, bias, "none", [], "")
    return y
