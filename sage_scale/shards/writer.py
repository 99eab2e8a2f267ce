"""Writing a shard: the same samples give the same bytes, on any machine and at any time."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sage_scale.errors import DatasetError, StorageError
from sage_scale.shards.layout import (
    REJECTS_MEMBER,
    SHARD_MEMBER,
    Reject,
    RejectLike,
    Sample,
    ShardHeader,
    canonical_json,
)
from sage_scale.shards.sample import check_sample
from sage_scale.shards.tar import END, header, padding
from sage_scale.storage import MAX_OBJECT_BYTES


def write_shard(
    path: Path,
    samples: Iterable[Sample],
    rejects: Iterable[RejectLike] = (),
    *,
    unit: int,
    split: str,
    dataset: str,
) -> Path:
    """Write a shard's tar to the local file `path` (replacing it) and return the path.

    Members: `__shard__`, then the samples in the order given, then `__rejects__`. `dataset` is the digest of
    dataset.json. Samples are consumed one by one, so a shard never lies in memory as a whole. Raises
    DatasetError for a sample that breaks the contract or belongs to another split, StorageError where the
    disk is full; `path` is then gone.
    """
    header = ShardHeader(unit=unit, split=split, dataset=dataset)
    with _new_tar(path, header, rejects) as file:
        seen: set[str] = set()
        for sample in samples:
            check_sample(sample, str(path))
            if sample.meta["split"] != split:
                raise DatasetError(
                    f"{path}, sample {sample.key}: split {sample.meta['split']} in a unit of {split}"
                )
            if sample.key in seen:
                raise DatasetError(f"{path}, sample {sample.key}: clip '{sample.meta['id']}' occurs twice")
            seen.add(sample.key)
            for name, data in sample_members(sample):
                _member(file, name, data)
    return path


def write_copies(
    path: Path,
    header: ShardHeader,
    pieces: Iterable[bytes | memoryview],
    rejects: Iterable[RejectLike] = (),
) -> Path:
    """Write a shard's tar from samples as they lie in other tars, each from its first header to its last padding.

    Their bytes are copied as they are, so that nothing is encoded twice. The errors are those of `write_shard`.
    """
    with _new_tar(path, header, rejects) as file:
        for piece in pieces:
            file.write(piece)
    return path


@contextlib.contextmanager
def _new_tar(path: Path, head: ShardHeader, rejects: Iterable[RejectLike]) -> Iterator[BinaryIO]:
    """A tar open for its samples: `__shard__` stands before them, `__rejects__` and the end come after them."""
    try:
        with open(path, "wb") as file:
            _member(file, SHARD_MEMBER, head.to_bytes())
            yield file
            refused = [dataclasses.asdict(Reject(id=r.id, reason=r.reason, detail=r.detail)) for r in rejects]
            _member(file, REJECTS_MEMBER, canonical_json(refused))
            file.write(END)
            if file.tell() > MAX_OBJECT_BYTES:
                raise DatasetError(
                    f"{path} is larger than 5 GiB: lower shards.clips_per_unit or shards.frames_per_unit"
                )
    except OSError as error:
        path.unlink(missing_ok=True)
        reason = "the disk is full: free some space" if error.errno in (28, 122) else error.strerror
        raise StorageError(f"{path} cannot be written: {reason}") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sample_members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a sample's members, in order: JSON, segments, features or background and frames."""
    key = sample.key
    yield f"{key}.json", canonical_json(sample.meta)
    yield f"{key}.segments.npy", npy_bytes(sample.segments)
    if sample.features is not None:
        yield f"{key}.features.npy", npy_bytes(sample.features)
    if sample.background is not None:
        yield f"{key}.background.jpg", sample.background
    for number, data in (sample.frames or {}).items():
        yield f"{key}.{number:06d}.jpg", data


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as a little-endian .npy file of version 1.0."""
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _member(file: BinaryIO, name: str, data: bytes) -> None:
    file.write(header(name, len(data)))
    file.write(data)
    file.write(padding(len(data)))
