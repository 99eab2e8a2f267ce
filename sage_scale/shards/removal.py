"""Taking clips out of a dataset because a person asks for it: their data vanish from the store, and stay away.

1. The keys are recorded (`removed-....json`), so that whatever is run afterwards knows.
2. Each shard concerned gets a new generation without the clips; all other samples are copied byte for byte.
3. index.json is written anew: from here on, readers that open the dataset do not see the clips.
4. The objects of the older generations are deleted, tars first.

A kill between any two steps leaves a dataset that still opens, with the clips or without them; running the same command
again (or any other that finishes the dataset) goes on. Nothing but the shards concerned is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from shlex import quote

from sage_scale.errors import UnitsOpen, UsageError
from sage_scale.shards.commit import finish_dataset, settle
from sage_scale.shards.dataset import (
    Dataset,
    in_parallel,
    list_units,
    open_finished,
    open_unfinished,
    open_units,
    read_rejects,
)
from sage_scale.shards.generations import Progress, concerned_units, reject_key, sweep
from sage_scale.shards.layout import sample_key
from sage_scale.shards.removed import record_removal, removed_keys
from sage_scale.storage import Store
from sage_scale.untrusted.files import lines

_KEY = re.compile("[0-9a-f]{16}")
NAMED = 3
"""Unknown ids named in one message."""


@dataclass(frozen=True, kw_only=True)
class RemovalReport:
    """What a removal did."""

    url: str
    samples: int
    """Clips whose data were taken out."""
    shards: int
    """Shards that got a new generation."""
    objects: int
    """Objects of older generations that were deleted."""
    absent: int
    """Clips that no shard holds (yet): they will be left out when their shard is made."""
    open_units: int
    """Units of the dataset that are not made yet."""
    left: int
    """Clips of the dataset now."""


def remove_clips(
    store: Store, wanted: Iterable[str], *, ignore_unknown: bool = False, progress: Progress | None = None
) -> RemovalReport:
    """Take the clips of these ids (or keys) out; without any, finish what an earlier call began.

    Raises UsageError, before anything is written, for ids that a finished dataset does not have, unless these are to be
    ignored; DatasetError where a shard concerned is damaged.
    """
    dataset = _as_stored(store)
    before = removed_keys(store)
    known = {f"{key:016x}" for key in dataset.records["key"].tolist()}
    keys = {_key_of(name, known): name for name in wanted}
    absent = [name for key, name in keys.items() if key not in known and key not in before]
    if absent:
        rejected = _rejected_keys(dataset)
        absent = [name for name in absent if _key_of(name, known) not in rejected]
    if absent and not open_units(dataset) and not ignore_unknown:
        named = ", ".join(f"'{name}'" for name in absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
        raise UsageError(
            f"{store.url} has no clip {named} ({len(absent)} unknown); nothing was done. `sage-scale shards ls "
            f"{quote(store.url)} --samples` lists what there is; --ignore-unknown takes out the others"
        )
    new = keys.keys() - before
    if new:
        record_removal(store, new)
    removed = before | new
    concerned = concerned_units(dataset, removed)
    samples = sum(key in removed for key in known)
    missing = open_units(dataset)
    older = len(list_units(store).superseded)
    try:
        now = finish_dataset(store, progress)
    except UnitsOpen:
        now = settle(store, progress)
        older = sweep(store)
    else:
        older += 3 * len(concerned)
    return RemovalReport(
        url=store.url,
        samples=samples,
        shards=len(concerned),
        objects=older,
        absent=len(absent),
        open_units=len(missing),
        left=len(now.records),
    )


def _as_stored(store: Store) -> Dataset:
    """The dataset as its objects are, which may be newer than its index.json."""
    finished = open_finished(store)
    if finished is None:
        return open_unfinished(store)
    newest = list_units(store).generation
    same = newest == {unit.unit: unit.generation for unit in finished.units}
    return finished if same else settle(store)


def _key_of(name: str, known: set[str]) -> str:
    return name if _KEY.fullmatch(name) and name in known else sample_key(name)


def _rejected_keys(dataset: Dataset) -> set[str]:
    found = in_parallel(
        lambda unit: [reject_key(r) for r in read_rejects(dataset.store, unit)], dataset.units
    )
    return {key for keys in found for key in keys}


def read_ids(text: str, where: str) -> list[str]:
    """Returns the ids of a text, one in a line; empty lines are passed over. Raises UsageError where there is none."""
    ids = [line.strip() for line in lines(text) if line.strip()]
    if not ids:
        raise UsageError(f"{where} names no clip: write one id in a line")
    return ids
