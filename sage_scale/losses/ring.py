"""Blocks that travel round the ranks while each computes on the one it holds.

In round k rank r holds what rank r - k owns, has already asked rank r - 1 for the next, and is giving its own on to
rank r + 1. After W rounds every rank has seen every block. In one process there is one round and no traffic.
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
    """The ranks of a group in a circle; `rows[r]` rows of width D travel from rank r."""

    def __init__(self, rows: Sequence[int], group: dist.ProcessGroup | None, spare: int = 0) -> None:
        """Received blocks have `spare` rows of zeros behind them, as the own one has."""
        self.rows, self.group, self.spare = list(rows), group, spare
        self.rank, self.world = group_rank(group), world_size(group)

    def rounds(self, own_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(owner, its block) in W rounds, the own one first; the next block arrives during a round."""
        held_ND = own_ND
        for step in range(self.world):
            owner = (self.rank - step) % self.world
            if step == self.world - 1:
                yield owner, held_ND
                return
            coming = Exchange(self, held_ND, owner, TOKENS)
            yield owner, held_ND
            held_ND = coming.wait()

    def pass_on(self, block_ND: Tensor, owner: int) -> Exchange:
        """Give the gradient of `owner`'s block to the next rank and take that of the owner before from the last."""
        return Exchange(self, block_ND, owner, GRADIENTS)

    def global_rank(self, rank: int) -> int:
        """Rank of the whole job of a rank of the group."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


class Exchange:
    """One block on its way to the next rank and one on its way from the last; empty blocks do not travel."""

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
        """The block of the owner before."""
        for request in self._requests:
            request.wait()
        return self.block_ND


def sum_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of every rank's, in place; no gradient."""
    if world_size(group) > 1:
        dist.all_reduce(value, group=group)
    return value


def max_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The maximum of every rank's, in place; no gradient."""
    if world_size(group) > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX, group=group)
    return value


class LogSum:
    """log of a sum of exponentials that arrives in pieces, stable at any size of the terms."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.maximum = like.new_full(shape, -torch.inf)
        self.sum = like.new_zeros(shape)

    def add(self, places: slice, terms: Tensor, dim: int) -> None:
        """Take the exponentials of `terms`, summed over `dim`, into the sums at `places` (of the last dimension)."""
        before = self.maximum[..., places]
        after = torch.maximum(before, terms.amax(dim))
        # Where all terms are -inf so far, any finite number may stand for the maximum.
        safe = after.masked_fill(after == -torch.inf, 0)
        sums = (terms - safe.unsqueeze(dim)).exp_().sum(dim)
        self.sum[..., places] = self.sum[..., places] * (before - safe).exp_() + sums
        self.maximum[..., places] = after

    def merge(self, group: dist.ProcessGroup | None) -> None:
        """Take in the sums of all ranks."""
        whole = max_over_ranks(self.maximum.clone(), group)
        safe = whole.masked_fill(whole == -torch.inf, 0)
        self.sum = sum_over_ranks(self.sum * (self.maximum - safe).exp_(), group)
        self.maximum = whole

    def value(self) -> Tensor:
        """The logarithms."""
        return self.maximum + self.sum.log()
