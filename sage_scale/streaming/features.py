"""Features from files of this machine, or from blocks of an object store, read straight into the batch.

The index has the length of a sample, its frames and its segments, so the offset of every member but the first is known
before a byte is read. One `preadv` a sample puts its description and segments into a small buffer and its feature rows
into the batch; nothing is copied again unless segments leave rows out. Headers, which the general reader
walks one by one, are compared with their expected bytes.

This reader never judges: where a hash, a header or a length is not as the index says, it returns None, and the general
reader (`packing.py`), to which it is proved equal, finds and reports the fault.

Shape letters: B samples, N segments of all samples, F stored frames of all segments, C feature width.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from sage_scale.shards import SampleTable
from sage_scale.shards.sample import view_member
from sage_scale.shards.writer import npy_bytes
from sage_scale.streaming.batch import Allocate, Batch, SampleShape, StepRequest
from sage_scale.streaming.buffers import BufferPool
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.order import Integers
from sage_scale.streaming.packing import clip_seeds, grid_rows, run_indices
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.streaming.readers import DamagedSample, SampleReader
from sage_scale.vision.packed import PackedVideo

BLOCK = 512
"""Bytes of a tar header; members are padded to multiples of it."""
NPY_HEADER = 128
"""Bytes before the numbers of an array of two dimensions whose sizes have up to thirty digits."""
UNCOUNTED = 65_535
"""An index with this many segments means at least as many."""
_JSON = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class _Layout:
    """Offsets of the members of B samples, in bytes from the beginning of a sample."""

    segments_B: Integers
    """Number of segments."""
    rows_B: Integers
    """Number of feature rows."""
    head_B: Integers
    """End of the header of the feature rows."""
    rest_B: Integers
    """Bytes from there to the end: rows, padding, and further views."""
    features_at_B: Integers
    segments_at_B: Integers

    @classmethod
    def of(cls, table: SampleTable, shape: SampleShape) -> _Layout | None:
        """Returns the layout by the index rows of the samples; None where they do not say enough."""
        segments_B = table.segments
        if not len(table) or segments_B.max() >= UNCOUNTED:
            return None
        rows_B = -(-table.frames // shape.stride)
        # A view after the first has a header of its own, and as many rows.
        rest_B = shape.stored_views * _view_bytes(rows_B * (2 * shape.feature_dim)) - BLOCK - NPY_HEADER
        head_B = table.length - rest_B
        features_at_B = head_B - NPY_HEADER - BLOCK
        segments_at_B = features_at_B - BLOCK - _padded(NPY_HEADER + 8 * segments_B)
        if segments_at_B.min() < 2 * BLOCK:
            return None
        return cls(segments_B, rows_B, head_B, rest_B, features_at_B, segments_at_B)


class FeatureReader:
    """Reads batches of a features dataset. Reentrant."""

    checked = True
    """Whether bytes are compared with their hashes; a benchmark turns it off to measure its cost."""

    def __init__(self, catalog: Catalog, reader: SampleReader, shape: SampleShape, seed: int) -> None:
        self.catalog = catalog
        self.reader = reader
        self.shape = shape
        self.seed = seed
        self.allocate: Allocate = BufferPool().take
        """Makes the array of feature rows."""

    def batch(self, request: StepRequest) -> Batch | None:
        """Returns the batch of a request, every byte checked; None where the general reader has to read it."""
        began = time.perf_counter()
        samples_B, width = request.samples_B, self.shape.feature_dim
        table = self.catalog.samples.take(samples_B)
        layout = _Layout.of(table, self.shape)
        if layout is None:
            return None
        total = int(layout.rows_B.sum())
        content = torch.from_numpy(self.allocate(2 * total * width + BLOCK).view(np.float16))
        heads = np.empty((len(samples_B), int(_padded(layout.head_B.max()))), np.uint8)
        keys = self.catalog.keys(samples_B)
        if not self._read(request, keys, layout, heads, content.numpy()):
            return None
        read = time.perf_counter()
        metas = self._descriptions(keys, layout, heads)
        if metas is None:
            return None
        segments_N2 = _segments(heads, layout)
        begin_N, counts_N = grid_rows(segments_N2, layout.segments_B, self.shape.stride, layout.rows_B)
        features_FC = content[: total * width].view(-1, width)
        if counts_N.sum() != total or (begin_N != np.cumsum(counts_N) - counts_N).any():
            features_FC = features_FC[torch.from_numpy(run_indices(begin_N, counts_N))]
        video = PackedVideo(
            segment_frames_N=torch.from_numpy(counts_N),
            clip_segments_B=torch.from_numpy(layout.segments_B),
            clip_seeds_B=torch.tensor(clip_seeds(self.seed, request.epoch, keys), dtype=torch.int64),
            features_FC=features_FC,
        )
        ends = np.cumsum(layout.segments_B).tolist()
        return Batch(
            keys=keys,
            metas=metas,
            segments=[segments_N2[begin:end] for begin, end in zip([0, *ends], ends)],
            video=video,
            weights_B=torch.ones(len(keys)),
            counts=ReadCounts(
                samples=len(keys),
                bytes=int(table.length.sum()),
                read_s=read - began,
                decode_s=time.perf_counter() - read,
            ),
            **request.batch_fields(slice(None)),
        )

    def _read(
        self,
        request: StepRequest,
        keys: list[str],
        layout: _Layout,
        heads: NDArray[np.uint8],
        content: NDArray[np.float16],
    ) -> bool:
        """Reads every sample into head and rows; False where one is short, missing, or has another hash.

        After the rows of a sample lies padding, which the rows of the next one overwrite. Of several views one goes to
        the batch, and the others are read for the hash alone.
        """
        hashes = self.catalog.samples.hash[request.samples_B].tobytes()
        flat, rows, size = heads.reshape(-1).data, content.view(np.uint8).data, 2 * self.shape.feature_dim
        width, at, plain = heads.shape[1], 0, self.shape.stored_views == 1
        spare = np.empty(0 if plain else int(layout.rest_B.max()), np.uint8).data
        preadv, open_hash = os.preadv, xxhash.xxh3_128
        columns = (layout.head_B.tolist(), layout.rest_B.tolist(), layout.rows_B.tolist())
        number = -1
        try:
            for number, (source, key, head, rest, count) in enumerate(
                zip(self.reader.locate(request.samples_B), keys, *columns)
            ):
                front = flat[width * number : width * number + head]
                data, view, begin = count * size, 0, 0
                if plain:
                    parts: tuple[memoryview, ...] = (front, rows[at : at + rest])
                else:
                    view = self.shape.view(key, request.epoch)
                    begin = view * _view_bytes(data)
                    parts = (front, spare[:begin], rows[at : at + data], spare[begin + data : rest])
                if isinstance(source, DamagedSample):
                    return False
                where, offset = source
                if isinstance(where, int):
                    if preadv(where, parts, offset) != head + rest:
                        return False
                elif len(where) < offset + head + rest:
                    return False
                else:
                    for part in parts:
                        part[:] = where[offset : offset + len(part)]
                        offset += len(part)
                if self.checked:
                    digest = open_hash(front)
                    for part in parts[1:]:
                        digest.update(part)
                    if digest.digest() != hashes[16 * number : 16 * number + 16]:
                        return False
                if view:
                    top = bytes(spare[:begin][-BLOCK - NPY_HEADER :])
                    name = f"{key}.{view_member(view)}\0".encode("ascii")
                    header = _npy_header("<f2", count, self.shape.feature_dim)
                    if not (top.startswith(name) and top.startswith(header, BLOCK)):
                        return False
                at += data
        except OSError:
            return False
        return number + 1 == len(keys)

    def _descriptions(
        self, keys: list[str], layout: _Layout, heads: NDArray[np.uint8]
    ) -> list[dict[str, Any]] | None:
        """Returns the JSON of each sample; None where a name, a size or a type is not as the index says.

        Sample by sample: batches are too small for numpy to pay (5.9 us a sample so, 4 this way).
        """
        flat, width, metas = heads.reshape(-1).data, self.shape.feature_dim, []
        columns = (
            layout.head_B, layout.segments_at_B, layout.features_at_B, layout.segments_B, layout.rows_B,
        )  # fmt: skip
        offsets = zip(range(0, flat.nbytes, heads.shape[1]), *(column.tolist() for column in columns))
        try:
            for key, (line, head, segments_at, features_at, segments, rows) in zip(keys, offsets):
                front, name = flat[line : line + head].tobytes(), key.encode("ascii")
                size = front[124:135]
                length = int(size, 8)
                text = front[BLOCK : BLOCK + length].decode("utf-8")
                meta, end = _JSON(text)
                if not (
                    size.isdigit()
                    and segments_at == BLOCK + length + -length % BLOCK
                    and front.startswith(name + b".json\0")
                    and front.startswith(name + b".segments.npy\0", segments_at)
                    and front.startswith(_npy_header("<i4", segments, 2), segments_at + BLOCK)
                    and front.startswith(name + b".features.npy\0", features_at)
                    and front.startswith(_npy_header("<f2", rows, width), features_at + BLOCK)
                    and end == len(text)
                    and meta["frame_stride"] == self.shape.stride
                ):
                    return None
                metas.append(meta)
        except (ValueError, TypeError, KeyError):
            return None
        return metas


def _view_bytes(data: Any) -> Any:
    """Returns the bytes of a view with its header and padding from those of its rows: a number, or an array."""
    return BLOCK + NPY_HEADER + data + -(NPY_HEADER + data) % BLOCK


@lru_cache(maxsize=4096)
def _npy_header(kind: str, rows: int, columns: int) -> bytes:
    """Returns the bytes that the writer puts before the numbers of an array."""
    return npy_bytes(np.empty((rows, columns), kind))[:NPY_HEADER]


def _padded(sizes: Integers) -> Integers:
    """Returns sizes in bytes, rounded up to whole tar blocks."""
    return sizes + -sizes % BLOCK


def _segments(heads: NDArray[np.uint8], layout: _Layout) -> NDArray[np.int32]:
    """Returns (N, 2) int32: the segments of all samples, one after another."""
    words = heads.view("<i4").reshape(-1)
    begins_B = (np.arange(len(heads)) * heads.shape[1] + layout.segments_at_B + BLOCK + NPY_HEADER) // 4
    return words[run_indices(begins_B, 2 * layout.segments_B)].reshape(-1, 2)
