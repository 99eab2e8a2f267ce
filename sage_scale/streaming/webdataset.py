"""WebDatasets of other writers in our exact order: any extensions, any keys, checked hashes, resumable.

    from sage_scale.streaming import open_webdataset

    stream = open_webdataset("s3://bucket/their-tars", batch_size=256, rank=rank, world=world, seed=0)
    for batch in stream:
        batch.samples       # [{"__key__": ..., "__url__": ..., "jpg": bytes, "cls": bytes}, ...]

`sage-scale shards index URL [--out INDEX]` makes the index first. The samples are those that webdataset gives before it
decodes anything. `decode` turns one into any object, in the worker that read it; nothing here does: extensions such as
`.pkl` or `.pth` stay bytes, and unpickling them means trusting their writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sage_scale.config import Stream as Settings
from sage_scale.errors import DatasetError
from sage_scale.shards import SampleTable
from sage_scale.shards.index import RECORD
from sage_scale.shards.webdataset_index import WebDatasetIndex, open_webdataset_index, read_members
from sage_scale.streaming.batch import SampleShape, StepBatch, StepRequest
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.dataset import SampleDataset
from sage_scale.streaming.mixture import Mixture, refuse_empty_subset, source_order
from sage_scale.streaming.prefetch import plan_reads
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.streaming.stream import Stream, check_batch_size

Decode = Callable[[dict[str, Any]], Any]
_RECORD = np.dtype([(name, "<i8" if name == "length" else RECORD[name]) for name in RECORD.names or ()])
"""RECORD for samples beyond 4 GiB; signed, as sums with signed offsets would else be floats."""


@dataclass(frozen=True, kw_only=True)
class WebBatch(StepBatch):
    """One rank's part of one step over a WebDataset."""

    samples: list[Any]
    """B samples: mappings of extension to bytes, with `__key__` and `__url__`, or the results of `decode`."""

    def pin_memory(self) -> WebBatch:
        """Returns the batch itself: bytes are not pinned."""
        return self

    def to(self, device: object, non_blocking: bool = True) -> WebBatch:
        """Returns the batch itself: move the results of `decode` yourself."""
        return self


class _WebDecoder:
    """Makes a WebBatch of samples, added one after another."""

    def __init__(self, decode: Decode | None) -> None:
        self.decode = decode
        self._keys: list[str] = []
        self._samples: list[Any] = []

    def add_bytes(self, data: bytes, key: str, where: str, view: int) -> None:
        found, members = read_members(bytes(data), where)
        if found != key:  # the bytes have their hash, so the index is of other tars
            raise DatasetError(f"{where}: sample {found} is where the index has {key}: make the index again")
        sample = {"__key__": key, "__url__": where, **members}
        self._keys.append(key)
        self._samples.append(sample if self.decode is None else self.decode(sample))

    def batch(self, seed: int, request: StepRequest, rows: list[int] | slice, counts: ReadCounts) -> WebBatch:
        return WebBatch(keys=self._keys, samples=self._samples, counts=counts, **request.batch_fields(rows))


class WebSamples(SampleDataset):
    """The samples of a WebDataset, by request."""

    def __init__(self, catalog: Catalog, *, decode: Decode | None = None, **reading: Any) -> None:
        super().__init__(catalog, SampleShape(), **reading)
        self.decode = decode

    def _decoder(self, request: StepRequest) -> _WebDecoder:
        return _WebDecoder(self.decode)


def open_webdataset(
    index_url: str,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    seed: int | None = None,
    decode: Decode | None = None,
    epochs: int | None = None,
    workers: int | None = None,
    settings: Settings | None = None,
) -> Stream:
    """Returns the stream of one rank over a WebDataset, in the same global order whatever the layout of the job.

    `index_url` is where `sage-scale shards index` wrote the index; `batch_size` counts the samples of all
    ranks; `settings` are those of a recipe's section `stream` (lanes, window, block_mb, fraction and so on), of which
    `seed` and `workers` may be given alone. Without `epochs` the stream does not end. It yields WebBatch and resumes
    from its `state_dict`, as any Stream. Raises DatasetError where the index is missing or damaged or
    `settings.fraction` chooses no sample, UsageError for more ranks than lanes.
    """
    settings = settings or Settings()
    check_batch_size(batch_size)
    catalog = _catalog_of(open_webdataset_index(index_url)).subset(settings.fraction)
    refuse_empty_subset(catalog, settings)
    order = source_order(catalog, slice(None), settings, seed=seed)
    mixture = Mixture(orders=(order,), weights=(1.0,), length=order.samples)
    samples = WebSamples(
        catalog,
        decode=decode,
        seed=order.seed,
        on_corrupt=settings.on_corrupt,
        plan=plan_reads(settings, catalog, mixture, world=world),
    )
    return Stream(
        samples,
        mixture,
        rank=rank,
        world=world,
        batch_size=batch_size,
        workers=settings.workers if workers is None else workers,
        epochs=epochs,
    )


def _catalog_of(index: WebDatasetIndex) -> Catalog:
    records = np.zeros(len(index.keys), _RECORD)
    for name in index.records.dtype.names or ():
        records[name] = index.records[name]
    records["key"] = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") for key in index.keys]
    languages = np.arange(len(index.shards) + 1), np.zeros(len(index.shards), np.int32)
    return Catalog(
        url=index.tars,
        shards=tuple(shard.name for shard in index.shards),
        samples=SampleTable(records=records, unit=index.shard_of, languages=languages),
        names=index.keys,
    )
