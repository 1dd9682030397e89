"""What the ranks of a distributed training share: nothing without a process group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def count_ranks() -> int:
    """Return the number of ranks of the default process group, 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and rows of all ranks, rank after rank; each has to call it.

    Args:
        index: int64 ``(N,)``; N may differ between ranks.
        rows: ``(N, C)``, on the same device.

    """
    count = count_ranks()
    if count == 1:
        return index, rows
    size = torch.tensor([len(index)], device=index.device)
    sizes = [torch.empty_like(size) for _ in range(count)]
    dist.all_gather(sizes, size)
    lengths = [int(length) for length in sizes]
    gathered = []
    for tensor in (index, rows):
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(count)]
        dist.all_gather(parts, padded)
        pairs = zip(parts, lengths, strict=True)
        gathered.append(torch.cat([part[:length] for part, length in pairs]))
    return gathered[0], gathered[1]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks; each has to call it."""
    if count_ranks() > 1:
        dist.all_reduce(values)
    return values
