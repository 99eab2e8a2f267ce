"""Ring exchange: blocks move from rank to rank, overlapped with computation.

In round k rank r computes on the block of rank r - k, receives the next block from rank r - 1 and sends its current one
to rank r + 1. After W rounds every rank has seen every block. One process has one round and no communication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sage_scale.losses.collectives import group_rank, world_size

TOKENS, GRADIENTS = 0, 1
"""Tags, so that a gradient is never taken for a block of tokens."""


class Ring:
    """The ranks of a group as a ring; rank r owns a block of `rows[r]` rows of width D."""

    def __init__(self, rows: Sequence[int], group: dist.ProcessGroup | None, spare: int = 0) -> None:
        """Received blocks end with `spare` rows of zeros, as the own block does."""
        self.rows, self.group, self.spare = list(rows), group, spare
        self.rank, self.world = group_rank(group), world_size(group)

    def rounds(self, own_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yields (owner rank, its block) in W rounds, the own block first; the next block is received meanwhile."""
        held_ND = own_ND
        for step in range(self.world):
            owner = (self.rank - step) % self.world
            if step == self.world - 1:
                yield owner, held_ND
                return
            coming = Exchange(self, held_ND, owner, TOKENS)
            yield owner, held_ND
            held_ND = coming.wait()

    def send_gradient(self, block_ND: Tensor, owner: int) -> Exchange:
        """Send the gradient of `owner`'s block to the next rank; receive that of `owner` - 1 from the previous one."""
        return Exchange(self, block_ND, owner, GRADIENTS)

    def global_rank(self, rank: int) -> int:
        """Returns the global rank of a rank of the group."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


class Exchange:
    """An asynchronous send to the next rank and receive from the previous one; empty blocks are not sent."""

    def __init__(self, ring: Ring, block_ND: Tensor, owner: int, tag: int) -> None:
        count, coming = ring.rows[owner], ring.rows[(owner - 1) % ring.world]
        self.block_ND = block_ND.new_empty(coming + ring.spare, block_ND.shape[1])
        self.block_ND[coming:] = 0
        operations = []
        if count:
            peer = ring.global_rank((ring.rank + 1) % ring.world)
            operations.append(dist.P2POp(dist.isend, block_ND[:count], peer, ring.group, tag))
        if coming:
            peer = ring.global_rank((ring.rank - 1) % ring.world)
            operations.append(dist.P2POp(dist.irecv, self.block_ND[:coming], peer, ring.group, tag))
        self._requests: list[Any] = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> Tensor:
        """Wait for both transfers and return the received block."""
        for request in self._requests:
            request.wait()
        return self.block_ND


def sum_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum a tensor over the ranks, in place, without gradient."""
    if world_size(group) > 1:
        dist.all_reduce(value, group=group)
    return value


def max_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Take a tensor's maximum over the ranks, in place, without gradient."""
    if world_size(group) > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX, group=group)
    return value


class LogSum:
    """Streaming log-sum-exp, stable at any size of the terms."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.maximum = like.new_full(shape, -torch.inf)
        self.sum = like.new_zeros(shape)

    def add(self, where: slice, terms: Tensor, dim: int) -> None:
        """Add the exponentials of `terms`, summed over `dim`, to the sums at `where` (of the last dimension)."""
        before = self.maximum[..., where]
        after = torch.maximum(before, terms.amax(dim))
        # Where all terms are -inf so far, any finite number may stand for the maximum.
        safe = after.masked_fill(after == -torch.inf, 0)
        sums = (terms - safe.unsqueeze(dim)).exp_().sum(dim)
        self.sum[..., where] = self.sum[..., where] * (before - safe).exp_() + sums
        self.maximum[..., where] = after

    def merge(self, group: dist.ProcessGroup | None) -> None:
        """Add the sums of all other ranks (a collective)."""
        whole = max_over_ranks(self.maximum.clone(), group)
        safe = whole.masked_fill(whole == -torch.inf, 0)
        self.sum = sum_over_ranks(self.sum * (self.maximum - safe).exp_(), group)
        self.maximum = whole

    def value(self) -> Tensor:
        """Returns the logarithms of the sums."""
        return self.maximum + self.sum.log()
