"""Reading samples by their place, and checking every byte against the index before it is handed on.

Local shards are read with `pread` through cached descriptors, in the order of their places. Shards in an
object store are read by ranged GETs, neighbours coalesced, several at a time. A sample whose bytes do not
have the xxh3-128 of the index is read again where the way to it is a network, and otherwise refused.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sage_scale.errors import DatasetError, StorageError
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.streaming.catalog import Catalog

MAX_DESCRIPTORS = 256
PARALLEL_GETS = 16
COALESCE_GAP = 128 << 10
"""Two ranges nearer than this are fetched with one GET: 128 KiB take about a millisecond, a request tens of
them.
"""
COALESCE_BYTES = 8 << 20
"""Largest coalesced GET."""
REMOTE_ATTEMPTS = 3
"""How often damaged bytes are fetched: S3 clients do not notice a byte that flipped on the way."""


class DamagedSample(DatasetError):
    """A sample whose bytes are missing, cut off or changed."""


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


class Fetcher(ABC):
    """Reads samples of a catalog. Reentrant."""

    attempts = 1
    """How often bytes with a wrong hash are worth fetching."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    @abstractmethod
    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        """The bytes of each sample, unchecked; where they are not there, a DamagedSample in their place.

        Raises StorageError where the store itself fails.
        """

    def read(self, samples: Sequence[int]) -> Iterator[tuple[bytes | DamagedSample, int]]:
        """Bytes that have the hash of the index, or a DamagedSample, and how often they were read again.

        One sample after another: those who let go of one before they take the next keep the memory in use small
        enough for the processor's cache.
        """
        hashes = self.catalog.samples.hash[np.asarray(samples, dtype=np.int64)].tobytes()
        for number, data in enumerate(self.fetch(samples)):
            expected = hashes[16 * number : 16 * number + 16]
            if isinstance(data, DamagedSample) or xxhash.xxh3_128_digest(data) == expected:
                yield data, 0
            else:
                yield self._read_again(samples[number], expected)

    def _read_again(self, sample: int, expected: bytes) -> tuple[bytes | DamagedSample, int]:
        for attempt in range(1, self.attempts):
            data = next(iter(self.fetch([sample])))
            if isinstance(data, DamagedSample) or xxhash.xxh3_128_digest(data) == expected:
                return data, attempt
        what = f"{self.catalog.describe(sample)}: its bytes do not have the hash of the index; {ADVICE}"
        return DamagedSample(what), self.attempts - 1


class _Descriptor:
    """An open file that closes when the last thread lets go of it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class FileFetcher(Fetcher):
    """Shards in files of this machine. `pread` has no position: threads and forked workers may share it."""

    def __init__(self, catalog: Catalog, paths: Sequence[Path]) -> None:
        super().__init__(catalog)
        self.paths = paths
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        table = self.catalog.samples
        picked = np.asarray(samples, dtype=np.int64)
        places = zip(
            samples, table.unit[picked].tolist(), table.offset[picked].tolist(), table.length[picked].tolist()
        )
        for place in places:
            yield self._read(*place)

    def _read(self, sample: int, shard: int, offset: int, size: int) -> bytes | DamagedSample:
        try:
            data = os.pread(self._descriptor(shard).number, size, offset)
        except FileNotFoundError:
            return DamagedSample(f"{self.catalog.describe(sample)}: the shard is missing; {ADVICE}")
        except OSError as error:
            raise StorageError(f"{self.catalog.describe(sample)} cannot be read: {error.strerror}") from None
        if len(data) < size:  # a file's end; Linux gives up to 2 GiB at once
            return DamagedSample(f"{self.catalog.describe(sample)}: the shard is cut off; {ADVICE}")
        return data

    def _descriptor(self, shard: int) -> _Descriptor:
        with self._lock:
            found = self._open.get(shard)
            if found is None:
                found = self._open[shard] = _Descriptor(self.paths[shard])
                if len(self._open) > MAX_DESCRIPTORS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {"catalog": self.catalog, "paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["catalog"], state["paths"])  # type: ignore[misc]


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


ADVICE = "run `sage-scale shards verify` on the dataset, then `shards repair`"


def open_fetcher(catalog: Catalog) -> Fetcher:
    """The fetcher for the store that the catalog's shards lie in."""
    store = open_store(catalog.url)
    paths = [store.local_path(name) for name in catalog.shards]
    if all(path is not None for path in paths):
        return FileFetcher(catalog, [path for path in paths if path is not None])
    return RangeFetcher(catalog, store)
