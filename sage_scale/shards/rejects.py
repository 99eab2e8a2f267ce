"""Clips that a dataset leaves out: rejects in its tars, and the record of clips removed on request.

The record outlives every shard. Each request stores one object, `removed-<16 hex digits>.json`, put if absent. It holds
the clips' keys, which are hashes, and so does not keep the ids. Every writer of shards reads it first, so that no later
command brings a clip back.

`changed.json` is stored before the first removal and before the first shard of an older generation is deleted. Writers
of shards ask for this one name, and list the store only where it exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from shlex import quote

import numpy as np

from sage_scale.errors import DatasetError, Reject
from sage_scale.parallel import map_threads
from sage_scale.shards import layout
from sage_scale.shards.addition_plan import Addition
from sage_scale.shards.dataset import Dataset
from sage_scale.shards.index import parse_index, parse_rejects
from sage_scale.shards.tar import walk
from sage_scale.storage import Store
from sage_scale.untrusted.json_values import parse_json

REPEATED = "repeated-id"
"""Reason of a manifest row whose id an earlier row has: the outcome of that clip says nothing about the row."""
REMOVED_PREFIX = "removed-"
CHANGED_JSON = "changed.json"
KEY_PREFIX = "key:"
"""Stands before a key where a reject names no id."""


def read_rejects(store: Store, unit: layout.Marker) -> tuple[Reject, ...]:
    """Returns the rejects of a unit, from the end of its tar. Raises DatasetError where that is damaged."""
    if not unit.rejects:
        return ()
    where = f"{store.url}/{unit.tar}"
    name = layout.index_name(unit.unit, unit.generation)
    records = parse_index(store.get(name), f"{store.url}/{name}")
    start = int(records[-1]["offset"]) + int(records[-1]["length"]) if len(records) else 0
    data = store.get_range(unit.tar, start, unit.bytes - start)
    for member in walk(data, where):
        if member.name == layout.REJECTS_MEMBER:
            return parse_rejects(data[member.offset : member.offset + member.size], where)
    raise DatasetError(
        f"{where}: member '{layout.REJECTS_MEMBER}' is missing: run `sage-scale shards verify {quote(store.url)}`"
    )


def reject_key(reject: Reject) -> str:
    """Returns the key of the clip that a reject names."""
    return (
        reject.id.removeprefix(KEY_PREFIX)
        if reject.id.startswith(KEY_PREFIX)
        else layout.sample_key(reject.id)
    )


def current_rejects(dataset: Dataset) -> Iterator[tuple[layout.Marker, Reject]]:
    """Yields the rejects that no later shard has overtaken, with their units, in the order of the units.

    `--retry-rejects` and `--extend` write shards with clips that an earlier shard rejected. The earlier reject then
    stays in its tar, but no longer counts. Raises DatasetError where a tar is damaged.
    """
    planned = len(dataset.info.units)
    rejects = map_threads(lambda unit: read_rejects(dataset.store, unit), dataset.units)
    latest: dict[str, int] = {}
    for unit, rows, records in zip(dataset.units, rejects, dataset.records_by_unit()):
        if unit.unit >= planned:
            keys = {f"{key:016x}" for key in records["key"].tolist()} | {reject_key(row) for row in rows}
            latest.update((key, max(unit.unit, latest.get(key, 0))) for key in keys)
    for unit, rows in zip(dataset.units, rejects):
        for row in rows:
            if row.reason == REPEATED or latest.get(reject_key(row), -1) <= unit.unit:
                yield unit, row


def count_current_rejects(
    markers: Sequence[layout.Marker], planned: int, additions: Sequence[Addition]
) -> int:
    """Returns the number of `current_rejects`, from markers alone; clips removed on request do not count.

    A clip that an earlier shard had rejected counts by its last outcome.
    """
    before = {unit: count for addition in additions for unit, count in zip(addition.units, addition.before)}
    total = 0
    for marker in markers:
        rejects = marker.rejects - marker.reasons.get(layout.REMOVED, 0)
        total += rejects
        if marker.unit >= planned:
            total -= min(before.get(marker.unit, 0), marker.samples + rejects)
    return total


def removed_reject(key: str) -> Reject:
    """Returns the reject of a clip that was removed on request."""
    return Reject(id=f"{KEY_PREFIX}{key}", reason=layout.REMOVED)


def removed_keys(store: Store) -> frozenset[str]:
    """Returns the keys of all clips ever removed, by one listing and one GET a request. Raises DatasetError."""
    keys: set[str] = set()
    for entry in store.list(REMOVED_PREFIX):
        keys.update(_parse_removal(store.get(entry.name), f"{store.url}/{entry.name}"))
    return frozenset(keys)


def removed_keys_if_announced(store: Store) -> frozenset[str]:
    """Returns `removed_keys`, without a listing where `changed.json` is missing: writers ask once a shard."""
    return removed_keys(store) if store.exists(CHANGED_JSON) else frozenset()


def announce_change(store: Store) -> None:
    """Stores `changed.json`: from now on there may be removals and newer generations."""
    store.put_if_absent(
        CHANGED_JSON, layout.canonical_json({"format": layout.FORMAT, "version": layout.VERSION})
    )


def record_removal(store: Store, keys: Iterable[str]) -> None:
    """Stores the keys of clips to be removed, before any shard is rewritten."""
    announce_change(store)
    data = layout.canonical_json(
        {"format": layout.FORMAT, "version": layout.VERSION, "keys": sorted(set(keys))}
    )
    store.put_if_absent(f"{REMOVED_PREFIX}{hashlib.sha256(data).hexdigest()[:16]}.json", data)


def key_numbers(keys: Iterable[str]) -> np.ndarray:
    """Returns keys as uint64, sorted, as the index holds them."""
    return np.array(sorted(int(key, 16) for key in keys), np.uint64)


def _parse_removal(data: bytes, where: str) -> list[str]:
    try:
        keys = parse_json(data)["keys"]
        if not all(len(key) == 16 and int(key, 16) >= 0 for key in keys):
            raise ValueError("not keys")
        return list(keys)
    except (ValueError, KeyError, TypeError):
        raise DatasetError(
            f"{where} is damaged: it lists removed clips; restore it, or delete it and remove the clips "
            "again with `sage-scale shards remove`"
        ) from None
