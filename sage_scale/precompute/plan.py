"""The plan of work units: a pure function of manifest and recipe.

A work unit is one shard. Clips stay in manifest order, split by split; the clips of one video share a unit where
they fit (a video is then decoded once), and a video too long for one unit is cut between clips. Nothing here looks
at a file, a machine or a clock, so every driver, on whatever machine and after whatever kill, plans the same units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sage_scale.corpora.manifest import Clip, Manifest, Rejected


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large a work unit may be."""

    clips: int
    """At most this many clips a unit."""
    frames: int
    """At most this many expected frames a unit; a single clip may exceed it, in a unit of its own."""
    fps: float
    """Frame rate at which durations are counted as frames."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One shard's worth of clips, all of one split."""

    number: int
    """Position in the plan, from 0; it names the shard."""
    split: str
    """Split of every clip in the unit."""
    clips: tuple[Clip, ...]
    """The clips, in the order in which their samples stand in the tar."""
    rejected: tuple[Rejected, ...] = ()
    """Manifest rows set aside while reading; they are recorded in the first unit."""

    @property
    def name(self) -> str:
        """The shard's file name without suffix: six digits or more."""
        return f"{self.number:06d}"


def expected_frames(clip: Clip, fps: float) -> int:
    """Frames the manifest promises for `clip` at `fps`; 0 where it says nothing."""
    if clip.frames > 0:
        return clip.frames
    if clip.end_s is None:
        return 0
    return max(0, round((clip.end_s - clip.start_s) * fps))


def plan_units(manifest: Manifest, limits: Limits, first: int = 0) -> tuple[Unit, ...]:
    """The units of `manifest`, numbered from `first`.

    Splits follow one another in order of first appearance; rows rejected while reading go to the first unit.
    """
    units: list[Unit] = []
    for split, clips in _by_split(manifest.clips).items():
        for chunk in _chunks(_by_video(clips), limits):
            units.append(Unit(number=first + len(units), split=split, clips=tuple(chunk)))
    if units and manifest.rejected:
        head = units[0]
        units[0] = Unit(number=head.number, split=head.split, clips=head.clips, rejected=manifest.rejected)
    return tuple(units)


def without_repeats(manifest: Manifest) -> Manifest:
    """The manifest with each id once: a later clip of the same id is set aside, since ids name samples."""
    kept: dict[str, Clip] = {}
    rejected = list(manifest.rejected)
    for clip in manifest.clips:
        if clip.id in kept:
            rejected.append(
                Rejected(
                    id=clip.id, reason="repeated-id", detail="an earlier clip of the manifest has this id"
                )
            )
        else:
            kept[clip.id] = clip
    return Manifest(tuple(kept.values()), tuple(rejected))


def _by_split(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.split, []).append(clip)
    return groups


def _by_video(clips: Iterable[Clip]) -> list[list[Clip]]:
    # Equality of the video's place does not depend on the root under which it lies.
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.video, []).append(clip)
    return list(groups.values())


def _chunks(videos: Sequence[Sequence[Clip]], limits: Limits) -> Iterator[list[Clip]]:
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
