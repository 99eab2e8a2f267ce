"""An opened dataset: its units, the index of its samples, and one sample at a time.

`dataset.json` is written first and `index.json` last. The latter holds all that a trainer needs before its first
sample: dataset.json, all markers, all index records, in one line of checksummed JSON, opened by one GET.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from sage_scale.errors import DatasetError, NoDataset
from sage_scale.parallel import map_threads
from sage_scale.shards import layout
from sage_scale.shards.addition_plan import Addition, load_additions
from sage_scale.shards.index import LANGUAGE_MASK, LANGUAGE_SHIFT, RECORD, parse_index
from sage_scale.shards.sample import Sample, read_sample
from sage_scale.shards.tar import BLOCK
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.untrusted.json_values import build, parse_stored

_DESCRIPTION_BYTES = 4096
"""Bytes of a sample fetched for its description; the rest of a longer description is fetched again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleTable:
    """The samples of chosen splits, in the order of units and tars: row i of each column is sample i."""

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
    """int32: index of the sample's language in `Dataset.languages`."""

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, rows: np.ndarray) -> SampleTable:
        """Returns the table of these rows (indices or a mask)."""
        return SampleTable(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """An opened dataset."""

    store: Store
    info: layout.DatasetInfo
    units: tuple[layout.Marker, ...]
    """Markers of the finished units, by unit number."""
    records: np.ndarray
    """RECORD (samples,), unit after unit."""
    finished: bool
    digest: str
    """32 hex digits that change with any sample, unit or order of them."""
    additions: tuple[Addition, ...] = ()
    """Units added after the planned ones, in the order of their numbers."""

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

    @property
    def unit_of_row(self) -> np.ndarray:
        """int32 (samples,): ordinal in `units` of each record."""
        counts = np.array([unit.samples for unit in self.units], np.int64)
        return np.repeat(np.arange(len(self.units), dtype=np.int32), counts)

    def records_by_unit(self) -> list[np.ndarray]:
        """Returns the RECORDs of each unit."""
        return np.split(self.records, np.cumsum([unit.samples for unit in self.units])[:-1])

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Languages of all samples, sorted."""
        return tuple(sorted({language for unit in self.units for language in unit.languages or ("",)}))

    def samples(self, *splits: str) -> SampleTable:
        """Returns the samples of the named splits (default: all). Raises DatasetError for an unknown split."""
        known = {unit.split for unit in self.units}
        for split in splits:
            if split not in known:
                has = ", ".join(sorted(known)) or "none"
                raise DatasetError(f"{self.url} has no split '{split}'; it has {has}")
        chosen = np.array([not splits or unit.split in splits for unit in self.units], bool)
        unit_S = self.unit_of_row
        rows = chosen[unit_S]
        taken, unit_S = self.records[rows], unit_S[rows]
        flags = taken["flags"].astype(np.uint32)
        numbers = ("offset", "length", "frames", "segments", "glosses")
        return SampleTable(
            unit=unit_S,
            hash=np.ascontiguousarray(taken["hash"]),
            key=taken["key"].astype(np.uint64),
            flags=flags,
            language=self._languages_of(unit_S, flags),
            **{name: taken[name].astype(np.int64) for name in numbers},
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
        """Returns one sample, checked against its hash. Raises DatasetError, StorageError."""
        tar = self.units[int(table.unit[row])].tar
        key, digest = f"{int(table.key[row]):016x}", table.hash[row].tobytes()
        try:
            data = self.store.get_range(tar, int(table.offset[row]), int(table.length[row]))
        except NotFound:
            raise DatasetError(
                f"{self.url}/{tar}, sample {key}: the shard is missing; a newer generation may have replaced it: "
                f"open the dataset again, or run `sage-scale shards verify {quote(self.url)}`"
            ) from None
        return read_sample(data, key=key, digest=digest, where=f"{self.url}/{tar}")


def open_dataset(source: str | Path | Store, *, unfinished: bool = False) -> Dataset:
    """Opens the dataset at a URL, path or store, by one GET of index.json.

    `unfinished=True` also opens a dataset with open units, from its markers (one listing and two small GETs a unit).
    Raises NoDataset, and DatasetError for an unfinished dataset (naming the open units) or a damaged index.
    """
    store = source if isinstance(source, Store) else open_store(source)
    finished = open_finished(store)
    if finished is not None:
        return finished
    dataset = open_unfinished(store)
    if unfinished:
        return dataset
    missing = unfinished_units(dataset)
    if missing:
        raise DatasetError(unfinished_message(store.url, missing, len(dataset.info.units)))
    raise DatasetError(
        f"{store.url}: all units are done, {layout.INDEX_JSON} is missing: run `sage-scale shards index "
        f"{quote(store.url)}`"
    )


def open_finished(store: Store) -> Dataset | None:
    """Opens the dataset in `store` by one GET of index.json; None where that is not stored (yet)."""
    try:
        data = store.get(layout.INDEX_JSON)
    except NotFound:
        return None
    return _parse_index_json(store, data)


def unfinished_units(dataset: Dataset) -> list[int]:
    """Returns the numbers of planned units without a marker."""
    done = {unit.unit for unit in dataset.units}
    return [unit for unit in range(len(dataset.info.units)) if unit not in done]


def holds_manifest(dataset: Dataset, digest: str) -> bool:
    """Returns whether the dataset holds all clips of the manifest with this digest, planned or added."""
    done = {unit.unit for unit in dataset.units}
    return digest == dataset.info.manifest or any(
        addition.manifest == digest and done.issuperset(addition.units) for addition in dataset.additions
    )


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


def _parse_index_json(store: Store, data: bytes) -> Dataset:
    where = f"{store.url}/{layout.INDEX_JSON}"
    broken = DatasetError(f"{where} is damaged: rebuild it with `sage-scale shards index {quote(store.url)}`")
    try:
        values, digest = layout.parse_checksummed_json(data)
        if values["format"] != layout.FORMAT:
            raise DatasetError(
                f"{where} is of the format '{values['format']}', not part of a dataset of ours"
            )
        if values["version"] != layout.VERSION:
            raise DatasetError(
                f"{where} is of format version {values['version']}, this program reads {layout.VERSION}"
            )
        units = tuple(layout.marker_from(unit, where) for unit in values["units"])
        records = np.frombuffer(binascii.a2b_base64(values["records"]), RECORD)
        info = layout.info_from(values["dataset"], where)
        additions = tuple(build(Addition, entry) for entry in values.get("additions", ()))
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
    """Opens a dataset from dataset.json and the stored markers. Raises NoDataset, DatasetError."""
    try:
        info = layout.parse_info(store.get(layout.DATASET_JSON), f"{store.url}/{layout.DATASET_JSON}")
    except NotFound:
        raise NoDataset(
            f"{store.url} is not a dataset ({layout.DATASET_JSON} is missing): give the --out of precompute"
        ) from None
    listing = layout.list_units(store)

    def load(unit: int) -> tuple[layout.Marker, np.ndarray]:
        generation = listing.generation[unit]
        name, index = layout.marker_name(unit, generation), layout.index_name(unit, generation)
        where = f"{store.url}/{name}"
        marker = layout.parse_marker(store.get(name), where)
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

    loaded = map_threads(load, sorted(listing.done))
    records = np.concatenate([np.zeros(0, RECORD), *(records for _, records in loaded)])
    units = tuple(marker for marker, _ in loaded)
    additions = tuple(plan.addition for plan in load_additions(store, listing.additions))
    digest = layout.checksum_of(index_json(info, units, records, additions))
    return Dataset(
        store=store,
        info=info,
        units=units,
        records=records,
        finished=False,
        digest=digest,
        additions=additions,
    )


def unfinished_message(url: str, missing: list[int], planned: int) -> str:
    """Returns the message for an unfinished dataset."""
    named = ", ".join(f"{unit:06d}" for unit in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return (
        f"{url} is not finished: {len(missing)} of {planned} units are open ({named}); "
        "run the same precompute command again"
    )


def notice_note(datasets: Sequence[Dataset]) -> dict[str, str]:
    """Returns the note `notice`, the sentences that have to stand beside figures on the datasets; empty without any."""
    notices = (dataset.info.notes.get("notice") for dataset in datasets)
    told = " ".join(dict.fromkeys(notice for notice in notices if isinstance(notice, str)))
    return {"notice": told} if told else {}


def read_metadata(source: str | Path | Dataset, *splits: str, most: int = 0) -> list[dict[str, Any]]:
    """Returns `Sample.meta` of the samples of the named splits (default: all), in the dataset's order.

    Only the head of each sample is fetched, in parallel. Of more than `most` samples (0: no limit) `most` are read, at
    even distances. Unknown splits give no rows. Raises DatasetError for a damaged description.
    """
    dataset = source if isinstance(source, Dataset) else open_dataset(source)
    known = [split for split in splits if split in dataset.splits]
    if splits and not known:
        return []
    table = dataset.samples(*known)
    count = min(most or len(table), len(table))
    rows = (number * len(table) // count for number in range(count))
    return map_threads(lambda row: _read_description(dataset, table, row), rows)


def _read_description(dataset: Dataset, table: SampleTable, row: int) -> dict[str, Any]:
    tar, key = dataset.units[int(table.unit[row])].tar, f"{int(table.key[row]):016x}"
    offset, length = int(table.offset[row]), int(table.length[row])
    head = dataset.store.get_range(tar, offset, min(_DESCRIPTION_BYTES, length))
    try:
        if head[: len(key) + 6] != f"{key}.json\0".encode():
            raise ValueError("the first member is not its description")
        size = int(head[124:135], 8)
        if BLOCK + size > len(head):
            head = dataset.store.get_range(tar, offset, min(BLOCK + size, length))
        return parse_stored(head[BLOCK : BLOCK + size])
    except ValueError as error:
        raise DatasetError(
            f"{dataset.url}/{tar}, sample {key}: {error}; run `sage-scale shards verify {quote(dataset.url)}`"
        ) from None
