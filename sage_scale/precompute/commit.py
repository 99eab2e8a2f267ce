"""The commit protocol: how a work unit becomes part of a dataset exactly once.

1. The tar is stored by one conditional PUT. Of several writers (a driver and its restart, two drivers, an actor that
   was thought dead) one wins; the others drop their work and go on with what is stored. The stored tar is the truth.
2. Index and marker are pure functions of the stored tar, so it does not matter who stores them, or when.
3. A unit is done when index and marker are there. A tar without them is finished by reading it.

So a kill between any two requests leaves either nothing or something the next run completes, and one bare listing
shows which. No step renames, waits for another writer or depends on a clock.
"""

from __future__ import annotations

from pathlib import Path

from sage_scale.errors import DatasetError
from sage_scale.shards import Marker, UnitListing, list_units, publish_shard, restore_marker
from sage_scale.shards.index import ShardIndex
from sage_scale.shards.layout import (
    DATASET_JSON,
    INDEX_JSON,
    addition_name,
    index_name,
    marker_name,
    tar_name,
)
from sage_scale.storage import Store


def commit_unit(
    store: Store, unit: int, digest: str, tar: Path | None = None, index: ShardIndex | None = None
) -> Marker:
    """Store a unit's local tar with index and marker, or (None) index and marker of the tar that is stored.

    Gives the marker of what is stored, which need not be ours. `digest` is that of dataset.json. Raises StorageError
    where the store cannot be read or written, DatasetError where the stored tar is damaged or of another dataset.
    """
    marker = restore_marker(store, unit) if tar is None else publish_shard(store, tar, index)
    if marker.dataset != digest:
        raise DatasetError(
            f"{store.url}/{tar_name(unit)} belongs to another dataset (digest {marker.dataset}, here {digest}): "
            "use another --out, or --overwrite"
        )
    return marker


def erase(store: Store) -> UnitListing:
    """Delete every object of the dataset in `store`, and nothing else; gives the listing that is left.

    index.json goes first and dataset.json second, so that a kill in between never leaves an output that looks whole.
    The record of clips that were taken out on request stays: starting again is no reason to bring them back.
    """
    listing = list_units(store)
    # The last addition goes first: they are found by counting up.
    additions = [addition_name(number) for number in range(listing.additions, 0, -1)]
    names = [INDEX_JSON, DATASET_JSON, *additions]
    for unit in sorted(listing.tar_bytes):
        # The tar goes last: a listing knows its index and marker by it.
        newest = listing.generation[unit]
        names += [marker_name(unit, newest), index_name(unit, newest), tar_name(unit, newest)]
    for name in (*names[:2], *listing.superseded, *names[2:]):
        store.delete(name)
    return list_units(store)
