"""Writes shards: the same samples give the same bytes, on any machine and at any time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sage_scale.errors import DatasetError, Reject, StorageError
from sage_scale.shards.index import IndexBuilder, ShardIndex
from sage_scale.shards.layout import (
    REJECTS_MEMBER,
    SHARD_MEMBER,
    ShardHeader,
    canonical_json,
)
from sage_scale.shards.sample import Sample, check_sample, view_member
from sage_scale.shards.tar import END, header, padding
from sage_scale.storage import MAX_OBJECT_BYTES


def write_shard(
    path: Path,
    samples: Iterable[Sample],
    rejects: Iterable[Reject] = (),
    *,
    unit: int,
    split: str,
    dataset: str,
) -> ShardIndex:
    """Writes a shard's tar to the local file `path`, and returns the index that `build_index` would read from it.

    Members: `__shard__`, the samples in the order given, `__rejects__`. `dataset` is the digest of dataset.json.
    Samples are consumed one by one: memory never holds a whole shard. Raises DatasetError for a sample that breaks the
    contract or belongs to another split, StorageError where the disk is full; `path` is then gone.
    """
    header = ShardHeader(unit=unit, split=split, dataset=dataset)
    builder = IndexBuilder(str(path))
    with _new_tar(path, header) as tar:
        for sample in samples:
            check_sample(sample, str(path))
            if sample.meta["split"] != split:
                raise DatasetError(
                    f"{path}, sample {sample.key}: split {sample.meta['split']} in a unit of {split}"
                )
            data = sample_bytes(sample)
            builder.add(sample, data, tar.bytes)
            tar.write(data)
        written = tar.finish(rejects)
    return builder.finish(header, written, tar.bytes, tar.sha256)


def write_copies(
    path: Path, header: ShardHeader, samples: Iterable[bytes], rejects: Iterable[Reject] = ()
) -> Path:
    """Writes a shard's tar from the stored bytes of samples, headers and padding included. Errors as `write_shard`."""
    with _new_tar(path, header) as tar:
        for data in samples:
            tar.write(data)
        tar.finish(rejects)
    return path


class _Tar:
    """A tar file that counts and hashes its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha.update(data)
        self.bytes += len(data)

    def member(self, name: str, data: bytes) -> None:
        self.write(header(name, len(data)) + data + padding(len(data)))

    def finish(self, rejects: Iterable[Reject]) -> tuple[Reject, ...]:
        """Writes `__rejects__` and the end of the tar. Returns the rejects as stored."""
        stored = tuple(rejects)
        self.member(REJECTS_MEMBER, canonical_json([dataclasses.asdict(reject) for reject in stored]))
        self.write(END)
        return stored


@contextlib.contextmanager
def _new_tar(path: Path, head: ShardHeader) -> Iterator[_Tar]:
    """Gives a tar with the member `__shard__`; removes the file on an error."""
    try:
        with open(path, "wb") as file:
            tar = _Tar(file)
            tar.member(SHARD_MEMBER, head.to_bytes())
            yield tar
            if tar.bytes > MAX_OBJECT_BYTES:
                raise DatasetError(
                    f"{path} is larger than 5 GiB: lower shards.clips_per_unit or shards.frames_per_unit"
                )
    except BaseException as error:
        with contextlib.suppress(OSError):  # a draft has no name to remove
            path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = "the disk is full: free some space" if error.errno in (28, 122) else error.strerror
        where = str(path)
        if where.startswith("/proc/"):  # a draft has no name yet
            where = f"shard {head.unit:06d} in {path.resolve().parent}"
        raise StorageError(f"{where} cannot be written: {reason}") from None


def sample_bytes(sample: Sample) -> bytes:
    """Returns the stored bytes of a sample: all its members with headers and padding."""
    pieces: list[bytes | memoryview] = []
    for name, parts in _members(sample):
        size = sum(map(len, parts))
        pieces += (header(name, size), *parts, padding(size))
    return b"".join(pieces)


def sample_members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Yields names and bytes of a sample's members: JSON, segments, then features by view, or background and frames."""
    for name, parts in _members(sample):
        yield name, b"".join(parts)


def _members(sample: Sample) -> Iterator[tuple[str, tuple[bytes | memoryview, ...]]]:
    """Yields names and bytes, in parts, so that an array is copied only once."""
    key = sample.key
    yield f"{key}.json", (canonical_json(sample.meta),)
    yield f"{key}.segments.npy", _npy(sample.segments)
    if sample.features is not None:
        yield f"{key}.features.npy", _npy(sample.features)
    for number, view in enumerate(sample.views, start=1):
        yield f"{key}.{view_member(number)}", _npy(view)
    if sample.background is not None:
        yield f"{key}.background.jpg", (sample.background,)
    for number, data in (sample.frames or {}).items():
        yield f"{key}.{number:06d}.jpg", (data,)


def npy_bytes(array: np.ndarray) -> bytes:
    """Returns the array as a little-endian .npy file of version 1.0."""
    return b"".join(_npy(array))


def _npy(array: np.ndarray) -> tuple[bytes, memoryview]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return _npy_header(little.dtype.str, little.shape), little.reshape(-1).view(np.uint8).data


@functools.lru_cache(4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    values = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, values)
    return buffer.getvalue()
