"""When a loss in two phases changes, read off the batches: no clean label, no length, no index.

Agreement is the share of given labels that are the argmax, confidence the mean max ŷ. Under an
over-confident early loss their ratio falls while a network generalises, and rises once it memorises
wrong labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layout import class_last, full_precision
from .ranks import sum_over_ranks

#: The averages count after this many of their lengths 1/(1 − averaging): 150 steps for .98.
TRUSTED_AFTER = 3
#: Without a learning rate, the change waits for this many times the steps up to the minimum.
PAUSE = 1.3


@dataclass(frozen=True)
class AdaptiveRule:
    """When the change of a loss starts and how long it takes.

    With ``after``, it starts once the cumulative learning rate is ``after`` and the ratio stands
    ``guard`` above its minimum. Without, once the ratio stands ``guard`` × the minimum above it, at
    ``PAUSE`` × the steps of the minimum or later.

    Args:
        after: cumulative learning rate, Σ lr over the steps; None for the rule without.
        guard: rise of the ratio, ≥ 0.
        averaging: what the moving averages keep at each step, in [0, 1).
        width: length of the change, as a multiple of ``after``, or of the steps before it.

    Raises:
        ValueError: an argument is out of its domain.

    """

    after: float | None
    guard: float
    averaging: float
    width: float

    def __post_init__(self) -> None:
        for name, value in (("after", self.after), ("guard", self.guard), ("width", self.width)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number ≥ 0, got {value}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be in [0, 1), got {self.averaging}")


class AdaptiveState(nn.Module):
    """The averages and minima of K losses with an adaptive switch, in buffers ``(..., K)``."""

    averages: Tensor
    lowest: Tensor
    lowest_at: Tensor
    started: Tensor
    weight: Tensor
    rules: Tensor

    def __init__(self, rules: Sequence[AdaptiveRule]) -> None:
        super().__init__()
        rows = [
            (
                math.nan if rule.after is None else rule.after,
                rule.guard,
                rule.averaging,
                rule.width,
                round(TRUSTED_AFTER / (1 - rule.averaging), 6),
            )
            for rule in rules
        ]
        self.register_buffer(
            "rules", torch.tensor(rows).reshape(-1, 5).T.contiguous(), persistent=False
        )
        count = len(rows)
        self.register_buffer("averages", torch.zeros(2, count))  # agreement, confidence
        self.register_buffer("lowest", torch.zeros(count))
        self.register_buffer("lowest_at", torch.zeros(count))
        self.register_buffer("started", torch.zeros(count))
        self.register_buffer("weight", torch.zeros(count))
        self.reset()

    def reset(self) -> None:
        """Forget all batches, as before a training."""
        for buffer in (self.averages, self.lowest_at, self.weight):
            buffer.zero_()
        self.lowest.fill_(math.inf)
        self.started.fill_(math.inf)

    @torch.no_grad()
    def advance(self, sums: Tensor, steps: Tensor, cumulative_lr: Tensor) -> Tensor:
        """Take in one batch, and return the weights ``(K,)`` of the late losses.

        Nothing here waits for the device: a graph can hold it.

        Args:
            sums: ``(3, K)`` of ``read_batch``.
            steps: those done, with this one; a scalar.
            cumulative_lr: of the steps before this one; a scalar, not read without ``after``.

        """
        after, guard, averaging, width, trusted_after = self.rules
        batch = sums[:2] / sums[2].clamp_min(1)
        averages = torch.where(
            sums[2] > 0, torch.lerp(batch, self.averages, averaging), self.averages
        )
        ratio = averages[0] / averages[1].clamp_min(1e-12)
        trusted = steps >= trusted_after
        lower = trusted & (ratio < self.lowest)
        lowest = torch.where(lower, ratio, self.lowest)
        lowest_at = torch.where(lower, steps.to(ratio), self.lowest_at)

        without_lr = after.isnan()
        position = torch.where(without_lr, steps.to(ratio), cumulative_lr.to(ratio))
        late_enough = torch.where(
            without_lr, position >= PAUSE * lowest_at, position >= after * (1 - 1e-6)
        )
        risen = ratio >= lowest + guard * torch.where(without_lr, lowest, 1.0)
        starts = trusted & late_enough & risen & self.started.isinf()
        started = torch.where(starts, position, self.started)
        length = width * torch.where(without_lr, started, after)
        share = ((position - started) / length).clamp(0, 1)
        weight = torch.where(position >= started + length, 1.0, share)
        weight = torch.where(started.isinf(), 0.0, weight)
        for buffer, value in (
            (self.averages, averages),
            (self.lowest, lowest),
            (self.lowest_at, lowest_at),
            (self.started, started),
            (self.weight, weight),
        ):
            buffer.copy_(value)  # in place, where a recorded graph reads it
        return weight

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the losses ``indices``, in this order."""
        for name, buffer in self.named_buffers():
            chosen = torch.tensor(indices, dtype=torch.long, device=buffer.device)
            setattr(self, name, buffer.index_select(-1, chosen))

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptiveState:
        """Move the buffers, which stay in float32 in a half-precision module."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            moved = getattr(self, name)
            setattr(self, name, moved.float() if old.is_meta else old.to(moved.device))
        return self


@torch.no_grad()
def read_batch(logits: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the sums over a batch of agreement, confidence and samples: ``(3, ...)``.

    Args:
        logits: ``(..., N, C)``.
        target: class indices ``(N,)``, or class probabilities ``(N, C)``, of which the one at the
            argmax is the agreement.
        ignore_index: class index that does not count.

    """
    highest, predicted = logits.max(-1)
    confidence = (highest - logits.logsumexp(-1)).exp()
    if target.is_floating_point():
        counts = torch.ones_like(confidence)
        agreement = target.expand_as(logits).gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    else:
        counts = (target != ignore_index).to(confidence).expand_as(confidence)
        agreement = (predicted == target) * counts
    return torch.stack([agreement.to(confidence), confidence * counts, counts]).sum(-1)


def read_samples(logits: Tensor, target: Tensor, loss: nn.Module) -> Tensor:
    """Return ``read_batch (3, 1)`` of any layout that ``loss`` takes, summed over the ranks."""
    while isinstance(inner := getattr(loss, "criterion", None), nn.Module):
        loss = inner
    rows, target = class_last(logits.detach(), target)
    rows = full_precision(rows).reshape(1, -1, rows.shape[-1])
    target = target.reshape(rows.shape[1:] if target.is_floating_point() else rows.shape[1:2])
    sums = read_batch(rows, target, getattr(loss, "ignore_index", -100))
    return sum_over_ranks(sums.float())
