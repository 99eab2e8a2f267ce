"""Events of the actors, and how a job reports them: progress on stderr, JSON lines, Ray's dashboard, a summary.

The seconds that actors (one CPU each) spend in each stage name the bottleneck and, with a price, the cost by stage.
"""

from __future__ import annotations

import string
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self
from urllib.parse import quote

from sage_scale.errors import UsageError
from sage_scale.precompute.plan import Unit
from sage_scale.shards.layout import Marker
from sage_scale.untrusted import progress as display
from sage_scale.untrusted.display import duration, json_text, printable, redacted

STAGES = ("decode", "segment", "text", "features", "encode", "write", "commit")
"""Parts of an actor's time, in the order in which a clip passes them."""
STORAGE_EVERY_S = 60.0
"""Least time between two lines about failing storage, seconds; `--events` has each failure."""
_NOTES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ClipDone:
    """One clip of the unit became a sample or a reject."""

    clip: str
    """Id of the clip."""
    reason: str = ""
    """Why it was rejected; empty for a sample."""
    detail: str = ""
    """One line about the reject."""
    frames: int = 0
    """Frames of the clip at the recipe's rate."""
    seconds: float = 0.0
    """Length of the clip's video, seconds."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each stage."""
    notes: tuple[str, ...] = ()
    """Notes on the videos read since the last clip, one line each."""


@dataclass(frozen=True, kw_only=True)
class FramesDone:
    """A part of a long clip is done; also a sign of life."""

    clip: str
    frames: int
    """Frames since the last such event of the clip."""
    share: float = 0.0
    """Share of the clip that is done; 0 where unknown."""


@dataclass(frozen=True, kw_only=True)
class FileCounts:
    """Contents of a unit whose clips have files of their own instead of a shard."""

    unit: int
    samples: int
    """Clips whose files are stored."""
    rejects: int
    frames: int
    segments: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """The unit's tar, index and marker are stored, or the files of its clips."""

    marker: Marker | FileCounts
    """The marker, as stored."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds spent in stages that belong to no single clip."""


Failure = Literal["full", "usage", "storage", "memory", "error", "killed", "time-out"]
"""full and usage end the job, since no other unit would succeed; the others are tried again."""


@dataclass(frozen=True, kw_only=True)
class UnitFailed:
    """The unit could not be finished; nothing of it is half-written."""

    kind: Failure
    message: str
    """One line."""
    clip: str = ""
    """Id of the clip that was being made, if any."""
    ends_actor: bool = False
    """The actor cannot go on and waits to be killed."""


Event = ClipDone | FramesDone | UnitDone | UnitFailed


class JobProgress:
    """Takes the events of all units and reports the state of the job. Use as a context manager."""

    def __init__(
        self,
        *,
        clips: int,
        units: int,
        clips_before: int = 0,
        units_before: int = 0,
        stream: IO[str] | None = None,
        events: Path | None = None,
        every_s: float = 5.0,
        quiet: bool = False,
        price_per_cpu_hour: float = 0.0,
        unit_name: str = "shards",
    ) -> None:
        """`clips` and `units` (of the plural `unit_name`) count the whole plan, `..._before` those of earlier runs.

        `events` is a file to append JSON lines to. Raises UsageError where it cannot be opened.
        """
        self.clips, self.units, self._unit_name = clips, units, unit_name
        self.clips_before, self.units_before = clips_before, units_before
        self.units_done = self.clips_committed = self.frames = 0
        self.clips_in_flight: Counter[int] = Counter()
        self.rejects: Counter[str] = Counter()
        self.notes: set[str] = set()  # on videos so far
        self.seconds = 0.0
        self.stages: defaultdict[str, float] = defaultdict(float)
        self.metrics: RayMetrics | None = None
        self._storage_said, self._storage_unsaid = -STORAGE_EVERY_S, 0
        self._price = price_per_cpu_hour
        self._events: IO[str] | None = None
        if events:
            try:
                self._events = events.open("a", encoding="utf-8")
            except OSError as error:
                raise UsageError(f"--events {events}: {error.strerror}") from None
        self._started = time.monotonic()
        self._working_since: float | None = None
        self._display = display.Progress(stream=stream, every_s=every_s, quiet=quiet)
        self.say = self._display.say

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.__exit__()
        if self._events:
            self._events.close()

    @property
    def clips_done(self) -> int:
        """Clips committed before and now, and those done in units that are not committed yet."""
        return self.clips_before + self.clips_committed + self.clips_in_flight.total()

    @property
    def units_left(self) -> int:
        """Units without a marker."""
        return self.units - self.units_before - self.units_done

    def clip(self, unit: Unit, event: ClipDone) -> None:
        """Count a clip of a unit that is not committed yet."""
        self.clips_in_flight[unit.number] += 1
        if self._working_since is None:
            self._working_since = time.monotonic() - sum(event.stages.values())
        self.frames += event.frames
        self.seconds += event.seconds
        for name, value in (("clips", 1), ("frames", event.frames), ("video_seconds", event.seconds)):
            self._count(name, value)
        self._spend(event.stages)
        if event.reason:
            self.rejects[event.reason] += 1
            self._count("rejects", tags={"reason": event.reason})
            self._record(
                "reject", unit=unit.number, clip=event.clip, reason=event.reason, detail=event.detail
            )
        for note in event.notes:
            if note not in self.notes:
                self.notes.add(note)
                self._record("note", unit=unit.number, note=note)
                if len(self.notes) <= _NOTES_SHOWN:
                    self.say(f"note on {note}")
                elif len(self.notes) == _NOTES_SHOWN + 1:
                    self.say("more notes on videos are left out here; --events FILE keeps all")
        self.refresh()

    def part(self, event: FramesDone) -> None:
        """Count frames of a clip that is not done yet."""
        if self._working_since is None:
            self._working_since = time.monotonic()
        self.frames += event.frames
        self.refresh()

    def unit(self, unit: Unit, event: UnitDone) -> None:
        """Count a committed unit."""
        self.clips_in_flight.pop(unit.number, None)
        self.clips_committed += len(unit.clips)
        self.units_done += 1
        self._spend(event.stages)
        counts = ("unit", "samples", "rejects", "frames", "segments", "bytes")
        self._record("unit", **{name: getattr(event.marker, name) for name in counts})
        self._count("shards")
        self._count("bytes", event.marker.bytes)
        self.refresh()

    def failure(self, unit: Unit, event: UnitFailed, again: bool) -> None:
        """Report a failed unit, whose clips no longer count as done; it is tried again or left open."""
        self.clips_in_flight.pop(unit.number, None)
        self._record(
            "failure", unit=unit.number, kind=event.kind, clip=event.clip, message=event.message, again=again
        )
        self._count("failures", tags={"kind": event.kind})
        more = ""
        if event.kind == "storage" and again:  # each unit in flight meets the same outage, again and again
            now = time.monotonic()
            if now - self._storage_said < STORAGE_EVERY_S:
                self._storage_unsaid += 1
                return
            if self._storage_unsaid:
                more = f" ({self._storage_unsaid} more since the last such line)"
            self._storage_said, self._storage_unsaid = now, 0
        where = f" at clip '{event.clip}'" if event.clip else ""
        then = "trying again" if again else "left open"
        self.say(f"unit {unit.name}{where}: {event.message}; {then}{more}")

    def refresh(self) -> None:
        """Show the state if it is time to. Call it also while nothing happens."""
        if not self._display.update(self.clips_done, self.clips, self.line):
            return
        self._record("progress", **self._state())
        if self.metrics:
            self.metrics.set("clips_left", self.clips - self.clips_done)
            self.metrics.set("shards_left", self.units_left)

    def stage_seconds(self) -> str:
        """Returns `decode 3.1 s (62%), ...`: seconds of all actors by stage, the largest first; empty before any."""
        total = sum(self.stages.values())
        spent = sorted(self._stages().items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {seconds:.1f} s ({seconds / total:.0%})" for name, seconds in spent)

    def cost(self) -> dict[str, float]:
        """Returns the cost of each stage so far, in the currency of the price; empty without a price."""
        return {name: s / 3600 * self._price for name, s in self._stages().items()} if self._price else {}

    @property
    def frames_per_s(self) -> float:
        """Frames a second since the first clip was begun."""
        return self.frames / self._working_s if self._working_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at the rate so far; None before the first clip."""
        here = self.clips_done - self.clips_before
        return self._working_s / here * (self.clips - self.clips_done) if here > 0 else None

    @property
    def _working_s(self) -> float:
        return time.monotonic() - self._working_since if self._working_since is not None else 0.0

    def line(self) -> str:
        """Returns the whole state in one line."""
        rate = "starting the actors" if self._working_since is None else f"{self.frames_per_s:,.0f} frames/s"
        parts = [
            f"{self.clips_done:,} of {self.clips:,} clips",
            f"{self.seconds / 3600:.2f} h of video",
            rate,
            f"{self.units_before + self.units_done} of {self.units} {self._unit_name}",
            f"{self.rejects.total()} rejects" + (" in this run" if self.clips_before else ""),
        ]
        if self.left_s:
            parts.append(f"{duration(self.left_s)} left")
        if cost := self.cost():
            each = " ".join(f"{name} {value:.2f}" for name, value in cost.items())
            parts.append(f"cost {sum(cost.values()):.2f} ({each})")
        if stages := self._stages():
            top, total = max(stages, key=stages.__getitem__), sum(stages.values())
            each = " ".join(f"{name} {seconds:.0f}s" for name, seconds in stages.items())
            parts.append(f"bottleneck {top} ({stages[top] / total:.0%} of {each})")
        return ", ".join(parts)

    def _stages(self) -> dict[str, float]:
        return {name: self.stages[name] for name in STAGES if self.stages[name] > 0}

    def _state(self) -> dict[str, Any]:
        return {
            "clips": self.clips_done,
            "clips_planned": self.clips,
            "video_s": round(self.seconds, 2),
            "frames": self.frames,
            "frames_per_s": round(self.frames_per_s, 1),
            "shards": self.units_before + self.units_done,
            "shards_planned": self.units,
            "rejects": dict(self.rejects),
            "left_s": None if self.left_s is None else round(self.left_s, 1),
            "stages": {name: round(seconds, 2) for name, seconds in self.stages.items()},
            "bottleneck": max(self.stages, key=self.stages.__getitem__, default=""),
            "cost": {name: round(value, 4) for name, value in self.cost().items()},
        }

    def _spend(self, stages: Mapping[str, float]) -> None:
        for name, seconds in stages.items():
            self.stages[name] += seconds
            self._count("stage_seconds", seconds, {"stage": name})

    def _count(self, name: str, value: float = 1, tags: Mapping[str, str] | None = None) -> None:
        if self.metrics:
            self.metrics.add(name, value, tags)

    def _record(self, event: str, /, **values: Any) -> None:
        if self._events:
            row = {"event": event, "at_s": round(time.monotonic() - self._started, 3), **values}
            self._events.write(json_text(row) + "\n")
            self._events.flush()


_PREFIX = "sage_scale_precompute_"
_COUNTERS = {
    "clips": ("Clips that became samples or rejects", ()),
    "frames": ("Frames at the recipe's rate", ()),
    "video_seconds": ("Seconds of video", ()),
    "rejects": ("Rejected clips", ("reason",)),
    "shards": ("Shards committed", ()),
    "bytes": ("Bytes of the tars committed", ()),
    "failures": ("Units lost, to be tried again or left open", ("kind",)),
    "stage_seconds": ("Seconds of all actors by stage", ("stage",)),
}
_GAUGES = {"clips_left": "Clips without an outcome", "shards_left": "Units without a marker"}


class RayMetrics:
    """Ray's metrics `ray_sage_scale_precompute_...` of one job, tagged with its `output`. Needs an initialised Ray."""

    def __init__(self, output: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._metrics: dict[str, Any] = {
            name: Counter(f"{_PREFIX}{name}_total", text, ("output", *keys))
            for name, (text, keys) in _COUNTERS.items()
        }
        self._metrics |= {name: Gauge(_PREFIX + name, text, ("output",)) for name, text in _GAUGES.items()}
        for metric in self._metrics.values():
            metric.set_default_tags({"output": label(output)})

    def add(self, name: str, value: float = 1, tags: Mapping[str, str] | None = None) -> None:
        """Increase a counter; 0 is passed over."""
        if value > 0:
            self._metrics[name].inc(value, {key: label(tag) for key, tag in (tags or {}).items()})

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._metrics[name].set(value)


def label(text: str) -> str:
    """Returns a metric's label: without secrets of URLs, and in ASCII, which is all that Ray takes (else as %C3%BC)."""
    return quote(redacted(printable(text)), safe=string.printable)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Contents of the dataset at the end of a job."""

    url: str
    clips: int
    rejects: int
    reasons: dict[str, int]
    segments: int
    frames: int
    fps: float
    bytes: int
    shards: int
    seconds: float
    """Wall-clock seconds of this run."""
    stages: str = ""
    """Seconds of all actors by stage; empty where nothing was left to do."""
    removed: int = 0
    """Clips that were removed on request and are left out for good."""
    kept: tuple[str, ...] = ()
    """Clips that were to be given up and are stored: shards are never changed by precompute."""

    @property
    def token_ratio(self) -> float:
        """Segments (visual tokens) per frame; .129 in the paper."""
        return self.segments / max(1, self.frames)

    def line(self) -> str:
        """Returns the summary in one line."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        return (
            f"{self.url}: {self.clips:,} clips, {self.rejects:,} rejects{f' ({reasons})' if reasons else ''}, "
            f"{f'{self.removed:,} removed on request, ' if self.removed else ''}"
            f"{self.segments:,} segments, token ratio {self.token_ratio:.3f}, "
            f"{duration(self.frames / self.fps)} of video, "
            f"{self.bytes / 1e6:,.1f} MB in {self.shards:,} shards, done in {duration(self.seconds)}"
        )
