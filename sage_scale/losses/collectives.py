"""Collectives of the losses and of BatchNorm, with exact gradients; no communication in one process.

Every rank must call them in the same order, also a rank without rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Returns W, the number of ranks in the group; 1 if torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def group_rank(group: dist.ProcessGroup | None = None) -> int:
    """Returns this process's rank in the group."""
    return dist.get_rank(group) if world_size(group) > 1 else 0


def gather_rows(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Returns the rows of all ranks, in rank order; rank r provides `counts[r]` rows (the first dimension).

    The backward pass sums the gradients of a row over all ranks and returns the sum to its owner: the exact gradient
    of the sum of the ranks' losses.
    """
    return rows if world_size(group) == 1 or not any(counts) else _GatherRows.apply(rows, counts, group)


def gather_counts(
    counts: list[int], group: dist.ProcessGroup | None = None, device: Any = None
) -> list[list[int]]:
    """Returns the integers of every rank, by rank."""
    if world_size(group) == 1:
        return [counts]
    own = torch.tensor(counts, dtype=torch.int64, device=device)
    every = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(every, own, group=group)
    return torch.stack(every).tolist()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.counts, ctx.group = counts, group
        # Gloo and NCCL gather equal sizes: every rank's rows are filled up to the longest.
        own = rows.new_zeros(max(counts), *rows.shape[1:])
        own[: rows.shape[0]] = rows
        every = [torch.empty_like(own) for _ in counts]
        dist.all_gather(every, own, group=group)
        return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        rank = dist.get_rank(ctx.group)
        start = sum(ctx.counts[:rank])
        return total[start : start + ctx.counts[rank]], None, None
