"""The plan of work units: of a manifest, and of the clips that `--extend` and `--retry-rejects` add to an output.

A work unit is one shard. Clips stay in manifest order, split by split; the clips of one video share a unit where they
fit (a video is then decoded once), and a video too long for one unit is cut between clips. Plans depend on manifest,
recipe and stored shards alone, so every driver plans the same units. Added units are planned once and stored before
any of their work is done (sage_scale.shards.addition_plan).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import Reject, is_expected
from sage_scale.parallel import map_threads
from sage_scale.shards import Dataset, UnitListing
from sage_scale.shards.addition_plan import AddedUnit, AdditionPlan
from sage_scale.shards.rejects import read_rejects, reject_key


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest size of a work unit."""

    clips: int
    frames: int
    """Expected frames; a single clip may exceed it, in a unit of its own."""
    fps: float
    """Frame rate at which durations are counted as frames."""


TRIED_LATER = "tried-later"
"""Reason of a clip in a shard that is made again after `--retry-rejects` has planned the clip in a later shard."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One shard's clips, all of one split."""

    number: int
    """Position in the plan, from 0; it names the shard."""
    split: str
    clips: tuple[Clip, ...]
    """The clips, in the order of their samples in the tar."""
    rejected: tuple[Reject, ...] = ()
    """Manifest rows rejected while reading; they are recorded in the first unit."""
    tried_later: frozenset[str] = frozenset()
    """Ids of clips whose outcome is in a later unit: no sample of them may be in this one, even if they can be made."""

    @property
    def name(self) -> str:
        """The shard's file name without suffix: six digits or more."""
        return f"{self.number:06d}"


def plan_units(manifest: Manifest, limits: Limits) -> tuple[Unit, ...]:
    """Returns the units of `manifest`.

    Splits follow one another in order of first appearance; rows rejected while reading go to the first unit.
    """
    splits: dict[str, dict[str, list[Clip]]] = {}
    for clip in manifest.clips:
        splits.setdefault(clip.split, {}).setdefault(clip.video, []).append(clip)
    cut = [(split, clips) for split, videos in splits.items() for clips in _cut(videos.values(), limits)]
    return tuple(
        Unit(
            number=number,
            split=split,
            clips=tuple(clips),
            rejected=() if number else tuple(manifest.rejected),
        )
        for number, (split, clips) in enumerate(cut)
    )


def expected_frames(clip: Clip, fps: float) -> int:
    """Returns the frames of `clip` at `fps` by the manifest; 0 where it does not say."""
    if clip.frames > 0:
        return clip.frames
    if clip.end_s is None:
        return 0
    return max(0, round((clip.end_s - clip.start_s) * fps))


def without_repeats(manifest: Manifest) -> Manifest:
    """Returns the manifest with each id once, since ids name samples: later clips of the same id are rejected."""
    kept: dict[str, Clip] = {}
    rejected = list(manifest.rejected)
    for clip in manifest.clips:
        if clip.id in kept:
            detail = "an earlier clip of the manifest has this id"
            rejected.append(Reject(id=clip.id, reason="repeated-id", detail=detail))
        else:
            kept[clip.id] = clip
    return replace(manifest, clips=tuple(kept.values()), rejected=tuple(rejected))


def units_of(plan: AdditionPlan, clips: Mapping[str, Clip]) -> list[Unit]:
    """Returns the work units of an addition, except those with a clip that is not among `clips` (by id)."""
    return [
        Unit(
            number=number,
            split=unit.split,
            clips=tuple(clips[clip] for clip in unit.clips),
            rejected=tuple(Reject(**row) for row in unit.rejected),
        )
        for number, unit in enumerate(plan.units, start=plan.first_unit)
        if all(clip in clips for clip in unit.clips)
    ]


def with_later_tries(units: Sequence[Unit], additions: Sequence[AdditionPlan]) -> list[Unit]:
    """Returns the units with the clips that additions have planned in later units as `tried_later`."""
    last = {
        clip: number
        for addition in additions
        for number, unit in zip(addition.addition.units, addition.units)
        for clip in unit.clips
    }
    return [
        replace(
            unit, tried_later=frozenset(c.id for c in unit.clips if last.get(c.id, unit.number) > unit.number)
        )
        for unit in units
    ]


def plan_extension(
    manifest: Manifest,
    limits: Limits,
    dataset: Dataset,
    listing: UnitListing,
    additions: Sequence[AdditionPlan],
) -> AdditionPlan:
    """Plans the clips of `manifest` that are in no shard as units behind all others. Every planned unit is done.

    Clips that an earlier shard rejected are left to --retry-rejects, unless they were rejected while the corpus was
    read (a video that was not downloaded then).
    """
    rejects = _rejects_by_key(dataset)
    planned = {clip for addition in additions for clip in addition.clips}
    expected = {key for key, reject in rejects.items() if is_expected(reject.reason)}
    known = _sample_keys(dataset) | (rejects.keys() - expected)
    new = [clip for clip in manifest.clips if clip.id not in planned and clip.key not in known]
    recorded = {reject.id for reject in rejects.values()}
    rows = tuple(row for row in manifest.rejected if row.id not in recorded)
    before = {clip.id for clip in new if clip.key in expected}
    return _addition(
        manifest.digest(), Manifest(tuple(new), rows), limits, listing, dataset, additions, before
    )


def plan_retry(
    manifest: Manifest,
    limits: Limits,
    dataset: Dataset,
    listing: UnitListing,
    additions: Sequence[AdditionPlan],
    removed: Collection[str],
) -> AdditionPlan | None:
    """Plans the clips of `manifest` whose last outcome is a reject as units behind all others; None without any.

    Also clips that no shard mentions: damage may have hit the rejects of a tar. `removed` are keys of clips that were
    removed on request. All units of the manifest are done.
    """
    rejected, stored = _rejects_by_key(dataset).keys(), _sample_keys(dataset)
    again = tuple(clip for clip in manifest.clips if clip.key not in stored and clip.key not in removed)
    if not again:
        return None
    before = {clip.id for clip in again if clip.key in rejected}
    return _addition("", Manifest(again), limits, listing, dataset, additions, before)


def _addition(
    digest: str,
    manifest: Manifest,
    limits: Limits,
    listing: UnitListing,
    dataset: Dataset,
    additions: Sequence[AdditionPlan],
    before: Collection[str],
) -> AdditionPlan:
    ends = [len(dataset.info.units), *(addition.addition.units.stop for addition in additions)]
    units = tuple(
        AddedUnit(
            split=unit.split,
            clips=tuple(clip.id for clip in unit.clips),
            before=sum(clip.id in before for clip in unit.clips),
            rejected=tuple(asdict(row) for row in unit.rejected),
        )
        for unit in plan_units(manifest, limits)
    )
    first = max([*ends, *(unit + 1 for unit in listing.generation)])
    return AdditionPlan(manifest=digest, first_unit=first, units=units)


def _sample_keys(dataset: Dataset) -> set[str]:
    return {f"{key:016x}" for key in dataset.records["key"].tolist()}


def _rejects_by_key(dataset: Dataset) -> dict[str, Reject]:
    """Returns the last reject of every clip that a shard records as rejected, by key."""
    found: Iterable[tuple[Reject, ...]] = map_threads(
        lambda unit: read_rejects(dataset.store, unit), dataset.units
    )
    return {reject_key(reject): reject for rejects in found for reject in rejects}


def _cut(videos: Iterable[Sequence[Clip]], limits: Limits) -> Iterator[list[Clip]]:
    chunk: list[Clip] = []
    chunk_frames = 0
    for video in videos:
        frames = [expected_frames(clip, limits.fps) for clip in video]
        if chunk and not _fits(len(chunk) + len(video), chunk_frames + sum(frames), limits):
            yield chunk
            chunk, chunk_frames = [], 0
        for clip, count in zip(video, frames, strict=True):
            if chunk and not _fits(len(chunk) + 1, chunk_frames + count, limits):
                yield chunk
                chunk, chunk_frames = [], 0
            chunk.append(clip)
            chunk_frames += count
    if chunk:
        yield chunk


def _fits(clips: int, frames: int, limits: Limits) -> bool:
    return clips <= limits.clips and frames <= limits.frames
