"""The process that watches one rank, and ends it when the run cannot go on.

It is the parent of the process that trains (split.py). So it sees how its rank died (a thread of it would die with
it), works while the rank holds the interpreter's lock or is stopped, can end it in the middle of a collective, and
decides the exit code that the launcher sees. Rank monitors reach each other through rank 0's (heartbeat.py), which
decides why the run ends (diagnosis.py) and says so in one line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import IO, Any

from sage_scale.training.monitor.ancestors import Ancestors
from sage_scale.training.monitor.diagnosis import Diagnosis, FaultReport, RankRegistry, decide
from sage_scale.training.monitor.heartbeat import (
    EVERY_S,
    Connection,
    HeartbeatClient,
    HeartbeatServer,
    ports,
    run_token,
)
from sage_scale.training.monitor.postmortem import innermost, keep_stacks, kills_for_memory, process_state
from sage_scale.training.monitor.preemption import watch_for_notice
from sage_scale.untrusted.display import json_text, message_line
from sage_scale.untrusted.json_values import parse_json_object
from sage_scale.untrusted.printer import tell

ENDED_FILE = "SAGE_ENDED_FILE"
"""Environment variable: where rank 0's sentinel also writes why the run ended, besides `RUN/STAGE/ended.json`."""
TICK_S = 0.1
ASLEEP_S = 1.0
"""A tick that took longer was no tick, seconds."""
ORPHAN_S = 30.0
"""What a rank whose launcher died has to save in, seconds."""
_LOOK_S = 1.5
"""How long a rank has to write its stacks, seconds."""


class RankMonitor:
    """Watches the process `child`, rank RANK of WORLD_SIZE, which tells of itself through `pipe`."""

    def __init__(self, stage: str, child: int, pipe: int, stacks: IO[bytes]) -> None:
        self.stage, self.child, self.stacks = stage, child, stacks
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        self.master_port = int(os.environ.get("MASTER_PORT", 29500))
        self.host = socket.gethostname()
        self.pipe = pipe
        os.set_blocking(pipe, False)
        self.limits: dict[str, Any] = {}
        self.run_folder: Path | None = None
        now = time.monotonic()
        self.started = self.progressed = now
        self.at, self.step, self.phase = "starting", -1, True
        self.over: int | None = None
        self.reported: list[tuple[float, FaultReport]] = []
        self.alive = True
        self.told: int | None = None
        self.orphan_since: float | None = None
        self.ancestors = Ancestors()
        self._buffer = b""
        self._looking: tuple[float, int] | None = None
        self._looked = 0.0
        self._sent = 0.0
        self._out_of_memory = kills_for_memory()
        self.roll: RankRegistry | None = None
        self.listener: HeartbeatServer | None = None
        self.caller: HeartbeatClient | None = None
        self.heard: float | None = None
        self.first_host = ""
        self._join()

    def run(self) -> int:
        """Watch to the end; gives the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell_rank)
        before = time.monotonic()
        while True:
            time.sleep(TICK_S)
            now = time.monotonic()
            self._forgive(now - before)
            before = now
            self._listen_to_rank(now)
            self._wait_for_rank()
            self._look_after_rank(now)
            verdict = self._coordinate(now) if self.roll is not None else self._keep_contact(now)
            if verdict is not None:
                return self._end(verdict)
            code = self._all_over()
            if code is not None:
                return code

    def _forgive(self, slept: float) -> None:
        """A sentinel that was itself without the processor, or suspended, has missed what the others said meanwhile."""
        if slept < ASLEEP_S:
            return
        if self.roll is not None:
            self.roll.forgive(slept)
        elif self.heard is not None:
            self.heard += slept

    # The rank

    def _tell_rank(self, number: int, _: object = None) -> None:
        self.told = number
        if self.alive:
            with contextlib.suppress(OSError):
                os.kill(self.child, number)

    def _listen_to_rank(self, now: float) -> None:
        try:
            data = os.read(self.pipe, 1 << 20)
        except (BlockingIOError, OSError):
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._heed(parse_json_object(line), now)

    def _heed(self, message: dict[str, Any], now: float) -> None:
        self.progressed = now
        if "step" in message:
            self.step = message["step"]
            self.at, self.phase = f"step {self.step + 1}", False
        elif "phase" in message:
            self.phase = message["phase"] is not None
            self.at = message["phase"] or (f"step {self.step + 1}" if self.step >= 0 else "starting")
        elif "limits" in message:
            self._set_limits(message["limits"])
        elif "done" in message:
            self.over = message["done"]
        elif "failed" in message:
            self._rank_failed(message)

    def _set_limits(self, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.run_folder = Path(limits["run"])
        if self.roll is not None:
            self.roll.contact_timeout_s = limits["contact_timeout_s"]
            self.roll.start_timeout_s = limits["start_timeout_s"]
        if self.local_rank == 0 and limits["stop_notice"] != "none":
            watch_for_notice(limits["stop_notice"], limits["stop_notice_every_s"], self._notice)

    def _notice(self, text: str) -> None:
        self._say(f"{text}; saving and stopping")
        self._tell_rank(signal.SIGTERM)

    def _rank_failed(self, message: dict[str, Any]) -> None:
        kind = "collective" if message["second_hand"] else "asked" if message["code"] == 130 else "failed"
        text = message["failed"] if message["own"] else f"failed: {message['failed']}"
        self._report(
            kind,
            text,
            code=message["code"],
            permanent=message["permanent"],
            known=message["own"],
            file="" if message["own"] else self._keep_stacks(),
        )

    def _wait_for_rank(self) -> None:
        if not self.alive:
            return
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if pid == 0:
            return
        self.alive = False
        self._listen_to_rank(time.monotonic())  # its last words
        if self.over is not None or self.reported:
            return
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            if code == 0:
                self.over = 0
            else:
                self._report("failed", f"ended with exit code {code} and no word", file=self._keep_stacks())
            return
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        if self.told is not None and number in (signal.SIGTERM, signal.SIGINT):
            text = f"stopped as asked ({name}) while {self.at}; the same command goes on from what is saved"
            self._report("asked", text, code=130, known=True)
        elif number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            why = ""
            if number == signal.SIGKILL and kills_for_memory() > self._out_of_memory:
                why = ", and the kernel has killed for lack of memory on that machine"
            self._report("killed", f"was killed ({name}{why})")
        else:
            self._report("killed", f"crashed ({name})", file=self._keep_stacks())

    def _look_after_rank(self, now: float) -> None:
        if not self.alive:
            return
        if self.orphan_since is None and self.ancestors.gone(now):
            self.orphan_since = now
            self._tell_rank(signal.SIGTERM)
        elif self.orphan_since is not None and now - self.orphan_since > ORPHAN_S and not self.reported:
            self._report("killed", f"lost its launcher and did not stop within {ORPHAN_S:g} s")
        if self._looking is not None:
            self._look(now)
        elif now - self.progressed > self._limit() and now - self._looked > 30:
            self._begin_to_look(now)

    def _limit(self) -> float:
        if self.at == "starting":
            return float(self.limits.get("start_timeout_s", 600.0))
        return float(self.limits.get("long_timeout_s" if self.phase else "hang_timeout_s", 600.0))

    def _begin_to_look(self, now: float) -> None:
        if self._looking is None and self.alive:
            self.stacks.seek(0, os.SEEK_END)
            self._looking = (now, self.stacks.tell())
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGUSR2)

    def _look(self, now: float) -> None:
        assert self._looking is not None
        since, offset = self._looking
        state = process_state(self.child)
        if now - since < _LOOK_S:
            return
        self._looking, self._looked = None, now
        self.stacks.seek(offset)
        where, waiting = innermost(self.stacks.read().decode("utf-8", "replace"))
        text = f"has made no progress for {now - self.progressed:.0f} s"
        if state in "TtD":
            text += ": the system has stopped it" if state in "Tt" else ": it waits for a disk"
        elif where:
            text += f" ({'waiting for other ranks in' if waiting else 'it is in'} {where})"
        self._report("stalled", text, waiting=waiting, stopped=state in "TtD", file=self._keep_stacks())

    def _report(self, kind: str, text: str, **more: Any) -> None:
        report = FaultReport(kind, self.rank, self.host, self.at, text, **more)
        now = time.monotonic()
        if kind != "stalled":  # which may turn out to be patience
            self.reported.append((now, report))
        if self.roll is not None:
            self.roll.report(now, report)
        elif self.caller is not None:
            self.caller.send({"report": vars(report)})

    def _keep_stacks(self) -> str:
        return keep_stacks(self.stacks, self.run_folder, self.stage, self.rank)

    # The others

    def _join(self) -> None:
        token = run_token(self.address, self.master_port, self.world)
        if self.rank == 0:
            self.roll = RankRegistry(self.world, self.started)
            if self.world > 1:
                local = self.address.startswith("127.") or self.address == "localhost"
                self.listener = HeartbeatServer(token, self.master_port, everywhere=not local)
        else:
            greeting = {"token": token, "rank": self.rank, "host": self.host}
            self.caller = HeartbeatClient(greeting, self.address, self.master_port)

    def _status(self, now: float) -> dict[str, Any]:
        patient = self.phase and self.alive and now - self.progressed < self._limit()
        over = self.over if not self.alive else None
        return {"at": self.at, "step": self.step, "patient": patient, "over": over}

    def _due(self, now: float) -> bool:
        if now - self._sent < EVERY_S and self.alive:
            return False
        self._sent = now
        return True

    def _coordinate(self, now: float) -> Diagnosis | None:
        assert self.roll is not None
        self.roll.heard(now, self.rank, self.host, **self._status(now))
        if self.listener is not None:
            messages, gone, asked = self.listener.poll()
            for rank, message in messages:
                self._take_in(now, rank, message)
            for rank in gone:
                self.roll.gone(now, rank)
            if asked:
                self._tell_rank(signal.SIGTERM)
            if self._due(now):
                self.listener.send({"alive": self.host})
        examining = self.roll.examining
        verdict = self.roll.tick(now)
        if self.roll.examining and not examining:
            if self.listener is not None:
                self.listener.send({"examine": True})
            self._begin_to_look(now)
        return verdict

    def _take_in(self, now: float, rank: int, message: dict[str, Any]) -> None:
        assert self.roll is not None
        one = self.roll.seen.get(rank)
        host = str(message.get("host") or (one.host if one else "?"))
        status = message.get("status") or {}
        self.roll.heard(now, rank, host, **{name: status[name] for name in status})
        if "report" in message:
            self.roll.report(now, FaultReport(**message["report"]))

    def _keep_contact(self, now: float) -> Diagnosis | None:
        assert self.caller is not None
        connected = self.caller.line is not None
        for message in self.caller.poll():
            self.heard = now
            self.first_host = message.get("alive", self.first_host)
            if "verdict" in message:
                return Diagnosis(**message["verdict"])
            if "examine" in message:
                self._begin_to_look(now)
        line: Connection | None = self.caller.line
        if line is not None and not connected:
            self.heard = now
            for _, report in self.reported:  # what happened before there was anyone to tell
                self.caller.send({"report": vars(report)})
        if self._due(now):
            self.caller.send({"status": self._status(now)})
        return self._alone(now, line)

    def _alone(self, now: float, line: Connection | None) -> Diagnosis | None:
        """The verdict of a sentinel that hears nothing from rank 0's."""
        timeout = float(self.limits.get("contact_timeout_s", 20.0))
        where = f"{self.address} (ports {ports(self.master_port)[0]} to {ports(self.master_port)[-1]})"
        own = [report for _, report in self.reported]
        if self.over is not None and not self.alive:
            return None
        if line is None:
            patience = float(self.limits.get("start_timeout_s", 600.0))
            if own and now - self.reported[0][0] > timeout:
                return decide(own, self.world)
            if now - self.started > patience:
                text = f"could not reach rank 0 at {where} within {patience:g} s: it did not start, or no network"
                return decide([FaultReport("absent", self.rank, self.host, "starting", text)], self.world)
            return None
        first = self.first_host or self.address
        if not line.open:
            text = "died without a word (killed, or its host went down)"
            text += f"; rank {self.rank} was in {self.at}"
            return decide([FaultReport("killed", 0, first, "", text)], self.world)
        if self.heard is not None and now - self.heard > timeout:
            text = (
                f"rank 0 on {first} has been silent to {self.host} for {now - self.heard:.0f} s: the network to it "
                f"is cut, or its host is down; rank {self.rank} was in {self.at}"
            )
            report = FaultReport("lost", 0, first, "", text, known=True)
            return decide([*(r for r in own if r.kind == "failed"), report], self.world)
        return None

    # The end

    def _all_over(self) -> int | None:
        if self.roll is not None:
            code = self.roll.code
            if code is not None:
                line = "the stage is done" if code == 0 else "stopped as asked, after saving"
                self._record(Diagnosis(line, code, permanent=True, kind="over"))
                if self.listener is not None:
                    self.listener.close()
            return code
        assert self.caller is not None
        if self.over is None or self.alive:
            return None
        if self.caller.line is None and time.monotonic() - self.progressed < 5:
            return None
        self.caller.send({"status": self._status(time.monotonic())})
        self.caller.close()
        return self.over

    def _end(self, verdict: Diagnosis) -> int:
        if self.listener is not None:
            self.listener.send({"verdict": verdict.as_dict()})
        if self.alive:
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGKILL)
        says = self.rank == 0 or (verdict.rank == 0 and verdict.kind in ("lost", "killed") and self._speaks())
        if says or (verdict.rank == self.rank and verdict.kind == "absent"):
            self._say(verdict.line)
            self._record(verdict)
        if self.listener is not None:
            self.listener.close()
        if self.caller is not None:
            self.caller.close()
        if self.alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.child, 0)
        return verdict.code

    def _speaks(self) -> bool:
        """Whether this sentinel speaks for its host when rank 0's cannot."""
        return self.local_rank == (1 if self.first_host == self.host else 0)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            tell(f"sage-scale {self.stage}: {message_line(line)}")

    def _record(self, verdict: Diagnosis) -> None:
        """`ended.json` of the stage: for the launcher that restarts, and for whoever looks later."""
        row = {**verdict.as_dict(), "step": self.step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        places = [Path(os.environ[ENDED_FILE])] if ENDED_FILE in os.environ else []
        if self.run_folder is not None and (self.run_folder / self.stage).is_dir():
            places.append(self.run_folder / self.stage / "ended.json")
        for place in places:
            with contextlib.suppress(OSError):
                partial = place.with_name(f"ended.{self.rank}.partial")
                partial.write_text(json_text(row, indent=1) + "\n", encoding="utf-8")
                partial.replace(place)
