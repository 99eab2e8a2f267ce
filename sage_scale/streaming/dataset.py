"""A map-style torch dataset of steps: given a step's request, it reads, checks, decodes and packs the batch.

Because a request names its samples, workers cannot change the order: a DataLoader with any number of them gives the
same batches. Used with a `batch_sampler` of requests, through `__getitems__`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch.utils.data

from sage_scale.streaming.batch import Allocate, SampleShape, StepBatch, StepRequest
from sage_scale.streaming.cache import LRUCache
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.features import FeatureReader
from sage_scale.streaming.object_reader import open_reader
from sage_scale.streaming.packing import DecodedSample, Packer
from sage_scale.streaming.prefetch import ReadPlan, with_prefetch
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.streaming.readers import DamagedSample


class SampleDataset(torch.utils.data.Dataset):
    """The samples of a catalog, by request. Reentrant and picklable; descriptors and caches stay in the process."""

    def __init__(
        self,
        catalog: Catalog,
        shape: SampleShape,
        *,
        seed: int,
        on_corrupt: Literal["raise", "skip"] = "raise",
        cache_bytes: int = 0,
        plan: ReadPlan | None = None,
    ) -> None:
        self.catalog = catalog
        self.plan = plan
        self.shape = shape
        self.seed = seed
        self.on_corrupt = on_corrupt
        self.cache_bytes = cache_bytes
        self._open()

    def _open(self) -> None:
        self._reader = open_reader(self.catalog, self.plan)
        self.remote = self._reader.remote
        """Whether samples come over a network."""
        self._decoded: LRUCache[tuple[int, int], DecodedSample] = LRUCache(self.cache_bytes)
        self._allocate: Allocate | None = None
        self.feature_reader: FeatureReader | None = None
        if self.shape.feature_dim and not self.cache_bytes:
            self.feature_reader = FeatureReader(self.catalog, self._reader, self.shape, self.seed)

    def allocate_by(self, allocate: Allocate) -> None:
        """Makes batches in memory of this allocator, which another process reads."""
        self._allocate = allocate
        if self.feature_reader is not None:
            self.feature_reader.allocate = allocate

    def __len__(self) -> int:
        return len(self.catalog)

    def with_prefetch(self, requests: Iterator[StepRequest]) -> Iterator[StepRequest]:
        """Returns the requests, each naming the blocks to prefetch; files of this machine need none."""
        plan = self.plan
        if plan is None or plan.cuts is None or plan.keep == "nothing" or not self.remote:
            return requests
        return with_prefetch(requests, plan.cuts, self.catalog.read_bytes(), plan.prefetch_bytes)

    def cancel_prefetch(self) -> None:
        """Drops fetches without a waiting caller."""
        self._reader.cancel_prefetch()

    def __getitem__(self, request: StepRequest) -> StepBatch:
        return self.__getitems__(request)

    def __getitems__(self, request: StepRequest) -> StepBatch:
        """Returns the batch of a request. Raises DamagedSample, naming shard and sample, unless damage is skipped."""
        self._reader.prefetch(request.prefetch_A)
        batch: StepBatch | None = self.feature_reader.batch(request) if self.feature_reader else None
        if batch is None:
            batch = self._decode(request)
        return replace(batch, counts=batch.counts + self._reader.counts())

    def _decode(self, request: StepRequest) -> StepBatch:
        samples = request.samples_B.tolist()
        keys = self.catalog.keys(request.samples_B)
        urls, units = self.catalog.shard_urls, self.catalog.samples.unit[request.samples_B].tolist()
        views = [self.shape.view(key, request.epoch) if self.shape.views > 1 else 0 for key in keys]
        cached = [self._decoded.get(pair) if self.cache_bytes else None for pair in zip(samples, views)]
        reads = self._reader.read([n for n, decoded in zip(samples, cached) if decoded is None])
        decoder = self._decoder(request)
        kept, skipped = [], []
        size = hits = retries = 0
        clock, read_s, decode_s = time.perf_counter, 0.0, 0.0
        with contextlib.closing(reads):
            for row, decoded in enumerate(cached):
                if decoded is not None:
                    decoder.add_decoded(decoded)
                    hits += 1
                    kept.append(row)
                    continue
                began = clock()
                data, repeated = next(reads)
                fetched = clock()
                read_s += fetched - began
                retries += repeated
                if isinstance(data, DamagedSample):
                    if self.on_corrupt == "raise":
                        raise data
                    skipped.append(str(data))
                    continue
                size += len(data)
                decoder.add_bytes(data, keys[row], urls[units[row]], views[row])
                if self.cache_bytes:
                    decoded = decoder.last()
                    self._decoded.put((samples[row], views[row]), decoded, decoded.nbytes)
                decode_s += clock() - fetched
                kept.append(row)
        counts = ReadCounts(
            samples=len(kept),
            bytes=size,
            cache_hits=hits,
            retries=retries,
            read_s=read_s,
            decode_s=decode_s,
            skipped=tuple(skipped),
        )
        return decoder.batch(self.seed, request, kept, counts)

    def _decoder(self, request: StepRequest) -> Any:
        """Returns the decoder of a step's samples. The index bounds the frames of their segments: all of a clip, and
        one for each segment between two grid points."""
        table = self.catalog.samples.take(request.samples_B)
        rows = int((-(-table.frames // self.shape.stride) + table.segments).sum())
        return Packer(self.shape, rows, self._allocate)

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_reader", "_decoded", "_allocate", "feature_reader")
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
