"""Diagnosis of a failed run: selects the rank fault that explains the others, and composes the user's line.

The functions are pure: no socket, no process, no clock. `heartbeat.py` sends the reports to rank 0's host, and
`rank_monitor.py` acts on the diagnosis. When one rank dies, all others fail in their next collective; so a diagnosis
waits briefly for the report that explains the others, and prefers first-hand reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FIRST_HAND_S = 0.7
"""Wait for a report of a lower rank after the first first-hand one, seconds."""
COLLECTIVE_S = 3.0
"""Wait for a better explanation of a failed collective, seconds."""
STACKS_S = 3.0
"""Wait for every rank's stacks when a run hangs, seconds."""
SUSPICIOUS_S = 2.5
"""Silence after which a failed collective is more likely a lost host than anything else, seconds."""

FIRST_HAND = ("failed", "killed", "absent", "lost", "asked")
_ORDER = (*FIRST_HAND, "stalled", "collective")


@dataclass(frozen=True)
class FaultReport:
    """A fault of one rank."""

    kind: str
    """failed, killed, absent, lost, asked (to stop, before it could save), stalled, or collective (second hand)."""
    rank: int
    host: str
    at: str = ""
    """The rank's activity: `step 57`, `loading the data and the model`."""
    text: str = ""
    """The fault in words."""
    code: int = 1
    """Exit code that the run ends with."""
    permanent: bool = False
    """Whether a restart would end the same way."""
    known: bool = False
    """Whether `text` is a message of this package, which needs no explanation."""
    waiting: bool = False
    """Of a stalled rank: whether it waits for others in a collective."""
    stopped: bool = False
    """Of a stalled rank: whether the system has stopped it (SIGSTOP) or it waits for a disk."""
    file: str = ""
    """Path of its traceback or stacks."""


@dataclass(frozen=True)
class Diagnosis:
    """The reason and exit code of the run's end; also the content of `ended.json`."""

    line: str
    code: int
    permanent: bool
    kind: str = ""
    rank: int = -1
    host: str = ""
    at: str = ""


@dataclass
class RankState:
    """The last heartbeat of one rank."""

    rank: int
    host: str
    heard: float
    """Time of the heartbeat, seconds."""
    at: str = "starting"
    step: int = -1
    in_long_phase: bool = False
    """Whether it is in an announced long phase, within its limit."""
    over: int | None = None
    """Exit code of a rank that has ended normally."""


@dataclass
class RankRegistry:
    """State of all ranks in rank 0's monitor; `tick` returns a diagnosis when the run must end."""

    world: int
    started: float
    contact_timeout_s: float = 20.0
    start_timeout_s: float = 600.0
    ranks: dict[int, RankState] = field(default_factory=dict)
    reports: list[FaultReport] = field(default_factory=list)
    stacks_wanted: bool = False
    """Whether the monitors must request the stacks of their ranks."""
    _first: dict[str, float] = field(default_factory=dict)
    """Time of the first report, by kind ("first hand" for all of FIRST_HAND)."""

    def record_heartbeat(self, now: float, rank: int, host: str, **status: Any) -> None:
        """Record a heartbeat with the rank's state (fields of RankState)."""
        state = self.ranks.setdefault(rank, RankState(rank, host, now))
        state.heard = now
        for name in status.keys() & {"at", "step", "in_long_phase", "over"}:
            setattr(state, name, status[name])

    def extend_timeouts(self, slept: float) -> None:
        """Extend all time-outs by `slept` seconds in which this process itself was suspended."""
        for state in self.ranks.values():
            state.heard += slept

    def report(self, now: float, report: FaultReport) -> None:
        """Record a fault; it replaces an earlier one of the same rank and kind."""
        same = (report.rank, report.kind)
        self.reports = [*(r for r in self.reports if (r.rank, r.kind) != same), report]
        self._first.setdefault("first hand" if report.kind in FIRST_HAND else report.kind, now)

    def record_disconnect(self, now: float, rank: int) -> None:
        """Record the end of a monitor's connection; without a farewell message, the monitor and its rank have died."""
        state = self.ranks.get(rank)
        if state is None or state.over is not None or any(report.rank == rank for report in self.reports):
            return
        text = "died without a word (killed, or its host went down)"
        self.report(now, FaultReport("killed", rank, state.host, state.at, text))

    @property
    def code(self) -> int | None:
        """Returns the exit code once all ranks have ended normally: 0, or 130 after a requested stop; else None."""
        codes = [state.over for state in self.ranks.values() if state.over is not None]
        return max(codes) if len(codes) == len(self.ranks) >= self.world else None

    def tick(self, now: float) -> Diagnosis | None:
        """Record missing and silent ranks as faults, and return the diagnosis if the run must end."""
        self._report_silent(now)
        waited = {kind: now - first for kind, first in self._first.items()}
        if "first hand" in waited:
            if waited["first hand"] < FIRST_HAND_S:
                return None
            return diagnose((r for r in self.reports if r.kind in FIRST_HAND), self.world)
        silent = any(now - state.heard > SUSPICIOUS_S for state in self.ranks.values() if state.over is None)
        if waited.get("collective", -1) >= (self.contact_timeout_s + 1 if silent else COLLECTIVE_S):
            return diagnose(self.reports, self.world)
        if "stalled" not in waited:
            return None
        if any(state.in_long_phase for state in self.ranks.values()):
            # One rank saves or evaluates, and the others wait for it.
            self.reports = [r for r in self.reports if r.kind != "stalled"]
            del self._first["stalled"]
            self.stacks_wanted = False
            return None
        self.stacks_wanted = True
        return diagnose(self.reports, self.world) if waited["stalled"] >= STACKS_S else None

    def _report_silent(self, now: float) -> None:
        missing = [rank for rank in range(self.world) if rank not in self.ranks]
        if missing and now - self.started > self.start_timeout_s:
            hosts = sorted({state.host for state in self.ranks.values()})
            text = (
                f"{_ranks(missing)} of {self.world} did not start within {self.start_timeout_s:g} s "
                f"(there are {_ranks(sorted(self.ranks))} on {', '.join(hosts)}): look at the launcher's lines of "
                "the missing host, and whether it reaches rank 0"
            )
            self.report(now, FaultReport("absent", missing[0], "", "starting", text, known=True))
        for state in self.ranks.values():
            silence = now - state.heard
            if state.over is None and silence > self.contact_timeout_s:
                text = f"has been silent for {silence:.0f} s: the network to it is cut, or its host is down"
                self.report(now, FaultReport("lost", state.rank, state.host, state.at, text))


def diagnose(reports: Iterable[FaultReport], world: int) -> Diagnosis:
    """Returns the diagnosis from the fault reports of a run of `world` ranks."""
    reports = sorted(reports, key=lambda r: (_ORDER.index(r.kind), not r.stopped, r.waiting, r.rank))
    cause = reports[0]
    see = f"; see {cause.file}" if cause.file else ""
    at = f"in {cause.at}" if cause.at.startswith("step ") else f"while {cause.at}"
    if cause.kind == "stalled" and cause.waiting:
        everyone = _ranks([report.rank for report in reports if report.kind == "stalled"])
        line = f"no rank makes a step: {everyone} wait for one another; {cause.text}{see}"
    elif cause.known:
        alike = [r for r in reports if r.kind == cause.kind and r.text == cause.text]
        alone = world > 1 and len(alike) < world and cause.kind == "failed" and cause.code != 2
        line = cause.text + (f" ({_ranks([cause.rank])} on {cause.host}, {at})" if alone else "")
    else:
        lost = [r.rank for r in reports if r.kind == cause.kind == "lost" and r.host == cause.host]
        text = cause.text.replace("has ", "have ", 1) if len(lost) > 1 else cause.text
        line = f"{_ranks(lost or [cause.rank])} on {cause.host} {text}{f' ({at})' if cause.at else ''}{see}"
    return Diagnosis(line, cause.code, cause.permanent, cause.kind, cause.rank, cause.host, cause.at)


def _ranks(ranks: list[int]) -> str:
    """Returns `rank 3`, `ranks 2, 3 and 7`, `ranks 0 to 15`."""
    if not ranks:
        return "no rank"
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
