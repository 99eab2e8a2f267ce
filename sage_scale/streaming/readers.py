"""ReadPlan samples by their place, and checking every byte against the index before it is handed on.

Local shards are read by `files.py`, shards in an object store by `ranges.py`. A sample whose bytes do not
have the xxh3-128 of the index is read again where the way to it is a network, and otherwise refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from sage_scale.errors import DatasetError
from sage_scale.streaming.batch import ReadCounts
from sage_scale.streaming.catalog import Catalog

ADVICE = "run `sage-scale shards verify` on the dataset, then `shards repair`"


Source = tuple[int | memoryview, int]
"""A descriptor or memory, and the offset in it."""


class DamagedSample(DatasetError):
    """A sample whose bytes are missing, cut off or changed."""


class SampleReader(ABC):
    """Reads samples of a catalog. Reentrant."""

    attempts = 1
    """How often bytes with a wrong hash are worth fetching."""
    remote = True
    """Whether samples come over a network."""
    tells_sources = True
    """Whether `sources` says where samples are."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    @abstractmethod
    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        """The bytes of each sample, unchecked; where they are not there, a DamagedSample in their place.

        Raises StorageError where the store itself fails.
        """

    def sources(self, samples: NDArray[np.int64]) -> Iterator[Source | DamagedSample]:
        """Where the bytes of each sample are to be had, good until the next is asked for. A fetcher that cannot
        say ends early. Raises OSError and StorageError.
        """
        return iter(())

    def fetch_again(self, sample: int) -> bytes | DamagedSample:
        """The bytes of a sample that did not have their hash, from where they come from."""
        return next(iter(self.fetch([sample])))

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        """Start fetching what these samples stand for (`ahead.with_prefetch`), and do not wait for it."""
        return

    def rest(self) -> None:
        """Nobody will ask for what is being fetched ahead: leave it."""
        return

    def spent(self) -> ReadCounts:
        """What fetching has cost since this was last called."""
        return ReadCounts()

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
            data = self.fetch_again(sample)
            if isinstance(data, DamagedSample) or xxhash.xxh3_128_digest(data) == expected:
                return data, attempt
        what = f"{self.catalog.describe(sample)}: its bytes do not have the hash of the index; {ADVICE}"
        return DamagedSample(what), self.attempts - 1
