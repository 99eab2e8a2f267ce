"""Plans the reading of an object store: its blocks, where they are kept, and prefetch.

The samples of a block are needed within a bounded stretch of the epoch (docs/design/order.md), so a block is fetched
whole, once, if the host has room for all blocks that are in use at a time (`blocks_in_use`). The order is known: with
`with_prefetch` each step's request names the blocks that a later step is the first to need, and the thread or worker
process that gets the request starts fetching them.

Shape letters: S samples, K blocks, A samples named ahead.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sage_scale.config import Stream
from sage_scale.streaming.batch import StepRequest
from sage_scale.streaming.cache import KEEP_SHARE
from sage_scale.streaming.catalog import COALESCE_GAP, Catalog
from sage_scale.streaming.mixture import Mixture
from sage_scale.streaming.order import Column, Integers, cut_blocks

MAX_PREFETCH_STEPS = 256
"""Steps that prefetch looks ahead at most."""
PREFETCH_BYTES = 512 << 20
"""Most bytes of a rank's prefetched blocks: with 64 lanes of 8 MiB blocks, all first blocks of an epoch."""
_ROWS = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPlan:
    """The way to read the samples of a catalog from an object store."""

    cuts: Integers | None = None
    """(K + 1,): block k is the samples [cuts[k], cuts[k + 1])."""
    keep: Literal["disk", "memory", "nothing"] = "nothing"
    """Where blocks are kept while they are in use: on the node's disk for all its processes, or in this process.
    Nothing: samples are fetched one by one."""
    memory_bytes: int = 0
    """Bound of the blocks in memory."""
    cache_dir: str = ""
    """Folder of the node-local cache (stream.cache_dir)."""
    cache_bytes: int = 0
    """Bound of the node-local cache; 0 for none."""
    prefetch_bytes: int = 0
    """Bytes of blocks to prefetch: the room of the cache beside the blocks in use."""
    give_up_after_s: float = 300.0
    """Seconds after which a store that does not answer is an error (stream.give_up_after_s)."""

    def part(self, begin: int, end: int) -> ReadPlan:
        """Returns the plan of the samples [begin, end) alone."""
        if self.cuts is None:
            return self
        inside = self.cuts[(self.cuts > begin) & (self.cuts < end)]
        return replace(self, cuts=np.r_[begin, inside, end] - begin if end > begin else np.zeros(1, np.int64))


def cut_at_gaps(cuts: Integers, shard_S: Column, offset_S: Column, bytes_S: Column, gap: int) -> Integers:
    """Returns blocks that are also cut where more than `gap` unused bytes lie between two samples, or a shard ends."""
    if len(shard_S) == 0:
        return np.zeros(1, np.int64)
    found = [cuts]
    for begin in range(0, len(shard_S) - 1, _ROWS):  # whole columns would take three copies of them
        one, two = slice(begin, begin + _ROWS), slice(begin + 1, begin + _ROWS + 1)
        offsets, after = offset_S[one][: len(offset_S[two])], offset_S[two]
        apart = (
            (shard_S[two] != shard_S[one][: len(after)])
            | (after > offsets + bytes_S[one][: len(after)] + gap)
            | (after < offsets)
        )
        found.append(np.flatnonzero(apart) + begin + 1)
    return np.unique(np.concatenate(found)).astype(np.int64)


def blocks_in_use(cuts: Integers, bytes_S: Column, *, lanes: int, window: int) -> int:
    """Returns the bytes of blocks that `lanes` lanes use at a time.

    A lane of m samples a block needs w + m samples' worth of blocks: a block from its first sample to its last one
    w later. Under least-recently-used eviction a block survives until its next use if the cache holds all that is
    touched in between, which is at most w samples of every lane: twice that.
    """
    samples, blocks = len(bytes_S), max(1, len(cuts) - 1)
    if samples == 0:
        return 0
    total = int(bytes_S.sum(dtype=np.int64))
    return min(total, int(lanes * 2 * (window + samples / blocks) * total / samples))


def plan_reads(
    stream: Stream, catalog: Catalog, order: Mixture | None = None, *, world: int = 1, workers: int = 0
) -> ReadPlan:
    """Returns the plan of a rank for this catalog, by the recipe.

    Blocks are those of the order; an evaluation, which has none, reads in dataset order. A dataset that fits into the
    node-local cache is kept there: it comes over the network once in all its epochs. Of a larger one, which would only
    wear the disk, the blocks in use stay in memory, unless they are too many, or shared with loader workers. Where
    neither holds the blocks in use, they would be fetched again and again: samples are read one by one.
    """
    table, bytes_S = catalog.samples, catalog.read_bytes()
    if order is None:
        cuts = cut_blocks(table.unit, table.records["length"], int(stream.block_mb * (1 << 20)))
        in_use = 0
    else:
        begins = np.cumsum([0, *(part.samples for part in order.orders)])
        cuts = np.unique(np.concatenate([part.cuts + begin for part, begin in zip(order.orders, begins)]))
        in_use = sum(
            blocks_in_use(
                part.cuts, bytes_S[begin : begin + part.samples], lanes=part.lanes, window=part.window
            )
            for part, begin in zip(order.orders, begins.tolist())
        )
    if catalog.left_out:  # prefetch names a sample of each block
        cuts = cut_at_gaps(cuts, table.unit, table.offset, table.records["length"], COALESCE_GAP)
    total, ranks = int(bytes_S.sum(dtype=np.int64)), max(1.0, host_share(world) * world)
    disk, memory = int(KEEP_SHARE * stream.cache_gb * 1e9), stream.memory_mb * 1_000_000
    least = 2 * total // max(1, len(cuts) - 1)  # least room to prefetch: two blocks
    on_host, in_rank = min(total, int(in_use * host_share(world))), min(total, in_use // world)
    keep: Literal["disk", "memory", "nothing"] = "nothing"
    ahead = 0
    if total <= disk:
        keep, ahead = "disk", total
    elif not workers and in_rank + least <= memory:
        keep, ahead = "memory", memory - in_rank
    elif on_host + ranks * least <= disk:
        keep, ahead = "disk", int((disk - on_host) / ranks)
    return ReadPlan(
        cuts=cuts,
        keep=keep,
        memory_bytes=memory,
        cache_dir=stream.cache_dir,
        cache_bytes=int(stream.cache_gb * 1e9),
        prefetch_bytes=min(PREFETCH_BYTES, ahead),
        give_up_after_s=stream.give_up_after_s,
    )


def host_share(world: int) -> float:
    """Returns the share of a job's ranks on this host by the launcher's environment; 1 where it names none."""
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ""
    return min(1.0, int(local) / world) if local.isdigit() and int(local) else 1.0


def with_prefetch(
    requests: Iterable[StepRequest], cuts: Integers, bytes_S: Column, horizon: int
) -> Iterator[StepRequest]:
    """Yields the requests, each with `prefetch_A`: a sample of each block that some step is the first of its epoch to
    need.

    A request names its own such blocks, and those of later steps as far as `horizon` bytes of blocks reach.
    """
    size_K = np.add.reduceat(bytes_S, cuts[:-1], dtype=np.int64) if len(bytes_S) else np.zeros(0, np.int64)
    epoch_K = np.full(len(size_K), -1, np.int64)  # the last epoch in which the block was named
    source = iter(requests)
    waiting: deque[tuple[StepRequest, int]] = deque()
    unnamed: list[Integers] = []
    reach = 0
    ended = False
    while True:
        while not ended and (not waiting or (reach < horizon and len(waiting) < MAX_PREFETCH_STEPS)):
            request = next(source, None)
            if request is None:
                ended = True
                break
            block_B = np.searchsorted(cuts, request.samples_B, side="right") - 1
            # In the order of need: of several samples of a new block, the first names it.
            fresh = np.flatnonzero(epoch_K[block_B] != request.epoch)
            fresh = fresh[np.sort(np.unique(block_B[fresh], return_index=True)[1])]
            epoch_K[block_B[fresh]] = request.epoch
            new = int(size_K[block_B[fresh]].sum())
            reach += new
            unnamed.append(request.samples_B[fresh])
            waiting.append((request, new))
        if not waiting:
            return
        request, new = waiting.popleft()
        reach -= new
        prefetch_A = np.concatenate(unnamed) if unnamed else np.zeros(0, np.int64)
        unnamed = []
        yield replace(request, prefetch_A=prefetch_A)
