"""Making a dataset: begin it, commit units to it, close it.

Every step is idempotent and may be cut off by a kill at any moment. A unit is committed by one conditional PUT of its
tar; index and marker follow from the stored tar, whoever writes them; `index.json` follows from the markers. A shard
that is to hold less gets a new generation (generations.py), and of several stored ones the newest is the truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from sage_scale.errors import DatasetError, UnitsOpen
from sage_scale.shards.dataset import (
    Dataset,
    in_parallel,
    index_json,
    list_units,
    newest_generation,
    open_dataset,
    open_unfinished,
    open_units,
    still_open,
)
from sage_scale.shards.generations import Progress, sweep, take_out
from sage_scale.shards.index import ShardIndex, build_index, make_marker
from sage_scale.shards.layout import (
    DATASET_JSON,
    INDEX_JSON,
    DatasetInfo,
    Unit,
    index_name,
    marker_name,
    parse_info,
    parse_marker,
    tar_name,
)
from sage_scale.shards.removed import CHANGED_JSON, removed_keys
from sage_scale.shards.stored import stored_tar
from sage_scale.storage import NotFound, Store


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


def publish_shard(store: Store, tar: Path, index: ShardIndex | None = None) -> Unit:
    """Commit the local tar of a unit: tar, then index, then marker. Returns the marker of what is stored.

    `index` is the tar's where its writer gave it (`write_indexed`); otherwise it is read from the tar.
    Where a tar of this unit is there already, it is the truth and the local one is dropped; so it is where a newer
    generation is there: then a writer that was thought dead has come late, and what it stored is deleted again.
    """
    index = build_index(tar) if index is None else index
    unit, generation = index.header.unit, index.header.generation
    stored = store.put_if_absent(tar_name(unit, generation), tar)
    # The name was free although a newer generation is there: the older one was deleted, and that was announced before.
    changed = stored and store.exists(CHANGED_JSON)
    newer = changed and (newest_generation(store, unit) or 0) > generation
    if stored and newer:
        store.delete(tar_name(unit, generation))
    return _put_marker(store, index) if stored and not newer else restore_marker(store, unit)


def restore_marker(store: Store, unit: int) -> Unit:
    """Make index and marker of a unit's newest stored tar again, from the tar alone. Raises NotFound, DatasetError."""
    index = _stored_index(store, unit)
    return _put_marker(store, index)


def finish_dataset(store: Store, progress: Progress | None = None) -> Dataset:
    """Write index.json from dataset.json, the markers and the index files, and open the dataset.

    Markers that a kill has cut off are made from their tars. Clips that were taken out on request leave the shards that
    still hold them (`progress` tells of these), and objects of older generations are deleted at the end. Raises
    UnitsOpen, naming them, where units are missing, DatasetError where a marker contradicts its tar.
    """
    while True:
        dataset = settle(store, progress)
        missing = open_units(dataset)
        if missing:
            raise UnitsOpen(still_open(store.url, missing, len(dataset.info.units)))
        store.put(INDEX_JSON, index_json(dataset.info, dataset.units, dataset.records, dataset.additions))
        # Of two writers the later one sees what the other did: index.json ends up naming the newest generations.
        newest = list_units(store).generation
        if all(newest.get(unit.unit) == unit.generation for unit in dataset.units):
            break
    sweep(store)
    return open_dataset(store)


def settle(store: Store, progress: Progress | None = None) -> Dataset:
    """The dataset with every stored tar marked, and without the clips that were taken out on request."""
    removed = removed_keys(store)
    while True:
        in_parallel(lambda unit: restore_marker(store, unit), sorted(list_units(store).unmarked), threads=4)
        dataset = open_unfinished(store)
        if not take_out(dataset, removed, progress):
            return dataset


def rebuild_index(store: Store, progress: Progress | None = None) -> Dataset:
    """Make every index and marker again from the stored tars, then index.json; the tars are not touched.

    `progress(done, total, bytes)` is called after each unit. Raises DatasetError at the first damaged tar, also where
    its marker is there and says that it was another one.
    """
    listing = list_units(store)
    units = sorted(listing.done | listing.unmarked)
    finished: list[int] = []

    def restore(unit: int) -> None:
        index = _stored_index(store, unit)
        _compare_with_marker(store, index)
        _put_marker(store, index)
        finished.append(index.tar_bytes)
        if progress:
            progress(len(finished), len(units), sum(finished))

    in_parallel(restore, units, threads=4)
    return finish_dataset(store)


def _stored_index(store: Store, unit: int) -> ShardIndex:
    generation = newest_generation(store, unit) or 0
    where = f"{store.url}/{tar_name(unit, generation)}"
    with stored_tar(store, tar_name(unit, generation)) as view:
        index = build_index(view, where)
    if (index.header.unit, index.header.generation) != (unit, generation):
        raise DatasetError(
            f"{where} is the shard of unit {index.header.unit}: delete it and precompute again"
        )
    return index


def _compare_with_marker(store: Store, index: ShardIndex) -> None:
    """An index made from a damaged tar would give the damage a hash: the marker, where it is there, speaks first."""
    name = marker_name(index.header.unit, index.header.generation)
    try:
        marker = parse_marker(store.get(name), f"{store.url}/{name}")
    except DatasetError:  # the marker itself is damaged; the tar is whole as far as it can tell
        return
    except NotFound:
        return
    if marker.sha256 != index.tar_sha256:
        tar = tar_name(index.header.unit, index.header.generation)
        raise DatasetError(
            f"{store.url}/{tar} is not the tar that {name} was made from: it is damaged or was exchanged; run "
            f"`sage-scale shards repair {quote(store.url)}` (or delete {name} if you know the tar to be right)"
        )


def _put_marker(store: Store, index: ShardIndex) -> Unit:
    """Index and marker, replacing older ones: they follow from the tar, so all writers write the same bytes."""
    marker = make_marker(index)
    store.put(index_name(marker.unit, marker.generation), index.to_bytes())
    store.put(marker_name(marker.unit, marker.generation), marker.to_bytes())
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
