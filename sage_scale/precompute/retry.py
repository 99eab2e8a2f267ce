"""A second try of rejected clips (`--retry-rejects`): new shards behind the planned ones, old ones as they are.

Which clips are tried again is stored first, in `retry-0001.json` (put if absent), so that a killed retry is continued
rather than begun again, and its units follow from that file, the manifest and the recipe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sage_scale.corpora.clip import Manifest
from sage_scale.errors import DatasetError
from sage_scale.precompute.plan import Limits, Unit, plan_units
from sage_scale.shards.layout import REMOVED, canonical_json
from sage_scale.shards.layout import Unit as Marker
from sage_scale.storage import NotFound, Store


@dataclass(frozen=True, kw_only=True)
class Retry:
    """One second try: which clips, and from which unit number on."""

    first_unit: int
    """Number of its first unit."""
    clips: tuple[str, ...]
    """Ids, in manifest order."""

    def units(self, manifest: Manifest, limits: Limits) -> tuple[Unit, ...]:
        """Its work units, planned as any others."""
        wanted = set(self.clips)
        again = tuple(clip for clip in manifest.clips if clip.id in wanted)
        return plan_units(Manifest(again), limits, first=self.first_unit)

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical_json({"first_unit": self.first_unit, "clips": list(self.clips)})


def retry_name(number: int) -> str:
    """`retry-0001.json`; numbers begin at 1."""
    return f"retry-{number:04d}.json"


def parse_retry(data: bytes, where: str) -> Retry:
    """A retry file. Raises DatasetError where it is damaged."""
    try:
        values = json.loads(data)
        return Retry(first_unit=int(values["first_unit"]), clips=tuple(map(str, values["clips"])))
    except (ValueError, KeyError, TypeError):
        raise DatasetError(f"{where} is damaged: delete it and give --retry-rejects again") from None


def load_retries(store: Store) -> list[Retry]:
    """The retries of an output, in their order. They are numbered without gaps, so no listing is needed."""
    retries: list[Retry] = []
    while True:
        name = retry_name(len(retries) + 1)
        try:
            retries.append(parse_retry(store.get(name), f"{store.url}/{name}"))
        except NotFound:
            return retries


def rejects_now(markers: Iterable[Marker], planned: int) -> int:
    """Clips (and manifest rows) that are rejected as things stand; those taken out on request are not counted.

    A unit beyond the `planned` ones holds clips that some earlier shard rejected: they count by their last outcome.
    """
    total = 0
    for marker in markers:
        rejects = marker.rejects - marker.reasons.get(REMOVED, 0)
        total += rejects
        if marker.unit >= planned:
            total -= marker.samples + rejects
    return total


def reasons_now(markers: Iterable[Marker]) -> Counter[str]:
    """Rejects by reason over all shards, those of clips that were tried again included."""
    reasons: Counter[str] = Counter()
    for marker in markers:
        reasons.update(marker.reasons)
    return reasons
