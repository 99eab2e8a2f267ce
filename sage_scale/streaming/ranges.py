"""Shards in an object store: ranged GETs, neighbours coalesced, several at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import StorageError
from sage_scale.storage import NotFound, Store
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.readers import ADVICE, DamagedSample, Fetcher

PARALLEL_GETS = 16
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


class RangeFetcher(Fetcher):
    """Shards in an object store."""

    attempts = REMOTE_ATTEMPTS

    def __init__(self, catalog: Catalog, store: Store) -> None:
        super().__init__(catalog)
        self.store = store
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._lock = threading.Lock()

    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        table = self.catalog.samples
        picked = np.asarray(samples, dtype=np.int64)
        offset_B, bytes_B = table.offset[picked], table.length[picked]
        spans = coalesce(table.unit[picked], offset_B, bytes_B, COALESCE_GAP, COALESCE_BYTES)
        found: list[bytes | DamagedSample] = [b""] * len(samples)
        for span, data in zip(spans, self._threads().map(self._get, spans)):
            for member in span.members:
                if data is not None:
                    begin = int(offset_B[member]) - span.begin
                    found[member] = data[begin : begin + int(bytes_B[member])]
                else:
                    found[member] = self._get_alone(samples[member])
        yield from found

    def _get(self, span: Span) -> bytes | None:
        """The span, or None where the shard is missing or ends before it."""
        name = self.catalog.shards[span.shard]
        try:
            return self.store.get_range(name, span.begin, span.end - span.begin)
        except NotFound:
            return None
        except StorageError:
            if self._size(name) >= span.end:
                raise
            return None

    def _get_alone(self, sample: int) -> bytes | DamagedSample:
        table, name = self.catalog.samples, self.catalog.shard(sample)
        begin, length = int(table.offset[sample]), int(table.length[sample])
        size = self._size(name)
        if size < begin + length:
            fate = "is missing" if size < 0 else "is cut off"
            return DamagedSample(f"{self.catalog.describe(sample)}: the shard {fate}; {ADVICE}")
        return self.store.get_range(name, begin, length)

    def _size(self, name: str) -> int:
        try:
            return self.store.size(name)
        except NotFound:
            return -1

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
                self._pool = ThreadPoolExecutor(PARALLEL_GETS, thread_name_prefix="ranged-get")
                self._process = os.getpid()
            return self._pool

    def __getstate__(self) -> dict[str, Any]:
        return {"catalog": self.catalog, "store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["catalog"], state["store"])  # type: ignore[misc]
