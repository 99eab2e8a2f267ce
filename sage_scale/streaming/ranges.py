"""Shards in an object store: whole blocks through the node-local cache, or single samples, neighbours coalesced.

With blocks (`Reading.cuts`) whoever first needs a sample of a block fetches all of it, and the host's other ranks,
workers and later steps find it in the cache. `prefetch` starts blocks before they are needed. Where many blocks are
missing at once (a cold start: the first step of 64 lanes touches 64 of them) nobody waits for all: the step's
samples are fetched by themselves, and the blocks come in behind. Without a cache, or with one too small for the
blocks in use, samples are always fetched by themselves.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import StorageError
from sage_scale.storage import NotFound, Store, Unavailable
from sage_scale.streaming.ahead import Reading, cut_at_gaps
from sage_scale.streaming.batches import ReadCounts
from sage_scale.streaming.cache import PATIENCE_S, BlockCache, CacheFailed, block_name, open_cache
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.crew import AHEAD, URGENT
from sage_scale.streaming.flights import Flight, Flights
from sage_scale.streaming.readers import ADVICE, DamagedSample, Fetcher

log = logging.getLogger("sage_scale.streaming")

COALESCE_GAP = 128 << 10
"""Two ranges nearer than this are fetched with one GET: 128 KiB take about a millisecond, a request tens of
them.
"""
COALESCE_BYTES = 8 << 20
"""Largest coalesced GET."""
COLD_BYTES = 64 << 20
"""More missing blocks than this are not waited for by one step, as long as such steps are few."""
COLD_STEPS, COLD_SHARE = 4, 0.02
"""So many steps of a process may go round the cache, and this share of all: a block costs the processors as much as
eight samples by themselves, and holds over a hundred."""
MAX_HELD = 64
"""Descriptors of blocks that one step keeps open; more are opened when they are read."""
REMOTE_ATTEMPTS = 3
"""How often damaged bytes are fetched: S3 clients do not notice a byte that flipped on the way."""


@dataclass(frozen=True)
class Span:
    """One range of one shard, [begin, end), and the samples (numbers in a request) that lie in it."""

    shard: int
    begin: int
    end: int
    members: tuple[int, ...]


def coalesce(
    shard_B: NDArray[np.int64], offset_B: NDArray[np.int64], bytes_B: NDArray[np.int64], gap: int, limit: int
) -> list[Span]:
    """Spans that cover every sample; neighbours at most `gap` bytes apart share one of at most `limit`."""
    spans: list[Span] = []
    for member in np.lexsort((offset_B, shard_B)).tolist():
        shard, begin = int(shard_B[member]), int(offset_B[member])
        end = begin + int(bytes_B[member])
        last = spans[-1] if spans else None
        if last and last.shard == shard and begin <= last.end + gap and end - last.begin <= limit:
            spans[-1] = Span(shard, last.begin, max(last.end, end), (*last.members, member))
        else:
            spans.append(Span(shard, begin, end, (member,)))
    return spans


class _Load(Flight):
    """A block on its way from the store into the cache."""

    def __init__(self, name: str, offset: int, length: int, file: str) -> None:
        super().__init__(name, offset, length)
        self.file = file
        self.taken = False
        """Whether a thread works on it."""
        self.over = threading.Event()
        """Set when the block is in the cache, or will not be."""
        self.urgent = False
        """Whether somebody waits for it."""


class RangeFetcher(Fetcher):
    """Shards in an object store."""

    attempts = REMOTE_ATTEMPTS

    def __init__(self, catalog: Catalog, store: Store, reading: Reading | None = None) -> None:
        super().__init__(catalog)
        self.store = store
        self.reading = reading or Reading()
        table = catalog.samples
        self._cuts: NDArray[np.int64] | None = None
        if self.reading.cuts is not None and self.reading.cache_bytes:
            cuts = cut_at_gaps(self.reading.cuts, table.unit, table.offset, table.length, COALESCE_GAP)
            first, last = cuts[:-1], cuts[1:] - 1
            self._cuts = cuts
            self._unit_K = table.unit[first]
            self._span_K = np.stack([table.offset[first], table.offset[last] + table.length[last]], axis=1)
        self.from_files = self._cuts is not None
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._flights = Flights(self.store, self.reading.give_up_after_s)
        self._loads: dict[int, _Load] = {}
        self._cache: BlockCache | None = None
        self._cache_wanted = self._cuts is not None
        self._hits = self._misses = self._steps = self._cold_steps = 0

    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        self._after_fork()
        picked = np.asarray(samples, dtype=np.int64)
        cache = self._open_cache()
        if cache is None:
            yield from self._fetch_alone(picked)
            return
        block_B = self._blocks(picked).tolist()
        begin_B = (self.catalog.samples.offset[picked] - self._span_K[block_B, 0]).tolist()
        bytes_B = self.catalog.samples.length[picked].tolist()
        held: dict[int, int | None] = {}
        try:
            arrived = self._get_blocks(cache, sorted(set(block_B)), held)
            alone = np.flatnonzero([block not in held and block not in arrived for block in block_B])
            fetched = dict(zip(alone.tolist(), self._fetch_alone(picked[alone])))
            for place, block in enumerate(block_B):
                if place in fetched:
                    yield fetched.pop(place)
                    continue
                begin, length = begin_B[place], bytes_B[place]
                if block in arrived:
                    yield bytes(memoryview(arrived[block])[begin : begin + length])
                    continue
                data = _read_block(cache, self._file(block), held[block], begin, length)
                yield self._fetch_alone(picked[place : place + 1])[0] if data is None else data
        finally:
            _close(held)

    def sources(self, samples: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        self._after_fork()
        cache = self._open_cache()
        if cache is None:
            return
        block_B = self._blocks(samples).tolist()
        begin_B = (self.catalog.samples.offset[samples] - self._span_K[block_B, 0]).tolist()
        held: dict[int, int | None] = {}
        try:
            if not self._bring_to_disk(cache, sorted(set(block_B)), held):
                return
            for block, begin in zip(block_B, begin_B):
                descriptor = held[block]
                if descriptor is not None:
                    yield descriptor, begin
                    continue
                descriptor = cache.open(self._file(block))
                if descriptor is None:
                    return
                try:
                    yield descriptor, begin
                finally:
                    os.close(descriptor)
        finally:
            _close(held)

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        self._after_fork()
        if len(samples) and self._open_cache() is not None:
            blocks = self._blocks(samples)
            for block in blocks[np.sort(np.unique(blocks, return_index=True)[1])].tolist():
                self._start(block, AHEAD)

    def rest(self) -> None:
        with self._lock:
            for load in self._loads.values():
                if not load.urgent:
                    load.error = load.error or Unavailable("nobody waits for it any more")
                    load.done.set()

    def spent(self) -> ReadCounts:
        traffic = self._flights.traffic()
        with self._lock:
            hits, misses, self._hits, self._misses = self._hits, self._misses, 0, 0
        return ReadCounts(
            requests=traffic.requests,
            hedges=traffic.hedges,
            retries=traffic.retries,
            fetched=traffic.bytes,
            node_hits=hits,
            node_misses=misses,
        )

    def _get_blocks(
        self, cache: BlockCache, blocks: list[int], held: dict[int, int | None]
    ) -> dict[int, bytes | bytearray]:
        """Wait for these blocks: those in the cache get into `held`, those just fetched are the answer.

        Blocks that are in neither are better, or only, read sample by sample. Raises Unavailable.
        """
        deadline = time.monotonic() + self.reading.give_up_after_s
        missing = [block for block in blocks if not self._hold(cache, block, held)]
        with self._lock:
            self._hits += len(held)
            self._misses += len(missing)
            self._steps += 1
            if self._cold(missing):
                self._cold_steps += 1
                return {}
        loads = {block: self._start(block, URGENT) for block in missing}
        self._flights.wait(list(loads.values()), deadline)
        arrived = {}
        for block, load in loads.items():
            if isinstance(load.error, Unavailable):
                raise load.error
            if load.data is not None:
                arrived[block] = load.data
            elif load.error is None:  # another process has put it into the cache
                self._hold(cache, block, held)
        return arrived

    def _bring_to_disk(self, cache: BlockCache, blocks: list[int], held: dict[int, int | None]) -> bool:
        """As `_get_blocks`, all into `held`; false where that is not to be had. Raises Unavailable."""
        deadline = time.monotonic() + self.reading.give_up_after_s
        missing = [block for block in blocks if not self._hold(cache, block, held)]
        if self._cold(missing):
            return False
        found = len(held)
        loads = {block: self._start(block, URGENT) for block in missing}
        self._flights.wait(list(loads.values()), deadline)
        for block, load in loads.items():
            if isinstance(load.error, Unavailable):
                raise load.error
            if not load.over.wait(PATIENCE_S) or not self._hold(cache, block, held):
                return False
        with self._lock:
            self._hits += found
            self._misses += len(missing)
            self._steps += 1
        return True

    def _cold(self, missing: list[int]) -> bool:
        """Whether a step goes round the cache rather than wait for these blocks."""
        sizes = self._span_K[missing, 1] - self._span_K[missing, 0]
        few = self._cold_steps < COLD_STEPS + COLD_SHARE * self._steps
        return few and bool(sizes.sum() > COLD_BYTES)

    def _hold(self, cache: BlockCache, block: int, held: dict[int, int | None]) -> bool:
        """Note the block in `held` if it is in the cache, with its descriptor as long as there are not too many."""
        descriptor = cache.open(self._file(block))
        if descriptor is None:
            return False
        if len(held) < MAX_HELD:
            held[block] = descriptor
        else:
            os.close(descriptor)
            held[block] = None
        return True

    def _start(self, block: int, urgency: int) -> _Load:
        """The block's load, under way or started now."""
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

    def _load(self, block: int, load: _Load) -> None:
        """Fetch a block into the cache, unless it is there or on its way in another process. Never raises."""
        with self._lock:
            if load.taken:
                return
            load.taken = True
        if load.done.is_set():
            self._forget(block, load)
            return
        claim = None
        cache = self._cache
        try:
            if cache is not None:
                descriptor = cache.open(load.file)
                if descriptor is None:
                    # What another process is making is waited for only where somebody waits here.
                    claim = cache.claim(load.file, PATIENCE_S if load.urgent else 0.0)
                    descriptor = cache.open(load.file) if claim is None else None
                if descriptor is not None:
                    os.close(descriptor)
                if descriptor is not None or (claim is None and not load.urgent):
                    load.done.set()
                    return
            self._flights.fly(load)
            if claim is not None and load.data is not None and cache is not None:
                publish, claim = claim, None
                cache.publish(publish, load.data)
        except CacheFailed as error:
            self._do_without(error)
            if not load.done.is_set():
                self._flights.fly(load)
        finally:
            if claim is not None and cache is not None:
                cache.release(claim)
            self._forget(block, load)

    def _forget(self, block: int, load: _Load) -> None:
        with self._lock:
            if self._loads.get(block) is load:
                del self._loads[block]
        load.over.set()

    def _fetch_alone(self, picked: NDArray[np.int64]) -> list[bytes | DamagedSample]:
        """Samples by themselves, neighbours with one GET."""
        table = self.catalog.samples
        deadline = time.monotonic() + self.reading.give_up_after_s
        begin_B, bytes_B = table.offset[picked], table.length[picked]
        spans = coalesce(table.unit[picked], begin_B, bytes_B, COALESCE_GAP, COALESCE_BYTES)
        flights = [
            self._flights.start(self.catalog.shards[span.shard], span.begin, span.end - span.begin)
            for span in spans
        ]
        self._flights.wait(flights, deadline)
        found: list[bytes | DamagedSample] = [b""] * len(picked)
        for span, flight in zip(spans, flights):
            whole = self._answer(flight, span.end)
            for member in span.members:
                begin = int(begin_B[member]) - span.begin
                if whole is not None:
                    found[member] = bytes(whole[begin : begin + int(bytes_B[member])])
                else:
                    found[member] = self._get_one(int(picked[member]), deadline)
        return found

    def _answer(self, flight: Flight, end: int) -> memoryview | None:
        """What a flight brought, or None where the shard is missing or ends before it."""
        if flight.data is not None:
            return memoryview(flight.data)
        error = flight.error or StorageError(f"{self.store.url}/{flight.name} gave nothing")
        if isinstance(error, Unavailable) or (
            not isinstance(error, NotFound) and self._size(flight.name) >= end
        ):
            raise error
        return None

    def _get_one(self, sample: int, deadline: float) -> bytes | DamagedSample:
        table, name = self.catalog.samples, self.catalog.shard(sample)
        begin, length = int(table.offset[sample]), int(table.length[sample])
        size = self._size(name)
        if size < begin + length:
            fate = "is missing" if size < 0 else "is cut off"
            return DamagedSample(f"{self.catalog.describe(sample)}: the shard {fate}; {ADVICE}")
        flight = self._flights.start(name, begin, length)
        self._flights.wait([flight], deadline)
        if flight.data is None:
            raise flight.error or StorageError(f"{self.store.url}/{name} gave nothing")
        return bytes(flight.data)

    def fetch_again(self, sample: int) -> bytes | DamagedSample:
        """By itself, and past the cache: its block may have been damaged on the way, or lie damaged on the disk."""
        if self._cache is not None:
            block = int(self._blocks(np.array([sample]))[0])
            self._cache.drop(self._file(block))
        return self._fetch_alone(np.array([sample]))[0]

    def _size(self, name: str) -> int:
        try:
            return self.store.size(name)
        except NotFound:
            return -1

    def _blocks(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self._cuts is not None
        return np.searchsorted(self._cuts, samples, side="right") - 1

    def _span(self, block: int) -> tuple[int, int]:
        """The bytes of a block in its shard."""
        begin, end = self._span_K[block].tolist()
        return begin, end

    def _file(self, block: int) -> str:
        return block_name(int(self._unit_K[block]), *self._span(block))

    def _open_cache(self) -> BlockCache | None:
        if self._cache is None and self._cache_wanted:
            with self._lock:
                if self._cache is None and self._cache_wanted:
                    try:
                        self._cache = open_cache(
                            self.reading.cache_dir, self.catalog.digest(), self.reading.cache_bytes
                        )
                    except CacheFailed as error:
                        self._cache_wanted = False
                        _warn(error)
        return self._cache if self._cache_wanted else None

    def _do_without(self, error: CacheFailed) -> None:
        with self._lock:
            wanted, self._cache_wanted = self._cache_wanted, False
        if wanted:
            _warn(error)

    def _after_fork(self) -> None:
        if self._process != os.getpid():
            self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {"catalog": self.catalog, "store": self.store, "reading": self.reading}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["catalog"], state["store"], state["reading"])  # type: ignore[misc]


def _close(held: dict[int, int | None]) -> None:
    for descriptor in held.values():
        if descriptor is not None:
            os.close(descriptor)


def _read_block(
    cache: BlockCache, file: str, descriptor: int | None, begin: int, length: int
) -> bytes | None:
    """Bytes of a block; None where it was evicted meanwhile."""
    if descriptor is not None:
        return os.pread(descriptor, length, begin)
    descriptor = cache.open(file)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, length, begin)
    finally:
        os.close(descriptor)


def _warn(error: CacheFailed) -> None:
    log.warning(
        "the node-local cache is off: %s. Samples come from the object store one by one, which is slower where they "
        "are small; free some room, or set stream.cache_dir (or stream.cache_gb=0)",
        error,
    )
