"""Writes a dataset: starts it, publishes its shards, rewrites shards without removed clips, finishes it.

Every step is idempotent and safe to kill at any time. A conditional PUT of a unit's tar commits the unit. Index and
marker are functions of the stored tar, `index.json` is a function of the markers, in every process.

Objects are never overwritten: a changed shard gets a new name, its next generation: `000042.g1.tar` replaces
`000042.tar`. It is committed like any shard, and the newest stored generation is valid. Readers of an older index.json
keep reading the older objects; these are deleted last.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np

from sage_scale.config.recipe import flat
from sage_scale.errors import DatasetError, Reject, UnitsOpen
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards import layout
from sage_scale.shards.dataset import (
    Dataset,
    generations,
    index_json,
    open_dataset,
    open_unfinished,
    unfinished_message,
    unfinished_units,
)
from sage_scale.shards.index import ShardIndex, build_index, make_marker, objects_beside
from sage_scale.shards.rejects import (
    CHANGED_JSON,
    announce_change,
    key_numbers,
    read_rejects,
    reject_key,
    removed_keys,
    removed_reject,
)
from sage_scale.shards.sample import sample_hash
from sage_scale.shards.tar import map_tar
from sage_scale.shards.writer import write_copies
from sage_scale.storage import NotFound, Store

THREADS = 4
"""Shards written in parallel."""
_READ_BYTES = 32 << 20
"""Largest range read at once; adjacent samples share a range."""


def start_dataset(store: Store, info: layout.DatasetInfo) -> layout.DatasetInfo:
    """Store dataset.json unless one exists, and return the stored one.

    Raises DatasetError, with the differing keys, if the store holds another dataset.
    """
    if store.put_if_absent(layout.DATASET_JSON, info.to_bytes()):
        return info
    stored = layout.parse_info(store.get(layout.DATASET_JSON), f"{store.url}/{layout.DATASET_JSON}")
    if stored.to_bytes() != info.to_bytes():
        one, other = (flat(json.loads(document.to_bytes())) for document in (stored, info))
        differing = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
        raise DatasetError(
            f"{store.url} holds another dataset (different: {', '.join(differing[:6])}): use another output"
        )
    return stored


def publish_shard(store: Store, tar: Path, index: ShardIndex | None = None) -> layout.Marker:
    """Commit the local tar of a unit (tar, then index, then marker) and return the marker of the stored tar.

    `index` is the tar's index from its writer (`write_shard`); by default it is read from the tar. If the store
    already has a tar of this unit and generation, it is valid and the local tar is ignored. If it has a newer
    generation, this writer was presumed dead, and its tar is deleted again. If that tar is dropped before its marker
    is made, the local tar is stored after all.
    """
    index = build_index(tar) if index is None else index
    unit, generation = index.header.unit, index.header.generation
    while True:
        stored = store.put_if_absent(layout.tar_name(unit, generation), tar)
        # The name may be free because a newer generation replaced this one, which changed.json announced.
        changed = stored and store.exists(CHANGED_JSON)
        newer = changed and (layout.newest_generation(store, unit) or 0) > generation
        if stored and not newer:
            return _put_marker(store, index)
        if newer:
            store.delete(layout.tar_name(unit, generation))
        with contextlib.suppress(NotFound):
            return restore_marker(store, unit)


def publish_copies(
    store: Store, header: layout.ShardHeader, samples: Iterable[bytes], rejects: Sequence[Reject]
) -> layout.Marker:
    """Write a shard from the stored bytes of samples, commit it and return its marker."""
    with tempfile.TemporaryDirectory(prefix="sage-scale-") as folder:
        return publish_shard(store, write_copies(Path(folder) / "new.tar", header, samples, rejects))


def verified_samples(read: Callable[[int, int], bytes], records: np.ndarray, where: str) -> Iterator[bytes]:
    """Yield the stored bytes of the samples of `records`, each verified by its hash.

    `read(offset, length)` reads from the tar; `where` names the tar in errors. Raises DatasetError for damaged bytes.
    """
    starts = records["offset"].astype(np.int64)
    ends = starts + records["length"]
    first = 0
    while first < len(records):
        last = first
        while (
            last + 1 < len(records)
            and starts[last + 1] == ends[last]
            and ends[last + 1] - starts[first] <= _READ_BYTES
        ):
            last += 1
        data = read(int(starts[first]), int(ends[last] - starts[first]))
        for row in range(first, last + 1):
            sample = data[starts[row] - starts[first] : ends[row] - starts[first]]
            if sample_hash(sample) != records["hash"][row].tobytes():
                raise DatasetError(
                    f"{where}, sample {records['key'][row]:016x}: its bytes differ from the index's hash; "
                    f"{_repair_first(where.rpartition('/')[0])}"
                )
            yield sample
        first = last + 1


def memory_reader(view: memoryview) -> Callable[[int, int], bytes]:
    """Returns the `read` argument of `verified_samples` for a tar in memory."""
    return lambda offset, length: bytes(view[offset : offset + length])


def rewrite_without(dataset: Dataset, keys: frozenset[str], progress: ProgressCallback | None = None) -> int:
    """Publish the next generation of every shard that holds clips of these keys, without them.

    Returns the number of rewritten shards. Raises DatasetError for a damaged shard: damaged bytes must not get a new
    valid hash.
    """
    units = units_containing(dataset, keys)
    map_threads(
        lambda unit: _rewrite_unit(dataset.store, unit, keys),
        units,
        threads=THREADS,
        progress=progress,
        size=lambda unit: unit.bytes,
    )
    return len(units)


def units_containing(dataset: Dataset, keys: frozenset[str]) -> list[layout.Marker]:
    """Returns the units with a clip of these keys among their samples or rejects."""
    if not keys:
        return []
    holding = set(dataset.unit_of_row[np.isin(dataset.records["key"], key_numbers(keys))].tolist())

    def names_one(ordinal: int) -> bool:
        unit = dataset.units[ordinal]
        if ordinal in holding or unit.rejects == unit.reasons.get(layout.REMOVED, 0):
            return ordinal in holding
        rejects = read_rejects(dataset.store, unit)
        return any(reject.reason != layout.REMOVED and reject_key(reject) in keys for reject in rejects)

    chosen = map_threads(names_one, range(len(dataset.units)))
    return [unit for unit, yes in zip(dataset.units, chosen) if yes]


def is_current(dataset: Dataset) -> bool:
    """Returns whether index.json names the newest stored shards, without a clip that was to be removed.

    A writer that was paused may store an older index.json, or delete a shard, and die before it looks. Without
    `changed.json` no shard was ever replaced or deleted: one HEAD. Else a listing and a GET for each removal.
    """
    store = dataset.store
    if not store.exists(CHANGED_JSON):
        return True
    listing = layout.list_units(store)
    if listing.superseded or listing.generation != generations(dataset):
        return False
    try:
        return not units_containing(dataset, removed_keys(store))
    except NotFound:  # another process is at work on its shards
        return False


def delete_superseded(store: Store) -> int:
    """Delete the objects of older generations, tars first, and return their number."""
    names = layout.list_units(store).superseded
    if names:
        announce_change(store)
    map_threads(store.delete, sorted(names, key=lambda name: not name.endswith(".tar")))
    return len(names)


def delete_dataset(store: Store) -> layout.UnitListing:
    """Delete every object of the dataset in `store`, and nothing else. Returns the listing that is left.

    index.json goes first and dataset.json second, so that a kill in between never leaves an output that looks whole.
    The record of clips that were removed on request stays: they are left out of a new output too.
    """
    listing = layout.list_units(store)
    if listing.generation:  # another process may finish the output meanwhile: later writers then look
        announce_change(store)
    # The last addition goes first: they are found by counting up.
    additions = [layout.addition_name(number) for number in range(listing.additions, 0, -1)]
    names = [layout.INDEX_JSON, layout.DATASET_JSON, *listing.superseded, *additions]
    for unit in sorted(listing.tar_bytes):
        # The tar goes last: a listing knows its index and marker by it.
        newest = listing.generation[unit]
        names += [kind(unit, newest) for kind in (layout.marker_name, layout.index_name, layout.tar_name)]
    for name in names:
        store.delete(name)
    return layout.list_units(store)


def restore_marker(store: Store, unit: int) -> layout.Marker:
    """Recreate index and marker of a unit from its newest tar. Raises NotFound without a tar, DatasetError."""
    return _put_marker(store, layout.despite_changes(store, lambda: _stored_index(store, unit)))


def restore_markers(store: Store, units: Iterable[int]) -> None:
    """Recreate index and marker of these units; a unit whose shard was dropped meanwhile stays open."""

    def restore(unit: int) -> None:
        with contextlib.suppress(NotFound):
            restore_marker(store, unit)

    map_threads(restore, sorted(units), threads=THREADS)


def reconcile(store: Store, progress: ProgressCallback | None = None) -> Dataset:
    """Write missing markers, rewrite shards with removed clips, and return the dataset, finished or not."""
    removed = removed_keys(store)

    def rewrite() -> Dataset | None:
        restore_markers(store, layout.list_units(store).unmarked)
        dataset = open_unfinished(store)
        return None if rewrite_without(dataset, removed, progress) else dataset

    while True:
        dataset = layout.despite_changes(store, rewrite)
        if dataset is not None:
            return dataset


def finish_dataset(store: Store, progress: ProgressCallback | None = None) -> Dataset:
    """Write index.json from dataset.json, the markers and the index files, and return the opened dataset.

    Missing markers are made from their tars. Shards with removed clips are rewritten (counted by `progress`). Objects
    of older generations are deleted at the end. Raises UnitsOpen with the missing units, and DatasetError if a marker
    contradicts its tar.
    """
    stored = False
    while True:
        dataset = reconcile(store, progress)
        missing = unfinished_units(dataset)
        if missing and layout.list_units(store).generation.keys() & set(missing):
            continue  # stored since, or being rewritten
        if missing:
            if stored:  # of the two, whoever is later deletes the index.json that names a dropped shard
                store.delete(layout.INDEX_JSON)
            raise UnitsOpen(unfinished_message(store.url, missing, len(dataset.info.units)))
        store.put(
            layout.INDEX_JSON, index_json(dataset.info, dataset.units, dataset.records, dataset.additions)
        )
        stored = True
        # Of two writers the later one sees the other's shards: index.json ends up naming the newest generations.
        newest = layout.list_units(store).generation
        if all(newest.get(unit.unit) == unit.generation for unit in dataset.units):
            break
    delete_superseded(store)
    return open_dataset(store)


def rebuild_index(store: Store, progress: ProgressCallback | None = None) -> Dataset:
    """Recreate every index and marker from the stored tars, then index.json; the tars do not change.

    Raises DatasetError for a damaged tar, and for a tar whose stored marker describes another tar.
    """
    listing = layout.list_units(store)

    def rebuild(unit: int) -> None:
        with contextlib.suppress(NotFound):  # the shard was dropped since
            index = layout.despite_changes(store, lambda: _stored_index(store, unit))
            _compare_with_marker(store, index)
            _put_marker(store, index)

    map_threads(
        rebuild,
        sorted(listing.generation),
        threads=THREADS,
        progress=progress,
        size=listing.tar_bytes.__getitem__,
    )
    return finish_dataset(store)


def _rewrite_unit(store: Store, unit: layout.Marker, keys: frozenset[str]) -> None:
    where = f"{store.url}/{unit.tar}"
    try:
        with map_tar(store, unit.tar) as view:
            index = _intact_index(view, where, unit)
            removed = np.isin(index.records["key"], key_numbers(keys))
            rejects = [
                removed_reject(reject_key(reject)) if reject_key(reject) in keys else reject
                for reject in index.rejects
            ]
            rejects += [removed_reject(f"{key:016x}") for key in index.records["key"][removed].tolist()]
            header = replace(index.header, generation=unit.generation + 1)
            samples = verified_samples(memory_reader(view), index.records[~removed], where)
            publish_copies(store, header, samples, rejects)
    except NotFound:
        if layout.newest_generation(store, unit.unit) != unit.generation:
            return  # another process was faster, and has deleted the older generation, or dropped the shard
        raise DatasetError(f"{where} is missing: {_repair_first(store.url)}") from None


def _intact_index(view: memoryview, where: str, unit: layout.Marker) -> ShardIndex:
    """Returns the tar's index. Raises DatasetError unless it is the tar that `unit` describes."""
    try:
        index = build_index(view, where)
        if index.tar_sha256 == unit.sha256:
            return index
        raise DatasetError(f"{where} is not the tar that its marker describes")
    except DatasetError as error:
        raise DatasetError(f"{error}: {_repair_first(where.rpartition('/')[0])}") from None


def _repair_first(url: str) -> str:
    return f"run `sage-scale shards repair {quote(url)}`, then this command again"


def _stored_index(store: Store, unit: int) -> ShardIndex:
    generation = layout.newest_generation(store, unit) or 0
    where = f"{store.url}/{layout.tar_name(unit, generation)}"
    with map_tar(store, layout.tar_name(unit, generation)) as view:
        index = build_index(view, where)
    if (index.header.unit, index.header.generation) != (unit, generation):
        raise DatasetError(
            f"{where} is the shard of unit {index.header.unit}: delete it and precompute again"
        )
    return index


def _compare_with_marker(store: Store, index: ShardIndex) -> None:
    """Raises DatasetError where the stored marker describes another tar: damaged bytes must not get a valid hash."""
    tar, name = (
        kind(index.header.unit, index.header.generation) for kind in (layout.tar_name, layout.marker_name)
    )
    try:
        marker = layout.parse_marker(store.get(name), f"{store.url}/{name}")
    except (DatasetError, NotFound):  # no marker, or a damaged one: there is nothing to compare with
        return
    if marker.sha256 != index.tar_sha256:
        raise DatasetError(
            f"{store.url}/{tar} is not the tar that {name} was made from: it is damaged or was exchanged; run "
            f"`sage-scale shards repair {quote(store.url)}` (or delete {name} if you know the tar to be right)"
        )


def _put_marker(store: Store, index: ShardIndex) -> layout.Marker:
    """Store index and marker of a tar, and return the marker; all writers of a tar write the same bytes."""
    for name, data in objects_beside(index).items():
        store.put(name, data)
    return make_marker(index)
