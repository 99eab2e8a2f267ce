"""A dataset as a reader sees it: opened by one GET of `index.json`.

`dataset.json` is written first and `index.json` last. The latter holds everything a trainer needs before its first
sample: dataset.json, all markers, all index records. It is one line of JSON whose first field, `xxh3`, is the
xxh3-128 of the bytes after that field, so that a damaged index is never believed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from sage_scale.errors import DatasetError, NoDataset
from sage_scale.shards.additions import Addition, additions_from, is_addition, load_additions
from sage_scale.shards.index import LANGUAGE_MASK, LANGUAGE_SHIFT, RECORD, parse_index, parse_rejects
from sage_scale.shards.layout import (
    DATASET_JSON,
    FORMAT,
    INDEX_JSON,
    REJECTS_MEMBER,
    VERSION,
    DatasetInfo,
    Reject,
    Sample,
    Unit,
    index_name,
    info_from,
    marker_name,
    parse_info,
    parse_marker,
    tar_name,
    unit_from,
    unit_object,
)
from sage_scale.shards.sample import read_sample
from sage_scale.shards.seal import seal, unseal
from sage_scale.shards.tar import walk
from sage_scale.storage import NotFound, Store, open_store

THREADS = 16
"""Small objects fetched at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleTable:
    """The samples of chosen splits as columns, in the order of units and tars: row i of each is sample i."""

    unit: np.ndarray
    """int32: ordinal in `Dataset.units`, not the unit's number."""
    offset: np.ndarray
    """int64: first byte in the tar."""
    length: np.ndarray
    """int64: bytes."""
    hash: np.ndarray
    """uint8 (samples, 16): xxh3-128 of the bytes."""
    key: np.ndarray
    """uint64: the key's 16 hex digits as a number."""
    frames: np.ndarray
    """int64: frames of the clip at the recipe's rate."""
    segments: np.ndarray
    """int64: segments (65,535 means at least)."""
    glosses: np.ndarray
    """int64: pseudo-glosses (65,535 means at least)."""
    flags: np.ndarray
    """uint32: bit 0, the sample has a sentence."""
    language: np.ndarray
    """int32: place of the sample's language in `Dataset.languages`."""

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, rows: np.ndarray) -> SampleTable:
        """The table of these rows (indices or a mask)."""
        return SampleTable(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """An opened dataset: what it is, its units, and the index of all its samples."""

    store: Store
    info: DatasetInfo
    units: tuple[Unit, ...]
    """Markers of the finished units, by unit number."""
    records: np.ndarray
    """RECORD of all samples, unit after unit."""
    finished: bool
    digest: str
    """32 hex digits that change with any sample, unit or order of them."""
    additions: tuple[Addition, ...] = ()
    """What was added behind the planned units, in the order of its numbers."""

    @property
    def url(self) -> str:
        return self.store.url

    @cached_property
    def splits(self) -> dict[str, int]:
        """Samples of each split."""
        counts: Counter[str] = Counter()
        for unit in self.units:
            counts[unit.split] += unit.samples
        return dict(counts)

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Languages of all samples, sorted."""
        return tuple(sorted({language for unit in self.units for language in unit.languages or ("",)}))

    def samples(self, *splits: str) -> SampleTable:
        """The samples of the named splits; of all where none is named. Raises DatasetError for an unknown one."""
        known = {unit.split for unit in self.units}
        for split in splits:
            if split not in known:
                has = ", ".join(sorted(known)) or "none"
                raise DatasetError(f"{self.url} has no split '{split}'; it has {has}")
        counts = np.array([unit.samples for unit in self.units], np.int64)
        ordinals = np.repeat(np.arange(len(self.units), dtype=np.int32), counts)
        chosen = np.array([not splits or unit.split in splits for unit in self.units], bool)
        rows = chosen[ordinals] if len(ordinals) else np.zeros(0, bool)
        taken = self.records[rows]
        flags = taken["flags"].astype(np.uint32)
        return SampleTable(
            unit=ordinals[rows],
            offset=taken["offset"].astype(np.int64),
            length=taken["length"].astype(np.int64),
            hash=np.ascontiguousarray(taken["hash"]),
            key=taken["key"].astype(np.uint64),
            frames=taken["frames"].astype(np.int64),
            segments=taken["segments"].astype(np.int64),
            glosses=taken["glosses"].astype(np.int64),
            flags=flags,
            language=self._languages_of(ordinals[rows], flags),
        )

    def _languages_of(self, unit_S: np.ndarray, flags_S: np.ndarray) -> np.ndarray:
        numbers = {language: number for number, language in enumerate(self.languages)}
        lists = [[numbers[language] for language in unit.languages or ("",)] for unit in self.units]
        starts = np.cumsum([0, *map(len, lists)])
        own = np.minimum((flags_S >> LANGUAGE_SHIFT) & LANGUAGE_MASK, np.diff(starts)[unit_S] - 1)
        return np.array([number for numbers in lists for number in numbers], np.int32)[
            starts[unit_S] + own.astype(np.int64)
        ]

    def read(self, table: SampleTable, row: int) -> Sample:
        """One sample, fetched, checked against its hash and parsed."""
        tar = self.units[int(table.unit[row])].tar
        key, digest = f"{int(table.key[row]):016x}", table.hash[row].tobytes()
        try:
            data = self.store.get_range(tar, int(table.offset[row]), int(table.length[row]))
        except NotFound:
            raise DatasetError(
                f"{self.url}/{tar}, sample {key}: the shard is missing; a newer generation may have taken its place: "
                f"open the dataset again, or run `sage-scale shards verify {quote(self.url)}`"
            ) from None
        return read_sample(data, key=key, digest=digest, where=f"{self.url}/{tar}")


def read_rejects(store: Store, unit: Unit) -> tuple[Reject, ...]:
    """The clips that a unit left out, and why, from the end of its tar. Raises DatasetError where it is damaged."""
    if not unit.rejects:
        return ()
    where = f"{store.url}/{unit.tar}"
    name = index_name(unit.unit, unit.generation)
    records = parse_index(store.get(name), f"{store.url}/{name}")
    start = int(records[-1]["offset"]) + int(records[-1]["length"]) if len(records) else 0
    data = store.get_range(unit.tar, start, unit.bytes - start)
    for member in walk(data, where):
        if member.name == REJECTS_MEMBER:
            return parse_rejects(data[member.offset : member.offset + member.size], where)
    raise DatasetError(
        f"{where}: member '{REJECTS_MEMBER}' is missing: run `sage-scale shards verify {quote(store.url)}`"
    )


def open_dataset(place: str | Path | Store, *, unfinished: bool = False) -> Dataset:
    """The dataset at a URL, path or store, by one GET of index.json.

    `unfinished=True` also opens one whose units are not all done, from its markers (one listing and two small
    GETs a unit). Raises DatasetError for a place without dataset, an unfinished one (naming the open units) or a
    damaged index.
    """
    store = place if isinstance(place, Store) else open_store(place)
    finished = open_finished(store)
    if finished is not None:
        return finished
    dataset = open_unfinished(store)
    if unfinished:
        return dataset
    missing = open_units(dataset)
    if missing:
        raise DatasetError(still_open(store.url, missing, len(dataset.info.units)))
    raise DatasetError(
        f"{store.url}: all units are done, {INDEX_JSON} is missing: run `sage-scale shards index {quote(store.url)}`"
    )


def open_finished(store: Store) -> Dataset | None:
    """The dataset in `store` by one GET of index.json, or None where there is none (yet)."""
    try:
        data = store.get(INDEX_JSON)
    except NotFound:
        return None
    return _parse_index_json(store, data)


@dataclass(frozen=True, kw_only=True)
class UnitListing:
    """What one bare listing says about the units of a dataset. Of several generations the newest tar counts."""

    done: frozenset[int]
    """Units with tar, index and marker."""
    unmarked: frozenset[int]
    """Units whose tar is stored but whose index or marker is not: `restore_marker` makes them."""
    tar_bytes: dict[int, int]
    """Size of each unit's newest tar."""
    generation: dict[int, int]
    """Newest generation of each unit."""
    superseded: tuple[str, ...]
    """Names of objects of older generations, to be deleted once index.json names the newer ones."""
    finished: bool
    """index.json is there."""
    additions: int
    """Plans of units behind the planned ones."""


def list_units(store: Store) -> UnitListing:
    """The units of a dataset by one listing, without reading an object."""
    sizes = {entry.name: entry.size for entry in store.list()}
    objects = [found for name in sizes if (found := unit_object(name)) is not None]
    newest: dict[int, int] = {}
    for found in objects:
        if found.ending == "tar":
            newest[found.unit] = max(found.generation, newest.get(found.unit, 0))
    done = {
        unit
        for unit, generation in newest.items()
        if index_name(unit, generation) in sizes and marker_name(unit, generation) in sizes
    }
    return UnitListing(
        done=frozenset(done),
        unmarked=frozenset(newest.keys() - done),
        tar_bytes={unit: sizes[tar_name(unit, generation)] for unit, generation in newest.items()},
        generation=newest,
        superseded=tuple(
            found.name for found in objects if found.generation < newest.get(found.unit, found.generation)
        ),
        finished=INDEX_JSON in sizes,
        additions=sum(is_addition(name) for name in sizes),
    )


def newest_generation(store: Store, unit: int) -> int | None:
    """The newest stored generation of a unit, None where it has no tar."""
    names = (unit_object(entry.name) for entry in store.list(f"{unit:06d}."))
    stored = [found.generation for found in names if found and found.ending == "tar" and found.unit == unit]
    return max(stored, default=None)


def open_units(dataset: Dataset) -> list[int]:
    """Numbers of the planned units that have no marker."""
    done = {unit.unit for unit in dataset.units}
    return [unit for unit in range(len(dataset.info.units)) if unit not in done]


def holds_manifest(dataset: Dataset, digest: str) -> bool:
    """Whether the clips of the manifest with this digest are all in the dataset, planned or added."""
    done = {unit.unit for unit in dataset.units}
    return digest == dataset.info.manifest or any(
        addition.manifest == digest and done.issuperset(addition.units) for addition in dataset.additions
    )


def index_json(
    info: DatasetInfo, units: Iterable[Unit], records: np.ndarray, additions: Iterable[Addition] = ()
) -> bytes:
    """The bytes of index.json."""
    values = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": info.to_mapping(),
        "units": [unit.to_mapping() for unit in units],
        "samples": len(records),
        "record_bytes": RECORD.itemsize,
        "records": base64.b64encode(records.tobytes()).decode("ascii"),
    }
    added = [addition.to_mapping() for addition in additions]
    return seal({**values, "additions": added} if added else values)


def in_parallel(work: Callable[[Any], Any], items: Iterable[Any], threads: int = THREADS) -> list[Any]:
    """`work` of every item, in order, by threads; the first error is raised and the rest is dropped."""
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _parse_index_json(store: Store, data: bytes) -> Dataset:
    where = f"{store.url}/{INDEX_JSON}"
    broken = DatasetError(f"{where} is damaged: rebuild it with `sage-scale shards index {quote(store.url)}`")
    body, digest = unseal(data)
    if body is None:
        raise broken
    try:
        values = json.loads(data)  # sealed: as it was written, and of many megabytes
        if values["format"] != FORMAT:
            raise DatasetError(
                f"{where} is of the format '{values['format']}', not part of a dataset of ours"
            )
        if values["version"] != VERSION:
            raise DatasetError(
                f"{where} is of format version {values['version']}, this program reads {VERSION}"
            )
        units = tuple(unit_from(unit, where) for unit in values["units"])
        records = np.frombuffer(binascii.a2b_base64(values["records"]), RECORD)
        info = info_from(values["dataset"], where)
        additions = additions_from(values.get("additions", ()))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken from None
    if len(records) != values["samples"] or len(records) != sum(unit.samples for unit in units):
        raise broken
    return Dataset(
        store=store,
        info=info,
        units=units,
        records=records,
        finished=True,
        digest=digest,
        additions=additions,
    )


def open_unfinished(store: Store) -> Dataset:
    """The dataset from dataset.json and the markers that are there."""
    try:
        info = parse_info(store.get(DATASET_JSON), f"{store.url}/{DATASET_JSON}")
    except NotFound:
        raise NoDataset(
            f"{store.url} is not a dataset ({DATASET_JSON} is missing): give the place that precompute wrote to"
        ) from None
    listing = list_units(store)

    def load(unit: int) -> tuple[Unit, np.ndarray]:
        generation = listing.generation[unit]
        name, index = marker_name(unit, generation), index_name(unit, generation)
        where = f"{store.url}/{name}"
        marker = parse_marker(store.get(name), where)
        if (marker.unit, marker.dataset, marker.generation) != (unit, info.digest, generation):
            raise DatasetError(
                f"{where} belongs to another unit or dataset: delete it, then run precompute again"
            )
        records = parse_index(store.get(index), f"{store.url}/{index}")
        if len(records) != marker.samples or marker.bytes != listing.tar_bytes[unit]:
            raise DatasetError(
                f"{where} differs from its tar or .idx: run `sage-scale shards repair {quote(store.url)}`"
            )
        return marker, records

    loaded = in_parallel(load, sorted(listing.done))
    records = np.concatenate([np.zeros(0, RECORD), *(records for _, records in loaded)])
    units = tuple(marker for marker, _ in loaded)
    additions = tuple(plan.addition for plan in load_additions(store, listing.additions))
    digest = index_json(info, units, records, additions)[9:41].decode("ascii")
    return Dataset(
        store=store,
        info=info,
        units=units,
        records=records,
        finished=False,
        digest=digest,
        additions=additions,
    )


def still_open(url: str, missing: list[int], planned: int) -> str:
    """The message of an unfinished dataset."""
    named = ", ".join(f"{unit:06d}" for unit in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return (
        f"{url} is not finished: {len(missing)} of {planned} units are open ({named}); "
        "run the same precompute command again"
    )
