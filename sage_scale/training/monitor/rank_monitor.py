"""The rank monitor: a process that monitors one rank, and ends it when the run cannot continue.

It is the parent of the process that trains. So it sees how its rank died (a thread of it would die with it), works
while the rank holds the interpreter's lock or is stopped, can end it in the middle of a collective, and decides the
exit code that the launcher sees. Monitors reach each other through rank 0's (heartbeat.py), which decides why the run
ends (diagnosis.py) and says so in one line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from sage_scale.errors import debugging
from sage_scale.training.monitor import rank_status
from sage_scale.training.monitor.diagnosis import Diagnosis, FaultReport, RankRegistry, diagnose
from sage_scale.training.monitor.heartbeat import (
    INTERVAL_S,
    HeartbeatClient,
    HeartbeatServer,
    ports,
    run_token,
)
from sage_scale.training.monitor.rank_process import RankProcess, end_with_parent
from sage_scale.training.run_place import run_place
from sage_scale.untrusted.display import json_text, message_line
from sage_scale.untrusted.printer import echo_row, tell

ENDED_FILE = "SAGE_ENDED_FILE"
"""Environment variable: where rank 0's monitor also writes why the run ended, besides `RUN/STAGE/ended.json`."""
OVER = "over"
"""Kind of the diagnosis of a run that ended normally."""
TICK_S = 0.1
SUSPENDED_S = 1.0
"""Longer ticks mean that this process was suspended, seconds."""


def start_rank_monitor(stage: str) -> None:
    """Fork: the call returns in the child, which trains; the parent monitors the child and exits with its code.

    `SAGE_WATCHDOG=0` disables the fork, for debuggers. Call it before any thread is started.
    """
    if os.environ.get("SAGE_WATCHDOG", "1") == "0" or not hasattr(os, "fork"):
        _accept_stops()
        return
    stacks = tempfile.TemporaryFile()  # noqa: SIM115 - both processes keep it for life
    read_end, write_end = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        end_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        rank_status.attach(write_end, stacks)
        _accept_stops()
        return
    os.close(write_end)
    code = 1
    try:
        kind = Rank0Monitor if int(os.environ.get("RANK", 0)) == 0 else FollowerMonitor
        code = kind(stage, child, read_end, stacks).run()
    except BaseException as error:  # an error of the monitor must not leave a rank unmonitored
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
        tell(f"sage-scale {stage}: the watchdog failed: {type(error).__name__}: {error}")
        if debugging():
            raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def _accept_stops() -> None:
    """Unblock SIGTERM, which our launcher blocks in a new rank (launcher.py)."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


class RankMonitor(ABC):
    """Monitors one rank until it ends; subclasses communicate with the other monitors."""

    def __init__(self, stage: str, child: int, pipe: int, stacks: IO[bytes]) -> None:
        self.stage = stage
        self.process = RankProcess(stage, child, pipe, stacks, self._say)
        self.rank, self.host = self.process.rank, self.process.host
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        self.master_port = int(os.environ.get("MASTER_PORT", 29500))
        self.token = run_token(self.address, self.master_port, self.world)
        self.started = time.monotonic()
        self._sent = 0.0

    def run(self) -> int:
        """Monitor the rank until it ends; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: self.process.signal(received))
        _accept_stops()
        before = time.monotonic()
        while True:
            time.sleep(TICK_S)
            now = time.monotonic()
            suspended = now - before if now - before >= SUSPENDED_S else 0.0
            before = now
            diagnosis = self.exchange(now, self.process.poll(now), suspended)
            if diagnosis is not None:
                return self._end(diagnosis)

    @abstractmethod
    def exchange(self, now: float, faults: list[FaultReport], suspended: float) -> Diagnosis | None:
        """Report the rank's faults and exchange heartbeats; returns the diagnosis (kind OVER: normal end), if any.

        Time-outs are extended by `suspended`, the seconds in which this process received no heartbeats.
        """

    @abstractmethod
    def announce(self, diagnosis: Diagnosis) -> bool:
        """Pass the diagnosis on; returns whether this monitor prints and records it."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections, with the last messages delivered."""

    def _limit(self, name: str, default: float) -> float:
        return float(self.process.limits.get(name, default))

    def _due(self, now: float) -> bool:
        if now - self._sent < INTERVAL_S and self.process.alive:
            return False
        self._sent = now
        return True

    def _end(self, diagnosis: Diagnosis) -> int:
        announces = self.announce(diagnosis)
        if diagnosis.kind != OVER:
            self.process.signal(signal.SIGKILL)
            if announces:
                self._say(diagnosis.line)
        if announces:
            self._record(diagnosis)
        self.close()
        if self.process.status_server is not None:
            self.process.status_server.close()
        self.process.reap()
        self._upload(announces)
        return diagnosis.code

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            tell(f"sage-scale {self.stage}: {message_line(line)}")

    def _record(self, diagnosis: Diagnosis) -> None:
        """Write `ended.json` of the stage, for the launcher that restarts and for later reading."""
        row = {**asdict(diagnosis), "step": self.process.step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with contextlib.suppress(OSError):
            echo_row(self.stage, {"event": "ended", **row})
        paths = [Path(os.environ[ENDED_FILE])] if ENDED_FILE in os.environ else []
        run = self.process.run_folder
        if run is not None and (run / self.stage).is_dir():
            paths.append(run / self.stage / "ended.json")
        for path in paths:
            with contextlib.suppress(OSError):
                partial = path.with_name(f"ended.{self.rank}.partial")
                partial.write_text(json_text(row, indent=1) + "\n", encoding="utf-8")
                partial.replace(path)

    def _upload(self, announces: bool) -> None:
        """Send `ended.json`, the log and this rank's stacks to the URL of the run, if it has one."""
        run, stacks = self.process.run_folder, self.process.stacks_file
        if run is None or not self.process.run_url:
            return
        names = [f"{self.stage}/ended.json"] if announces else []
        if self.rank == 0 and self.process.step >= 0:  # else the folder may be older than the URL
            names.append(f"{self.stage}/log.jsonl")
        if stacks is not None and stacks.is_relative_to(run):
            names.append(str(stacks.relative_to(run)))
        if names:
            run_place(self.process.run_url).send(*names)


class Rank0Monitor(RankMonitor):
    """Rank 0's monitor: collects all heartbeats and decides how the run ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.registry = RankRegistry(self.world, self.started)
        local = self.address.startswith("127.") or self.address == "localhost"
        self.server = HeartbeatServer(self.token, self.master_port, not local) if self.world > 1 else None

    def exchange(self, now: float, faults: list[FaultReport], suspended: float) -> Diagnosis | None:
        registry = self.registry
        registry.contact_timeout_s = self._limit("contact_timeout_s", registry.contact_timeout_s)
        registry.start_timeout_s = self._limit("start_timeout_s", registry.start_timeout_s)
        registry.extend_timeouts(suspended)
        for fault in faults:
            registry.report(now, fault)
        registry.record_heartbeat(now, self.rank, self.host, **self.process.status(now))
        if self.server is not None:
            self._receive(now, self.server)
        if self._due(now):
            self._send({"alive": self.host})
        wanted = registry.stacks_wanted
        diagnosis = registry.tick(now)
        if registry.stacks_wanted and not wanted:
            self._send({"examine": True})
            self.process.ask_for_stacks(now)
        if diagnosis is None and (code := registry.code) is not None:
            line = "the stage is done" if code == 0 else "stopped as asked, after saving"
            return Diagnosis(line, code, permanent=True, kind=OVER)
        return diagnosis

    def _receive(self, now: float, server: HeartbeatServer) -> None:
        messages, gone, stop = server.poll()
        for rank, message in messages:
            known = self.registry.ranks.get(rank)
            host = str(message.get("host") or (known.host if known else "?"))
            self.registry.record_heartbeat(now, rank, host, **(message.get("status") or {}))
            if "report" in message:
                self.registry.report(now, FaultReport(**message["report"]))
        for rank in gone:
            self.registry.record_disconnect(now, rank)
        if stop:
            self.process.signal(signal.SIGTERM)

    def _send(self, message: dict[str, Any]) -> None:
        if self.server is not None:
            self.server.send(message)

    def announce(self, diagnosis: Diagnosis) -> bool:
        if diagnosis.kind != OVER:
            self._send({"verdict": asdict(diagnosis)})
        return True

    def close(self) -> None:
        if self.server is not None:
            self.server.close()


class FollowerMonitor(RankMonitor):
    """The monitor of any other rank: sends heartbeats to rank 0's monitor, and ends its rank at its request."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        greeting = {"token": self.token, "rank": self.rank, "host": self.host}
        self.client = HeartbeatClient(greeting, self.address, self.master_port)
        self.faults: list[tuple[float, FaultReport]] = []
        self.heard: float | None = None
        """Time of the last message of rank 0's monitor; None before there is a connection."""
        self.first_host = self.address

    def exchange(self, now: float, faults: list[FaultReport], suspended: float) -> Diagnosis | None:
        if self.heard is not None:
            self.heard += suspended
        elif self.client.connection is not None:
            self.heard = now
            for _, fault in self.faults:  # those from before the connection
                self.client.send({"report": vars(fault)})
        self.faults += [(now, fault) for fault in faults if fault.kind != "stalled"]
        for fault in faults:
            self.client.send({"report": vars(fault)})
        for message in self.client.poll():
            self.heard = now
            self.first_host = message.get("alive", self.first_host)
            if "verdict" in message:
                return Diagnosis(**message["verdict"])
            if "examine" in message:
                self.process.ask_for_stacks(now)
        if self._due(now):
            self.client.send({"status": self.process.status(now)})
        code = self.process.over
        if code is None:
            return self._alone(now)
        if self.client.connection is None and now - self.process.progressed < 5:
            return None
        return Diagnosis("", code, permanent=True, kind=OVER)

    def _alone(self, now: float) -> Diagnosis | None:
        """Returns the diagnosis of a monitor without contact to rank 0's monitor."""
        timeout, patience = self._limit("contact_timeout_s", 20.0), self._limit("start_timeout_s", 600.0)
        faults = [fault for _, fault in self.faults]
        meanwhile = f"rank {self.rank} was in {self.process.at}"
        if self.client.connection is None:
            if faults and now - self.faults[0][0] > timeout:
                return diagnose(faults, self.world)
            if now - self.started <= patience:
                return None
            tried = ports(self.master_port)
            text = (
                f"could not reach rank 0 at {self.address} (ports {tried[0]} to {tried[-1]}) within {patience:g} s: "
                "it did not start, or no network"
            )
            return diagnose([FaultReport("absent", self.rank, self.host, "starting", text)], self.world)
        if not self.client.connection.open:
            text = f"died without a word (killed, or its host went down); {meanwhile}"
            return diagnose([FaultReport("killed", 0, self.first_host, "", text)], self.world)
        if self.heard is None or now - self.heard <= timeout:
            return None
        text = (
            f"rank 0 on {self.first_host} has been silent to {self.host} for {now - self.heard:.0f} s: the network to "
            f"it is cut, or its host is down; {meanwhile}"
        )
        lost = FaultReport("lost", 0, self.first_host, "", text, known=True)
        return diagnose([*(fault for fault in faults if fault.kind == "failed"), lost], self.world)

    def announce(self, diagnosis: Diagnosis) -> bool:
        if diagnosis.rank == self.rank and diagnosis.kind == "absent":
            return True
        # The first rank of each other host speaks where rank 0's monitor cannot.
        first_here = self.process.local_rank == (1 if self.first_host == self.host else 0)
        return first_here and diagnosis.rank == 0 and diagnosis.kind in ("lost", "killed")

    def close(self) -> None:
        self.client.close()
