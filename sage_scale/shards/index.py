"""The index of a shard (`000042.idx`) and its marker (`000042.json`): pure functions of the tar.

An index file is 32 bytes of header and 48 bytes a sample, little-endian (shards/README.md, "000042.idx"):

    header  8 bytes magic "SAGEIDX1" · u32 version 1 · u32 bytes a record (48) · u64 samples · u64 bytes of the tar
    record  u64 key (its 16 hex digits as a number) · u64 offset · u32 length · u32 frames · u16 segments
            · u16 pseudo-glosses · u32 flags · 16 bytes xxh3-128 (canonical order)

`offset` and `length` cover all members of the sample with their tar headers and padding. u16 counts stop at 65,535.
Flag bit 0: the sample has a sentence; bits 8 to 23: index of its language in the marker's `languages`.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from sage_scale.errors import DatasetError, Reject
from sage_scale.shards import layout
from sage_scale.shards.sample import Sample, read_sample, sample_hash
from sage_scale.shards.tar import map_file, walk
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json_object, parse_stored

RECORD = np.dtype([
    ("key", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("frames", "<u4"), ("segments", "<u2"), ("glosses", "<u2"),
    ("flags", "<u4"), ("hash", "u1", 16),
])  # fmt: skip
HAS_SENTENCE = 1
LANGUAGE_SHIFT, LANGUAGE_MASK = 8, 0xFFFF
_MAGIC = b"SAGEIDX1"
_HEADER = struct.Struct("<8sIIQQ")
_MAX_COUNT = 65_535


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The contents of a tar but for its samples' bytes."""

    header: layout.ShardHeader
    records: np.ndarray
    """RECORD (samples,), in the order of the tar."""
    languages: tuple[str, ...]
    """Languages of the samples, sorted."""
    rejects: tuple[Reject, ...]
    tar_bytes: int
    tar_sha256: str

    def to_bytes(self) -> bytes:
        """Returns the index file."""
        head = _HEADER.pack(_MAGIC, layout.VERSION, RECORD.itemsize, len(self.records), self.tar_bytes)
        return head + self.records.tobytes()


def build_index(source: Path | bytes | memoryview, where: str = "") -> ShardIndex:
    """Reads a whole tar, checks every member, and returns the index.

    Raises DatasetError, naming shard and sample, for all that differs from a writer's output; StorageError where the
    file cannot be read.
    """
    if isinstance(source, Path):
        with map_file(source) as view:
            return build_index(view, where or str(source))
    with memoryview(source) as view:
        return _build(view, where)


def make_marker(index: ShardIndex) -> layout.Marker:
    """Returns the marker of the tar that `index` was built from."""
    return layout.Marker(
        unit=index.header.unit,
        split=index.header.split,
        dataset=index.header.dataset,
        samples=len(index.records),
        frames=int(index.records["frames"].sum()),
        segments=int(index.records["segments"].sum()),
        languages=index.languages,
        rejects=len(index.rejects),
        reasons=dict(sorted(Counter(reject.reason for reject in index.rejects).items())),
        bytes=index.tar_bytes,
        sha256=index.tar_sha256,
        index_sha256=hashlib.sha256(index.to_bytes()).hexdigest(),
        generation=index.header.generation,
    )


def objects_beside(index: ShardIndex) -> dict[str, bytes]:
    """Returns the objects beside the tar, index file and marker, by name."""
    unit, generation = index.header.unit, index.header.generation
    return {
        layout.index_name(unit, generation): index.to_bytes(),
        layout.marker_name(unit, generation): make_marker(index).to_bytes(),
    }


def parse_index(data: bytes, where: str) -> np.ndarray:
    """Returns RECORD (samples,), read-only, from an index file's bytes. Raises DatasetError for other bytes."""
    cut_off = DatasetError(f"{where} is cut off: rebuild it with `sage-scale shards index`")
    if len(data) < _HEADER.size:
        raise cut_off
    magic, version, width, count, _ = _HEADER.unpack_from(data)
    if (magic, version, width) != (_MAGIC, layout.VERSION, RECORD.itemsize):
        raise DatasetError(f"{where} is no index of this version: rebuild it with `sage-scale shards index`")
    if len(data) != _HEADER.size + count * width:
        raise cut_off
    return np.frombuffer(data, RECORD, count, _HEADER.size)


def parse_rejects(data: bytes, where: str) -> tuple[Reject, ...]:
    """Returns the rejects from the bytes of `__rejects__`. Raises DatasetError for damaged bytes."""
    try:
        return tuple(build(Reject, values) for values in parse_stored(data))
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: member '{layout.REJECTS_MEMBER}' is damaged ({error})") from None


class IndexBuilder:
    """Collects the records of a tar's samples, in order, while the tar is written or read."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._rows: list[tuple] = []
        self._languages: list[str] = []
        self._seen: set[str] = set()

    def add(self, sample: Sample, data: bytes, offset: int) -> None:
        """Adds the next sample, whose stored bytes `data` begin at `offset`. Raises DatasetError for a repeated one."""
        key = sample.key
        if key in self._seen:
            raise DatasetError(f"{self._where}, sample {key}: clip '{sample.meta['id']}' occurs twice")
        self._seen.add(key)
        frames, glosses = sample.meta.get("frames"), sample.meta.get("pseudo_glosses")
        if not isinstance(frames, int) or not isinstance(glosses, list) or len(data) >= 2**32:
            raise DatasetError(
                f"{self._where}, sample {key}: its description is damaged, or it is larger than 4 GiB"
            )
        self._rows.append(
            (
                int(key, 16),
                offset,
                len(data),
                frames,
                min(len(sample.segments), _MAX_COUNT),
                min(len(glosses), _MAX_COUNT),
                HAS_SENTENCE if sample.meta.get("sentence") else 0,
                np.frombuffer(sample_hash(data), np.uint8),
            )
        )
        self._languages.append(str(sample.meta.get("language", "")))

    def finish(
        self, header: layout.ShardHeader, rejects: tuple[Reject, ...], tar_bytes: int, tar_sha256: str
    ) -> ShardIndex:
        """Returns the index of the whole tar. Raises DatasetError for more languages than an index can number."""
        languages = sorted(set(self._languages))
        if len(languages) > LANGUAGE_MASK + 1:
            raise DatasetError(
                f"{self._where}: {len(languages):,} languages are more than an index can number"
            )
        records = np.array(self._rows, RECORD)
        numbers = {language: number for number, language in enumerate(languages)}
        of_rows = np.array([numbers[language] for language in self._languages], "<u4")
        records["flags"] |= of_rows << LANGUAGE_SHIFT
        return ShardIndex(
            header=header,
            records=records,
            languages=tuple(languages),
            rejects=rejects,
            tar_bytes=tar_bytes,
            tar_sha256=tar_sha256,
        )


def _build(view: memoryview, where: str) -> ShardIndex:
    header: layout.ShardHeader | None = None
    rejects: tuple[Reject, ...] | None = None
    builder = IndexBuilder(where)
    for stem, members in groupby(walk(view, where), lambda member: member.name.split(".", 1)[0]):
        run = list(members)
        first = run[0]
        if first.name == layout.SHARD_MEMBER and header is None and first.start == 0:
            header = _header(bytes(view[first.offset : first.offset + first.size]), where)
        elif first.name == layout.REJECTS_MEMBER and rejects is None:
            rejects = parse_rejects(bytes(view[first.offset : first.offset + first.size]), where)
        elif header is None or rejects is not None:
            raise DatasetError(f"{where}: member '{first.name}' is not where it belongs")
        else:
            data = bytes(view[first.start : run[-1].end])
            builder.add(read_sample(data, key=stem, where=where), data, first.start)
    if header is None or rejects is None:
        missing = layout.SHARD_MEMBER if header is None else layout.REJECTS_MEMBER
        raise DatasetError(f"{where}: member '{missing}' is missing; this is not a whole shard of ours")
    return builder.finish(header, rejects, len(view), hashlib.sha256(view).hexdigest())


def _header(data: bytes, where: str) -> layout.ShardHeader:
    try:
        values = parse_json_object(data)
        if (values.get("format"), values.get("version")) != (layout.FORMAT, layout.VERSION):
            raise InvalidJSON("another format or version")
        return build(layout.ShardHeader, values)
    except InvalidJSON as error:
        raise DatasetError(f"{where}: member '{layout.SHARD_MEMBER}' is damaged ({error})") from None
