"""index.json: dataset.json, all markers and all records in one line of checksummed JSON (shards/README.md).

It is read by one GET, piece by piece, straight into the arrays that stay: of ten million samples (644 MB of text)
520 MB are kept, and little more is ever held. Arrays alone hold all of it, so that processes of a node can share them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from shlex import quote
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sage_scale.errors import DatasetError
from sage_scale.shards import layout
from sage_scale.shards.addition_plan import Addition
from sage_scale.shards.index import RECORD
from sage_scale.shards.units import Units, UnitsBuilder
from sage_scale.storage import NotFound, Store
from sage_scale.storage.store import Buffer

Allocate = Callable[[int], NDArray[np.uint8]]
"""Returns uint8 (size,), uninitialised, not held elsewhere."""
Arrays = dict[str, NDArray[Any]]
Make = Callable[[Allocate], Arrays]
Once = Callable[[Make, str], Arrays]
"""Returns the arrays of `make`, made here or by another process of the node (streaming/per_node.py); the text names the
dataset in messages."""

_RECORDS = b'"records":"'
_CHECKSUM_BYTES = 43
_decode = json.JSONDecoder().raw_decode


def index_json(
    info: layout.DatasetInfo,
    units: Iterable[layout.Marker],
    records: np.ndarray,
    additions: Iterable[Addition] = (),
) -> bytes:
    """Returns the bytes of index.json."""
    values = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "dataset": info.to_mapping(),
        "units": [unit.to_mapping() for unit in units],
        "samples": len(records),
        "record_bytes": RECORD.itemsize,
        "records": base64.b64encode(records.tobytes()).decode("ascii"),
    }
    added = [asdict(addition) for addition in additions]
    return layout.checksummed_json({**values, "additions": added} if added else values)


def private(size: int) -> NDArray[np.uint8]:
    """Returns memory of this process alone."""
    return np.empty(size, np.uint8)


def alone(make: Make, where: str) -> Arrays:
    """Returns the arrays, made by this process for itself."""
    return make(private)


def read_index(store: Store, allocate: Allocate = private) -> Arrays | None:
    """Returns the arrays of index.json, read by one GET; None where it is not stored (yet).

    `records` RECORD (S,); `unit_of_row` int32 (S,), ordinal of each sample's unit; `unit_table` and `unit_text`, the
    markers (`units_of`); `head`, JSON of everything else. Raises DatasetError for a damaged index.
    """
    where = f"{store.url}/{layout.INDEX_JSON}"
    broken = DatasetError(f"{where} is damaged: rebuild it with `sage-scale shards index {quote(store.url)}`")
    try:
        return store.read(layout.INDEX_JSON, lambda size, pieces: _parse(size, pieces, where, allocate))
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise broken from None


def head_of(arrays: Arrays) -> dict[str, Any]:
    """Returns `dataset`, `additions` (both as stored) and `digest`."""
    return json.loads(arrays["head"].tobytes())


def units_of(arrays: Arrays, where: str) -> Units:
    """Returns the markers of the arrays."""
    head = head_of(arrays)
    return Units(
        arrays["unit_text"], arrays["unit_table"], head["splits"], [*map(tuple, head["languages"])], where
    )


def _parse(size: int, pieces: Iterator[Buffer], where: str, allocate: Allocate) -> Arrays:
    """Returns the arrays of a document of `size` bytes. Raises DatasetError, and others where it is damaged."""
    outside, content, filled, digest = _divide(size, pieces, allocate)
    values, builder = _values(outside, where)
    del outside
    if values["format"] != layout.FORMAT:
        raise DatasetError(f"{where} is of the format '{values['format']}', not part of a dataset of ours")
    if values["version"] != layout.VERSION:
        raise DatasetError(
            f"{where} is of format version {values['version']}, this program reads {layout.VERSION}"
        )
    records = content[: filled - filled % RECORD.itemsize].view(RECORD)
    units = builder.finish(allocate)
    if values["records"] or filled % RECORD.itemsize:
        raise ValueError("no records")
    if not len(records) == values["samples"] == units.table["samples"].sum():
        raise ValueError("counts differ")
    unit_of_row = allocate(4 * len(records)).view(np.int32)
    unit_of_row[:] = np.repeat(np.arange(len(units), dtype=np.int32), units.table["samples"])
    head = layout.canonical_json(
        {
            "dataset": values["dataset"],
            "additions": values.get("additions", []),
            "digest": digest,
            "splits": units.splits,
            "languages": units.languages,
        }
    )
    return {
        "records": records,
        "unit_of_row": unit_of_row,
        "unit_table": units.table,
        "unit_text": units.text,
        "head": np.frombuffer(head, np.uint8),
    }


def _divide(
    size: int, pieces: Iterator[Buffer], allocate: Allocate
) -> tuple[bytearray, NDArray[np.uint8], int, str]:
    """Returns the document without its records, these decoded, their bytes, and the checksum, which was verified."""
    outside, left, content = bytearray(), b"", np.zeros(0, np.uint8)
    searched = filled = received = 0
    inside = behind = False
    checksum = xxhash.xxh3_128()
    for piece in pieces:
        checksum.update(memoryview(piece)[max(0, _CHECKSUM_BYTES - received) :])
        received += len(piece)
        if behind:
            outside += piece
            continue
        if not inside:
            outside += piece
            at, searched = _records_begin(outside, searched)
            if at < 0:
                continue
            inside, left = True, bytes(outside[at:])
            del outside[at:]
            # Samples and markers follow the records: the rest of this room is never touched.
            content = allocate(3 * (max(0, size - at) // 4 + 1))
        else:
            left += piece
        end = left.find(b'"')
        if end >= 0:
            inside, behind = False, True
            outside += left[end:]
            left = left[:end]
        whole = len(left) if behind else len(left) // 4 * 4
        decoded = binascii.a2b_base64(left[:whole])
        content[filled : filled + len(decoded)] = np.frombuffer(decoded, np.uint8)
        filled, left = filled + len(decoded), left[whole:]
    stated = bytes(outside[9:41])
    sound = outside[:_CHECKSUM_BYTES] == b'{"xxh3":"%s",' % stated
    if not sound or checksum.hexdigest().encode() != stated:
        raise ValueError("the checksum differs")
    return outside, content, filled, stated.decode("ascii")


def _records_begin(text: bytearray, searched: int) -> tuple[int, int]:
    """Returns the first byte of the records' text (-1 where it has not come yet), and the bytes searched.

    A key `records` may also lie within another value: of ours the text before closes into a document.
    """
    while (at := text.find(_RECORDS, searched)) >= 0:
        searched = at + 1
        try:
            json.loads(bytes(text[:at]) + b'"records":""}')
        except (ValueError, RecursionError):
            continue
        return at + len(_RECORDS), searched
    return -1, max(searched, len(text) - len(_RECORDS))


def _values(outside: bytearray, where: str) -> tuple[dict[str, Any], UnitsBuilder]:
    """Returns the members of the document, and its markers, parsed one after another: 100,000 at once take 200 MB."""
    text, at = str(outside, "utf-8"), 1
    values: dict[str, Any] = {}
    builder = UnitsBuilder(where)
    while True:
        key, at = _decode(text, at)
        if text[at] != ":":
            raise ValueError("no member")
        at += 1
        if key == "units" and text[at] == "[":
            at += 1
            while text[at] != "]":
                unit, end = _decode(text, at)
                builder.add(layout.marker_from(unit, where), text[at:end].encode())
                if text[end] not in ",]":
                    raise ValueError("no list")
                at = end + (text[end] == ",")
            at += 1
        else:
            values[key], at = _decode(text, at)
        if text[at:] == "}\n":
            return values, builder
        if text[at] != ",":
            raise ValueError("no object")
        at += 1
