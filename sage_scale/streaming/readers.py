"""Reads samples by shard and offset, and checks every byte against the index before it is handed on.

Shards in files of this machine are read here by `pread`, shards in an object store by `object_reader.py`. A sample
whose bytes do not have the xxh3-128 of the index is read again over a network, and otherwise refused.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from sage_scale.errors import DatasetError, StorageError
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.untrusted.files import open_descriptor

ADVICE = "run `sage-scale shards verify` on the dataset, then `shards repair`"
MAX_DESCRIPTORS = 256

Source = tuple[int | memoryview, int]
"""A descriptor or memory, and the offset in it."""


class DamagedSample(DatasetError):
    """A sample whose bytes are missing, cut off or changed."""


class SampleReader(ABC):
    """Reads samples of a catalog. Reentrant."""

    remote = True
    """Whether samples come over a network."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    @abstractmethod
    def locate(self, samples: NDArray[np.int64]) -> Iterator[Source | DamagedSample]:
        """Yields a source of each sample's bytes, unchecked and valid until the next; DamagedSample where it has none.

        Raises StorageError where the store itself fails.
        """

    def read(self, samples: Sequence[int]) -> Generator[tuple[bytes | DamagedSample, int], None, None]:
        """Yields bytes that have the hash of the index, or a DamagedSample, and the number of repeated reads.

        One sample after another: a caller that drops one before it takes the next keeps the memory in use small
        enough for the processor's cache.
        """
        picked = np.asarray(samples, dtype=np.int64)
        table = self.catalog.samples.take(picked)
        hashes, lengths = table.hash.tobytes(), table.length.tolist()
        for row, (source, length) in enumerate(zip(self.locate(picked), lengths)):
            data = source if isinstance(source, DamagedSample) else self._get(samples[row], source, length)
            expected = hashes[16 * row : 16 * row + 16]
            if isinstance(data, DamagedSample) or xxhash.xxh3_128_digest(data) == expected:
                yield data, 0
            else:
                yield self._reread(samples[row], data, expected)

    def read_again(self, sample: int) -> Iterator[bytes | DamagedSample]:
        """Yields the bytes of a sample that did not have their hash, as often as it is worth fetching them."""
        return iter(())

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        """Starts fetching the blocks of these samples, without waiting."""
        return

    def cancel_prefetch(self) -> None:
        """Drops fetches without a waiting caller."""
        return

    def counts(self) -> ReadCounts:
        """Returns the cost of fetching since the last call."""
        return ReadCounts()

    def _get(self, sample: int, source: Source, length: int) -> bytes:
        where, offset = source
        if not isinstance(where, int):
            return bytes(where[offset : offset + length])
        try:
            return os.pread(where, length, offset)
        except OSError as error:
            raise StorageError(f"{self.catalog.describe(sample)} cannot be read: {error.strerror}") from None

    def _reread(self, sample: int, data: bytes, expected: bytes) -> tuple[bytes | DamagedSample, int]:
        repeated = 0
        for repeated, again in enumerate(self.read_again(sample), start=1):
            if isinstance(again, DamagedSample) or xxhash.xxh3_128_digest(again) == expected:
                return again, repeated
        # Linux reads up to 2 GiB at once: less is the end of a file.
        short = len(data) < int(self.catalog.samples.records["length"][sample])
        fault = "the shard is cut off" if short else "its bytes do not have the hash of the index"
        return DamagedSample(f"{self.catalog.describe(sample)}: {fault}; {ADVICE}"), repeated


class _Descriptor:
    """An open file that closes when its last reference is gone."""

    def __init__(self, path: Path) -> None:
        self.number = open_descriptor(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class FileReader(SampleReader):
    """Shards in files of this machine. `pread` has no position: threads and forked workers may share it."""

    remote = False

    def __init__(self, catalog: Catalog, paths: Sequence[Path]) -> None:
        super().__init__(catalog)
        self.paths = paths
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def locate(self, samples: NDArray[np.int64]) -> Iterator[Source | DamagedSample]:
        table = self.catalog.samples
        offsets = zip(table.unit[samples].tolist(), table.offset[samples].tolist())
        for row, (shard, offset) in enumerate(offsets):
            try:
                descriptor = self._descriptor(shard)
            except FileNotFoundError:
                yield DamagedSample(
                    f"{self.catalog.describe(int(samples[row]))}: the shard is missing; {ADVICE}"
                )
                continue
            except OSError as error:
                where = self.catalog.describe(int(samples[row]))
                raise StorageError(f"{where} cannot be read: {error.strerror}") from None
            yield descriptor.number, offset

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


class JoinedReader(SampleReader):
    """Samples of several datasets, each read by its own reader."""

    def __init__(self, catalog: Catalog, parts: Sequence[SampleReader]) -> None:
        super().__init__(catalog)
        self.parts = parts

    def locate(self, samples: NDArray[np.int64]) -> Iterator[Source | DamagedSample]:
        owner_B, own_B = self._owners(samples)
        sources = [part.locate(own_B[owner_B == number]) for number, part in enumerate(self.parts)]
        for owner in owner_B.tolist():
            yield next(sources[owner])

    def read_again(self, sample: int) -> Iterator[bytes | DamagedSample]:
        owner_B, own_B = self._owners(np.array([sample]))
        return self.parts[int(owner_B[0])].read_again(int(own_B[0]))

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        owner_A, own_A = self._owners(samples)
        for owner in np.unique(owner_A).tolist():
            self.parts[owner].prefetch(own_A[owner_A == owner])

    def cancel_prefetch(self) -> None:
        for part in self.parts:
            part.cancel_prefetch()

    def counts(self) -> ReadCounts:
        return sum((part.counts() for part in self.parts), ReadCounts())

    def _owners(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the part of each sample, and its number there."""
        bounds = self.catalog.part_bounds
        owner_B = np.searchsorted(bounds, samples, side="right") - 1
        return owner_B, samples - bounds[owner_B]
