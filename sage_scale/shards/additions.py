"""Units behind the planned ones: new clips (`--extend`) and second tries of rejected ones (`--retry-rejects`).

What is added is planned once and stored first, in `addition-0001.json` (put if absent), unit by unit and clip by clip:
a killed run goes on with it, two drivers agree on it, and no later look at the corpus can change it. The numbers have
no gaps, so that of two drivers that plan the same number one wins and the other plans anew. `index.json` repeats what
is needed to recognise a finished dataset by one GET, without the clips.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sage_scale.errors import DatasetError
from sage_scale.shards.layout import REMOVED, Unit, canonical_json
from sage_scale.storage import NotFound, Store
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_stored

_NAME = re.compile(r"addition-(\d{4,})\.json")


@dataclass(frozen=True, kw_only=True)
class Addition:
    """Units that were added to a dataset at one time, as index.json tells of them."""

    manifest: str
    """Digest of the manifest whose new clips these are; empty for a second try of rejected clips."""
    first_unit: int
    """Number of its first unit."""
    before: tuple[int, ...]
    """For each unit, how many of its clips an earlier shard had set aside."""

    @property
    def units(self) -> range:
        """Numbers of its units."""
        return range(self.first_unit, self.first_unit + len(self.before))

    def to_mapping(self) -> dict[str, Any]:
        """Its entry in index.json."""
        return {"manifest": self.manifest, "first_unit": self.first_unit, "before": list(self.before)}


@dataclass(frozen=True, kw_only=True)
class AddedUnit:
    """The plan of one added unit."""

    split: str
    clips: tuple[str, ...]
    """Ids, in the order in which their samples stand in the tar."""
    before: int
    """How many of them an earlier shard had set aside."""
    rejected: tuple[Mapping[str, str], ...] = ()
    """Manifest rows set aside while reading, that no earlier shard tells of: `id`, `reason`, `detail`."""


@dataclass(frozen=True, kw_only=True)
class AdditionPlan:
    """What `addition-0001.json` holds."""

    manifest: str
    first_unit: int
    units: tuple[AddedUnit, ...]

    @property
    def addition(self) -> Addition:
        """What index.json tells of it."""
        before = tuple(unit.before for unit in self.units)
        return Addition(manifest=self.manifest, first_unit=self.first_unit, before=before)

    @property
    def clips(self) -> set[str]:
        """Ids of all its clips."""
        return {clip for unit in self.units for clip in unit.clips}

    def to_bytes(self) -> bytes:
        """The file."""
        units = [
            {
                "split": unit.split,
                "clips": list(unit.clips),
                "before": unit.before,
                "rejected": [dict(row) for row in unit.rejected],
            }
            for unit in self.units
        ]
        return canonical_json({"manifest": self.manifest, "first_unit": self.first_unit, "units": units})


def addition_name(number: int) -> str:
    """`addition-0001.json`; numbers begin at 1."""
    return f"addition-{number:04d}.json"


def is_addition(name: str) -> bool:
    """Whether an object of this name is the plan of an addition."""
    match = _NAME.fullmatch(name)
    return match is not None and name == addition_name(int(match.group(1)))


def load_additions(store: Store, number: int | None = None) -> list[AdditionPlan]:
    """The plans of all additions, in their order; `number` is how many there are, where a listing has told it."""
    plans: list[AdditionPlan] = []
    while number is None or len(plans) < number:
        name = addition_name(len(plans) + 1)
        try:
            plans.append(_parse(store.get(name), f"{store.url}/{name}"))
        except NotFound:
            break
    return plans


def additions_from(values: Sequence[Mapping[str, Any]]) -> tuple[Addition, ...]:
    """Returns the entry `additions` of index.json. Raises InvalidJSON or TypeError for another value."""
    return tuple(build(Addition, entry) for entry in values)


def rejects_now(markers: Sequence[Unit], planned: int, additions: Sequence[Addition]) -> int:
    """Clips and manifest rows that are rejected as things stand; those taken out on request are not counted.

    A clip that an earlier shard had set aside counts by its last outcome.
    """
    before = {unit: count for addition in additions for unit, count in zip(addition.units, addition.before)}
    total = 0
    for marker in markers:
        rejects = marker.rejects - marker.reasons.get(REMOVED, 0)
        total += rejects
        if marker.unit >= planned:
            total -= min(before.get(marker.unit, 0), marker.samples + rejects)
    return total


def _parse(data: bytes, where: str) -> AdditionPlan:
    try:
        return build(AdditionPlan, parse_stored(data))
    except InvalidJSON:
        raise DatasetError(f"{where} is damaged: delete it and give the same command again") from None
