"""What a shard holds: the sample, the names of its members, and the small JSON files beside the tars.

The whole format is specified in `shards/README.md` at the root of the repository; the constants here are its
numbers.
"""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from sage_scale.errors import DatasetError
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json

FORMAT = "sage-scale-shards"
VERSION = 1
DATASET_JSON = "dataset.json"
INDEX_JSON = "index.json"
SHARD_MEMBER = "__shard__"
REJECTS_MEMBER = "__rejects__"
META_KEYS = (
    "id",
    "sentence",
    "pseudo_glosses",
    "language",
    "fps",
    "frame_stride",
    "frames",
    "source",
    "signer",
    "split",
)
"""Keys that every `<key>.json` has; others may follow."""
KINDS = ("frames", "features")
DAMAGED, REMOVED = "damaged", "removed"
"""Reasons of rejects that a later generation of a shard records: lost to damage, taken out on request."""
_UNIT_OBJECT = re.compile(r"(\d{6,})(?:\.g([1-9]\d*))?\.(tar|idx|json)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One clip of a shard. T is the number of frames at the recipe's rate, N of segments, C the feature
    width."""

    key: str
    """16 hex digits of sha256 of the clip's id."""
    meta: dict[str, Any]
    """`<key>.json`: the keys of META_KEYS and perhaps more."""
    segments: np.ndarray
    """int32 (N, 2): half-open frame intervals at the recipe's rate, sorted and disjoint, N >= 1."""
    frames: dict[int, bytes] | None = None
    """JPEG bytes by frame number (0, stride, 2 * stride, ...), or None where features are given."""
    background: bytes | None = None
    """JPEG of the clip's median frame, or None."""
    features: np.ndarray | None = None
    """float16 (T', C): row r belongs to frame r * stride; or None where frames are given."""
    views: tuple[np.ndarray, ...] = ()
    """Features of views 1, 2, ... of the pictures, changed otherwise each; `features` are those of view 0, as they are.
    """

    @property
    def kind(self) -> str:
        """frames or features."""
        return "frames" if self.features is None else "features"

    def view(self, number: int) -> np.ndarray | None:
        """float16 (T', C): the features of a view; None where they are not stored."""
        if number == 0:
            return self.features
        return self.views[number - 1] if number <= len(self.views) else None


class RejectLike(Protocol):
    """Anything that names a clip and says why it cannot be used."""

    @property
    def id(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def detail(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A clip left out of its shard, as stored in the member `__rejects__`."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """The member `__shard__`, first in every tar: what makes index and marker functions of the tar alone."""

    unit: int
    split: str
    dataset: str
    """Digest of the dataset.json under which the shard was made."""
    generation: int = 0
    """How often the shard was written anew, with clips taken out; the first one is 0."""

    def to_bytes(self) -> bytes:
        return canonical_json({"format": FORMAT, "version": VERSION, **_without_zero(self)})


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A marker, `000042.json`: unit 42 is done, and this is what its tar holds."""

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
    """Of the tar; it is part of the names of the unit's objects."""

    def to_bytes(self) -> builtins.bytes:
        return canonical_json(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **_without_zero(self)}

    @property
    def tar(self) -> str:
        return tar_name(self.unit, self.generation)


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """A work unit as planned before the first clip is decoded."""

    split: str
    clips: int


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """dataset.json, written before the first shard: what this dataset is going to be."""

    kind: str
    """frames or features."""
    recipe: str
    """Fingerprint of the recipe's part that decides the bytes (`Recipe.dataset_fingerprint`)."""
    manifest: str
    """Digest of the manifest."""
    units: tuple[PlannedUnit, ...]
    """Planned work units; unit n is shard n."""
    recipe_part: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The recipe's part itself, so that a difference can be named."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the programs that decide the bytes."""
    device: str = "cpu"
    """Kind of device that the features come from."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else a reader should know, such as the tagger used."""

    def to_mapping(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    def to_bytes(self) -> bytes:
        return (json.dumps(self.to_mapping(), sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()

    @property
    def feature_views(self) -> int:
        """Views of a clip's features in each sample, the plain one counted."""
        views = self.recipe_part.get("vision", {}).get("feature_views", 1)
        return views if self.kind == "features" and isinstance(views, int) else 1

    @cached_property
    def digest(self) -> str:
        """16 hex digits of sha256 over the file's bytes; every shard and marker carries it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]


def canonical_json(value: Any) -> bytes:
    """Compact JSON with sorted keys in UTF-8: equal values give equal bytes. NaN is refused."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    ).encode()


def sample_key(clip_id: str) -> str:
    """16 hex digits of sha256 of the clip's id."""
    return hashlib.sha256(clip_id.encode()).hexdigest()[:16]


class UnitObject(NamedTuple):
    """What an object's name says: which unit, which generation of it, and `tar`, `idx` or `json`."""

    unit: int
    generation: int
    ending: str

    @property
    def name(self) -> str:
        """`000042.tar`; with generation 1 `000042.g1.tar`."""
        generation = f".g{self.generation}" if self.generation else ""
        return f"{self.unit:06d}{generation}.{self.ending}"


def tar_name(unit: int, generation: int = 0) -> str:
    """`000042.tar`, `000042.g1.tar`."""
    return UnitObject(unit, generation, "tar").name


def index_name(unit: int, generation: int = 0) -> str:
    """`000042.idx`, `000042.g1.idx`."""
    return UnitObject(unit, generation, "idx").name


def marker_name(unit: int, generation: int = 0) -> str:
    """`000042.json`, `000042.g1.json`."""
    return UnitObject(unit, generation, "json").name


def unit_object(name: str) -> UnitObject | None:
    """What the name of a unit's object says, or None for another name."""
    match = _UNIT_OBJECT.fullmatch(name)
    if match is None:
        return None
    found = UnitObject(int(match.group(1)), int(match.group(2) or 0), match.group(3))
    return found if found.name == name else None  # 0000042.tar is no name of ours


def parse_info(data: bytes, where: str) -> DatasetInfo:
    """dataset.json from its bytes. Raises DatasetError where it is none, or of a later version."""
    values = _document(data, where)
    return info_from(values, where)


def info_from(values: Mapping[str, Any], where: str) -> DatasetInfo:
    """DatasetInfo from the mapping in dataset.json or index.json."""
    try:
        return build(DatasetInfo, values)
    except InvalidJSON as error:
        raise DatasetError(
            f"{where} is damaged ({error}): restore it or precompute into a new place"
        ) from None


def parse_marker(data: bytes, where: str) -> Unit:
    """A marker from its bytes. Raises DatasetError where it is none."""
    return unit_from(_document(data, where), where)


def unit_from(values: Mapping[str, Any], where: str) -> Unit:
    """A Unit from the mapping in a marker or index.json."""
    try:
        return build(Unit, values)
    except InvalidJSON as error:
        raise DatasetError(
            f"{where} is damaged ({error}): run `sage-scale shards index` on the folder"
        ) from None


def _without_zero(value: ShardHeader | Unit) -> dict[str, Any]:
    """Its fields; the first generation is not named, so that most shards carry no word of it."""
    fields = dataclasses.asdict(value)
    if not value.generation:
        del fields["generation"]
    return fields


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
