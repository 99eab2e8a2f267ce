"""A map-style torch dataset of steps: give it a step's request, and it reads, checks, decodes and packs it.

Because a request names its samples, workers cannot change the order: a DataLoader with any number of them
gives the same batches. Used with a `batch_sampler` of requests, through `__getitems__`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch.utils.data
from numpy.typing import NDArray

from sage_scale.shards import read_sample
from sage_scale.streaming.batch import Batch, ReadCounts, SampleShape, StepRequest
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.features import FeatureReader
from sage_scale.streaming.fetchers import open_reader
from sage_scale.streaming.packing import DecodedSample, Packer
from sage_scale.streaming.prefetch import ReadPlan, with_prefetch
from sage_scale.streaming.readers import DamagedSample
from sage_scale.streaming.shelf import SharedBufferPool


class DecodedCache:
    """Decoded samples in at most `limit` bytes, the least recently used dropped first. Threads may share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._samples: OrderedDict[tuple[int, int], DecodedSample] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int, view: int = 0) -> DecodedSample | None:
        """The sample in a view, if it is there."""
        with self._lock:
            if (number, view) in self._samples:
                self._samples.move_to_end((number, view))
            return self._samples.get((number, view))

    def put(self, number: int, sample: DecodedSample, view: int = 0) -> None:
        """Keep the sample; one larger than the whole cache is not kept."""
        if sample.nbytes > self.limit:
            return
        with self._lock:
            if (number, view) in self._samples:
                return
            self._samples[number, view] = sample
            self.size += sample.nbytes
            while self.size > self.limit:
                self.size -= self._samples.popitem(last=False)[1].nbytes


class SampleDataset(torch.utils.data.Dataset):
    """The samples of a catalog, by request. Reentrant and picklable; descriptors and caches stay in the
    process.
    """

    def __init__(
        self,
        catalog: Catalog,
        shape: SampleShape,
        *,
        seed: int,
        on_corrupt: Literal["raise", "skip"] = "raise",
        cache_bytes: int = 0,
        reading: ReadPlan | None = None,
    ) -> None:
        self.catalog = catalog
        self.reading = reading
        self.shape = shape
        self.seed = seed
        self.on_corrupt = on_corrupt
        self.cache_bytes = cache_bytes
        self._start()

    def _start(self) -> None:
        self._fetcher = open_reader(self.catalog, self.reading)
        self._cache = DecodedCache(self.cache_bytes)
        self._rooms: SharedBufferPool | None = None
        self._direct = None
        if self._fetcher.tells_sources and self.shape.feature_dim and not self.cache_bytes:
            self._direct = FeatureReader(self.catalog, self._fetcher, self.shape, self.seed)

    def read_into(self, rooms: SharedBufferPool) -> None:
        """Make batches in memory that another process reads."""
        self._rooms = rooms
        if self._direct is not None:
            self._direct.rooms = rooms

    @property
    def remote(self) -> bool:
        """Whether samples come over a network."""
        return self._fetcher.remote

    def __len__(self) -> int:
        return len(self.catalog)

    def looking_ahead(self, requests: Iterator[StepRequest]) -> Iterator[StepRequest]:
        """The requests, each naming what is to be fetched ahead; files of this machine need no such thing."""
        if (
            self.reading is None
            or self.reading.cuts is None
            or self.reading.keep == "nothing"
            or not self.remote
        ):
            return requests
        lengths_S, horizon = self.catalog.samples.length, self.reading.prefetch_bytes
        return with_prefetch(requests, self.reading.cuts, lengths_S, horizon)

    def rest(self) -> None:
        """What is being fetched ahead is not needed any more."""
        self._fetcher.rest()

    def __getitem__(self, request: StepRequest) -> Batch:
        return self.__getitems__(request)

    def __getitems__(self, request: StepRequest) -> Batch:
        """The batch of a request. Raises DamagedSample, naming shard and sample, unless damage is skipped."""
        if self._direct is not None:
            self._fetcher.prefetch(request.prefetch_A)
            batch = self._direct.batch(request)
            if batch is not None:
                return replace(batch, counts=batch.counts + self._fetcher.spent())
        numbers = request.samples_B.tolist()
        keys = self.catalog.keys(request.samples_B)
        views = [self.shape.view(key, request.epoch) for key in keys]
        cached = [
            self._cache.get(number, view) if self.cache_bytes else None
            for number, view in zip(numbers, views)
        ]
        if len(request.prefetch_A):
            self._fetcher.prefetch(request.prefetch_A)
        reading = self._fetcher.read([n for n, sample in zip(numbers, cached) if sample is None])
        places, units = self.catalog.places, self.catalog.samples.unit[request.samples_B].tolist()
        packer = Packer(self.shape, self._expected_rows(request.samples_B), self._rooms)
        kept, skipped = [], []
        read = hits = retries = 0
        clock, read_s, decode_s = time.perf_counter, 0.0, 0.0
        for place, (number, decoded) in enumerate(zip(numbers, cached)):
            if decoded is not None:
                packer.add_decoded(decoded)
                hits += 1
            else:
                began = clock()
                data, again = next(reading)
                fetched = clock()
                read_s += fetched - began
                retries += again
                if isinstance(data, DamagedSample):
                    if self.on_corrupt == "raise":
                        raise data
                    skipped.append(str(data))
                    continue
                read += len(data)
                packer.add(read_sample(data, key=keys[place], where=places[units[place]]), views[place])
                if self.cache_bytes:
                    self._cache.put(number, packer.last(), views[place])
                decode_s += clock() - fetched
            kept.append(place)
        return packer.batch(
            seed=self.seed,
            positions_B=request.positions_B[kept],
            global_batch=request.global_batch,
            epoch=request.epoch,
            position=request.position,
            counts=ReadCounts(
                samples=len(kept),
                bytes=read,
                cache_hits=hits,
                retries=retries,
                read_s=read_s,
                decode_s=decode_s,
                skipped=tuple(skipped),
            )
            + self._fetcher.spent(),
        )

    def _expected_rows(self, samples_B: NDArray[np.int64]) -> int:
        """At most so many frames do the segments hold, by the index: all of the clip, and one for each lone one."""
        table = self.catalog.samples
        return int((-(-table.frames[samples_B] // self.shape.stride) + table.segments[samples_B]).sum())

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_fetcher", "_cache", "_direct", "_rooms")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()
