"""Progress of a preprocessing run: a bar on a terminal, a plain line every few seconds elsewhere, JSON events.

Counted are clips, hours of video, frames a second, shards, rejects and the time left; the seconds that the actors (one
CPU each) spent in each stage say which one is the bottleneck and, with a price, what each has cost so far. The same
figures go to Ray's dashboard (metrics.py).
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sage_scale.errors import UsageError
from sage_scale.precompute.events import STAGES, ClipDone, UnitDone, UnitFailed
from sage_scale.precompute.metrics import RayMetrics
from sage_scale.precompute.plan import Unit
from sage_scale.shards.layout import Marker
from sage_scale.untrusted.display import json_text
from sage_scale.untrusted.printer import console, tell

PLAIN_EVERY_S = 5.0
BAR_EVERY_S = 0.2
_NOTES_SAID = 10
STORAGE_EVERY_S = 60.0
"""At most one line in so many seconds about storage that fails; `--events` has each failure."""


class Progress:
    """Takes the events of all units and shows where the run stands. Use as a context manager."""

    def __init__(
        self,
        *,
        clips: int,
        units: int,
        clips_before: int = 0,
        units_before: int = 0,
        stream: IO[str] | None = None,
        events: Path | None = None,
        every_s: float = PLAIN_EVERY_S,
        quiet: bool = False,
        price_per_cpu_hour: float = 0.0,
    ) -> None:
        """`clips` and `units` are the whole plan; `..._before` were committed by earlier runs."""
        self.clips, self.units = clips, units
        self.clips_before, self.units_before = clips_before, units_before
        self.units_done = 0
        self.clips_committed = 0
        self.clips_in_flight: Counter[int] = Counter()
        self.rejects: Counter[str] = Counter()
        self.notes: set[str] = set()
        """What was said of videos."""
        self.frames = 0
        self.seconds = 0.0
        self.stages: defaultdict[str, float] = defaultdict(float)
        self._storage_said, self._storage_unsaid = -STORAGE_EVERY_S, 0
        self.metrics: RayMetrics | None = None
        """Where the figures go beside; None for nowhere."""
        self._price = price_per_cpu_hour
        self._stream = stream or sys.stderr
        self._events: IO[str] | None = _append(events) if events else None
        self._started = time.monotonic()
        self._working_since: float | None = None
        self._every_s = every_s
        self._last = self._drawn = self._started
        self._quiet = quiet
        self._bar = _bar(self._stream, clips) if _is_terminal(self._stream) and not quiet else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._refresh()
            self._bar[0].stop()
        if self._events:
            self._events.close()

    @property
    def clips_done(self) -> int:
        """Clips committed before and now, and those done in units still in the making."""
        return self.clips_before + self.clips_committed + self.clips_in_flight.total()

    @property
    def units_left(self) -> int:
        """Units without a marker."""
        return self.units - self.units_before - self.units_done

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def clip(self, unit: Unit, event: ClipDone) -> None:
        """A clip of a unit in the making is done."""
        self.clips_in_flight[unit.number] += 1
        if self._working_since is None:
            self._working_since = time.monotonic() - sum(event.stages.values())
        self.frames += event.frames
        self.seconds += event.seconds
        self._spend(event.stages)
        if self.metrics:
            self.metrics.add("clips")
            self.metrics.add("frames", event.frames)
            self.metrics.add("video_seconds", event.seconds)
            if event.reason:
                self.metrics.add("rejects", tags={"reason": event.reason})
        if event.reason:
            self._record(
                "reject", unit=unit.number, clip=event.clip, reason=event.reason, detail=event.detail
            )
        for note in event.notes:
            self._note(unit, note)
        self._tick()

    def _note(self, unit: Unit, note: str) -> None:
        if note in self.notes:
            return
        self.notes.add(note)
        self._record("note", unit=unit.number, note=note)
        if len(self.notes) <= _NOTES_SAID:
            self.say(f"note on {note}")
        elif len(self.notes) == _NOTES_SAID + 1:
            self.say("more notes on videos are left out here; --events FILE keeps all")

    def unit(self, unit: Unit, event: UnitDone) -> None:
        """A unit is committed."""
        self.clips_in_flight.pop(unit.number, None)
        self.clips_committed += len(unit.clips)
        self.units_done += 1
        self._spend(event.stages)
        self._record("unit", **_counts(event.marker))
        if self.metrics:
            self.metrics.add("shards")
            self.metrics.add("bytes", event.marker.bytes)
        self._tick()

    def failure(self, unit: Unit, event: UnitFailed, again: bool) -> None:
        """A unit was lost; its clips no longer count as done."""
        self.clips_in_flight.pop(unit.number, None)
        self._record(
            "failure", unit=unit.number, kind=event.kind, clip=event.clip, message=event.message, again=again
        )
        if self.metrics:
            self.metrics.add("failures", tags={"kind": event.kind})
        more = ""
        if event.kind == "storage" and again:  # every unit in flight meets the same outage, again and again
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

    def say(self, text: str) -> None:
        """One line of its own."""
        if self._quiet:
            return
        if self._bar:
            self._bar[0].console.print(text)
        else:
            tell(text, stream=self._stream)

    def idle(self) -> None:
        """Called while nothing happens, so that the display keeps moving."""
        self._tick()

    def bottleneck(self) -> str:
        """`decode 3.1 s (62%), ...`: seconds of all actors by stage, the largest first; empty before the first clip."""
        total = sum(self.stages.values())
        if total <= 0:
            return ""
        order = sorted(
            (name for name in STAGES if self.stages[name] > 0), key=lambda name: -self.stages[name]
        )
        return ", ".join(
            f"{name} {self.stages[name]:.1f} s ({self.stages[name] / total:.0%})" for name in order
        )

    def cost(self) -> dict[str, float]:
        """What each stage has cost so far, in the currency of the price; empty without a price."""
        if not self._price:
            return {}
        return {name: seconds / 3600 * self._price for name, seconds in self.stages.items() if seconds > 0}

    @property
    def frames_per_s(self) -> float:
        """Frames a second since the first clip was begun."""
        elapsed = self._working_s
        return self.frames / elapsed if elapsed > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds that are left at the pace so far; None before the first clip."""
        here = self.clips_done - self.clips_before
        return self._working_s / here * (self.clips - self.clips_done) if here > 0 else None

    @property
    def _working_s(self) -> float:
        return time.monotonic() - self._working_since if self._working_since is not None else 0.0

    def line(self) -> str:
        """The whole state in one line."""
        parts = [
            f"{self.clips_done:,} of {self.clips:,} clips",
            f"{self.seconds / 3600:.2f} h of video",
            f"{self.frames_per_s:,.0f} frames/s"
            if self._working_since is not None
            else "starting the actors",
            f"{self.units_before + self.units_done} of {self.units} shards",
            f"{self.rejects.total()} rejects" + (" in this run" if self.clips_before else ""),
        ]
        if self.left_s:
            parts.append(f"{duration(self.left_s)} left")
        cost = self.cost()
        if cost:
            each = " ".join(f"{name} {cost[name]:.2f}" for name in STAGES if name in cost)
            parts.append(f"cost {sum(cost.values()):.2f} ({each})")
        if sum(self.stages.values()) > 0:
            top, seconds = max(self.stages.items(), key=lambda item: item[1])
            parts.append(
                f"bottleneck {top} ({seconds / sum(self.stages.values()):.0%} of {self._stage_seconds()})"
            )
        return ", ".join(parts)

    def _stage_seconds(self) -> str:
        return " ".join(f"{name} {self.stages[name]:.0f}s" for name in STAGES if self.stages[name] > 0)

    def _spend(self, stages: dict[str, float]) -> None:
        for name, seconds in stages.items():
            self.stages[name] += seconds
            if self.metrics:
                self.metrics.add("stage_seconds", seconds, {"stage": name})

    def _record(self, event: str, /, **values: Any) -> None:
        if event == "reject":
            self.rejects[values["reason"]] += 1
        if self._events:
            row = {"event": event, "at_s": round(self.elapsed_s, 3), **values}
            self._events.write(json_text(row) + "\n")
            self._events.flush()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._bar and now - self._drawn >= BAR_EVERY_S:
            self._drawn = now
            self._refresh()
        if now - self._last < self._every_s:
            return
        self._last = now
        if not self._bar and not self._quiet:
            tell(self.line(), stream=self._stream)
        self._record("progress", **self._state())
        if self.metrics:
            self.metrics.set("clips_left", self.clips - self.clips_done)
            self.metrics.set("shards_left", self.units_left)

    def _state(self) -> dict[str, Any]:
        state = {
            "clips": self.clips_done,
            "clips_planned": self.clips,
            "video_s": round(self.seconds, 2),
            "frames": self.frames,
            "frames_per_s": round(self.frames_per_s, 1),
            "shards": self.units_before + self.units_done,
            "shards_planned": self.units,
            "rejects": dict(self.rejects),
            "left_s": None if self.left_s is None else round(self.left_s, 1),
            "stages": _rounded(self.stages),
            "bottleneck": max(self.stages, key=lambda name: self.stages[name], default=""),
        }
        return {**state, "cost": {name: round(value, 4) for name, value in self.cost().items()}}

    def _refresh(self) -> None:
        assert self._bar is not None
        display, task = self._bar
        display.update(task, completed=self.clips_done, line=self.line())


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3 min 20 s` or `5 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _counts(marker: Marker) -> dict[str, Any]:
    names = ("unit", "samples", "rejects", "frames", "segments", "bytes")
    return {name: getattr(marker, name) for name in names}


def _append(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--events {path}: {error.strerror}") from None


def _rounded(stages: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 2) for name, seconds in stages.items()}


def _is_terminal(stream: IO[str]) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def _bar(stream: IO[str], clips: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, Progress, TextColumn

    display = Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.fields[line]}", markup=False),
        console=console(stream),
        transient=True,
    )
    return display, display.add_task("precompute", total=clips, line="starting")
