"""Finds damaged objects of a dataset, unit by unit, and the samples of each shard that are intact.

A sample is intact when its bytes have the hash that was stored when it was made: in index.json (which has a checksum
of its own), or in the shard's `.idx`. A tar is intact when index.json or its marker describes exactly its bytes. A
readable tar is trusted without either only where nothing describes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from sage_scale.errors import DatasetError, NoDataset, Reject
from sage_scale.shards import layout
from sage_scale.shards.dataset import Dataset, open_finished
from sage_scale.shards.index import (
    RECORD,
    ShardIndex,
    build_index,
    objects_beside,
    parse_index,
    parse_rejects,
)
from sage_scale.shards.sample import check_stored_samples
from sage_scale.shards.tar import BLOCK, map_tar, walk
from sage_scale.storage import NotFound, Store
from sage_scale.untrusted.json_values import parse_stored


@dataclass(frozen=True, kw_only=True)
class LostClip:
    """A clip whose stored bytes are gone."""

    key: str
    id: str = ""
    """Its id, where its description is still readable and has that key."""


@dataclass(frozen=True, kw_only=True)
class DamagedUnit:
    """One unit with a fault."""

    unit: int
    generation: int
    """Newest stored generation; 0 where no tar is stored."""
    split: str
    problem: str
    """One line, naming the object."""
    fault: Literal["marker", "tar", "unknown", "stray"]
    """`marker`: index or marker are missing or stale; `tar`: the tar is damaged; `unknown`: the tar is damaged and
    nothing tells its clips; `stray`: a damaged tar of a unit that was never planned."""
    intact: np.ndarray = field(default_factory=lambda: np.zeros(0, RECORD))
    """RECORDs of the intact samples."""
    lost: tuple[LostClip, ...] = ()
    rejects: tuple[Reject, ...] | None = ()
    """Rejects of the tar; None where they are not readable."""


@dataclass(frozen=True, kw_only=True)
class DatasetState:
    """A dataset before its shards are read: dataset.json, index.json and a listing, each as far as it is intact."""

    info: layout.DatasetInfo
    indexed: Dataset | None
    """The dataset by index.json, where that is intact."""
    listing: layout.UnitListing
    problems: tuple[str, ...]
    """Faults of dataset.json and index.json."""
    restore_info: bool
    """dataset.json is to be restored from its copy in index.json."""

    @property
    def units(self) -> list[int]:
        """Units that are stored, or that some object mentions."""
        known = [unit.unit for unit in self.indexed.units] if self.indexed else []
        return sorted({*self.listing.generation, *self.listing.orphans, *known})

    def newest(self, unit: int) -> int:
        """Returns the unit's newest stored generation; where its tar is gone, that of index.json."""
        named = {entry.unit: entry.generation for entry in self.indexed.units} if self.indexed else {}
        return self.listing.generation.get(unit, named.get(unit, self.listing.orphans.get(unit, 0)))


def read_state(store: Store) -> DatasetState:
    """Reads dataset.json, index.json and a listing. Raises DatasetError where both files are lost."""
    problems = []
    indexed, info = None, None
    try:
        indexed = open_finished(store)
    except DatasetError as error:
        problems.append(str(error).split(": ")[0])
    listing = layout.list_units(store)
    where = f"{store.url}/{layout.DATASET_JSON}"
    try:
        info = layout.parse_info(store.get(layout.DATASET_JSON), where)
    except NotFound:
        problems.append(f"{where} is missing")
    except DatasetError:
        problems.append(f"{where} is damaged")
    known = indexed.info if indexed is not None else info
    if known is None:
        if not listing.generation:
            raise NoDataset(f"{store.url} is not a dataset: give the --out of precompute")
        raise DatasetError(
            f"{store.url} has lost both {layout.DATASET_JSON} and {layout.INDEX_JSON}: restore one of "
            "them, or precompute into a new output"
        )
    if info is not None and info.digest != known.digest:
        problems.append(f"{where} is damaged: it differs from the copy in {layout.INDEX_JSON}")
    return DatasetState(
        info=known,
        indexed=indexed,
        listing=listing,
        problems=tuple(problems),
        restore_info=info is None or info.digest != known.digest,
    )


def find_damage(store: Store, state: DatasetState, unit: int) -> DamagedUnit | None:
    """Returns the fault of a unit; None where it is as its writer left it (an older index.json is no fault)."""
    generation = state.newest(unit)
    stored = _Descriptions.read(store, state, unit, generation)
    tar = layout.tar_name(unit, generation)
    try:
        with map_tar(store, tar) as view:
            return _check_tar(view, f"{store.url}/{tar}", state, stored)
    except NotFound:
        problem = f"{store.url}/{tar} is missing"
    except DatasetError as error:  # an empty file cannot be mapped
        problem = str(error)
    return _damaged_tar(memoryview(b""), problem, state, stored)


@dataclass(kw_only=True)
class _Descriptions:
    """Stored descriptions of a unit's newest tar: its entry in index.json, its marker, its `.idx`."""

    unit: int
    generation: int
    split: str = ""
    indexed: layout.Marker | None = None
    indexed_records: np.ndarray | None = None
    marker: layout.Marker | None = None
    marker_bytes: bytes = b""
    idx_bytes: bytes = b""
    idx_records: np.ndarray | None = None

    @classmethod
    def read(cls, store: Store, state: DatasetState, unit: int, generation: int) -> _Descriptions:
        found = cls(unit=unit, generation=generation)
        if unit < len(state.info.units):
            found.split = state.info.units[unit].split
        try:
            found.marker_bytes = store.get(layout.marker_name(unit, generation))
            marker = layout.parse_marker(found.marker_bytes, "")
            if (marker.unit, marker.generation, marker.dataset) == (unit, generation, state.info.digest):
                found.marker, found.split = marker, marker.split
        except (NotFound, DatasetError):
            pass
        try:
            found.idx_bytes = store.get(layout.index_name(unit, generation))
            found.idx_records = parse_index(found.idx_bytes, "")
        except (NotFound, DatasetError):
            pass
        if state.indexed is not None:
            for entry, records in zip(state.indexed.units, state.indexed.records_by_unit()):
                if (entry.unit, entry.generation) == (unit, generation):
                    found.indexed, found.indexed_records, found.split = entry, records, entry.split
        return found

    @property
    def none(self) -> bool:
        return self.indexed is None and self.marker is None and self.idx_records is None

    @property
    def records(self) -> np.ndarray | None:
        """RECORDs of the tar as it was written, by the most trustworthy description."""
        return self.indexed_records if self.indexed_records is not None else self.idx_records

    def confirm(self, index: ShardIndex) -> bool:
        """Returns whether a description confirms that this is the tar that was written, or there is none.

        Without index.json an `.idx` that holds for every sample outweighs a marker that disagrees.
        """
        if any(
            known is not None and known.sha256 == index.tar_sha256 for known in (self.indexed, self.marker)
        ):
            return True
        return self.none or (self.indexed is None and self.idx_bytes == index.to_bytes())


def _check_tar(
    view: memoryview, where: str, state: DatasetState, stored: _Descriptions
) -> DamagedUnit | None:
    try:
        index = build_index(view, where)
    except DatasetError as error:
        return _damaged_tar(view, str(error).split("; run `")[0], state, stored)
    header = index.header
    if (header.unit, header.generation, header.dataset) != (
        stored.unit,
        stored.generation,
        state.info.digest,
    ):
        problem = f"{where} is the shard of unit {header.unit} of dataset {header.dataset}: it was exchanged"
        return _damaged_tar(view, problem, state, stored)
    if not stored.confirm(index):
        problem = f"{where} is not the tar that its marker and {layout.INDEX_JSON} describe"
        return _damaged_tar(view, problem, state, stored, index.rejects)
    beside = zip(objects_beside(index).items(), (stored.idx_bytes, stored.marker_bytes))
    stale = " and ".join(name for (name, expected), found in beside if found != expected)
    if not stale:
        return None
    return DamagedUnit(
        unit=stored.unit,
        generation=stored.generation,
        split=header.split,
        problem=f"{where}: {stale} missing, stale or damaged"
        + (", and there is nothing to compare its tar with" if stored.none else ""),
        fault="marker",
        intact=index.records,
        rejects=index.rejects,
    )


def _damaged_tar(
    view: memoryview,
    problem: str,
    state: DatasetState,
    stored: _Descriptions,
    rejects: tuple[Reject, ...] | None = None,
) -> DamagedUnit:
    damaged = partial(
        DamagedUnit, unit=stored.unit, generation=stored.generation, split=stored.split, problem=problem
    )
    records = stored.records
    if records is None:
        return damaged(fault="unknown" if stored.unit < len(state.info.units) else "stray")
    intact = np.array([not fault for fault in check_stored_samples(view, records)], bool)
    lost = []
    for key, start, length in records[~intact][["key", "offset", "length"]].tolist():
        name = f"{key:016x}"
        lost.append(LostClip(key=name, id=_id_of(bytes(view[start : start + length]), name)))
    rejects = _rejects_behind(view, stored) if rejects is None else rejects
    return damaged(fault="tar", intact=records[intact], lost=tuple(lost), rejects=rejects)


def _rejects_behind(view: memoryview, stored: _Descriptions) -> tuple[Reject, ...] | None:
    """Returns the rejects of a damaged tar, found behind its last sample; None where they are not readable."""
    if any(known is not None and known.rejects == 0 for known in (stored.indexed, stored.marker)):
        return ()
    records = stored.records
    if records is None or not len(records):
        return None
    start = int(records[-1]["offset"]) + int(records[-1]["length"])
    try:
        member = next(walk(view[start:], ""))
        if member.name != layout.REJECTS_MEMBER:
            return None
        return parse_rejects(bytes(view[start + member.offset : start + member.offset + member.size]), "")
    except (DatasetError, StopIteration):
        return None


def _id_of(data: bytes, key: str) -> str:
    """Returns the clip's id from a damaged sample, where its hash is the key; else an empty string."""
    try:
        size = int(data[124:135], 8)
        clip = parse_stored(data[BLOCK : BLOCK + size])["id"]
        return clip if layout.sample_key(clip) == key else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
