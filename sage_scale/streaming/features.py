"""Features from files of this machine, or from blocks of an object store, read straight into the batch.

The index says how long a sample is, how many frames it has and how many segments; so the place of every member but the
first is known before a byte is read. One `preadv` a sample puts its description and segments into a small buffer and
its feature rows into their place in the batch; nothing is copied again unless segments leave rows out. Headers, which
the general reader walks one by one, are compared with what they must be.

This reader never judges: where a hash, a header or a length is not what the index promises, it gives None, and the
general reader (`Packer`), to which it is proved equal, finds out what is wrong and says so.

Shape letters: B samples, N segments of all samples, F stored frames of all segments, C feature width.
"""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.utils.data
import xxhash
from numpy.typing import NDArray

from sage_scale.shards.sample import view_member
from sage_scale.shards.writer import npy_bytes
from sage_scale.streaming.batch import Batch, ReadCounts, SampleShape, StepRequest
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.frames import grid_rows
from sage_scale.streaming.packing import clip_seeds
from sage_scale.streaming.readers import DamagedSample, SampleReader
from sage_scale.streaming.rooms import BufferPool
from sage_scale.streaming.shelf import SharedBufferPool
from sage_scale.vision.packed import PackedVideo

Integers = NDArray[np.int64]

BLOCK = 512
"""Bytes of a tar header, and the unit that members are filled up to."""
NPY_HEADER = 128
"""Bytes before the numbers of an array of two dimensions whose sizes have up to thirty digits."""
UNCOUNTED = 65_535
"""An index that says this many segments means at least as many."""
_JSON = json.JSONDecoder().raw_decode


class FeatureReader:
    """Batches of a features dataset in local files. Reentrant."""

    checked = True
    """Whether bytes are compared with their hashes; a benchmark alone may ask what that costs."""

    def __init__(self, catalog: Catalog, fetcher: SampleReader, shape: SampleShape, seed: int) -> None:
        self.catalog = catalog
        self.fetcher = fetcher
        self.shape = shape
        self.seed = seed
        self.rooms: BufferPool | SharedBufferPool = BufferPool()

    def batch(self, request: StepRequest) -> Batch | None:
        """The batch of a request, every byte checked; None where the general reader has to look at it."""
        began = time.perf_counter()
        table, samples_B = self.catalog.samples, request.samples_B
        segments_B = table.segments[samples_B]
        if not len(samples_B) or segments_B.max() >= UNCOUNTED:
            return None
        rows_B = -(-table.frames[samples_B] // self.shape.stride)
        data_B = rows_B * (2 * self.shape.feature_dim)
        # A view behind the first one has a header of its own, and as many rows.
        rest_B = self.shape.stored_views * _view_bytes(data_B) - BLOCK - NPY_HEADER
        head_B = table.length[samples_B] - rest_B
        # Before the rows lie the headers of their member; before those the segments; before those the description.
        features_B = head_B - NPY_HEADER - BLOCK
        places_B = features_B - BLOCK - _filled(NPY_HEADER + 8 * segments_B)
        if places_B.min() < 2 * BLOCK:
            return None
        width = self.shape.feature_dim
        content = _room(int(rows_B.sum()) * width + BLOCK // 2, self.rooms)
        heads = np.empty((len(samples_B), int(_filled(head_B.max()))), np.uint8)
        keys = self.catalog.keys(samples_B)
        if not self._read(request, keys, heads, head_B, content.numpy(), rest_B, rows_B):
            return None
        read = time.perf_counter()
        metas = self._descriptions(heads, head_B, keys, places_B, features_B, segments_B, rows_B)
        if metas is None:
            return None
        segments_N2 = _segments(heads, places_B, segments_B)
        counts_N, chosen_F = grid_rows(segments_N2, segments_B, self.shape.stride, rows_B)
        features_FC = content[: int(rows_B.sum()) * width].view(-1, width)
        if chosen_F is not None:
            features_FC = features_FC[torch.from_numpy(chosen_F)]
        video = PackedVideo(
            segment_frames_N=torch.from_numpy(counts_N),
            clip_segments_B=torch.from_numpy(segments_B),
            clip_seeds_B=torch.tensor(clip_seeds(self.seed, request.epoch, keys), dtype=torch.int64),
            features_FC=features_FC,
        )
        ends = np.cumsum(segments_B).tolist()
        return Batch(
            keys=keys,
            metas=metas,
            segments=[segments_N2[begin:end] for begin, end in zip([0, *ends], ends)],
            video=video,
            weights_B=torch.ones(len(keys)),
            positions_B=request.positions_B,
            global_batch=request.global_batch,
            epoch=request.epoch,
            position=request.position,
            counts=ReadCounts(
                samples=len(keys),
                bytes=int(table.length[samples_B].sum()),
                read_s=read - began,
                decode_s=time.perf_counter() - read,
            ),
        )

    def _read(
        self,
        request: StepRequest,
        keys: list[str],
        heads: NDArray[np.uint8],
        head_B: Integers,
        content: NDArray[np.float16],
        rest_B: Integers,
        rows_B: Integers,
    ) -> bool:
        """Every sample into its two places; false where one is short, missing, or has another hash.

        What follows the rows of a sample is padding, which the rows of the next one overwrite. Of several views one
        goes to its place, and the others are read for the hash alone.
        """
        hashes = self.catalog.samples.hash[request.samples_B].tobytes()
        flat, rows, size = heads.reshape(-1).data, content.view(np.uint8).data, 2 * self.shape.feature_dim
        width, at, plain = heads.shape[1], 0, self.shape.stored_views == 1
        spare = np.empty(0 if plain else int(rest_B.max()), np.uint8).data
        preadv, open_hash = os.preadv, xxhash.xxh3_128
        columns = zip(
            self.fetcher.sources(request.samples_B), keys, head_B.tolist(), rest_B.tolist(), rows_B.tolist()
        )
        try:
            for place, (source, key, head, rest, count) in enumerate(columns):
                front = flat[width * place : width * place + head]
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
                    if digest.digest() != hashes[16 * place : 16 * place + 16]:
                        return False
                if view and not self._is_header(
                    bytes(spare[:begin][-BLOCK - NPY_HEADER :]), key, view, count
                ):
                    return False
                at += data
        except OSError:
            return False
        return place + 1 == len(keys)

    def _is_header(self, top: bytes, key: str, view: int, rows: int) -> bool:
        """Whether this is what stands before the rows of a view."""
        name = f"{key}.{view_member(view)}\0".encode("ascii")
        return top.startswith(name) and top.startswith(
            _npy_header("<f2", rows, self.shape.feature_dim), BLOCK
        )

    def _descriptions(
        self,
        heads: NDArray[np.uint8],
        head_B: Integers,
        keys: list[str],
        places_B: Integers,
        features_B: Integers,
        segments_B: Integers,
        rows_B: Integers,
    ) -> list[dict[str, Any]] | None:
        """The JSON of each sample; None where a name, a size or a kind is not what the index promises.

        Sample by sample: batches are too small for numpy to pay (5.9 us a sample so, 4 this way).
        """
        flat, width, metas = heads.reshape(-1).data, self.shape.feature_dim, []
        columns = (head_B, places_B, features_B, segments_B, rows_B)
        places = zip(range(0, flat.nbytes, heads.shape[1]), *(column.tolist() for column in columns))
        try:
            for key, (line, head, segments_at, features_at, segments, rows) in zip(keys, places):
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
    """What a view takes with its header and padding, of the bytes of its rows: a number, or an array of them."""
    return BLOCK + NPY_HEADER + data + -(NPY_HEADER + data) % BLOCK


def _room(numbers: int, rooms: BufferPool | SharedBufferPool) -> torch.Tensor:
    """float16 (numbers,), uninitialised; in a loader worker where the trainer sees it too, so that it is not copied."""
    if isinstance(rooms, SharedBufferPool) or torch.utils.data.get_worker_info() is None:
        return torch.from_numpy(rooms.take(2 * numbers).view(np.float16))
    shared = torch.UntypedStorage._new_shared(2 * numbers)  # as torch's own default_collate does
    return torch.empty(0, dtype=torch.float16).set_(shared, 0, (numbers,), (1,))


@lru_cache(maxsize=4096)
def _npy_header(kind: str, rows: int, columns: int) -> bytes:
    """What stands before the numbers of an array, as the writer writes it."""
    return npy_bytes(np.empty((rows, columns), kind))[:NPY_HEADER]


def _filled(sizes: Integers) -> Integers:
    """Sizes in whole tar blocks, in bytes."""
    return sizes + -sizes % BLOCK


def _segments(heads: NDArray[np.uint8], places_B: Integers, segments_B: Integers) -> NDArray[np.int32]:
    """(N, 2) int32: the segments of all samples, one after another."""
    words = heads.view("<i4").reshape(-1)
    begins_B = (np.arange(len(heads)) * heads.shape[1] + places_B + BLOCK + NPY_HEADER) // 4
    counts_B = 2 * segments_B
    before_B = np.cumsum(counts_B) - counts_B
    index = np.repeat(begins_B - before_B, counts_B) + np.arange(int(counts_B.sum()))
    return words[index].reshape(-1, 2)
