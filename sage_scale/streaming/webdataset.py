"""WebDatasets that others wrote, in our exact order: any extensions, any keys, checked hashes, resumable.

    from sage_scale.streaming import open_webdataset

    stream = open_webdataset("s3://bucket/their-tars", batch_size=256, rank=rank, world=world, seed=0)
    for batch in stream:
        batch.samples       # [{"__key__": ..., "__url__": ..., "jpg": bytes, "cls": bytes}, ...]

`sage-scale shards index URL [--out INDEX]` makes the index first. The samples are what webdataset gives before it
decodes anything. `decode` turns one into whatever it likes, in the worker that read it; nothing here does: extensions
such as `.pkl` or `.pth` stay bytes, and whoever unpickles them has decided to trust their writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.config import Stream as Settings
from sage_scale.errors import DatasetError, UsageError
from sage_scale.shards import SampleTable
from sage_scale.shards.webdataset_index import WebDatasetIndex, open_webdataset_index, read_members
from sage_scale.streaming.batch import ReadCounts, SampleShape, StepRequest
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.dataset import SampleDataset
from sage_scale.streaming.mixture import Mixture
from sage_scale.streaming.order import dataset_order
from sage_scale.streaming.prefetch import plan_reads
from sage_scale.streaming.readers import DamagedSample
from sage_scale.streaming.stream import Stream

Decode = Callable[[dict[str, Any]], Any]
READ_AHEAD = 4
"""Batches read ahead by threads from an object store, where there are no workers."""


@dataclass(frozen=True, kw_only=True)
class WebBatch:
    """One rank's part of one step; may be of any size, also empty."""

    keys: list[str]
    """B keys, in the order of their positions."""
    samples: list[Any]
    """B samples: mappings of extension to bytes, with `__key__` and `__url__`, or what `decode` made of them."""
    positions_B: NDArray[np.int64]
    """int64 (B,): place of each sample in the epoch's global order."""
    global_batch: int
    """Samples of the whole step, over all ranks."""
    epoch: int
    """Epoch, from 0."""
    position: int
    """Position in the epoch, in samples, after this step."""
    counts: ReadCounts = field(default_factory=ReadCounts)
    """What reading it has cost."""

    def pin_memory(self) -> WebBatch:
        """The batch itself: bytes are not pinned."""
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class WebCatalog(Catalog):
    """Samples whose keys are names rather than numbers."""

    names: tuple[str, ...]
    """Key of each sample."""

    @classmethod
    def of_index(cls, index: WebDatasetIndex) -> WebCatalog:
        """All samples of an index."""
        samples = len(index.keys)
        columns = {column.name: np.zeros(samples, np.int64) for column in fields(SampleTable)}
        columns["unit"] = index.shard_of
        columns["offset"] = index.records["offset"].astype(np.int64)
        columns["length"] = index.records["length"].astype(np.int64)
        columns["hash"] = np.ascontiguousarray(index.records["hash"])
        columns["key"] = np.array([_number(key) for key in index.keys], np.uint64)
        return cls(
            url=index.tars,
            shards=tuple(shard.name for shard in index.shards),
            samples=SampleTable(**columns),
            names=index.keys,
        )

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        return [self.names[sample] for sample in samples.tolist()]

    def key(self, sample: int) -> str:
        return self.names[sample]


class WebSamples(SampleDataset):
    """The samples of a WebCatalog, by request."""

    def __init__(self, catalog: WebCatalog, *, decode: Decode | None = None, **reading: Any) -> None:
        super().__init__(catalog, SampleShape(feature_dim=1), **reading)
        self.decode = decode

    def __getitems__(self, request: StepRequest) -> WebBatch:  # type: ignore[override]
        """The batch of a request. Raises DamagedSample, naming tar and sample, unless damage is skipped."""
        numbers = request.samples_B.tolist()
        if len(request.prefetch_A):
            self._fetcher.prefetch(request.prefetch_A)
        catalog = self.catalog
        keys, units = catalog.keys(request.samples_B), catalog.samples.unit[request.samples_B].tolist()
        kept: list[int] = []
        samples: list[Any] = []
        skipped: list[str] = []
        read = retries = 0
        for place, (data, again) in enumerate(self._fetcher.read(numbers)):
            retries += again
            if isinstance(data, DamagedSample):
                if self.on_corrupt == "raise":
                    raise data
                skipped.append(str(data))
                continue
            read += len(data)
            url = catalog.places[units[place]]
            key, members = read_members(bytes(data), url)
            if key != keys[place]:  # the bytes have their hash, so the index itself is of other tars
                raise DatasetError(
                    f"{url}: sample {key} is where the index has {keys[place]}: make the index again"
                )
            sample = {"__key__": key, "__url__": url, **members}
            samples.append(sample if self.decode is None else self.decode(sample))
            kept.append(place)
        return WebBatch(
            keys=[keys[place] for place in kept],
            samples=samples,
            positions_B=request.positions_B[kept],
            global_batch=request.global_batch,
            epoch=request.epoch,
            position=request.position,
            counts=ReadCounts(samples=len(kept), bytes=read, retries=retries, skipped=tuple(skipped))
            + self._fetcher.spent(),
        )


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
    """The stream of one rank over a WebDataset, in the same global order whatever the layout of the job.

    `index_url` is where `sage-scale shards index` put the index; `batch_size` counts the samples of all ranks;
    `settings` are those of a recipe's section `stream` (lanes, window, block_mb, on_corrupt and so on), of which `seed`
    and `workers` may be given alone. Without `epochs` the stream does not end. It iterates over WebBatch and keeps its
    place in `state_dict`, as any Stream. Raises DatasetError where the index is missing or damaged, UsageError for more
    ranks than lanes.
    """
    settings = settings or Settings()
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: must be at least 1")
    catalog = WebCatalog.of_index(open_webdataset_index(index_url))
    order = dataset_order(
        catalog.samples.unit,
        catalog.samples.length,
        lanes=settings.lanes,
        window=settings.window,
        block_bytes=int(settings.block_mb * (1 << 20)),
        seed=settings.seed if seed is None else seed,
    )
    mixture = Mixture(orders=(order,), weights=(1.0,), length=order.samples)
    samples = WebSamples(
        catalog,
        decode=decode,
        seed=order.seed,
        on_corrupt=settings.on_corrupt,
        reading=plan_reads(settings, catalog, mixture, world=world),
    )
    return Stream(
        samples,
        mixture,
        rank=rank,
        world=world,
        batch_size=batch_size,
        workers=settings.workers if workers is None else workers,
        read_ahead=READ_AHEAD if samples.remote else 0,
        epochs=epochs,
    )


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
