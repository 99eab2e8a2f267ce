"""Names and JSON documents of the objects of a dataset. shards/README.md specifies them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import xxhash

from sage_scale.errors import DatasetError
from sage_scale.storage import NotFound, Store
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json

FORMAT, VERSION = "sage-scale-shards", 1
DATASET_JSON = "dataset.json"
INDEX_JSON = "index.json"
SHARD_MEMBER, REJECTS_MEMBER = "__shard__", "__rejects__"
DAMAGED, REMOVED = "damaged", "removed"
"""Reasons of rejects in later generations of a shard: lost to damage, removed on request."""
_UNIT_OBJECT = re.compile(r"(\d{6,})(?:\.g([1-9]\d*))?\.(tar|idx|json)")
_ADDITION = re.compile(r"addition-(\d{4,})\.json")
_CHECKSUM = b'{"xxh3":"%s",'
_CHECKSUM_BYTES = len(_CHECKSUM % bytes(32))
T = TypeVar("T")


class _Document:
    """A dataclass stored as JSON. Generation 0 is not stored: most shards have no other."""

    def to_mapping(self) -> dict[str, Any]:
        """Returns the fields, after `format` and `version`."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        if values.get("generation") == 0:
            del values["generation"]
        return {"format": FORMAT, "version": VERSION, **values}

    def to_bytes(self) -> bytes:
        """Returns the object's bytes."""
        return canonical_json(self.to_mapping())


@dataclass(frozen=True, kw_only=True)
class ShardHeader(_Document):
    """The member `__shard__`, first in every tar. With it, index and marker are functions of the tar alone."""

    unit: int
    split: str
    dataset: str
    """Digest of the dataset.json under which the shard was made."""
    generation: int = 0
    """0 for a shard as precompute made it, one more for each rewriting."""


@dataclass(frozen=True, kw_only=True)
class Marker(_Document):
    """A marker, `000042.json`: unit 42 is done, and these are the contents of its tar."""

    unit: int
    split: str
    dataset: str
    """Digest of dataset.json."""
    samples: int
    frames: int
    """Sum of the clips' frames at the recipe's rate."""
    segments: int
    rejects: int
    reasons: dict[str, int]
    """Rejected clips by reason."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar."""
    index_sha256: str
    """Of the `.idx` file."""
    languages: tuple[str, ...] = ()
    """Languages of the samples, sorted; the index numbers them."""
    generation: int = 0
    """Of the tar; part of the names of the unit's objects."""

    @property
    def tar(self) -> str:
        """Name of the tar."""
        return tar_name(self.unit, self.generation)


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """A work unit as planned before the first clip is decoded."""

    split: str
    clips: int


@dataclass(frozen=True, kw_only=True)
class DatasetInfo(_Document):
    """dataset.json, written before the first shard: the plan of the dataset."""

    kind: str
    """frames or features."""
    recipe: str
    """Fingerprint of the recipe's part that decides the bytes (`Recipe.dataset_fingerprint`)."""
    manifest: str
    """Digest of the manifest."""
    units: tuple[PlannedUnit, ...]
    """Planned work units; unit n is shard n."""
    recipe_part: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The recipe's part itself, so that messages can name a key that differs."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the programs that decide the bytes."""
    device: str = "cpu"
    """Kind of device that computed the features."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Other facts for readers, such as the tagger."""

    def to_bytes(self) -> bytes:
        return (json.dumps(self.to_mapping(), sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()

    @property
    def feature_views(self) -> int:
        """Views of a clip's features in each sample, view 0 (unaugmented) included."""
        views = self.recipe_part.get("vision", {}).get("feature_views", 1)
        return views if self.kind == "features" and isinstance(views, int) else 1

    @cached_property
    def digest(self) -> str:
        """16 hex digits of sha256 over the file's bytes; every shard and marker carries it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]


def canonical_json(value: Any) -> bytes:
    """Returns compact UTF-8 JSON with sorted keys: equal values give equal bytes. Raises ValueError for NaN."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    ).encode()


def checksummed_json(values: Mapping[str, Any]) -> bytes:
    """Returns a line of canonical JSON whose first key, `xxh3`, is the xxh3-128 of the bytes after that key."""
    body = canonical_json(values)[1:] + b"\n"
    return _CHECKSUM % xxhash.xxh3_128_hexdigest(body).encode() + body


def checksum_of(data: bytes) -> str:
    """Returns the checksum (32 hex digits) that a line of checksummed JSON begins with."""
    return data[9:41].decode("ascii")


def parse_checksummed_json(data: bytes) -> tuple[dict[str, Any], str]:
    """Returns values and checksum of a line of checksummed JSON. Raises ValueError where it is damaged."""
    digest = data[9:41]
    if data[:_CHECKSUM_BYTES] != _CHECKSUM % digest:
        raise ValueError("no checksum")
    if xxhash.xxh3_128_hexdigest(memoryview(data)[_CHECKSUM_BYTES:]).encode() != digest:
        raise ValueError("the checksum differs")
    # As it was written, and of many megabytes: needs none of the checks of parse_json.
    return json.loads(data), digest.decode("ascii")


def sample_key(clip_id: str) -> str:
    """Returns the first 16 hex digits of sha256 of the clip's id."""
    return hashlib.sha256(clip_id.encode()).hexdigest()[:16]


class UnitObject(NamedTuple):
    """Unit, generation and kind (`tar`, `idx` or `json`) that the name of an object says."""

    unit: int
    generation: int
    ending: str

    @property
    def name(self) -> str:
        """`000042.tar`; with generation 1 `000042.g1.tar`."""
        generation = f".g{self.generation}" if self.generation else ""
        return f"{self.unit:06d}{generation}.{self.ending}"


def tar_name(unit: int, generation: int = 0) -> str:
    """Returns `000042.tar`, `000042.g1.tar`."""
    return UnitObject(unit, generation, "tar").name


def index_name(unit: int, generation: int = 0) -> str:
    """Returns `000042.idx`, `000042.g1.idx`."""
    return UnitObject(unit, generation, "idx").name


def marker_name(unit: int, generation: int = 0) -> str:
    """Returns `000042.json`, `000042.g1.json`."""
    return UnitObject(unit, generation, "json").name


def unit_object(name: str) -> UnitObject | None:
    """Returns the parts of the name of a unit's object, None for any other name."""
    match = _UNIT_OBJECT.fullmatch(name)
    if match is None:
        return None
    found = UnitObject(int(match.group(1)), int(match.group(2) or 0), match.group(3))
    return found if found.name == name else None  # 0000042.tar has a digit too many


def addition_name(number: int) -> str:
    """Returns `addition-0001.json`; numbers begin at 1."""
    return f"addition-{number:04d}.json"


def is_addition(name: str) -> bool:
    """Returns whether an object of this name is an addition plan."""
    match = _ADDITION.fullmatch(name)
    return match is not None and name == addition_name(int(match.group(1)))


@dataclass(frozen=True, kw_only=True)
class UnitListing:
    """Units by the names of their objects. Of several generations of a unit the newest stored tar counts."""

    done: frozenset[int]
    """Units with tar, index and marker."""
    unmarked: frozenset[int]
    """Units with a tar, but without index or marker: `restore_marker` makes them."""
    tar_bytes: dict[int, int]
    """Size of each unit's newest tar."""
    generation: dict[int, int]
    """Newest generation of each unit."""
    superseded: tuple[str, ...]
    """Names of objects of older generations, to be deleted once index.json names the newer ones."""
    orphans: dict[int, int]
    """Newest generation of units without a tar of which an index or marker is stored."""
    additions: int
    """Number of addition plans."""


def list_units(store: Store) -> UnitListing:
    """Returns the units of a dataset by one listing; reads no object."""
    sizes = {entry.name: entry.size for entry in store.list()}
    objects = [found for name in sizes if (found := unit_object(name)) is not None]
    newest: dict[int, int] = {}
    for found in objects:
        if found.ending == "tar":
            newest[found.unit] = max(found.generation, newest.get(found.unit, 0))
    orphans: dict[int, int] = {}
    for found in objects:
        if found.unit not in newest:
            orphans[found.unit] = max(found.generation, orphans.get(found.unit, 0))
    done = {unit for unit, g in newest.items() if {index_name(unit, g), marker_name(unit, g)} <= sizes.keys()}
    return UnitListing(
        done=frozenset(done),
        unmarked=frozenset(newest.keys() - done),
        tar_bytes={unit: sizes[tar_name(unit, generation)] for unit, generation in newest.items()},
        generation=newest,
        superseded=tuple(found.name for found in objects if found.generation < newest.get(found.unit, 0)),
        orphans=orphans,
        additions=sum(map(is_addition, sizes)),
    )


def despite_changes(store: Store, work: Callable[[], T]) -> T:
    """Returns `work()`, repeated where it meets objects that another process replaced or deleted since it listed them.

    Raises NotFound where an object is missing and two listings agree.
    """
    before = None
    while True:
        try:
            return work()
        except NotFound:
            now = list_units(store)
            if now == before:
                raise
            before = now


def newest_generation(store: Store, unit: int) -> int | None:
    """Returns the newest stored generation of a unit, None where it has no tar."""
    names = (unit_object(entry.name) for entry in store.list(f"{unit:06d}."))
    return max((n.generation for n in names if n and n.ending == "tar" and n.unit == unit), default=None)


def parse_info(data: bytes, where: str) -> DatasetInfo:
    """Returns dataset.json from its bytes. Raises DatasetError for other bytes, or a later version."""
    return info_from(_document(data, where), where)


def info_from(values: Any, where: str) -> DatasetInfo:
    """Returns dataset.json from its mapping, as index.json holds it. Raises DatasetError."""
    return _build(DatasetInfo, values, where, "restore it or precompute into a new output")


def parse_marker(data: bytes, where: str) -> Marker:
    """Returns a marker from its bytes. Raises DatasetError."""
    return marker_from(_document(data, where), where)


def marker_from(values: Any, where: str) -> Marker:
    """Returns a marker from its mapping, as index.json holds it. Raises DatasetError."""
    return _build(Marker, values, where, "run `sage-scale shards index` on the folder")


def _build(kind: type[T], values: Any, where: str, advice: str) -> T:
    try:
        return build(kind, values)
    except InvalidJSON as error:
        raise DatasetError(f"{where} is damaged ({error}): {advice}") from None


def _document(data: bytes, where: str) -> Mapping[str, Any]:
    try:
        values = parse_json(data)
    except InvalidJSON as error:
        raise DatasetError(f"{where} is damaged or not ours ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DatasetError(f"{where} is not part of a sage-scale dataset")
    if values.get("version") != VERSION:
        raise DatasetError(
            f"{where} has format version {values.get('version')}, this program reads {VERSION}: "
            "update sage-scale or precompute again"
        )
    return values
