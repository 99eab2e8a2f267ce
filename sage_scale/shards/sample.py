"""Reads a sample from its bytes, the hot path of streaming, and checks its contract.

A sample is a run of tar members. `tarfile` reads it in 300 microseconds, the loop here in a few. The hash of the index
covers all bytes, headers and padding included; kinds, names and sizes of members are checked nevertheless, and arrays
hold plain numbers (no pickle).
"""

from __future__ import annotations

import ast
import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from sage_scale.errors import DatasetError
from sage_scale.shards.layout import sample_key
from sage_scale.untrusted.json_values import parse_stored

META_KEYS = (
    "id", "sentence", "pseudo_glosses", "language", "fps", "frame_stride", "frames", "source", "signer", "split",
)  # fmt: skip
"""Keys that every `<key>.json` has; others may follow."""
# ustar: name 0..100, size 124..136 (octal), type 156, magic 257..262, first byte of a long name's prefix 345
_HEADER_FIELDS = struct.Struct("100s24x11s21xc100x5s83xB166x").unpack_from
_KNOWN_HEADERS: dict[bytes, tuple[np.dtype, tuple[int, ...], int, int]] = {}
_KNOWN_HEADERS_LIMIT = 4096
_ONCE = (b"json", b"segments.npy", b"features.npy", b"background.jpg")
_VIEW = re.compile(rb"features\.[1-9]\d*\.npy").fullmatch
_FLOAT16, _INT32 = np.dtype("<f2"), np.dtype("<i4")
_DTYPES: dict[str, np.dtype] = {"<f2": _FLOAT16, "<i4": _INT32}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One clip of a shard: T frames at the recipe's rate, N segments, T' stored frames, feature width C."""

    key: str
    """16 hex digits of sha256 of the clip's id."""
    meta: dict[str, Any]
    """`<key>.json`: the keys of META_KEYS, and perhaps more."""
    segments: np.ndarray
    """int32 (N, 2): half-open frame intervals at the recipe's rate, sorted and disjoint, N >= 1."""
    frames: dict[int, bytes] | None = None
    """JPEG bytes by frame number (0, stride, 2 * stride, ...); None in datasets of features."""
    background: bytes | None = None
    """JPEG of the clip's median frame, or None."""
    features: np.ndarray | None = None
    """float16 (T', C): row r belongs to frame r * stride; None in datasets of frames."""
    views: tuple[np.ndarray, ...] = ()
    """Features of the augmented views 1, 2, ...; `features` are those of view 0."""

    @property
    def kind(self) -> str:
        """frames or features."""
        return "frames" if self.features is None else "features"

    def view(self, number: int) -> np.ndarray | None:
        """Returns the features of a view, float16 (T', C); None where the view is not stored."""
        return (self.features, *self.views)[number] if number <= len(self.views) else None


def sample_hash(data: bytes | memoryview) -> bytes:
    """Returns the xxh3-128 of a sample's bytes, 16 bytes in canonical (big-endian) order."""
    return xxhash.xxh3_128_digest(data)


def read_sample(
    data: bytes, *, key: str | None = None, digest: bytes | None = None, where: str = ""
) -> Sample:
    """Returns the sample whose members, with headers and padding, are `data`. Arrays are read-only views of `data`.

    `key` and `digest` (16 bytes) of the index are checked where given. Raises DatasetError naming shard (`where`) and
    sample.
    """
    if digest is not None and xxhash.xxh3_128_digest(data) != digest:
        raise _damaged(where, key, "its bytes differ from the index's hash")
    try:
        return _parse(data, key, where)
    except (ValueError, IndexError, SyntaxError, RecursionError) as error:
        raise _damaged(where, key, f"it cannot be read: {error}") from None


def check_sample(sample: Sample, where: str = "") -> None:
    """Raises DatasetError unless the sample keeps the contract of shards/README.md ("A sample")."""
    meta, segments_N2 = sample.meta, sample.segments

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise _damaged(where, sample.key, what)

    missing = [name for name in META_KEYS if name not in meta]
    need(not missing, f"its description lacks {', '.join(missing)}")
    need(sample.key == sample_key(meta["id"]), f"its key is not the hash of its id '{meta['id']}'")
    total, stride = meta["frames"], meta["frame_stride"]
    need(isinstance(total, int) and total >= 1, "frames must be a positive number")
    need(isinstance(stride, int) and stride >= 1, "frame_stride must be a positive number")
    need(isinstance(meta["pseudo_glosses"], list), "pseudo_glosses must be a list")
    need(segments_N2.dtype == np.int32 and segments_N2.ndim == 2, "segments must be int32 (N, 2)")
    need(segments_N2.shape[1] == 2 and len(segments_N2) >= 1, "segments must be int32 (N, 2) with N >= 1")
    edges = segments_N2.ravel()
    ordered = bool((segments_N2[:, 0] < segments_N2[:, 1]).all() and (edges[1:] >= edges[:-1]).all())
    need(
        ordered and int(edges[0]) >= 0 and int(edges[-1]) <= total,
        "segments must be sorted, disjoint, inside it",
    )
    need(sample.features is not None or not sample.views, "it has views of features and no features")
    rows = math.ceil(total / stride)
    need((sample.frames is None) != (sample.features is None), "it must hold either frames or features")
    if sample.frames is not None:
        need(
            list(sample.frames) == list(range(0, total, stride)),
            f"it must hold all {rows} frames of the stride",
        )
        need(all(data[:2] == b"\xff\xd8" for data in sample.frames.values()), "a frame is not a JPEG")
    if sample.features is not None:
        need(
            sample.features.dtype == np.float16 and sample.features.ndim == 2,
            "features must be float16 (T, C)",
        )
        alike = [(view.dtype, view.shape) == (np.float16, sample.features.shape) for view in sample.views]
        need(all(alike), "its views must be float16 and as large as its features")
        need(len(sample.features) == rows, f"it must hold a feature row for each of its {rows} frames")


def check_stored_samples(tar: memoryview, records: np.ndarray, where: str = "") -> list[str]:
    """Returns the fault of each sample of a tar, empty where it is intact; `records` are the tar's index."""
    faults = []
    for number, start, length, digest in zip(
        records["key"].tolist(), records["offset"].tolist(), records["length"].tolist(), records["hash"]
    ):
        key, fault = f"{number:016x}", ""
        if start + length > len(tar):
            fault = f"{where}, sample {key}: it is missing, the tar was cut off at byte {len(tar)}"
        else:
            try:
                data = bytes(tar[start : start + length])
                check_sample(read_sample(data, key=key, digest=digest.tobytes(), where=where), where)
            except DatasetError as error:
                fault = str(error).split("; run `")[0]
        faults.append(fault)
    return faults


def view_member(number: int) -> str:
    """Returns the member name of a view from 1, behind the key and its dot."""
    return f"features.{number}.npy"


def _parse(data: bytes, key: str | None, where: str) -> Sample:
    at, end = 0, len(data)
    meta = segments = background = features = None
    frames: dict[int, bytes] = {}
    views: list[np.ndarray] = []
    prefix = f"{key}.".encode() if key is not None else data[:17]
    skip = len(prefix)
    if skip != 17 or prefix[16:] != b".":
        raise _damaged(where, key, "the first member's name has no key of 16 digits")
    while at < end:
        start = at + 512
        if start > end:
            raise _damaged(where, key, f"no plain member at its byte {at}")
        name, octal, kind, magic, long_name = _HEADER_FIELDS(data, at)
        if magic != b"ustar" or kind != b"0" or long_name:
            raise _damaged(where, key, f"no plain member at its byte {at}")
        size = int(octal, 8)
        stop = start + size
        if size < 0 or stop > end:
            raise _damaged(where, key, f"the member at its byte {at} is cut off")
        if name[:skip] != prefix:
            raise _damaged(where, key, f"a member of another name, {name!r}, at its byte {at}")
        suffix = name[skip : name.index(0)]
        if suffix == b"json" and meta is None:
            meta = parse_stored(data[start:stop])
        elif suffix == b"segments.npy" and segments is None:
            segments = _array(data, start, size, _INT32)
        elif suffix == b"features.npy" and features is None:
            features = _array(data, start, size, _FLOAT16)
        elif suffix == b"background.jpg" and background is None:
            background = data[start:stop]
        elif len(suffix) >= 10 and suffix[-4:] == b".jpg" and suffix[:-4].isdigit():
            number = int(suffix[:-4])
            if number in frames:
                raise _damaged(where, key, f"frame {number} occurs twice")
            frames[number] = data[start:stop]
        elif suffix == view_member(len(views) + 1).encode():
            views.append(_array(data, start, size, _FLOAT16))
        elif suffix in _ONCE or _VIEW(suffix):
            raise _damaged(where, key, f"member {suffix.decode()} occurs twice or out of order")
        # Members of other names belong to later versions.
        at = stop + (-size & 511)
    if at != end or not isinstance(meta, dict) or segments is None or (not frames and features is None):
        raise _damaged(where, key, "a member is missing or cut off")
    return Sample(
        key=prefix[:16].decode("ascii"),
        meta=meta,
        segments=segments,
        frames=frames or None,
        background=background,
        features=features,
        views=tuple(views),
    )


def _array(data: bytes, start: int, size: int, expected: np.dtype) -> np.ndarray:
    """Returns a .npy member as a read-only view of two dimensions. Distinct headers are parsed once."""
    head = 10 + data[start + 8] + 256 * data[start + 9]
    header = data[start : start + head]
    known = _KNOWN_HEADERS.get(header)
    if known is None:
        known = _parse_header(header)
        if len(_KNOWN_HEADERS) >= _KNOWN_HEADERS_LIMIT:
            _KNOWN_HEADERS.clear()
        _KNOWN_HEADERS[header] = known
    dtype, shape, count, nbytes = known
    if head + nbytes != size or dtype is not expected:
        raise ValueError(f"an array is not {expected}, or its size differs from its header")
    return np.frombuffer(data, dtype, count, start + head).reshape(shape)


def _parse_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if header[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("an array has no .npy header of version 1.0")
    values = ast.literal_eval(header[10:].decode("latin1").strip())
    if not isinstance(values, dict):
        raise ValueError("an array has no .npy header")
    dtype = _DTYPES.get(str(values.get("descr")))
    if dtype is None or values.get("fortran_order") is not False:
        raise ValueError("an array is not float16 or int32 in C order")
    shape = values.get("shape")
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array has not two dimensions")
    count = math.prod(shape)
    return dtype, shape, count, count * dtype.itemsize


def _damaged(where: str, key: str | None, what: str) -> DatasetError:
    at = f"{where}, sample {key}" if where else f"sample {key}"
    return DatasetError(f"{at}: {what}; run `sage-scale shards verify` on the dataset")
