"""The layouts and dtypes of logits and targets that ``F.cross_entropy`` takes, brought into one."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: ``nn.CrossEntropyLoss`` takes uint8 and int64.
_INTEGERS = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


def _spell(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_dtypes(logits: Tensor, target: Tensor) -> Tensor:
    """Return the target, class indices as int64.

    Raises:
        ValueError: a dtype that is not allowed.

    """
    if logits.dtype not in _FLOATS:
        raise ValueError(
            f"logits must be floating point, got {logits.dtype}; allowed: {_spell(_FLOATS)}"
        )
    if target.dtype in _INTEGERS:
        return target.long()
    if target.dtype in _FLOATS:
        return target
    raise ValueError(
        f"the target must hold class indices ({_spell(_INTEGERS)}) or class probabilities "
        f"({_spell(_FLOATS)}), got {target.dtype}"
    )


def class_last(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Move the class dimension of ``logits`` (and of probability targets) to the end.

    ``logits`` may be ``(..., C)``, or ``(N, C, d1, ...)`` as in ``F.cross_entropy``; the shape of
    an integer ``target`` tells which, and where both would fit, ``F.cross_entropy``'s order holds.
    Probability targets have the shape of the logits and follow ``F.cross_entropy``'s order.
    Class indices become int64.

    Raises:
        ValueError: the two shapes do not fit, or a dtype is not allowed.

    """
    target = check_dtypes(logits, target)
    if logits.ndim == 0:
        raise ValueError("logits must have a class dimension, got a scalar")
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(
                "class-probability targets need the shape of the logits "
                f"{tuple(logits.shape)}, got {tuple(target.shape)}"
            )
        return (
            (logits.movedim(1, -1), target.movedim(1, -1)) if logits.ndim > 2 else (logits, target)
        )
    if logits.ndim > 2 and target.shape == logits.shape[:1] + logits.shape[2:]:
        return logits.movedim(1, -1), target
    if target.shape == logits.shape[:-1]:
        return logits, target
    raise ValueError(
        f"class-index targets of shape {tuple(target.shape)} do not fit logits of shape "
        f"{tuple(logits.shape)}: expected {tuple(logits.shape[:-1])}"
        + (f" or {tuple(logits.shape[:1] + logits.shape[2:])}" if logits.ndim > 2 else "")
    )


def split_ignored(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Return ``target`` with a valid class in place of ``ignore_index``, and the mask of those.

    None for no mask, where it is cheap to see that it would be empty.
    """
    ignored = target == ignore_index
    if _readable(ignored) and not ignored.any():
        return target, None
    return target.masked_fill(ignored, 0), ignored


def _readable(mask: Tensor) -> bool:
    """Whether values can be read without a wait for a device, a graph break or a failed vmap."""
    return (
        mask.device.type == "cpu"
        and mask.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def full_precision(logits: Tensor) -> Tensor:
    """``logits`` in float32, or as they are in float64."""
    return logits if logits.dtype.itemsize > 4 else logits.float()
