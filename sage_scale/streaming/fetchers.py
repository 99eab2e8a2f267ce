"""Which fetcher reads a catalog: files of this machine, an object store, or several datasets in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sage_scale.storage import open_store
from sage_scale.streaming.batch import ReadCounts
from sage_scale.streaming.catalog import Catalog, JoinedCatalog
from sage_scale.streaming.files import FileReader
from sage_scale.streaming.object_reader import ObjectReader
from sage_scale.streaming.prefetch import ReadPlan
from sage_scale.streaming.readers import DamagedSample, SampleReader

T = TypeVar("T")


def open_reader(catalog: Catalog, reading: ReadPlan | None = None) -> SampleReader:
    """The fetcher for the store, or the stores, that the catalog's shards lie in."""
    reading = reading or ReadPlan()
    if isinstance(catalog, JoinedCatalog):
        bounds = zip(catalog.begins[:-1].tolist(), catalog.begins[1:].tolist())
        parts = [
            open_reader(part, reading.part(begin, end)) for part, (begin, end) in zip(catalog.parts, bounds)
        ]
        return JoinedReader(catalog, parts)
    store = open_store(catalog.url)
    paths = [store.local_path(name) for name in catalog.shards]
    if all(path is not None for path in paths):
        return FileReader(catalog, [path for path in paths if path is not None])
    return ObjectReader(catalog, store, reading)


class JoinedReader(SampleReader):
    """Samples of several datasets, each read by its own fetcher."""

    tells_sources = False

    def __init__(self, catalog: JoinedCatalog, parts: Sequence[SampleReader]) -> None:
        super().__init__(catalog)
        self.parts = parts
        self.remote = any(part.remote for part in parts)
        self._begins = catalog.begins

    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        return self._in_turn(samples, [part.fetch for part in self.parts])

    def read(self, samples: Sequence[int]) -> Iterator[tuple[bytes | DamagedSample, int]]:
        """As each dataset's own fetcher reads them, in the order asked for."""
        return self._in_turn(samples, [part.read for part in self.parts])

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        owner_A = np.searchsorted(self._begins, samples, side="right") - 1
        for part in np.unique(owner_A).tolist():
            self.parts[part].prefetch(samples[owner_A == part] - self._begins[part])

    def rest(self) -> None:
        for part in self.parts:
            part.rest()

    def spent(self) -> ReadCounts:
        return sum((part.spent() for part in self.parts), ReadCounts())

    def _in_turn(
        self, samples: Sequence[int], reads: Sequence[Callable[[list[int]], Iterator[T]]]
    ) -> Iterator[T]:
        picked = np.asarray(samples, dtype=np.int64)
        owner_B = np.searchsorted(self._begins, picked, side="right") - 1
        own = [
            iter(read((picked[owner_B == part] - self._begins[part]).tolist()))
            for part, read in enumerate(reads)
        ]
        for part in owner_B.tolist():
            yield next(own[part])
