"""Whole blocks of remote shards, fetched once and kept while they are in use: in memory, or in the node-local cache.

Whoever first needs a sample of a block fetches all of it, or finds that another thread, worker or rank is about to.
`start` fetches ahead of need. Where many blocks are missing at once (a cold start: the first step of 64 lanes touches
64 of them) nobody waits for all: for a few steps the samples come by themselves, and the blocks behind them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sage_scale.storage import Unavailable
from sage_scale.streaming.cache import PATIENCE_S, BlockCache, CacheFailed, block_name, open_cache
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.executor import AHEAD, URGENT
from sage_scale.streaming.prefetch import ReadPlan, cut_at_gaps
from sage_scale.streaming.range_requests import RangeClient, RangeRequest
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

COLD_BYTES = 64 << 20
"""More missing blocks than this are not waited for by one step, as long as such steps are few."""
COLD_STEPS, COLD_SHARE = 4, 0.02
"""So many steps of a process may go round the blocks, and this share of all: a block costs the processors as much as
eight samples by themselves, and holds over a hundred.
"""
MAX_HELD = 64
"""Descriptors of blocks that one step keeps open; more are opened when they are read."""

Held = dict[int, memoryview | int | None]
"""Blocks that a step reads: in memory, by a descriptor, or in the cache and not open."""


class _Load(RangeRequest):
    """A block on its way."""

    def __init__(self, name: str, offset: int, length: int, file: str) -> None:
        super().__init__(name, offset, length)
        self.file = file
        self.taken = False
        """Whether a thread works on it."""
        self.urgent = False
        """Whether somebody waits for it."""


class MemoryBlocks:
    """Blocks in at most `limit` bytes; one goes when all its samples were used, else the least recently used."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._blocks: OrderedDict[int, memoryview] = OrderedDict()
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()

    def get(self, block: int) -> memoryview | None:
        """The block, if it is there."""
        with self._lock:
            if block in self._blocks:
                self._blocks.move_to_end(block)
            return self._blocks.get(block)

    def put(self, block: int, data: memoryview, samples: int) -> None:
        """Keep a block that so many samples are expected of."""
        with self._lock:
            if block in self._blocks:
                return
            self._blocks[block], self._left[block] = data, samples
            self.size += len(data)
            while self.size > self.limit:
                self._remove(next(iter(self._blocks)))

    def used(self, block: int, samples: int) -> None:
        """So many samples of the block were read."""
        with self._lock:
            if block in self._blocks:
                self._left[block] -= samples
                if self._left[block] <= 0:
                    self._remove(block)

    def drop(self, block: int) -> None:
        """Forget a block that is damaged."""
        with self._lock:
            if block in self._blocks:
                self._remove(block)

    def _remove(self, block: int) -> None:
        self.size -= len(self._blocks.pop(block))
        del self._left[block]


class Blocks:
    """The blocks of one catalog in one process. Reentrant."""

    def __init__(self, catalog: Catalog, reading: ReadPlan, flights: RangeClient, gap: int) -> None:
        """Blocks are those of `reading`, cut where more than `gap` bytes of no use lie between two samples."""
        assert reading.cuts is not None
        table = catalog.samples
        self.catalog = catalog
        self.reading = reading
        self._flights = flights
        self._cuts = cut_at_gaps(reading.cuts, table.unit, table.offset, table.length, gap)
        first, last = self._cuts[:-1], self._cuts[1:] - 1
        self._unit_K = table.unit[first]
        self._span_K = np.stack([table.offset[first], table.offset[last] + table.length[last]], axis=1)
        self._memory = MemoryBlocks(reading.memory_bytes) if reading.keep == "memory" else None
        self._disk: BlockCache | None = None
        self._usable = True
        self._loads: dict[int, _Load] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = self._steps = self._cold_steps = 0

    def of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block of each sample."""
        return np.searchsorted(self._cuts, samples, side="right") - 1

    def begin(self, blocks: list[int]) -> NDArray[np.int64]:
        """Where each block begins in its shard, bytes."""
        return self._span_K[blocks, 0]

    def ready(self) -> bool:
        """Whether blocks can be kept at all; where the disk fails, that is told once."""
        if self._usable and self._memory is None and self._disk is None:
            with self._lock:
                if self._disk is None:
                    try:
                        digest, limit = self.catalog.digest(), self.reading.cache_bytes
                        self._disk = open_cache(self.reading.cache_dir, digest, limit)
                    except CacheFailed as error:
                        self._usable = False
                        _warn(error)
        return self._usable

    def take(self, blocks: Sequence[int]) -> Held:
        """Wait for these blocks; those left out are better, or only, read sample by sample.

        To be given to `give_back`. Raises Unavailable.
        """
        deadline = time.monotonic() + self.reading.give_up_after_s
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
            loads = {block: self.start(block, URGENT) for block in missing}
            self._flights.wait(list(loads.values()), deadline)
            for block, load in loads.items():
                if isinstance(load.error, Unavailable):
                    raise load.error
                if load.data is not None:
                    held[block] = memoryview(load.data)
                elif load.error is None:  # another process has put it into the cache
                    self._find(block, held)
        except BaseException:
            self.give_back(held)
            raise
        return held

    def give_back(self, held: Held, used: Counter[int] | None = None) -> None:
        """Close what was held; `used` says how many samples of each block were read."""
        for descriptor in held.values():
            if isinstance(descriptor, int):
                os.close(descriptor)
        if self._memory is not None and used:
            for block, samples in used.items():
                self._memory.used(block, samples)

    def reopen(self, block: int) -> int | None:
        """A descriptor of a block that is held but not open; None where it was evicted."""
        return self._disk.open(self._file(block)) if self._disk else None

    def start(self, block: int, urgency: int = AHEAD) -> RangeRequest:
        """Have the block fetched; the flight is over when it is there."""
        with self._lock:
            load = self._loads.get(block)
            if load is None or load.error is not None:
                begin, end = self._span(block)
                name = self.catalog.shards[self._unit_K[block]]
                load = self._loads[block] = _Load(name, begin, end - begin, self._file(block))
            elif load.taken or urgency != URGENT:
                load.urgent |= urgency == URGENT
                return load
            load.urgent |= urgency == URGENT
        # One that waits among those for later is asked for once more, ahead of them.
        self._flights.crew.submit(partial(self._load, block, load), urgency)
        return load

    def drop(self, block: int) -> None:
        """Forget a block whose bytes were found damaged."""
        if self._memory is not None:
            self._memory.drop(block)
        if self._disk is not None:
            self._disk.drop(self._file(block))

    def rest(self) -> None:
        """Leave what nobody waits for."""
        with self._lock:
            for load in self._loads.values():
                if not load.urgent:
                    load.error = load.error or Unavailable("nobody waits for it any more")
                    load.done.set()

    def counts(self) -> tuple[int, int]:
        """Blocks that steps found at hand, and that they did not, since this was last called."""
        with self._lock:
            hits, misses, self._hits, self._misses = self._hits, self._misses, 0, 0
        return hits, misses

    def _find(self, block: int, held: Held) -> bool:
        """Note the block in `held` if it is at hand."""
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

    def _load(self, block: int, load: _Load) -> None:
        """Fetch a block, unless somebody else did, and keep it. Never raises."""
        with self._lock:
            if load.taken:
                return
            load.taken = True
        try:
            if not load.done.is_set():
                if self._memory is not None:
                    self._load_to_memory(block, load, self._memory)
                elif self._disk is not None:
                    self._load_to_disk(load, self._disk)
        except CacheFailed as error:
            with self._lock:
                usable, self._usable = self._usable, False
            if usable:
                _warn(error)
            self._flights.fly(load)
        finally:
            with self._lock:
                if self._loads.get(block) is load:
                    del self._loads[block]

    def _load_to_memory(self, block: int, load: _Load, memory: MemoryBlocks) -> None:
        there = memory.get(block)
        if there is not None:
            self._flights.settle(load, data=there)
            return
        self._flights.fly(load)
        if load.data is not None:
            samples = int(self._cuts[block + 1] - self._cuts[block])
            memory.put(block, memoryview(load.data), samples)

    def _load_to_disk(self, load: _Load, disk: BlockCache) -> None:
        claim = None
        descriptor = disk.open(load.file)
        if descriptor is None:
            # What another process is making is waited for only where somebody waits here.
            claim = disk.claim(load.file, PATIENCE_S if load.urgent else 0.0)
            descriptor = disk.open(load.file) if claim is None else None
        if descriptor is not None:
            os.close(descriptor)
        if descriptor is not None or (claim is None and not load.urgent):
            load.done.set()
            return
        try:
            self._flights.fly(load)
            if claim is not None and load.data is not None:
                publish, claim = claim, None
                disk.publish(publish, load.data)
        finally:
            if claim is not None:
                disk.release(claim)

    def _span(self, block: int) -> tuple[int, int]:
        """The bytes of a block in its shard."""
        begin, end = self._span_K[block].tolist()
        return begin, end

    def _file(self, block: int) -> str:
        return block_name(int(self._unit_K[block]), *self._span(block))


def _warn(error: CacheFailed) -> None:
    log.warning(
        "the node-local cache is off: %s. Samples come from the object store one by one, which is slower where they "
        "are small; free some room, or set stream.cache_dir (or stream.cache_gb=0)",
        error,
    )
