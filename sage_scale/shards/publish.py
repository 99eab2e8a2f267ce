"""Writes a dataset: starts it, publishes its shards, rewrites shards without removed clips, finishes it.

Every step is idempotent and may be killed at any moment. One conditional PUT of its tar commits a unit. Index and
marker follow from the stored tar, whichever process writes them; `index.json` follows from the markers.

Names are written once, so a shard that changes gets a new name, its next generation: `000042.g1.tar` replaces
`000042.tar`. It is committed as any shard is, and of several stored generations the newest counts. Readers of an older
index.json go on reading the older objects until these are deleted, which happens last.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np

from sage_scale.config.recipe import flat
from sage_scale.errors import DatasetError, UnitsOpen
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards.dataset import (
    Dataset,
    index_json,
    open_dataset,
    open_unfinished,
    unfinished_message,
    unfinished_units,
)
from sage_scale.shards.index import ShardIndex, build_index, make_marker, objects_beside
from sage_scale.shards.layout import (
    DATASET_JSON,
    INDEX_JSON,
    REMOVED,
    DatasetInfo,
    Marker,
    Reject,
    ShardHeader,
    list_units,
    marker_name,
    newest_generation,
    parse_info,
    parse_marker,
    tar_name,
)
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
"""Shards written at once."""
_READ_BYTES = 32 << 20
"""Neighbouring samples are read together, up to this many bytes."""


def start_dataset(store: Store, info: DatasetInfo) -> DatasetInfo:
    """Stores dataset.json unless one is stored, and returns the stored one.

    Raises DatasetError, naming the keys that differ, where the store holds another dataset.
    """
    if store.put_if_absent(DATASET_JSON, info.to_bytes()):
        return info
    stored = parse_info(store.get(DATASET_JSON), f"{store.url}/{DATASET_JSON}")
    if stored.to_bytes() != info.to_bytes():
        one, other = (flat(json.loads(document.to_bytes())) for document in (stored, info))
        differing = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
        raise DatasetError(
            f"{store.url} holds another dataset (different: {', '.join(differing[:6])}): write to another place"
        )
    return stored


def publish_shard(store: Store, tar: Path, index: ShardIndex | None = None) -> Marker:
    """Commits the local tar of a unit: tar, then index, then marker. Returns the marker of the stored tar.

    `index` is the tar's, where its writer returned one (`write_indexed`); otherwise it is read from the tar. A tar of
    this unit and generation that is stored already counts, and the local one is dropped. Where a newer generation is
    stored, this writer is late (it was thought dead), and its tar is deleted again.
    """
    index = build_index(tar) if index is None else index
    unit, generation = index.header.unit, index.header.generation
    stored = store.put_if_absent(tar_name(unit, generation), tar)
    # The name was free although a newer generation exists: the older one was deleted, and changed.json announced it.
    changed = stored and store.exists(CHANGED_JSON)
    newer = changed and (newest_generation(store, unit) or 0) > generation
    if stored and newer:
        store.delete(tar_name(unit, generation))
    return _put_marker(store, index) if stored and not newer else restore_marker(store, unit)


def publish_copies(
    store: Store, header: ShardHeader, samples: Iterable[bytes], rejects: Sequence[Reject]
) -> Marker:
    """Writes a shard of samples' stored bytes and commits it, as `publish_shard`."""
    with tempfile.TemporaryDirectory(prefix="sage-scale-") as folder:
        return publish_shard(store, write_copies(Path(folder) / "new.tar", header, samples, rejects))


def copied_samples(read: Callable[[int, int], bytes], records: np.ndarray, where: str) -> Iterator[bytes]:
    """Yields the stored bytes of the samples of `records`, each checked against its hash.

    `read(offset, length)` reads the tar `where`. Raises DatasetError for damaged bytes.
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


def reader_of(view: memoryview) -> Callable[[int, int], bytes]:
    """Returns the `read` of `copied_samples` for a tar in memory."""
    return lambda offset, length: bytes(view[offset : offset + length])


def rewrite_without(dataset: Dataset, keys: frozenset[str], progress: ProgressCallback | None = None) -> int:
    """Publishes the next generation of every shard with clips of these keys, without them. Returns how many shards.

    Raises DatasetError for a damaged shard: damage must not be copied under a new hash.
    """
    units = units_with(dataset, keys)
    map_threads(
        lambda unit: _rewrite_unit(dataset.store, unit, keys),
        units,
        threads=THREADS,
        progress=progress,
        size=lambda unit: unit.bytes,
    )
    return len(units)


def units_with(dataset: Dataset, keys: frozenset[str]) -> list[Marker]:
    """Returns the units that hold a clip of these keys, or name one among their rejects."""
    if not keys:
        return []
    holding = set(dataset.unit_of_row[np.isin(dataset.records["key"], key_numbers(keys))].tolist())

    def names_one(ordinal: int) -> bool:
        unit = dataset.units[ordinal]
        if ordinal in holding or unit.rejects == unit.reasons.get(REMOVED, 0):
            return ordinal in holding
        rejects = read_rejects(dataset.store, unit)
        return any(reject.reason != REMOVED and reject_key(reject) in keys for reject in rejects)

    chosen = map_threads(names_one, range(len(dataset.units)))
    return [unit for unit, yes in zip(dataset.units, chosen) if yes]


def delete_superseded(store: Store) -> int:
    """Deletes the objects of older generations and returns how many. The tars, which hold the data, go first."""
    names = list_units(store).superseded
    if names:
        announce_change(store)
    map_threads(store.delete, sorted(names, key=lambda name: not name.endswith(".tar")))
    return len(names)


def restore_marker(store: Store, unit: int) -> Marker:
    """Makes index and marker of a unit's newest tar again, from the tar alone. Raises NotFound, DatasetError."""
    return _put_marker(store, _stored_index(store, unit))


def reconcile(store: Store, progress: ProgressCallback | None = None) -> Dataset:
    """Marks every stored tar, rewrites shards that hold removed clips, and opens the dataset, finished or not."""
    removed = removed_keys(store)
    while True:
        unmarked = sorted(list_units(store).unmarked)
        map_threads(lambda unit: restore_marker(store, unit), unmarked, threads=THREADS)
        dataset = open_unfinished(store)
        if not rewrite_without(dataset, removed, progress):
            return dataset


def finish_dataset(store: Store, progress: ProgressCallback | None = None) -> Dataset:
    """Writes index.json from dataset.json, the markers and the index files, and opens the dataset.

    Missing markers are made from their tars. Shards that still hold removed clips are rewritten (`progress` counts
    these). Objects of older generations are deleted at the end. Raises UnitsOpen, naming missing units, and
    DatasetError where a marker contradicts its tar.
    """
    while True:
        dataset = reconcile(store, progress)
        missing = unfinished_units(dataset)
        if missing:
            raise UnitsOpen(unfinished_message(store.url, missing, len(dataset.info.units)))
        store.put(INDEX_JSON, index_json(dataset.info, dataset.units, dataset.records, dataset.additions))
        # Of two writers the later one sees the other's shards: index.json ends up naming the newest generations.
        newest = list_units(store).generation
        if all(newest.get(unit.unit) == unit.generation for unit in dataset.units):
            break
    delete_superseded(store)
    return open_dataset(store)


def rebuild_index(store: Store, progress: ProgressCallback | None = None) -> Dataset:
    """Makes every index and marker again from the stored tars, then index.json. Does not touch the tars.

    Raises DatasetError for a damaged tar, and for a tar whose stored marker describes another one.
    """
    listing = list_units(store)

    def rebuild(unit: int) -> None:
        index = _stored_index(store, unit)
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


def _rewrite_unit(store: Store, unit: Marker, keys: frozenset[str]) -> None:
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
            samples = copied_samples(reader_of(view), index.records[~removed], where)
            publish_copies(store, header, samples, rejects)
    except NotFound:
        if (newest_generation(store, unit.unit) or 0) > unit.generation:
            return  # another process was faster, and has deleted the older generation
        raise DatasetError(f"{where} is missing: {_repair_first(store.url)}") from None


def _intact_index(view: memoryview, where: str, unit: Marker) -> ShardIndex:
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
    generation = newest_generation(store, unit) or 0
    where = f"{store.url}/{tar_name(unit, generation)}"
    with map_tar(store, tar_name(unit, generation)) as view:
        index = build_index(view, where)
    if (index.header.unit, index.header.generation) != (unit, generation):
        raise DatasetError(
            f"{where} is the shard of unit {index.header.unit}: delete it and precompute again"
        )
    return index


def _compare_with_marker(store: Store, index: ShardIndex) -> None:
    """Raises DatasetError where the stored marker describes another tar: an index must not give damage a hash."""
    tar, name = (kind(index.header.unit, index.header.generation) for kind in (tar_name, marker_name))
    try:
        marker = parse_marker(store.get(name), f"{store.url}/{name}")
    except (DatasetError, NotFound):  # no marker, or a damaged one: there is nothing to compare with
        return
    if marker.sha256 != index.tar_sha256:
        raise DatasetError(
            f"{store.url}/{tar} is not the tar that {name} was made from: it is damaged or was exchanged; run "
            f"`sage-scale shards repair {quote(store.url)}` (or delete {name} if you know the tar to be right)"
        )


def _put_marker(store: Store, index: ShardIndex) -> Marker:
    """Stores index and marker, replacing older ones: they follow from the tar, so all writers write the same bytes."""
    for name, data in objects_beside(index).items():
        store.put(name, data)
    return make_marker(index)
