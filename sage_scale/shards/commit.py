"""Making a dataset: begin it, commit units to it, close it.

Every step is idempotent and may be cut off by a kill at any moment. A unit is committed by one conditional PUT of its
tar; index and marker follow from the stored tar, whoever writes them; `index.json` follows from the markers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sage_scale.errors import DatasetError, UnitsOpen
from sage_scale.shards.dataset import (
    Dataset,
    in_parallel,
    index_json,
    list_units,
    open_dataset,
    open_unfinished,
    open_units,
    still_open,
)
from sage_scale.shards.index import ShardIndex, build_index, make_marker
from sage_scale.shards.layout import (
    DATASET_JSON,
    INDEX_JSON,
    DatasetInfo,
    Unit,
    index_name,
    marker_name,
    parse_info,
    tar_name,
)
from sage_scale.shards.stored import stored_tar
from sage_scale.storage import Store


def start_dataset(store: Store, info: DatasetInfo) -> DatasetInfo:
    """Write dataset.json unless it is there, and return the one that is.

    Raises DatasetError, naming the keys that differ, where another dataset was begun at this place.
    """
    if store.put_if_absent(DATASET_JSON, info.to_bytes()):
        return info
    where = f"{store.url}/{DATASET_JSON}"
    there = parse_info(store.get(DATASET_JSON), where)
    if there.to_bytes() != info.to_bytes():
        names = ", ".join(_differences(there.to_mapping(), info.to_mapping())[:6])
        raise DatasetError(f"{store.url} holds another dataset (different: {names}): write to another place")
    return there


def publish_shard(store: Store, tar: Path) -> Unit:
    """Commit the local tar of a unit: tar, then index, then marker. Returns the marker of what is stored.

    Where a tar of this unit is there already, it is the truth and the local one is dropped.
    """
    index = build_index(tar)
    unit = index.header.unit
    if not store.put_if_absent(tar_name(unit), tar):
        return restore_marker(store, unit)
    return _put_marker(store, index)


def restore_marker(store: Store, unit: int) -> Unit:
    """Make index and marker of a stored tar again, from the tar alone. Raises NotFound, DatasetError."""
    where = f"{store.url}/{tar_name(unit)}"
    with stored_tar(store, unit) as view:
        index = build_index(view, where)
    if index.header.unit != unit:
        raise DatasetError(
            f"{where} is the shard of unit {index.header.unit}: delete it and precompute again"
        )
    return _put_marker(store, index)


def finish_dataset(store: Store) -> Dataset:
    """Write index.json from dataset.json, the markers and the index files, and open the dataset.

    Markers that a kill has cut off are made from their tars. Raises UnitsOpen, naming them, where units are
    missing, DatasetError where a marker contradicts its tar.
    """
    in_parallel(lambda unit: restore_marker(store, unit), sorted(list_units(store).unmarked), threads=4)
    dataset = open_unfinished(store)
    missing = open_units(dataset)
    if missing:
        raise UnitsOpen(still_open(store.url, missing, len(dataset.info.units)))
    store.put(INDEX_JSON, index_json(dataset.info, dataset.units, dataset.records))
    return open_dataset(store)


def rebuild_index(store: Store, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Make every index and marker again from the stored tars, then index.json; the tars are not touched.

    `progress(done, total)` is called after each unit. Raises DatasetError at the first damaged tar.
    """
    listing = list_units(store)
    units = sorted(listing.done | listing.unmarked)
    finished: list[int] = []

    def restore(unit: int) -> None:
        restore_marker(store, unit)
        finished.append(unit)
        if progress:
            progress(len(finished), len(units))

    in_parallel(restore, units, threads=4)
    return finish_dataset(store)


def _put_marker(store: Store, index: ShardIndex) -> Unit:
    """Index and marker, replacing older ones: they follow from the tar, so all writers write the same bytes."""
    marker = make_marker(index)
    store.put(index_name(marker.unit), index.to_bytes())
    store.put(marker_name(marker.unit), marker.to_bytes())
    return marker


def _differences(there: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted({*there, *new}):
        old, fresh = there.get(key), new.get(key)
        if isinstance(old, Mapping) and isinstance(fresh, Mapping):
            found += _differences(old, fresh, f"{path}{key}.")
        elif json.dumps(old, sort_keys=True) != json.dumps(fresh, sort_keys=True):
            found.append(f"{path}{key}")
    return found
