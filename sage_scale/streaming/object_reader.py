"""Shards in an object store: from whole blocks (`blocks.py`), or samples by themselves, neighbours coalesced."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import StorageError
from sage_scale.storage import NotFound, Store, Unavailable
from sage_scale.streaming.batch import ReadCounts
from sage_scale.streaming.blocks import Blocks
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.prefetch import ReadPlan
from sage_scale.streaming.range_requests import RangeClient, RangeRequest
from sage_scale.streaming.readers import ADVICE, DamagedSample, SampleReader, Source

COALESCE_GAP = 128 << 10
"""Two ranges nearer than this are fetched with one GET: 128 KiB take about a millisecond, a request tens of
them.
"""
COALESCE_BYTES = 8 << 20
"""Largest coalesced GET."""
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


class ObjectReader(SampleReader):
    """Shards in an object store."""

    attempts = REMOTE_ATTEMPTS

    def __init__(self, catalog: Catalog, store: Store, reading: ReadPlan | None = None) -> None:
        super().__init__(catalog)
        self.store = store
        self.reading = reading or ReadPlan()
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._flights = RangeClient(self.store, self.reading.give_up_after_s)
        self._blocks: Blocks | None = None
        if self.reading.keep != "nothing":
            self._blocks = Blocks(self.catalog, self.reading, self._flights, COALESCE_GAP)

    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        lengths = self.catalog.samples.length[np.asarray(samples, dtype=np.int64)].tolist()
        for source, length in zip(self.sources(np.asarray(samples, dtype=np.int64)), lengths):
            if isinstance(source, DamagedSample):
                yield source
            elif isinstance(source[0], int):
                yield os.pread(source[0], length, source[1])
            else:
                yield bytes(source[0][source[1] : source[1] + length])

    def sources(self, samples: NDArray[np.int64]) -> Iterator[Source | DamagedSample]:
        self._after_fork()
        blocks = self._blocks
        if blocks is None or not blocks.ready():
            for sample in self._fetch_alone(samples):
                yield sample if isinstance(sample, DamagedSample) else (sample, 0)
            return
        block_B = blocks.of(samples).tolist()
        begin_B = (self.catalog.samples.offset[samples] - blocks.begin(block_B)).tolist()
        held = blocks.take(sorted(set(block_B)))
        try:
            alone = np.flatnonzero([block not in held for block in block_B])
            fetched = dict(zip(alone.tolist(), self._fetch_alone(samples[alone])))
            for place, (block, begin) in enumerate(zip(block_B, begin_B)):
                data = held.get(block)
                if data is not None:
                    yield data, begin
                    continue
                descriptor = blocks.reopen(block) if block in held else None
                if descriptor is not None:
                    try:
                        yield descriptor, begin
                    finally:
                        os.close(descriptor)
                    continue
                sample = fetched.pop(place, None) or self._fetch_alone(samples[place : place + 1])[0]
                yield sample if isinstance(sample, DamagedSample) else (sample, 0)
        finally:
            blocks.give_back(held, Counter(block_B))

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        self._after_fork()
        if len(samples) and self._blocks is not None and self._blocks.ready():
            numbers = self._blocks.of(samples)
            for block in numbers[np.sort(np.unique(numbers, return_index=True)[1])].tolist():
                self._blocks.start(block)

    def rest(self) -> None:
        self._after_fork()
        if self._blocks is not None:
            self._blocks.rest()

    def spent(self) -> ReadCounts:
        self._after_fork()
        traffic = self._flights.traffic()
        hits, misses = self._blocks.counts() if self._blocks is not None else (0, 0)
        return ReadCounts(
            requests=traffic.requests,
            hedges=traffic.hedges,
            retries=traffic.retries,
            fetched=traffic.bytes,
            node_hits=hits,
            node_misses=misses,
        )

    def fetch_again(self, sample: int) -> bytes | DamagedSample:
        """By itself: its block may have been damaged on the way, or lie damaged on the disk."""
        number = np.array([sample])
        if self._blocks is not None:
            self._blocks.drop(int(self._blocks.of(number)[0]))
        data = self._fetch_alone(number)[0]
        return data if isinstance(data, DamagedSample) else bytes(data)

    def _fetch_alone(self, picked: NDArray[np.int64]) -> list[memoryview | DamagedSample]:
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
        found: list[memoryview | DamagedSample] = [memoryview(b"")] * len(picked)
        for span, flight in zip(spans, flights):
            whole = self._answer(flight, span.end)
            for member in span.members:
                begin = int(begin_B[member]) - span.begin
                if whole is not None:
                    found[member] = whole[begin : begin + int(bytes_B[member])]
                else:
                    found[member] = self._get_one(int(picked[member]), deadline)
        return found

    def _answer(self, flight: RangeRequest, end: int) -> memoryview | None:
        """What a flight brought, or None where the shard is missing or ends before it."""
        if flight.data is not None:
            return memoryview(flight.data)
        error = flight.error or StorageError(f"{self.store.url}/{flight.name} gave nothing")
        if isinstance(error, Unavailable) or (
            not isinstance(error, NotFound) and self._size(flight.name) >= end
        ):
            raise error
        return None

    def _get_one(self, sample: int, deadline: float) -> memoryview | DamagedSample:
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
        return memoryview(flight.data)

    def _size(self, name: str) -> int:
        try:
            return self.store.size(name)
        except NotFound:
            return -1

    def _after_fork(self) -> None:
        if self._process != os.getpid():
            self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {"catalog": self.catalog, "store": self.store, "reading": self.reading}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["catalog"], state["store"], state["reading"])  # type: ignore[misc]
