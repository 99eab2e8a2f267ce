"""A job that gives each clip files of its own (keypoints, segments), by the actors, pool and schedule of precompute.

**Exactly once.** A clip's files are pure functions of its bytes and of the job's settings; each is stored by one
conditional PUT, so that of several writers one wins, with the same bytes. A clip is done when all its files are there,
which one listing shows: a kill leaves whole files only, and the same command makes those that are missing.
`_settings.json` is stored before the first file; another job's settings are refused. Reject clips have no file, are
tried again each time, and stand in `_rejects.jsonl` once the job has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import ClipRejected, Reject, StorageError, UsageError, or_rejected
from sage_scale.precompute.environment import Environment, differences, shown_changes
from sage_scale.precompute.plan import Unit, without_repeats
from sage_scale.precompute.pool import new_actor, ray_actors
from sage_scale.precompute.progress import ClipDone, Event, FileCounts, FramesDone, JobProgress, UnitDone
from sage_scale.precompute.schedule import RejectLimit, Schedule
from sage_scale.precompute.worker import GIVEN_UP, CurrentClip, Worker
from sage_scale.storage import NotFound, Store, open_to_write
from sage_scale.storage.store import is_name
from sage_scale.untrusted.display import duration, shortened
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object
from sage_scale.vision.video_frames import DecodeStats

SETTINGS, REJECTS = "_settings.json", "_rejects.jsonl"
CLIPS_PER_UNIT = 64
"""Most clips of a unit, all of one video: it is what an actor begins again after a kill."""
_SHOWN = 10
"""Rejects that are printed."""


@dataclass(frozen=True, kw_only=True)
class ClipFiles:
    """The files of one clip."""

    files: Mapping[str, bytes]
    """Suffix, such as `.npz` -> content."""
    frames: int
    """Frames that were worked on."""
    seconds: float
    """Length of the clip, seconds."""
    segments: int = 0
    """Signs found, where signs are looked for."""


class FileMaker(Protocol):
    """Makes the files of clips in an actor; sent to it unloaded, so it must be small and picklable."""

    stage: str
    """Name of the work in progress, one of `progress.STAGES`."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of every clip's files."""
        ...

    def load(self) -> Mapping[str, str]:
        """Loads models. Returns versions and hashes that decide the bytes. Raises SageError where it cannot."""

    def make(self, clip: Clip, stats: DecodeStats) -> ClipFiles:
        """Returns the files of a clip. Raises ClipRejected for its faults, other errors for the machine's.

        In a long clip it calls `stats.part` every few seconds.
        """


def file_name(clip: Clip) -> str:
    """Returns the name of a clip's files without the suffix: its id, or its key where a store has no such path."""
    return clip.id if is_name(clip.id) and clip.id[0] != "_" else clip.key


class FileWorker(Worker):
    """Makes and stores the files of a unit's clips."""

    def __init__(self, *given: Any, files: FileMaker) -> None:
        """`given` as of Worker."""
        super().__init__(*given)
        self.files = files

    def environment(self) -> Environment:
        """Returns the versions of the files' maker. Raises SageError where it cannot work on this machine."""
        self.check_root()
        return Environment(versions=dict(self.files.load()), device="", tagger="")

    def make(
        self,
        unit: Unit,
        digest: str,
        tar_stored: bool,
        alone: bool,
        report: Callable[[Event], None],
        current: CurrentClip,
    ) -> UnitDone:
        """Makes the files of a unit; `report` takes its clips' events. Raises any error of the machine."""
        counts: Counter[str] = Counter()
        in_parts = 0

        def part(frames: int, share: float) -> None:
            nonlocal in_parts
            in_parts += frames
            report(FramesDone(clip=current.next_id, frames=frames, share=share))

        self.stats.part = part
        for clip in unit.clips:
            current.next_id, in_parts = clip.id, 0
            begun = time.perf_counter()
            try:
                made = or_rejected(self._made, clip)
            except OSError as error:
                raise StorageError(f"clip '{clip.id}' cannot be read: {error}") from error
            spent = {self.files.stage: time.perf_counter() - begun}
            if isinstance(made, ClipRejected):
                reject = self.rejected(clip.id, made.reason, made.detail)
                counts["rejects"] += 1
                report(ClipDone(clip=clip.id, reason=reject.reason, detail=reject.detail, stages=spent))
                continue
            begun = time.perf_counter()
            for suffix, data in made.files.items():
                self.store.put_if_absent(file_name(clip) + suffix, data)
            counts.update(samples=1, frames=made.frames, segments=made.segments)
            counts["bytes"] += sum(map(len, made.files.values()))
            spent["write"] = time.perf_counter() - begun
            notes = self.stats.take_notes()
            report(
                ClipDone(
                    clip=clip.id,
                    frames=made.frames - in_parts,
                    seconds=made.seconds,
                    stages=spent,
                    notes=notes,
                )
            )
        current.clear()
        names = ("samples", "rejects", "frames", "segments", "bytes")
        return UnitDone(marker=FileCounts(unit=unit.number, **{name: counts[name] for name in names}))

    def _made(self, clip: Clip) -> ClipFiles:
        if clip.id in self.give_up:
            raise ClipRejected(GIVEN_UP, "rejected by hand with --give-up")
        return self.files.make(clip, self.stats)


@dataclass(frozen=True, kw_only=True)
class FileSummary:
    """What a job has made."""

    url: str
    clips: int
    """Clips with all their files, of this run and earlier ones."""
    made: int
    """Clips of this run."""
    rejects: tuple[Reject, ...]
    frames: int
    """Frames of this run."""
    video_s: float
    """Seconds of video of this run."""
    seconds: float
    """Wall-clock seconds of this run."""
    stages: str = ""

    def line(self) -> str:
        """Returns the summary in one line."""
        reasons = Counter(reject.reason for reject in self.rejects)
        named = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        return (
            f"{self.url}: {self.clips:,} clips, {len(self.rejects):,} rejects{f' ({named})' if named else ''}; "
            f"{self.made:,} of them in this run, {self.frames:,} frames, {duration(self.video_s)} of video, "
            f"done in {duration(self.seconds)}"
        )

    def first_rejects(self) -> list[str]:
        """Returns a line on each of the first rejects, and one on the file that names all where there are more."""
        lines = [
            f"rejected: '{shortened(row.id)}': {row.reason} ({row.detail})" for row in self.rejects[:_SHOWN]
        ]
        more = [f"{len(self.rejects):,} are rejected; {self.url}/{REJECTS} names all"]
        return lines + (more if len(self.rejects) > _SHOWN else [])


class _Progress(JobProgress):
    """Also keeps each clip's reject. The time left follows bytes: lengths of videos differ by a thousand times."""

    def __init__(self, sizes: Mapping[str, float], **settings: Any) -> None:
        """`sizes` are the bytes of the clips to work on, by id."""
        super().__init__(**settings)
        self.rejected: dict[str, ClipDone] = {}
        self._sizes, self._shares = sizes, dict[str, float]()

    def clip(self, unit: Unit, event: ClipDone) -> None:
        if event.reason:
            self.rejected[event.clip] = event
        self._shares[event.clip] = 1.0
        super().clip(unit, event)

    def part(self, event: FramesDone) -> None:
        self._shares[event.clip] = event.share
        super().part(event)

    @property
    def left_s(self) -> float | None:
        done = sum(share * self._sizes[clip] for clip, share in self._shares.items())
        return self._working_s * (sum(self._sizes.values()) / done - 1) if done > 0 else None


@dataclass(kw_only=True)
class FileJob:
    """Gives each clip of a manifest its files."""

    recipe: Recipe
    """Its sections `precompute` and `shards.max_reject_rate` count."""
    manifest: Manifest
    url: str
    """Folder, file:// or s3://bucket/prefix."""
    files: FileMaker
    settings: Mapping[str, Any]
    """What decides the bytes, beside the clip and the versions that `files.load` returns."""
    unit_name: str = "videos"
    """The plural of what progress counts as units."""
    give_up: frozenset[str] = frozenset()
    events: Path | None = None
    quiet: bool = False
    worker: type[FileWorker] = FileWorker

    def __post_init__(self) -> None:
        self.manifest = without_repeats(self.manifest)
        unknown = sorted(self.give_up - {clip.id for clip in self.manifest.clips})
        if unknown:
            raise UsageError(f"--give-up {unknown[0]}: no clip of that id")
        self.store: Store = open_to_write(self.url)
        expected = sum(row.expected for row in self.manifest.rejected)
        rows = len(self.manifest.clips) + len(self.manifest.rejected) - expected
        again = "repeat the command"
        self.limit = RejectLimit(self.recipe.shards.max_reject_rate, rows, expected, again)

    def execute(self) -> FileSummary:
        """Make what is not there yet. Raises UsageError for other settings, UnitsOpen, TooManyRejects."""
        begun = time.monotonic()
        self._check_settings()
        listed = {entry.name for entry in self.store.list()}
        left = [clip for clip in self.manifest.clips if not self._is_done(clip, listed)]
        events, made, frames, video_s, stages = dict[str, ClipDone](), 0, 0, 0.0, ""
        if left:
            progress = self._run(left, len(self.manifest.clips) - len(left))
            events, frames, video_s, stages = (
                progress.rejected, progress.frames, progress.seconds, progress.stage_seconds(),
            )  # fmt: skip
            made = len(left) - len(events)
        rejects = (
            *self.manifest.rejected,
            *(
                Reject(id=e.clip, reason=e.reason, detail=e.detail)
                for e in sorted(events.values(), key=lambda e: e.clip)
            ),
        )
        lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rejects)
        self.store.put(REJECTS, "".join(lines).encode())
        clips = len(self.manifest.clips) - len(events)
        if not clips or self.limit.exceeded(len(rejects)):
            first = next((f"'{row.id}': {row.reason} ({row.detail})" for row in rejects), "")
            raise self.limit.error(len(rejects), Counter(row.reason for row in rejects), first)
        return FileSummary(
            url=self.store.url, clips=clips, made=made, rejects=rejects, frames=frames, video_s=video_s,
            seconds=time.monotonic() - begun, stages=stages,
        )  # fmt: skip

    def _run(self, left: Sequence[Clip], done: int) -> _Progress:
        units = _units(left)
        with (
            _Progress(
                _sizes(left),
                clips=len(self.manifest.clips),
                units=len(units),
                clips_before=done,
                events=self.events,
                quiet=self.quiet,
                price_per_cpu_hour=self.recipe.precompute.price_per_cpu_hour,
                unit_name=self.unit_name,
            ) as progress,
            ray_actors(self.recipe, self._actor, len(units), self._check_environment) as pool,
        ):
            Schedule(
                units,
                tries=self.recipe.precompute.max_restarts,
                progress=progress,
                limit=self.limit,
                rejects_before=len(self.manifest.rejected),
            ).run(pool)
        return progress

    def _actor(self, memory_mb: int) -> Any:
        return new_actor(self.worker, self.recipe, self.store.url, self.give_up, memory_mb, files=self.files)

    def _is_done(self, clip: Clip, listed: set[str]) -> bool:
        return all(file_name(clip) + suffix in listed for suffix in self.files.suffixes)

    def _check_settings(self, versions: Mapping[str, str] | None = None) -> None:
        """Raises UsageError where the output was begun with other settings, or (where given) other versions."""
        try:
            stored = parse_json_object(self.store.get(SETTINGS))
        except NotFound:
            return
        except InvalidJSON as error:
            raise UsageError(
                f"{self.store.url}/{SETTINGS} is damaged ({error}): use another --out, or delete the folder"
            ) from None
        ours: dict[str, Any] = {"settings": json.loads(json.dumps(self.settings))}
        if versions is not None:
            ours["versions"] = dict(versions)
        changes = [change for name in ours for change in differences(stored.get(name, {}), ours[name], "")]
        if changes:
            raise UsageError(
                f"{self.store.url} holds files of other settings: {shown_changes(changes)}. Use those values, or "
                "another --out"
            )

    def _check_environment(self, environment: Environment) -> str:
        document = {"settings": self.settings, "versions": environment.versions}
        text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        if not self.store.put_if_absent(SETTINGS, text.encode()):
            self._check_settings(environment.versions)
        return ""


def _sizes(clips: Sequence[Clip]) -> dict[str, float]:
    """Returns the bytes of each clip's video, shared among its clips; of a folder, its files as a stand-in."""
    shared = Counter(clip.video for clip in clips)
    found: dict[str, float] = {}
    for video in shared:
        found[video] = 1.0
        with contextlib.suppress(OSError, ValueError):
            size = len(os.listdir(video)) * 100_000 if os.path.isdir(video) else os.path.getsize(video)
            found[video] = max(1.0, size)
    return {clip.id: found[clip.video] / shared[clip.video] for clip in clips}


def _units(clips: Sequence[Clip]) -> list[Unit]:
    """Returns units of the clips of one video each, which is decoded by one actor at a time."""
    by_video: dict[str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.video, []).append(clip)
    parts = [
        same[first : first + CLIPS_PER_UNIT]
        for same in by_video.values()
        for first in range(0, len(same), CLIPS_PER_UNIT)
    ]
    return [Unit(number=number, split="", clips=tuple(part)) for number, part in enumerate(parts)]
