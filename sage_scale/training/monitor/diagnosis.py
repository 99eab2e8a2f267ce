"""Why a run ends: reports of its ranks, the one that explains the others, and the line a person reads.

Pure: no socket, no process, no clock. `heartbeat.py` brings the reports to rank 0's host, `rank_monitor.py` acts on the
verdict. When one rank dies, all others fail in their next collective; so a verdict waits a moment for the report
that explains the rest, and prefers what was seen first hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

FIRST_HAND_S = 0.7
"""How long a verdict waits for a report of a lower rank after the first good one, seconds."""
SECOND_HAND_S = 3.0
"""How long a failed collective waits for a better explanation, seconds."""
EXAMINED_S = 3.0
"""How long a verdict on a hanging run waits for every rank's stacks, seconds."""
SUSPICIOUS_S = 2.5
"""Silence after which a failed collective is more likely a lost host than anything else, seconds."""

FIRST_HAND = ("failed", "killed", "absent", "lost", "asked")
_ORDER = (*FIRST_HAND, "stalled", "collective")


@dataclass(frozen=True)
class FaultReport:
    """What is wrong with one rank, as somebody saw it."""

    kind: str
    """failed, killed, absent, lost, asked (to stop, before it could save), stalled, or collective (second hand)."""
    rank: int
    host: str
    at: str = ""
    """What it did: `step 57`, `loading the data and the model`."""
    text: str = ""
    """What happened, in words."""
    code: int = 1
    """Exit code that the run ends with."""
    permanent: bool = False
    """Whether starting again would end the same way."""
    known: bool = False
    """Whether `text` is one of our own messages, which say all themselves."""
    waiting: bool = False
    """Of a stalled rank: whether it waits for others in a collective."""
    stopped: bool = False
    """Of a stalled rank: whether the system has stopped it (SIGSTOP) or it waits for a disk."""
    file: str = ""
    """Where its traceback or stacks lie."""


@dataclass(frozen=True)
class Diagnosis:
    """How the run ends on every rank."""

    line: str
    code: int
    permanent: bool
    kind: str = ""
    rank: int = -1
    host: str = ""
    at: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for the wire and the run folder."""
        return asdict(self)


@dataclass
class RankStatus:
    """What is known of one rank."""

    rank: int
    host: str
    heard: float
    """When it was last heard of, seconds."""
    at: str = "starting"
    step: int = -1
    patient: bool = False
    """Whether it is in an announced long phase, within its limit."""
    over: int | None = None
    """The exit code of a rank that has ended in good order."""


@dataclass
class RankRegistry:
    """All ranks of a run as rank 0's sentinel knows them; `tick` says when and how the run has to end."""

    world: int
    started: float
    contact_timeout_s: float = 20.0
    start_timeout_s: float = 600.0
    seen: dict[int, RankStatus] = field(default_factory=dict)
    reports: list[FaultReport] = field(default_factory=list)
    examining: bool = False
    """Whether every sentinel is asked for its rank's stacks."""
    _first: dict[str, float] = field(default_factory=dict)

    def heard(self, now: float, rank: int, host: str, **status: Any) -> None:
        """A sentinel is there: its rank's step or phase."""
        one = self.seen.setdefault(rank, RankStatus(rank, host, now))
        one.heard = now
        for name in ("at", "step", "patient", "over"):
            if name in status:
                setattr(one, name, status[name])

    def forgive(self, slept: float) -> None:
        """Nobody was listened to for `slept` seconds: that is no silence of theirs."""
        for one in self.seen.values():
            one.heard += slept

    def report(self, now: float, report: FaultReport) -> None:
        """Something is wrong."""
        self.reports = [
            known for known in self.reports if (known.rank, known.kind) != (report.rank, report.kind)
        ]
        self.reports.append(report)
        kind = "first hand" if report.kind in FIRST_HAND else report.kind
        self._first.setdefault(kind, now)

    def gone(self, now: float, rank: int) -> None:
        """The connection to a sentinel ended; without a farewell it died together with its rank."""
        one = self.seen.get(rank)
        if one is None or one.over is not None or any(report.rank == rank for report in self.reports):
            return
        text = "died without a word (killed, or its host went down)"
        self.report(now, FaultReport("killed", rank, one.host, one.at, text))

    @property
    def code(self) -> int | None:
        """The exit code once every rank has ended in good order: 0, or 130 when any was stopped as asked."""
        codes = [one.over for one in self.seen.values()]
        if len(codes) < self.world or any(code is None for code in codes):
            return None
        return max(code for code in codes if code is not None)

    def tick(self, now: float) -> Diagnosis | None:
        """The verdict, as soon as there is one. Notices who never came and who fell silent."""
        self._miss(now)
        waited = {kind: now - first for kind, first in self._first.items()}
        if waited.get("first hand", -1) >= FIRST_HAND_S:
            return self._decide([r for r in self.reports if r.kind in FIRST_HAND])
        if "first hand" in waited:
            return None
        silent = any(now - one.heard > SUSPICIOUS_S for one in self.seen.values() if one.over is None)
        if waited.get("collective", -1) >= (self.contact_timeout_s + 1 if silent else SECOND_HAND_S):
            return self._decide(self.reports)
        if "stalled" in waited:
            if any(one.patient for one in self.seen.values()):
                # One rank saves or evaluates, and the others wait for it.
                self.reports = [r for r in self.reports if r.kind != "stalled"]
                del self._first["stalled"]
                self.examining = False
                return None
            self.examining = True
            if waited["stalled"] >= EXAMINED_S:
                return self._decide(self.reports)
        return None

    def _miss(self, now: float) -> None:
        missing = [rank for rank in range(self.world) if rank not in self.seen]
        if missing and now - self.started > self.start_timeout_s:
            hosts = sorted({one.host for one in self.seen.values()})
            text = (
                f"{_ranks(missing)} of {self.world} did not start within {self.start_timeout_s:g} s "
                f"(there are {_ranks(sorted(self.seen))} on {', '.join(hosts)}): look at the launcher's lines of "
                "the missing host, and whether it reaches rank 0"
            )
            self.report(now, FaultReport("absent", missing[0], "", "starting", text, known=True))
        for one in self.seen.values():
            silence = now - one.heard
            if one.over is None and silence > self.contact_timeout_s:
                text = f"has been silent for {silence:.0f} s: the network to it is cut, or its host is down"
                self.report(now, FaultReport("lost", one.rank, one.host, one.at, text))

    def _decide(self, reports: Iterable[FaultReport]) -> Diagnosis:
        return decide(reports, self.world)


def decide(reports: Iterable[FaultReport], world: int) -> Diagnosis:
    """The verdict that some reports of a run of `world` ranks come to."""
    reports = sorted(reports, key=lambda r: (_ORDER.index(r.kind), not r.stopped, r.waiting, r.rank))
    cause = reports[0]
    if cause.kind == "stalled" and cause.waiting:
        everyone = _ranks([report.rank for report in reports if report.kind == "stalled"])
        line = f"no rank makes a step: {everyone} wait for one another; {cause.text}{_see(cause.file)}"
    elif cause.known:
        alike = [r for r in reports if r.kind == cause.kind and r.text == cause.text]
        alone = world > 1 and len(alike) < world and cause.kind == "failed" and cause.code != 2
        line = cause.text + (f" ({_who([cause])}, {_at(cause.at)})" if alone else "")
    else:
        together = [r for r in reports if r.kind == cause.kind == "lost" and r.host == cause.host]
        text = cause.text.replace("has ", "have ", 1) if len(together) > 1 else cause.text
        line = f"{_who(together or [cause])} {text}"
        line += f" ({_at(cause.at)})" if cause.at else ""
        line += _see(cause.file)
    return Diagnosis(line, cause.code, cause.permanent, cause.kind, cause.rank, cause.host, cause.at)


def _who(reports: list[FaultReport]) -> str:
    return f"{_ranks([report.rank for report in reports])} on {reports[0].host}"


def _ranks(ranks: list[int]) -> str:
    """`rank 3`, `ranks 2, 3 and 7`, `ranks 0 to 15`."""
    if not ranks:
        return "no rank"
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _at(at: str) -> str:
    return f"in {at}" if at.startswith("step ") else f"while {at}"


def _see(file: str) -> str:
    return f"; see {file}" if file else ""
