"""Plans of units added to a dataset: new clips (`--extend`), second tries of rejected clips (`--retry-rejects`).

A plan is stored first, in `addition-0001.json` (put if absent), unit by unit and clip by clip. A killed run resumes by
it, two drivers agree on it, and a corpus that changes afterwards does not change it. The numbers have no gaps: of two
drivers that plan the same number one wins, and the other plans anew. `index.json` repeats all but the clips, so that
one GET tells which manifests a finished dataset holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sage_scale.errors import DatasetError
from sage_scale.shards.layout import addition_name, canonical_json
from sage_scale.storage import NotFound, Store
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_stored


@dataclass(frozen=True, kw_only=True)
class Addition:
    """Units that one command added to a dataset, as index.json describes them."""

    manifest: str
    """Digest of the manifest that brought the new clips; empty for a second try of rejected clips."""
    first_unit: int
    """Number of its first unit."""
    before: tuple[int, ...]
    """For each unit, how many of its clips an earlier shard had rejected."""

    @property
    def units(self) -> range:
        """Numbers of its units."""
        return range(self.first_unit, self.first_unit + len(self.before))


@dataclass(frozen=True, kw_only=True)
class AddedUnit:
    """The plan of one added unit."""

    split: str
    clips: tuple[str, ...]
    """Ids, in the order of the samples in the tar."""
    before: int
    """How many of them an earlier shard had rejected."""
    rejected: tuple[Mapping[str, str], ...] = ()
    """Manifest rows rejected while reading, that no earlier shard records: `id`, `reason`, `detail`."""


@dataclass(frozen=True, kw_only=True)
class AdditionPlan:
    """The content of `addition-0001.json`."""

    manifest: str
    first_unit: int
    units: tuple[AddedUnit, ...]

    @property
    def addition(self) -> Addition:
        """The plan's entry in index.json."""
        before = tuple(unit.before for unit in self.units)
        return Addition(manifest=self.manifest, first_unit=self.first_unit, before=before)

    @property
    def clips(self) -> set[str]:
        """Ids of all its clips."""
        return {clip for unit in self.units for clip in unit.clips}

    def to_bytes(self) -> bytes:
        """Returns the file's bytes."""
        return canonical_json(asdict(self))


def load_additions(store: Store, number: int | None = None) -> list[AdditionPlan]:
    """Returns all addition plans in order. `number` says how many there are, where a listing has counted them."""
    plans: list[AdditionPlan] = []
    while number is None or len(plans) < number:
        name = addition_name(len(plans) + 1)
        try:
            plans.append(_parse(store.get(name), f"{store.url}/{name}"))
        except NotFound:
            break
    return plans


def _parse(data: bytes, where: str) -> AdditionPlan:
    try:
        return build(AdditionPlan, parse_stored(data))
    except InvalidJSON:
        raise DatasetError(f"{where} is damaged: delete it and give the same command again") from None
