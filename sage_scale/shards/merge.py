"""Makes one dataset of several (`merge_datasets`); `compose` also serves `split_dataset`.

Samples are not decoded: their bytes are copied, after a check of their hashes, into shards with headers of their own.
The outcome follows from the sources and the arguments alone, so that the same command resumes a killed run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sage_scale.config.recipe import flat, values_of
from sage_scale.errors import Reject, UsageError
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards import layout
from sage_scale.shards.dataset import Dataset, notice_note, open_finished
from sage_scale.shards.publish import (
    THREADS,
    finish_dataset,
    is_current,
    publish_copies,
    restore_marker,
    start_dataset,
    verified_samples,
)
from sage_scale.shards.rejects import REMOVED_PREFIX, read_rejects
from sage_scale.shards.tar import BLOCK, header, padding
from sage_scale.storage import Store
from sage_scale.untrusted.json_values import parse_stored

_MAY_DIFFER = ("jpeg_quality",)
"""Keys of `vision` in which datasets to be merged may differ."""
_NAMED = 3


@dataclass(frozen=True, eq=False)
class Selection:
    """Samples of one shard of a source."""

    source: Dataset
    unit: int
    """Ordinal of the shard in `source.units`."""
    records: np.ndarray
    """RECORDs of the samples."""


@dataclass(frozen=True, eq=False)
class NewShard:
    """A shard to be made."""

    split: str
    selections: Sequence[Selection]
    with_rejects: bool = False
    """Take over the rejects of the shards that the samples come from."""
    change: Callable[[bytes], bytes | Reject] | None = None
    """Returns the new bytes of a sample, or its reject; None copies the samples."""

    @property
    def samples(self) -> int:
        """Number of its samples."""
        return sum(len(selection.records) for selection in self.selections)


def merge_datasets(
    out: Store,
    sources: Sequence[Dataset],
    *,
    first_wins: bool = False,
    progress: ProgressCallback | None = None,
) -> Dataset:
    """Makes one dataset in `out` of all samples of the sources, shard by shard.

    Raises UsageError where the sources' settings differ, or a clip is in two of them unless `first_wins`.
    """
    shared = shared_info(sources)
    check_stores([out], sources)
    seen: set[int] = set()
    repeated: list[str] = []
    shards: list[NewShard] = []
    planned: list[layout.PlannedUnit] = []
    for source in sources:
        for ordinal, (unit, records) in enumerate(zip(source.units, source.records_by_unit())):
            keys = records["key"].tolist()
            new = np.array([key not in seen for key in keys], bool)
            repeated += [f"{key:016x} (of {source.url})" for key, is_new in zip(keys, new) if not is_new]
            seen.update(keys)
            kept = Selection(source, ordinal, records[new])
            shards.append(NewShard(unit.split, [kept], with_rejects=True))
            planned.append(layout.PlannedUnit(split=unit.split, clips=len(kept.records) + unit.rejects))
    if repeated and not first_wins:
        named = ", ".join(repeated[:_NAMED]) + (", ..." if len(repeated) > _NAMED else "")
        raise UsageError(
            f"{len(repeated)} clips are in more than one dataset: {named}; nothing was done. With "
            "--duplicates first each is taken from the dataset that is named first"
        )
    info = layout.DatasetInfo(
        units=tuple(planned),
        manifest=digest_of(*(source.info.manifest for source in sources)),
        notes=notes_of("merge", sources),
        **shared,
    )
    return compose(out, info, sources, shards, progress)


def compose(
    out: Store,
    info: layout.DatasetInfo,
    sources: Sequence[Dataset],
    shards: Sequence[NewShard],
    progress: ProgressCallback | None = None,
) -> Dataset:
    """Makes the dataset of these shards in `out`, or finishes it. Raises DatasetError for damaged samples."""
    start_dataset(out, info)
    for source in sources:  # a clip removed from a source is removed from the outcome
        for entry in source.store.list(REMOVED_PREFIX):
            out.put_if_absent(entry.name, source.store.get(entry.name))
    finished = open_finished(out)
    if finished is not None and is_current(finished):
        return finished
    listing = layout.list_units(out)

    def make(number: int) -> None:
        if number in listing.unmarked:
            restore_marker(out, number)
        elif number not in listing.done:
            shard = shards[number]
            head = layout.ShardHeader(unit=number, split=shard.split, dataset=info.digest)
            rejects = [
                reject
                for selection in shard.selections
                if shard.with_rejects
                for reject in read_rejects(selection.source.store, selection.source.units[selection.unit])
            ]
            publish_copies(out, head, _samples_of(shard, rejects), rejects)

    def size(number: int) -> int:
        return sum(int(selection.records["length"].sum()) for selection in shards[number].selections)

    map_threads(make, range(len(shards)), threads=THREADS, progress=progress, size=size)
    return finish_dataset(out)


def _samples_of(shard: NewShard, rejects: list[Reject]) -> Iterator[bytes]:
    """Yields the samples of a shard; those that its change rejects are appended to `rejects`."""
    for selection in shard.selections:
        store, tar = selection.source.store, selection.source.units[selection.unit].tar
        for sample in verified_samples(
            partial(store.get_range, tar), selection.records, f"{store.url}/{tar}"
        ):
            made = shard.change(sample) if shard.change is not None else sample
            if isinstance(made, Reject):
                rejects.append(made)
            else:
                yield made


def with_split(data: bytes, split: str) -> bytes:
    """Returns a sample with another `split` in its description, its first member; all other bytes stay."""
    size = int(data[124:135], 8)
    meta = parse_stored(data[BLOCK : BLOCK + size])
    text = layout.canonical_json({**meta, "split": split})
    name = data[:100].split(b"\0", 1)[0].decode("ascii")
    return header(name, len(text)) + text + padding(len(text)) + data[BLOCK + size + (-size % BLOCK) :]


def check_stores(outs: Sequence[Store], sources: Sequence[Dataset]) -> None:
    """Raises UsageError where a source is given twice, or is to be written to."""
    urls = [source.url.rstrip("/") for source in sources]
    for out in outs:
        if out.url.rstrip("/") in urls:
            raise UsageError(f"{out.url} is one of the sources: use another output")
    for number, url in enumerate(urls):
        if url in urls[:number]:
            raise UsageError(f"{url} is given twice")


def shared_info(sources: Sequence[Dataset]) -> dict[str, Any]:
    """Returns the fields of dataset.json in which all sources agree.

    Raises UsageError where sources differ in a setting in which they must not.
    """
    for other in sources[1:]:
        _check_settings(sources[0], other)
    infos = [source.info for source in sources]
    versions = {
        name: " | ".join(sorted({str(info.versions.get(name, "none")) for info in infos}))
        for name in sorted({name for info in infos for name in info.versions})
    }
    part = dict(infos[0].recipe_part)
    for info in infos[1:]:
        part = _common(part, info.recipe_part)
    recipes = sorted({info.recipe for info in infos})
    return {
        "kind": infos[0].kind,
        "recipe": recipes[0] if len(recipes) == 1 else digest_of(*recipes),
        "recipe_part": part,
        "versions": versions,
        "device": " | ".join(sorted({info.device for info in infos})),
    }


def notes_of(made_by: str, sources: Sequence[Dataset]) -> dict[str, Any]:
    """Returns the notes of a dataset made from others, among them the recipe keys in which they differ."""
    values = values_of(
        [flat(source.info.recipe_part) for source in sources],
        [source.info.notes.get("differing") for source in sources],
    )
    differing = {key: several for key, several in values.items() if len(several) > 1}
    notes: dict[str, Any] = {"made_by": made_by, "made_from": [source.digest for source in sources]}
    notes |= notice_note(sources)
    return {**notes, "differing": differing} if differing else notes


def digest_of(*texts: str) -> str:
    """Returns 16 hex digits of sha256 over texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _check_settings(one: Dataset, other: Dataset) -> None:
    def settings(dataset: Dataset) -> dict[str, Any]:
        vision = dataset.info.recipe_part.get("vision", {})
        weights = dataset.info.versions.get("backbone_sha256", "") if dataset.info.kind == "features" else ""
        values = {"kind": dataset.info.kind, **vision, "backbone_sha256": weights}
        return {name: value for name, value in values.items() if name not in _MAY_DIFFER}

    ours, theirs = settings(one), settings(other)
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise UsageError(
                f"{one.url} and {other.url} are not alike: {name} is {ours.get(name)} in the one and "
                f"{theirs.get(name)} in the other; precompute one of them again with the other's recipe"
            )


def _common(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both: dict[str, Any] = {}
    for name in sorted(one.keys() & other.keys()):
        if isinstance(one[name], Mapping) and isinstance(other[name], Mapping):
            both[name] = _common(one[name], other[name])
        elif one[name] == other[name]:
            both[name] = one[name]
    return both
