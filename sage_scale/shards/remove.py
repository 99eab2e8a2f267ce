"""Removes clips from a dataset for good, as a signer may ask: their data vanish from the store, and stay away.

1. The keys are recorded (`removed-....json`), so that every later command leaves them out.
2. Each shard with one of the clips gets a new generation without them; other samples are copied byte for byte.
3. index.json is written anew: readers that open the dataset from now on do not see the clips.
4. The objects of the older generations are deleted, tars first.

A kill between any two steps leaves a dataset that opens, with the clips or without them. The same command, or any other
that finishes the dataset, resumes. Other shards are not touched.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from shlex import quote

from sage_scale.errors import UnitsOpen, UsageError
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards.dataset import Dataset, open_finished, open_unfinished, read_metadata, unfinished_units
from sage_scale.shards.layout import REMOVED, despite_changes, list_units, sample_key
from sage_scale.shards.publish import delete_superseded, finish_dataset, reconcile, units_containing
from sage_scale.shards.rejects import current_rejects, read_rejects, record_removal, reject_key, removed_keys
from sage_scale.storage import Store
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import lines

_KEY = re.compile("[0-9a-f]{16}")
_NAMED = 3
"""Unknown ids named in one message."""
_SIGNERS = 8
"""Signers named in one message."""


@dataclass(frozen=True, kw_only=True)
class RemovalReport:
    """Outcome of a removal."""

    url: str
    samples: int
    """Clips whose data were removed."""
    shards: int
    """Shards that got a new generation."""
    objects: int
    """Objects of older generations that were deleted."""
    absent: int
    """Clips that no shard holds (yet): they will be left out when their shard is made."""
    unfinished_units: int
    """Units of the dataset that are not made yet."""
    left: int
    """Clips of the dataset now."""


def plan_removal(store: Store, wanted: Iterable[str]) -> tuple[int, int, int, int]:
    """Returns how many clips would be removed by `remove_clips`, shards rewritten, rejects removed, and rejects left.

    Raises DatasetError.
    """
    before = removed_keys(store)
    dataset, names, _, shards = despite_changes(store, lambda: _find(store, tuple(wanted), before))
    known = {f"{key:016x}" for key in dataset.records["key"].tolist()}
    removed = before | names.keys()
    rejects = {reject_key(reject) for _, reject in current_rejects(dataset) if reject.reason != REMOVED}
    return len(known & removed), shards, len(rejects & removed), len(rejects - removed)


def remove_clips(
    store: Store,
    wanted: Iterable[str],
    *,
    ignore_unknown: bool = False,
    progress: ProgressCallback | None = None,
) -> RemovalReport:
    """Removes the clips of these ids or keys; without any, finishes an earlier removal.

    Raises UsageError, before anything is written, for ids that a finished dataset does not have, unless
    `ignore_unknown`; DatasetError where a shard with one of the clips is damaged.
    """
    before, wanted = removed_keys(store), tuple(wanted)
    dataset, names, absent, shards = despite_changes(store, lambda: _find(store, wanted, before))
    known = {f"{key:016x}" for key in dataset.records["key"].tolist()}
    missing = len(unfinished_units(dataset))
    if absent and not missing and not ignore_unknown:
        named = ", ".join(f"'{names[key]}'" for key in absent[:_NAMED]) + (
            ", ..." if len(absent) > _NAMED else ""
        )
        raise UsageError(
            f"{store.url} has no clip {named} ({len(absent)} unknown); nothing was done. `sage-scale shards ls "
            f"{quote(store.url)} --samples` lists what there is; --ignore-unknown removes the others"
        )
    if new := names.keys() - before:
        record_removal(store, new)
    removed = before | names.keys()
    objects = len(list_units(store).superseded)
    try:
        now = finish_dataset(store, progress)
        objects += 3 * shards
    except UnitsOpen:
        now = reconcile(store, progress)
        objects = delete_superseded(store)
    return RemovalReport(
        url=store.url,
        samples=len(known & removed),
        shards=shards,
        objects=objects,
        absent=len(absent),
        unfinished_units=missing,
        left=len(now.records),
    )


def clips_by(store: Store, signers: Collection[str] = (), videos: Collection[str] = ()) -> list[str]:
    """Returns the keys of the clips of these signers and of these videos, by path, file name or stem.

    Of rejects, which name no signer, the ids that are the name of one of the videos.
    Raises UsageError naming a signer or a video that no clip has.
    """
    dataset = _open_as_stored(store)
    found, unknown = [], {("signer", name) for name in signers} | {("video", name) for name in videos}
    keys = dataset.records["key"].tolist()
    known = Counter[str]()
    for key, meta in zip(keys, read_metadata(dataset), strict=True):
        video = PurePosixPath(str(meta["source"]).partition("#t=")[0])
        names = {("signer", str(meta["signer"]))} | {
            ("video", name) for name in (str(video), video.name, video.stem)
        }
        known[str(meta["signer"])] += 1
        wanted = {(kind, name) for kind, name in names if name in (signers if kind == "signer" else videos)}
        unknown -= wanted
        if wanted:
            found.append(f"{key:016x}")
    for _, reject in current_rejects(dataset) if videos else ():
        path = PurePosixPath(reject.id)
        if same := {str(path), path.name, path.stem}.intersection(videos):
            unknown -= {("video", name) for name in same}
            found.append(reject.id)
    if unknown:
        kind, name = min(unknown)
        has = ", ".join(shortened(signer or "(unknown)", 40) for signer, _ in known.most_common(_SIGNERS))
        raise UsageError(
            f"{store.url} has no clip of {kind} '{shortened(name)}'; nothing was done"
            + (f". Signers with the most clips: {has}" if kind == "signer" else "")
        )
    return found


def _find(
    store: Store, wanted: Sequence[str], before: Collection[str]
) -> tuple[Dataset, dict[str, str], list[str], int]:
    """Returns the dataset, the wanted names by key, the keys it does not know, and how many shards change.

    Raises NotFound where a shard is replaced meanwhile.
    """
    dataset = _open_as_stored(store)
    known = {f"{key:016x}" for key in dataset.records["key"].tolist()}
    names = {name if _KEY.fullmatch(name) and name in known else sample_key(name): name for name in wanted}
    absent = [key for key in names if key not in known and key not in before]
    if absent:
        rejects = map_threads(lambda unit: read_rejects(store, unit), dataset.units)
        rejected = {reject_key(reject) for rows in rejects for reject in rows}
        absent = [key for key in absent if key not in rejected]
    return dataset, names, absent, len(units_containing(dataset, frozenset({*before, *names})))


def _open_as_stored(store: Store) -> Dataset:
    """Opens the dataset by its objects, which may be newer than its index.json."""
    finished = open_finished(store)
    if finished is None:
        return open_unfinished(store)
    newest = list_units(store).generation
    same = newest == {unit.unit: unit.generation for unit in finished.units}
    return finished if same else reconcile(store)


def read_ids(text: str, where: str) -> list[str]:
    """Returns the ids of a text, one in a line, without empty lines. Raises UsageError where there is none."""
    ids = [line.strip() for line in lines(text) if line.strip()]
    if not ids:
        raise UsageError(f"{where} names no clip: write one id in a line")
    return ids
