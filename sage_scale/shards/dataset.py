"""An opened dataset: its units, the index of its samples, and one sample at a time.

`dataset.json` is written first and `index.json` last. The latter holds all that a trainer needs before its first
sample: dataset.json, all markers, all index records, in one line of checksummed JSON, opened by one GET.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import DatasetError, NoDataset
from sage_scale.parallel import map_threads
from sage_scale.shards import layout
from sage_scale.shards.addition_plan import Addition, load_additions
from sage_scale.shards.index import RECORD, parse_index
from sage_scale.shards.index_json import (
    Allocate,
    Arrays,
    Once,
    alone,
    head_of,
    index_json,
    read_index,
    units_of,
)
from sage_scale.shards.sample import Sample, read_sample
from sage_scale.shards.sample_table import SampleTable
from sage_scale.shards.tar import BLOCK
from sage_scale.shards.units import Units
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_stored

_DESCRIPTION_BYTES = 4096
"""Bytes of a sample fetched for its description; the rest of a longer description is fetched again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """An opened dataset."""

    store: Store
    info: layout.DatasetInfo
    units: Units
    """Markers of the finished units, by unit number."""
    records: np.ndarray
    """RECORD (samples,), unit after unit."""
    unit_of_row: NDArray[np.int32]
    """(samples,): ordinal in `units` of each record."""
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
        counts = np.bincount(self.units.table["split"], self.units.table["samples"], len(self.units.splits))
        return dict(zip(self.units.splits, counts.astype(int).tolist()))

    def records_by_unit(self) -> list[np.ndarray]:
        """Returns the RECORDs of each unit."""
        return np.split(self.records, np.cumsum(self.units.table["samples"])[:-1])

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Languages of all samples, sorted."""
        return tuple(sorted({language for some in self.units.languages for language in some}))

    def samples(self, *splits: str) -> SampleTable:
        """Returns the samples of the named splits (default: all). Raises DatasetError for an unknown split."""
        known = self.units.splits
        for split in splits:
            if split not in known:
                has = ", ".join(sorted(known)) or "none"
                raise DatasetError(f"{self.url} has no split '{split}'; it has {has}")
        table = SampleTable(
            records=self.records, unit=self.unit_of_row, languages=self.units.language_lists()
        )
        wanted = np.array([not splits or split in splits for split in known], bool)
        chosen = wanted[self.units.table["split"]]
        if chosen.all():
            return table
        ends = np.cumsum(self.units.table["samples"])
        first, *_, last = np.flatnonzero(chosen)[[0, -1]].tolist()
        if chosen[first : last + 1].all():
            return table.take(slice(int(ends[first] - self.units.table["samples"][first]), int(ends[last])))
        return table.take(chosen[self.unit_of_row])

    def __getitem__(self, clip: str) -> Sample:
        """Returns the sample of a clip's id or key, by one range request. Raises NoClip, and the errors of `read`."""
        from sage_scale.shards.lookup import row_of

        if not isinstance(clip, str):
            raise TypeError(f"a dataset is indexed by a clip's id, not by {type(clip).__name__}")
        return self.read(self.samples(), row_of(self, clip))

    def __contains__(self, clip: object) -> bool:
        """Returns whether a clip of this id or key is stored."""
        from sage_scale.shards.lookup import find_row

        return isinstance(clip, str) and find_row(self, clip) is not None

    __iter__ = None
    """`samples()` and `read` give all clips."""

    def read(self, table: SampleTable, row: int) -> Sample:
        """Returns one sample, checked against its hash. Raises DatasetError, StorageError."""
        tar, record = self.units.tar(int(table.unit[row])), table.records[row]
        key, digest = f"{int(record['key']):016x}", record["hash"].tobytes()
        try:
            data = self.store.get_range(tar, int(record["offset"]), int(record["length"]))
        except NotFound:
            raise DatasetError(
                f"{self.url}/{tar}, sample {key}: the shard is missing; a newer generation may have replaced it: "
                f"open the dataset again, or run `sage-scale shards verify {quote(self.url)}`"
            ) from None
        return read_sample(data, key=key, digest=digest, where=f"{self.url}/{tar}")


def open_dataset(source: str | Path | Store, *, unfinished: bool = False, once: Once = alone) -> Dataset:
    """Opens the dataset at a URL, path or store, by one GET of index.json.

    `unfinished=True` also opens a dataset with open units, from its markers (one listing and two small GETs a unit).
    `once` may take the index from another process of the node.
    Raises NoDataset, and DatasetError for an unfinished dataset (naming the open units) or a damaged index.
    """
    store = source if isinstance(source, Store) else open_store(source)
    if unfinished:
        return open_finished(store) or open_unfinished(store)
    return dataset_of(store, once(lambda allocate: _finished_arrays(store, allocate), store.url))


def _finished_arrays(store: Store, allocate: Allocate) -> Arrays:
    """Returns the arrays of the index. Raises DatasetError for an unfinished dataset."""
    arrays = read_index(store, allocate)
    if arrays is not None:
        return arrays
    dataset = open_unfinished(store)
    missing = unfinished_units(dataset)
    if missing:
        raise DatasetError(unfinished_message(store.url, missing, len(dataset.info.units)))
    raise DatasetError(
        f"{store.url}: all units are done, {layout.INDEX_JSON} is missing: run `sage-scale shards index "
        f"{quote(store.url)}`"
    )


def open_finished(store: Store) -> Dataset | None:
    """Opens the dataset in `store` by one GET of index.json; None where that is not stored (yet)."""
    arrays = read_index(store)
    return None if arrays is None else dataset_of(store, arrays)


def unfinished_units(dataset: Dataset) -> list[int]:
    """Returns the numbers of planned units without a marker."""
    done = {unit.unit for unit in dataset.units}
    return [unit for unit in range(len(dataset.info.units)) if unit not in done]


def generations(dataset: Dataset) -> dict[int, int]:
    """Returns the generation of each unit by its number."""
    table = dataset.units.table
    return dict(zip(table["unit"].tolist(), table["generation"].tolist()))


def holds_manifest(dataset: Dataset, digest: str) -> bool:
    """Returns whether the dataset holds all clips of the manifest with this digest, planned or added."""
    done = {unit.unit for unit in dataset.units}
    return digest == dataset.info.manifest or any(
        addition.manifest == digest and done.issuperset(addition.units) for addition in dataset.additions
    )


def dataset_of(store: Store, arrays: Arrays) -> Dataset:
    """Returns the finished dataset of the arrays of its index (`read_index`). Raises DatasetError."""
    where, head = f"{store.url}/{layout.INDEX_JSON}", head_of(arrays)
    try:
        additions = tuple(build(Addition, entry) for entry in head["additions"])
    except InvalidJSON as error:
        raise DatasetError(
            f"{where} is damaged ({error}): rebuild it with `sage-scale shards index {quote(store.url)}`"
        ) from None
    return Dataset(
        store=store,
        info=layout.info_from(head["dataset"], where),
        units=units_of(arrays, where),
        records=arrays["records"],
        unit_of_row=arrays["unit_of_row"],
        finished=True,
        digest=head["digest"],
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
    listing, loaded = layout.despite_changes(store, lambda: _load_units(store, info))
    records = np.concatenate([np.zeros(0, RECORD), *(records for _, records in loaded)])
    units = Units.of((marker for marker, _ in loaded), store.url)
    additions = tuple(plan.addition for plan in load_additions(store, listing.additions))
    digest = layout.checksum_of(index_json(info, units, records, additions))
    return Dataset(
        store=store,
        info=info,
        units=units,
        records=records,
        unit_of_row=np.repeat(np.arange(len(units), dtype=np.int32), units.table["samples"]),
        finished=False,
        digest=digest,
        additions=additions,
    )


def _load_units(
    store: Store, info: layout.DatasetInfo
) -> tuple[layout.UnitListing, list[tuple[layout.Marker, np.ndarray]]]:
    """Returns a listing, and markers and RECORDs of the units that are done by it. Raises NotFound, DatasetError."""
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

    return listing, map_threads(load, sorted(listing.done))


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
    tar, record = dataset.units.tar(int(table.unit[row])), table.records[row]
    key, offset, length = f"{int(record['key']):016x}", int(record["offset"]), int(record["length"])
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
