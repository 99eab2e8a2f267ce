"""Whole blocks of remote shards, fetched once and kept while they are in use: in memory, or in the node-local cache.

The first caller that needs a sample of a block fetches all of it, or waits for the thread, worker or rank that already
does; `fetch` starts before it is needed. Where many blocks are missing at once (a cold start: the first step of 64
lanes touches 64 of them) a few steps do not wait: their samples come one by one, and the blocks behind them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sage_scale.storage import Unavailable
from sage_scale.streaming.cache import (
    LOCK_TIMEOUT_S,
    BlockCache,
    CacheFailed,
    LRUCache,
    block_name,
    open_cache,
)
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.executor import BLOCKING, PREFETCH
from sage_scale.streaming.prefetch import ReadPlan, cut_at_gaps
from sage_scale.streaming.range_requests import RangeClient, RangeRequest
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

COLD_BYTES = 64 << 20
"""A cold step misses more bytes of blocks than this, and does not wait for them."""
COLD_STEPS, COLD_SHARE = 4, 0.02
"""Number of cold steps of a process, and share of all steps on top: a block costs the processors as much as eight
samples alone, and holds over a hundred."""
MAX_HELD = 64
"""Descriptors of blocks that one step keeps open; further blocks are opened when they are read."""

Held = dict[int, memoryview | int | None]
"""Blocks that a step reads: in memory, by a descriptor, or in the cache and not open."""


class _BlockRequest(RangeRequest):
    def __init__(self, name: str, offset: int, length: int, file: str) -> None:
        super().__init__(name, offset, length)
        self.file = file
        self.running = False
        """Whether a thread works on it."""
        self.blocking = False
        """Whether a caller waits for it."""


class Blocks:
    """The blocks of one catalog in one process. Reentrant."""

    def __init__(self, catalog: Catalog, plan: ReadPlan, client: RangeClient, gap: int) -> None:
        """Blocks are those of the plan, cut where more than `gap` unused bytes lie between two samples."""
        assert plan.cuts is not None
        table = catalog.samples
        self.catalog = catalog
        self.plan = plan
        self._client = client
        self._cuts = cut_at_gaps(plan.cuts, table.unit, table.offset, table.records["length"], gap)
        first, last = self._cuts[:-1], self._cuts[1:] - 1
        self._unit_K = table.unit[first]
        ends_K = table.offset[last] + table.records["length"][last]
        self._span_K = np.stack([table.offset[first], ends_K], axis=1)
        in_memory = plan.keep == "memory"
        self._memory: LRUCache[int, memoryview] | None = LRUCache(plan.memory_bytes) if in_memory else None
        self._unused: dict[int, int] = {}
        """Samples of a block in memory that were not read yet: a block goes with its last one."""
        self._disk: BlockCache | None = None
        self._usable = True
        self._requests: dict[int, _BlockRequest] = {}
        # Re-entrant: garbage collection may close an abandoned read, and so release its blocks, anywhere.
        self._lock = threading.RLock()
        self._hits = self._misses = self._steps = self._cold_steps = 0

    def of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the block of each sample."""
        return np.searchsorted(self._cuts, samples, side="right") - 1

    def begin(self, blocks: list[int]) -> NDArray[np.int64]:
        """Returns the first byte of each block in its shard."""
        return self._span_K[blocks, 0]

    def usable(self) -> bool:
        """Returns whether blocks can be kept; a failing disk is logged once."""
        if self._usable and self._memory is None and self._disk is None:
            with self._lock:
                if self._disk is None:
                    try:
                        digest, limit = self.catalog.digest(), self.plan.cache_bytes
                        self._disk = open_cache(self.plan.cache_dir, digest, limit)
                    except CacheFailed as error:
                        self._usable = False
                        _warn(error)
        return self._usable

    def acquire(self, blocks: Sequence[int]) -> Held:
        """Waits for these blocks, and returns them; samples of the missing ones are to be read alone.

        The caller gives them to `release`. Raises Unavailable.
        """
        deadline = time.monotonic() + self.plan.give_up_after_s
        held: Held = {}
        missing = [block for block in blocks if not self._find(block, held)]
        with self._lock:
            self._hits += len(held)
            self._misses += len(missing)
            self._steps += 1
            size = int((self._span_K[missing, 1] - self._span_K[missing, 0]).sum())
            if size > COLD_BYTES and self._cold_steps < COLD_STEPS + COLD_SHARE * self._steps:
                self._cold_steps += 1
                return held
        try:
            requests = {block: self.fetch(block, BLOCKING) for block in missing}
            self._client.wait(list(requests.values()), deadline)
            for block, request in requests.items():
                if isinstance(request.error, Unavailable):
                    raise request.error
                if request.data is not None:
                    held[block] = memoryview(request.data)
                elif request.error is None:  # another process has put it into the cache
                    self._find(block, held)
        except BaseException:
            self.release(held)
            raise
        return held

    def release(self, held: Held, used: Counter[int] | None = None) -> None:
        """Closes held blocks; `used` counts the samples of each that were read."""
        for descriptor in held.values():
            if isinstance(descriptor, int):
                os.close(descriptor)
        if self._memory is None:
            return
        with self._lock:
            for block, samples in (used or {}).items():
                self._unused[block] = self._unused.get(block, 0) - samples
                if self._unused[block] <= 0:
                    self._memory.drop(block)

    def reopen(self, block: int) -> int | None:
        """Returns a descriptor of a block that is held but not open; None where it was evicted."""
        return self._disk.open(self._file(block)) if self._disk else None

    def fetch(self, block: int, priority: int = PREFETCH) -> RangeRequest:
        """Starts fetching the block. The request is done when the block is there."""
        blocking = priority == BLOCKING
        with self._lock:
            request = self._requests.get(block)
            if request is not None and request.error is None:
                request.blocking |= blocking
                if request.running or not blocking:
                    return request
                # A queued prefetch is submitted once more, ahead of the others.
            else:
                begin, end = self._span_K[block].tolist()
                name = self.catalog.shards[self._unit_K[block]]
                request = _BlockRequest(name, begin, end - begin, self._file(block))
                request.blocking = blocking
                self._requests[block] = request
        self._client.executor.submit(partial(self._run, block, request), priority)
        return request

    def drop(self, block: int) -> None:
        """Forgets a block with damaged bytes."""
        if self._memory is not None:
            self._memory.drop(block)
        if self._disk is not None:
            self._disk.drop(self._file(block))

    def cancel_prefetch(self) -> None:
        """Ends requests without a waiting caller."""
        with self._lock:
            for request in self._requests.values():
                if not request.blocking:
                    request.error = request.error or Unavailable("the prefetch was cancelled")
                    request.done.set()

    def counts(self) -> tuple[int, int]:
        """Returns the hits and misses of steps since the last call, in blocks."""
        with self._lock:
            hits, misses, self._hits, self._misses = self._hits, self._misses, 0, 0
        return hits, misses

    def _find(self, block: int, held: Held) -> bool:
        """Puts the block into `held` if it is kept."""
        if self._memory is not None:
            data = self._memory.get(block)
            if data is not None:
                held[block] = data
            return data is not None
        descriptor = self.reopen(block)
        if descriptor is None:
            return False
        if len(held) < MAX_HELD:
            held[block] = descriptor
        else:
            os.close(descriptor)
            held[block] = None
        return True

    def _run(self, block: int, request: _BlockRequest) -> None:
        """Fetches a block in this thread, unless another one does, and keeps it. Never raises."""
        with self._lock:
            if request.running:
                return
            request.running = True
        try:
            if not request.done.is_set():
                if self._memory is not None:
                    self._fetch_to_memory(block, request, self._memory)
                elif self._disk is not None:
                    self._fetch_to_disk(request, self._disk)
        except CacheFailed as error:
            with self._lock:
                usable, self._usable = self._usable, False
            if usable:
                _warn(error)
            self._client.run(request)
        finally:
            with self._lock:
                if self._requests.get(block) is request:
                    del self._requests[block]

    def _fetch_to_memory(self, block: int, request: _BlockRequest, memory: LRUCache[int, memoryview]) -> None:
        kept = memory.get(block)
        if kept is not None:
            self._client.resolve(request, data=kept)
            return
        with self._lock:  # before the block is there: its readers may be faster than this thread
            self._unused[block] = int(self._cuts[block + 1] - self._cuts[block])
        self._client.run(request)
        with self._lock:
            if request.data is not None and self._unused[block] > 0:
                memory.put(block, memoryview(request.data), len(request.data))

    def _fetch_to_disk(self, request: _BlockRequest, disk: BlockCache) -> None:
        lock = None
        descriptor = disk.open(request.file)
        if descriptor is None:
            # Prefetch does not wait for another process that makes the same block.
            lock = disk.lock(request.file, LOCK_TIMEOUT_S if request.blocking else 0.0)
            descriptor = disk.open(request.file) if lock is None else None
        if descriptor is not None:
            os.close(descriptor)
        if descriptor is not None or (lock is None and not request.blocking):
            request.done.set()
            return
        try:
            self._client.run(request)
            if lock is not None and request.data is not None:
                publish, lock = lock, None
                disk.publish(publish, request.data)
        finally:
            if lock is not None:
                disk.release(lock)

    def _file(self, block: int) -> str:
        begin, end = self._span_K[block].tolist()
        return block_name(int(self._unit_K[block]), begin, end)


def _warn(error: CacheFailed) -> None:
    log.warning(
        "the node-local cache is off: %s. Samples come from the object store one by one, which is slower where they "
        "are small; free some room, or set stream.cache_dir (or stream.cache_gb=0)",
        error,
    )
