"""Where the classes are, which targets count, how samples are reduced: as ``F.cross_entropy``."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def check_reduction(reduction: str) -> None:
    """Raise ``ValueError`` unless ``reduction`` is one of the allowed names."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")


def class_last(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Move the class dimension of ``logits`` (and of probability targets) to the end.

    ``logits`` may be ``(..., C)``, or ``(N, C, d1, ...)`` as in ``F.cross_entropy``; the shape of
    an integer ``target`` tells which, and where both would fit, ``F.cross_entropy``'s order holds.
    Probability targets have the shape of the logits and follow ``F.cross_entropy``'s order.

    Raises:
        ValueError: the two shapes do not fit.

    """
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
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


def expand_population(logits: Tensor, target: Tensor, coefficients: Tensor) -> Tensor:
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


def at_label(values: Tensor, target: Tensor) -> Tensor:
    """``values (..., C)`` at the class indices ``target (...)``.

    Raises:
        IndexError: a label is outside 0 … C−1 (on CUDA a device-side assertion, as PyTorch's).

    """
    try:
        return values.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    except (RuntimeError, IndexError) as error:
        if target.device.type == "cpu" and "out of bounds" in str(error):
            classes = values.shape[-1]
            wrong = target[(target < 0) | (target >= classes)]
            raise IndexError(
                f"label {int(wrong.flatten()[0])} is out of range for {classes} classes: labels "
                f"must be 0 … {classes - 1} (or ignore_index)"
            ) from None
        raise


def reduce_samples(
    losses: Tensor,
    target: Tensor,
    reduction: Reduction,
    *,
    ignored: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Weight, mask and reduce per-sample ``losses (...)`` the way ``F.cross_entropy`` does.

    With class indices the weighted mean divides by the sum of the weights of the samples that
    count; with class probabilities a sample weighs Σ_c weight_c·y_c and the mean divides by the
    number of samples.
    """
    soft = target.is_floating_point()
    sample_weight = None
    if weight is not None:
        weight = weight.to(losses.dtype)
        sample_weight = (weight * target).sum(-1) if soft else weight[target]
        losses = losses * sample_weight
    if ignored is not None:
        losses = losses.masked_fill(ignored, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if soft or (sample_weight is None and ignored is None):
        return losses.mean()
    counted = torch.ones_like(losses) if sample_weight is None else sample_weight
    if ignored is not None:
        counted = counted.masked_fill(ignored, 0.0)
    return losses.sum() / counted.sum()


def split_ignored(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Return ``target`` with a valid class in place of ``ignore_index``, and the mask of those.

    None for no mask, where it is cheap to see that it would be empty.
    """
    ignored = target == ignore_index
    if _readable(ignored) and not ignored.any():
        return target, None
    return target.masked_fill(ignored, 0), ignored


def _readable(mask: Tensor) -> bool:
    """Whether looking at values neither waits for a device nor breaks a graph or a transform."""
    return (
        mask.device.type == "cpu"
        and mask.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )
