"""Chooses the unit that runs next, and retries a failed one or leaves it open. Knows nothing of Ray.

A failed unit is tried again; a unit in which one clip was active in two crashes is retried alone. If that fails too, or
after `tries` retries, it stays open.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sage_scale.errors import TooManyRejects, UnitsOpen, UsageError
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, Event, FramesDone, JobProgress, UnitDone, UnitFailed
from sage_scale.shards.layout import REMOVED

NAMED = 5
"""Units or clips named in one message."""
FEW_REJECTS = 5
"""Rejects allowed at any `shards.max_reject_rate` above 0, unless they are most of the clips: one bad row would be more
than 2% of a corpus of some dozens."""
EARLY_REJECTS = 20
"""A job stops before its end only after more rejects than this; a small corpus is judged when it is done."""
CRASHES_BEFORE_ALONE = 2
"""A unit is retried alone once the same clip was active in so many of its failures."""


class Actors(Protocol):
    """The part of a pool (`pool.ActorPool`) that a schedule uses."""

    @property
    def idle(self) -> int: ...
    @property
    def busy(self) -> int: ...
    def want(self, units: int) -> None: ...
    def start(self, unit: Unit, tar_stored: bool, alone: bool = False) -> None: ...
    def wait(self, timeout_s: float) -> list[tuple[Unit, Event]]: ...


@dataclass(frozen=True)
class RejectLimit:
    """`shards.max_reject_rate` over a whole manifest."""

    rate: float
    clips: int
    """Clips and rows of the manifest, without the expected rejects."""
    expected: int = 0
    """Rows rejected by the recipe's filters, or gone from the web: rejects that do not count against the limit."""
    again: str = "give --retry-rejects"
    """How rejected clips are tried again."""

    def exceeded(self, rejects: int) -> bool:
        """Returns whether so many rejects, including expected ones, are too many."""
        counted = rejects - self.expected
        few = self.rate > 0 and counted <= FEW_REJECTS and 2 * counted <= self.clips
        return counted > self.rate * self.clips and not few

    def error(self, rejects: int, reasons: Counter[str], first: str = "") -> TooManyRejects:
        """Returns the error that ends the job."""
        named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        expected = f", {self.expected} of them by the recipe's filters" if self.expected else ""
        return TooManyRejects(
            f"{rejects} of {self.clips + self.expected} clips were rejected ({named}){expected}, "
            f"more than shards.max_reject_rate={self.rate:g}"
            + (f"; the first: {first}" if first else "")
            + f"; repair them and {self.again}, or raise shards.max_reject_rate"
        )


class Schedule:
    """Runs units through a pool until none is left, or none can be done any more."""

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        unmarked: Iterable[int] = (),
        tries: int,
        progress: JobProgress,
        limit: RejectLimit,
        rejects_before: int = 0,
        pause_s: Callable[[int], float] = lambda attempt: min(10.0, 0.5 * 2**attempt),
    ) -> None:
        """`units` are to be done, each retried `tries` times; of `unmarked` ones the tar is stored."""
        self._pending: deque[Unit] = deque(units)
        self._unmarked = set(unmarked)
        self._tries, self._progress, self._limit, self._pause_s = tries, progress, limit, pause_s
        self._rejects = rejects_before
        self._later: list[tuple[float, Unit]] = []
        self._alone: deque[Unit] = deque()
        self._running_alone: int | None = None
        self._failures: Counter[int] = Counter()
        self._suspects: Counter[tuple[int, str]] = Counter()
        self._clip_rejects: dict[int, list[ClipDone]] = {}
        self.open: dict[int, UnitFailed] = {}
        """Units left open, with their last failure."""

    def run(self, pool: Actors) -> None:
        """Run units until each is done or left open. Raises UnitsOpen, TooManyRejects, UsageError."""
        while left := len(self._pending) + len(self._later) + len(self._alone) + pool.busy:
            pool.want(left)
            self._start(pool)
            for unit, event in pool.wait(0.5):
                self._take(unit, event)
            self._progress.refresh()
        if self.open:
            raise UnitsOpen(self._still_open())

    def _start(self, pool: Actors) -> None:
        now = time.monotonic()
        due = [unit for when, unit in self._later if when <= now]
        self._later = [(when, unit) for when, unit in self._later if when > now]
        self._pending.extend(due)
        if self._running_alone is not None:
            return
        while self._pending and pool.idle:
            unit = self._pending.popleft()
            pool.start(unit, unit.number in self._unmarked)
        if self._alone and pool.idle and not (self._pending or self._later or pool.busy):
            unit = self._alone.popleft()
            self._running_alone = unit.number
            pool.start(unit, unit.number in self._unmarked, alone=True)

    def _take(self, unit: Unit, event: Event) -> None:
        if isinstance(event, FramesDone):
            self._progress.part(event)
            return
        if isinstance(event, ClipDone):
            self._progress.clip(unit, event)
            if event.reason and event.reason != REMOVED:
                self._reject(unit, event)
            return
        alone = self._running_alone == unit.number
        if alone:
            self._running_alone = None
        if isinstance(event, UnitDone):
            self._progress.unit(unit, event)
        else:
            # Its rejects are met again when it is done again.
            self._rejects -= len(self._clip_rejects.pop(unit.number, ()))
            self._fail(unit, event, alone)

    def _reject(self, unit: Unit, event: ClipDone) -> None:
        self._clip_rejects.setdefault(unit.number, []).append(event)
        self._rejects += 1
        if self._rejects > EARLY_REJECTS and self._limit.exceeded(self._rejects):
            first = f"clip '{event.clip}': {event.reason} ({event.detail})"
            raise self._limit.error(self._rejects, self._progress.rejects, first)

    def _fail(self, unit: Unit, event: UnitFailed, alone: bool) -> None:
        self._failures[unit.number] += 1
        failures = self._failures[unit.number]
        if event.clip:
            self._suspects[unit.number, event.clip] += 1
        suspected = event.clip and self._suspects[unit.number, event.clip] >= CRASHES_BEFORE_ALONE
        ends_run = event.kind in ("full", "usage")
        again = not (ends_run or alone or event.kind == "time-out" or failures > self._tries)
        self._progress.failure(unit, event, again)
        if again and suspected:
            self._alone.append(unit)
        elif again and event.kind == "storage":
            self._later.append((time.monotonic() + self._pause_s(failures), unit))
        elif again:
            self._pending.append(unit)
        else:
            self.open[unit.number] = event
        if event.kind == "usage":
            raise UsageError(event.message)
        if event.kind == "full":
            left = self._progress.units_left
            raise UnitsOpen(
                f"{event.message} (in unit {unit.name}; {left} of {self._progress.units} units are open)"
            )

    def _still_open(self) -> str:
        named = [
            f"{number:06d}" + (f" at clip '{failure.clip}'" if failure.clip else "") + f": {failure.message}"
            for number, failure in sorted(self.open.items())
        ]
        more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
        return (
            f"{len(named)} of {self._progress.units} units are open ({'; '.join(named[:NAMED])}{more}): run the same "
            "command again; a clip that fails each time is rejected by hand with --give-up CLIP"
        )
