"""What is wrong with the objects of a dataset, unit by unit, and what of each shard is still whole.

A sample is whole when its bytes have the hash that somebody wrote down when it was made: index.json (which carries a
hash of its own), or the shard's `.idx`. A tar is whole when it is, byte for byte, the one that index.json or its marker
describes. Only where nobody wrote anything down does a tar that can be read speak for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sage_scale.errors import DatasetError, NoDataset
from sage_scale.shards.dataset import Dataset, UnitListing, list_units, open_finished
from sage_scale.shards.index import RECORD, ShardIndex, build_index, make_marker, parse_index, parse_rejects
from sage_scale.shards.layout import (
    DATASET_JSON,
    INDEX_JSON,
    REJECTS_MEMBER,
    DatasetInfo,
    Reject,
    Unit,
    index_name,
    marker_name,
    parse_info,
    parse_marker,
    sample_key,
    tar_name,
    unit_object,
)
from sage_scale.shards.sample import check_sample, read_sample
from sage_scale.shards.stored import stored_tar
from sage_scale.shards.tar import BLOCK, walk
from sage_scale.storage import NotFound, Store
from sage_scale.untrusted.json_values import parse_stored


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A clip whose stored bytes are gone."""

    key: str
    id: str = ""
    """Its id, where its description can still be read and has that key."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One unit with something wrong."""

    unit: int
    generation: int
    """Newest stored generation; 0 where no tar is stored."""
    split: str
    problem: str
    """One line, naming the object."""
    cure: str
    """`marker`: index or marker are made again; `tar`: the tar is damaged; `unknown`: it is, and nothing tells which
    clips it held; `stray`: a damaged tar that no plan knows."""
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, RECORD))
    """Records of the samples that are whole."""
    lost: tuple[Lost, ...] = ()
    rejects: tuple[Reject, ...] | None = ()
    """What the tar says of clips left out; None where that cannot be read any more."""
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is known of a dataset before its shards are read."""

    info: DatasetInfo
    indexed: Dataset | None
    """The dataset as index.json has it, where that is whole."""
    listing: UnitListing
    problems: tuple[str, ...]
    """What is wrong with dataset.json and index.json."""
    restore_info: bool
    """dataset.json is to be written again from its copy in index.json."""
    orphans: dict[int, int]
    """Newest generation of units whose index or marker is stored, but no tar."""

    @property
    def units(self) -> list[int]:
        """Units that are stored, or of which some object says that they were."""
        known = [unit.unit for unit in self.indexed.units] if self.indexed else []
        return sorted({*self.listing.generation, *self.orphans, *known})

    def newest(self, unit: int) -> int:
        """The unit's newest stored generation; where its tar is gone, the one that index.json names."""
        named = {entry.unit: entry.generation for entry in self.indexed.units} if self.indexed else {}
        return self.listing.generation.get(unit, named.get(unit, self.orphans.get(unit, 0)))


def read_frame(store: Store) -> Frame:
    """dataset.json, index.json and a listing, each as far as it is whole.

    Raises DatasetError where neither file tells what the dataset is.
    """
    problems = []
    indexed, info = None, None
    try:
        indexed = open_finished(store)
    except DatasetError as error:
        problems.append(str(error).split(": ")[0])
    listing = list_units(store)
    where = f"{store.url}/{DATASET_JSON}"
    try:
        info = parse_info(store.get(DATASET_JSON), where)
    except NotFound:
        problems.append(f"{where} is missing")
    except DatasetError:
        problems.append(f"{where} is damaged")
    if indexed is not None and info is not None and info.digest != indexed.info.digest:
        problems.append(f"{where} is damaged: it differs from the copy in {INDEX_JSON}")
    known = indexed.info if indexed is not None else info
    if known is None:
        if not listing.generation:
            raise NoDataset(f"{store.url} is not a dataset: give the place that precompute wrote to")
        raise DatasetError(
            f"{store.url} has lost both {DATASET_JSON} and {INDEX_JSON}: restore one of them, or precompute into a new "
            "place"
        )
    orphans: dict[int, int] = {}
    for entry in store.list():
        found = unit_object(entry.name)
        if found is not None and found.unit not in listing.generation:
            orphans[found.unit] = max(found.generation, orphans.get(found.unit, 0))
    restore = indexed is not None and (info is None or info.digest != indexed.info.digest)
    return Frame(
        info=known,
        indexed=indexed,
        listing=listing,
        problems=tuple(problems),
        restore_info=restore,
        orphans=orphans,
    )


def examine(store: Store, frame: Frame, unit: int) -> Patient | None:
    """What is wrong with a unit; None where it is as its writer left it (an index.json older than it is no damage)."""
    generation = frame.newest(unit)
    witnesses = _Witnesses.of(store, frame, unit, generation)
    where = f"{store.url}/{tar_name(unit, generation)}"
    patient = _Draft(unit, generation, witnesses.split(frame, unit), frame.listing.tar_bytes.get(unit, 0))
    try:
        with stored_tar(store, tar_name(unit, generation)) as view:
            return _examine_tar(view, where, frame, witnesses, patient)
    except NotFound:
        problem = f"{where} is missing"
    except DatasetError as error:  # an empty file cannot be mapped
        problem = str(error)
    return _damaged(patient, problem, frame, witnesses, b"", _rejects(memoryview(b""), None, witnesses))


@dataclass
class _Draft:
    unit: int
    generation: int
    split: str
    bytes: int

    def patient(self, problem: str, cure: str, **more: object) -> Patient:
        return Patient(
            unit=self.unit,
            generation=self.generation,
            split=self.split,
            bytes=self.bytes,
            problem=problem,
            cure=cure,
            **more,  # type: ignore[arg-type]
        )


@dataclass
class _Witnesses:
    """What was written down about a unit's newest tar."""

    indexed: Unit | None = None
    indexed_records: np.ndarray | None = None
    marker: Unit | None = None
    marker_bytes: bytes = b""
    idx_bytes: bytes = b""
    idx_records: np.ndarray | None = None

    @classmethod
    def of(cls, store: Store, frame: Frame, unit: int, generation: int) -> _Witnesses:
        found = cls()
        if frame.indexed is not None:
            begin = 0
            for entry in frame.indexed.units:
                if (entry.unit, entry.generation) == (unit, generation):
                    found.indexed = entry
                    found.indexed_records = frame.indexed.records[begin : begin + entry.samples]
                begin += entry.samples
        try:
            found.marker_bytes = store.get(marker_name(unit, generation))
            marker = parse_marker(found.marker_bytes, "")
            if (marker.unit, marker.generation, marker.dataset) == (unit, generation, frame.info.digest):
                found.marker = marker
        except (NotFound, DatasetError):
            pass
        try:
            found.idx_bytes = store.get(index_name(unit, generation))
            found.idx_records = parse_index(found.idx_bytes, "")
        except (NotFound, DatasetError):
            pass
        return found

    @property
    def records(self) -> np.ndarray | None:
        """The samples that were there, by whoever may be believed most."""
        return self.indexed_records if self.indexed_records is not None else self.idx_records

    def vouch(self, index: ShardIndex) -> bool:
        """Whether somebody says that this is the tar that was written, or nobody says anything at all.

        With index.json gone and a marker that disagrees, an `.idx` that holds for every sample outweighs the marker.
        """
        said = [unit for unit in (self.indexed, self.marker) if unit is not None]
        if any(unit.sha256 == index.tar_sha256 for unit in said):
            return True
        return self.silent or (self.indexed is None and self.idx_bytes == index.to_bytes())

    @property
    def silent(self) -> bool:
        return self.indexed is None and self.marker is None and self.idx_records is None

    def split(self, frame: Frame, unit: int) -> str:
        for known in (self.indexed, self.marker):
            if known is not None:
                return known.split
        return frame.info.units[unit].split if unit < len(frame.info.units) else ""


def _examine_tar(
    view: memoryview, where: str, frame: Frame, witnesses: _Witnesses, draft: _Draft
) -> Patient | None:
    index, problem = None, ""
    try:
        index = build_index(view, where)
        header = index.header
        if (header.unit, header.generation, header.dataset) != (
            draft.unit,
            draft.generation,
            frame.info.digest,
        ):
            problem = (
                f"{where} is the shard of unit {header.unit} of dataset {header.dataset}: it was exchanged"
            )
    except DatasetError as error:
        problem = str(error).split("; run `")[0]
    if not problem and index is not None and not witnesses.vouch(index):
        problem = f"{where} is not the tar that its marker and {INDEX_JSON} describe"
    if problem or index is None:
        rejects = _rejects(view, None if "exchanged" in problem else index, witnesses)
        return _damaged(draft, problem, frame, witnesses, view, rejects)
    draft.split = index.header.split
    marker = make_marker(index)
    stale = [
        name
        for name, stored, expected in (
            (index_name(draft.unit, draft.generation), witnesses.idx_bytes, index.to_bytes()),
            (marker_name(draft.unit, draft.generation), witnesses.marker_bytes, marker.to_bytes()),
        )
        if stored != expected
    ]
    if stale:
        names = " and ".join(stale)
        alone = ", and there is nothing to compare its tar with" if witnesses.silent else ""
        problem = f"{where}: {names} missing, stale or damaged{alone}"
        return draft.patient(problem, "marker", kept=index.records, rejects=index.rejects)
    return None


def _damaged(
    draft: _Draft,
    problem: str,
    frame: Frame,
    witnesses: _Witnesses,
    view: memoryview | bytes,
    rejects: tuple[Reject, ...] | None,
) -> Patient:
    records = witnesses.records
    if records is None:
        return draft.patient(problem, "unknown" if draft.unit < len(frame.info.units) else "stray")
    whole, lost = [], []
    for row, record in enumerate(records):
        key, start, length = f"{int(record['key']):016x}", int(record["offset"]), int(record["length"])
        data = bytes(view[start : start + length])
        try:
            sample = read_sample(data, key=key, digest=record["hash"].tobytes())
            check_sample(sample)
            whole.append(row)
        except DatasetError:
            lost.append(Lost(key=key, id=_id_of(data, key)))
    return draft.patient(problem, "tar", kept=records[whole], lost=tuple(lost), rejects=rejects)


def _rejects(view: memoryview, index: ShardIndex | None, witnesses: _Witnesses) -> tuple[Reject, ...] | None:
    """`__rejects__` of a damaged tar, found by its place behind the last sample; None where it is not to be read."""
    if index is not None:
        return index.rejects
    if any(unit is not None and unit.rejects == 0 for unit in (witnesses.indexed, witnesses.marker)):
        return ()
    records = witnesses.records
    if records is None or not len(records):
        return None
    start = int(records[-1]["offset"]) + int(records[-1]["length"])
    try:
        member = next(walk(view[start:], ""))
        if member.name != REJECTS_MEMBER:
            return None
        return parse_rejects(bytes(view[start + member.offset : start + member.offset + member.size]), "")
    except (DatasetError, StopIteration):
        return None


def _id_of(data: bytes, key: str) -> str:
    """The clip's id from a damaged sample, where its hash is the key; else nothing."""
    try:
        size = int(data[124:135], 8)
        clip = parse_stored(data[BLOCK : BLOCK + size])["id"]
        return clip if sample_key(clip) == key else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
