"""Shards in an object store: from whole blocks (`blocks.py`), or sample by sample, neighbours coalesced."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import StorageError
from sage_scale.storage import NotFound, Store, Unavailable, open_store
from sage_scale.streaming.blocks import Blocks
from sage_scale.streaming.catalog import COALESCE_GAP, Catalog
from sage_scale.streaming.order import Column
from sage_scale.streaming.prefetch import ReadPlan
from sage_scale.streaming.range_requests import RangeClient, RangeRequest
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.streaming.readers import (
    ADVICE,
    DamagedSample,
    FileReader,
    JoinedReader,
    SampleReader,
    Source,
)

COALESCE_BYTES = 8 << 20
"""Largest coalesced GET."""
REPEATED_READS = 2
"""Repeated reads of damaged bytes: S3 clients do not notice a byte that flipped on the way."""


def open_reader(catalog: Catalog, plan: ReadPlan | None = None) -> SampleReader:
    """Returns the reader for the store, or the stores, that hold the catalog's shards."""
    plan = plan or ReadPlan()
    stores = [open_store(part.url) for part in catalog.parts or (catalog,)]
    paths = [
        store.local_path(name)
        for store, part in zip(stores, catalog.parts or (catalog,))
        for name in part.shards
    ]
    local = [path for path in paths if path is not None]
    if len(local) == len(paths):
        return FileReader(catalog, local)
    if not catalog.parts:
        return ObjectReader(catalog, stores[0], plan)
    bounds = catalog.part_bounds.tolist()
    parts = [
        open_reader(part, plan.part(begin, end))
        for part, begin, end in zip(catalog.parts, bounds, bounds[1:])
    ]
    return JoinedReader(catalog, parts)


@dataclass(frozen=True)
class Span:
    """One range of one shard, [begin, end), and the samples (numbers in a request) that lie in it."""

    shard: int
    begin: int
    end: int
    members: tuple[int, ...]


def coalesce(shard_B: Column, offset_B: Column, bytes_B: Column, gap: int, limit: int) -> list[Span]:
    """Returns spans that cover every sample; neighbours at most `gap` bytes apart share one of at most `limit`."""
    spans: list[Span] = []
    for member in np.lexsort((offset_B, shard_B)).tolist():
        shard, begin = int(shard_B[member]), int(offset_B[member])
        end = begin + int(bytes_B[member])
        last = spans[-1] if spans else None
        if last and last.shard == shard and begin <= last.end + gap and end - last.begin <= limit:
            spans[-1] = replace(last, end=max(last.end, end), members=(*last.members, member))
        else:
            spans.append(Span(shard, begin, end, (member,)))
    return spans


class ObjectReader(SampleReader):
    """Shards in an object store."""

    def __init__(self, catalog: Catalog, store: Store, plan: ReadPlan | None = None) -> None:
        super().__init__(catalog)
        self.store = store
        self.plan = plan or ReadPlan()
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._client = RangeClient(self.store, self.plan.give_up_after_s)
        self._blocks: Blocks | None = None
        if self.plan.keep != "nothing":
            self._blocks = Blocks(self.catalog, self.plan, self._client, COALESCE_GAP)

    def _usable_blocks(self) -> Blocks | None:
        """Returns the blocks of this process; None where blocks cannot be kept."""
        if self._process != os.getpid():  # a fork has none of the threads
            self._reset()
        return self._blocks if self._blocks is not None and self._blocks.usable() else None

    def locate(self, samples: NDArray[np.int64]) -> Iterator[Source | DamagedSample]:
        blocks = self._usable_blocks()
        if blocks is None:
            for sample in self._fetch_alone(samples):
                yield sample if isinstance(sample, DamagedSample) else (sample, 0)
            return
        block_B = blocks.of(samples).tolist()
        begin_B = (self.catalog.samples.offset[samples] - blocks.begin(block_B)).tolist()
        held = blocks.acquire(sorted(set(block_B)))
        try:
            alone = np.flatnonzero([block not in held for block in block_B])
            fetched = dict(zip(alone.tolist(), self._fetch_alone(samples[alone])))
            for row, (block, begin) in enumerate(zip(block_B, begin_B)):
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
                sample = fetched.pop(row, None) or self._fetch_alone(samples[row : row + 1])[0]
                yield sample if isinstance(sample, DamagedSample) else (sample, 0)
        finally:
            blocks.release(held, Counter(block_B))

    def read_again(self, sample: int) -> Iterator[bytes | DamagedSample]:
        """Yields the sample fetched alone: its block was damaged on the way, or lies damaged on the disk."""
        number = np.array([sample])
        for _ in range(REPEATED_READS):
            if self._blocks is not None:
                self._blocks.drop(int(self._blocks.of(number)[0]))
            data = self._fetch_alone(number)[0]
            yield data if isinstance(data, DamagedSample) else bytes(data)

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        if len(samples) and (blocks := self._usable_blocks()) is not None:
            numbers = blocks.of(samples)
            for block in numbers[np.sort(np.unique(numbers, return_index=True)[1])].tolist():
                blocks.fetch(block)

    def cancel_prefetch(self) -> None:
        if self._blocks is not None and self._process == os.getpid():
            self._blocks.cancel_prefetch()

    def counts(self) -> ReadCounts:
        if self._process != os.getpid():
            return ReadCounts()
        hits, misses = self._blocks.counts() if self._blocks is not None else (0, 0)
        return replace(self._client.counts(), node_hits=hits, node_misses=misses)

    def _fetch_alone(self, samples: NDArray[np.int64]) -> list[memoryview | DamagedSample]:
        """Fetches samples outside their blocks, neighbours with one GET."""
        table = self.catalog.samples.take(samples)
        deadline = time.monotonic() + self.plan.give_up_after_s
        begin_B, bytes_B = table.offset, table.length
        spans = coalesce(table.unit, begin_B, bytes_B, COALESCE_GAP, COALESCE_BYTES)
        requests = [
            self._client.submit(self.catalog.shards[span.shard], span.begin, span.end - span.begin)
            for span in spans
        ]
        self._client.wait(requests, deadline)
        found: list[memoryview | DamagedSample] = [memoryview(b"")] * len(samples)
        for span, request in zip(spans, requests):
            if request.data is None and len(span.members) > 1:  # some of them may be intact
                if isinstance(request.error, Unavailable):
                    raise request.error
                for member in span.members:
                    found[member] = self._fetch_alone(samples[member : member + 1])[0]
                continue
            for member in span.members:
                begin = int(begin_B[member]) - span.begin
                found[member] = (
                    self._missing(int(samples[member]), request)
                    if request.data is None
                    else memoryview(request.data)[begin : begin + int(bytes_B[member])]
                )
        return found

    def _missing(self, sample: int, request: RangeRequest) -> DamagedSample:
        """Returns the fault of a shard that is missing or ends before the sample. Raises any other error."""
        error = request.error or StorageError(f"{self.store.url}/{request.name} gave nothing")
        if isinstance(error, Unavailable):
            raise error
        size = self._size(request.name)
        if size >= request.offset + request.length:
            raise error
        fate = "is missing" if size < 0 else "is cut off"
        return DamagedSample(f"{self.catalog.describe(sample)}: the shard {fate}; {ADVICE}")

    def _size(self, name: str) -> int:
        try:
            return self.store.size(name)
        except NotFound:
            return -1
