"""The record of clips that were taken out of a dataset on request: it outlives every shard.

One object for each request, `removed-<16 hex digits>.json`, put if absent, with the keys of the clips and nothing else
of them: a key is a hash, so that the record does not keep the id that it is about. Whoever makes, completes or repairs
a shard looks here first, so that no clip comes back, whatever is run again.

`changed.json` stands in a dataset from before its first removal, and before its first shard of an older generation is
deleted: whoever makes shards asks for this one name, and lists only where it is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from sage_scale.errors import DatasetError
from sage_scale.shards.layout import FORMAT, REMOVED, VERSION, Reject, canonical_json
from sage_scale.storage import Store
from sage_scale.untrusted.json_values import parse_json

PREFIX = "removed-"
CHANGED_JSON = "changed.json"
KEY_PREFIX = "key:"
"""Before a key where a reject names no id."""


def removed_keys(store: Store) -> frozenset[str]:
    """Keys of all clips that were ever taken out: one listing, and one GET a request. Raises DatasetError."""
    keys: set[str] = set()
    for entry in store.list(PREFIX):
        keys.update(_parse(store.get(entry.name), f"{store.url}/{entry.name}"))
    return frozenset(keys)


def removed_in_passing(store: Store) -> frozenset[str]:
    """`removed_keys` for writers of shards, who ask for each: no listing where nothing was ever taken out."""
    return removed_keys(store) if store.exists(CHANGED_JSON) else frozenset()


def announce_change(store: Store) -> None:
    """Let writers of shards know that from here on there may be removals and newer generations."""
    store.put_if_absent(CHANGED_JSON, canonical_json({"format": FORMAT, "version": VERSION}))


def record_removal(store: Store, keys: Iterable[str]) -> None:
    """Store that these clips are to be out, before anything is done about it."""
    announce_change(store)
    data = canonical_json({"format": FORMAT, "version": VERSION, "keys": sorted(set(keys))})
    store.put_if_absent(f"{PREFIX}{hashlib.sha256(data).hexdigest()[:16]}.json", data)


def removed_reject(key: str) -> Reject:
    """What a shard says of a clip that was taken out."""
    return Reject(id=f"{KEY_PREFIX}{key}", reason=REMOVED)


def as_numbers(keys: Iterable[str]) -> np.ndarray:
    """Keys as uint64, as the index holds them."""
    return np.array(sorted(int(key, 16) for key in keys), np.uint64)


def _parse(data: bytes, where: str) -> list[str]:
    try:
        keys = parse_json(data)["keys"]
        if not all(len(key) == 16 and int(key, 16) >= 0 for key in keys):
            raise ValueError("not keys")
        return list(keys)
    except (ValueError, KeyError, TypeError):
        raise DatasetError(
            f"{where} is damaged: it says which clips were taken out of the dataset; restore it, or delete it and take "
            "them out again with `sage-scale shards remove`"
        ) from None
