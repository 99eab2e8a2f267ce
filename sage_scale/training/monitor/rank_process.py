"""The process of one rank in its monitor: messages, exit status, hang location, parent launchers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from sage_scale.errors import UsageError
from sage_scale.training.monitor.diagnosis import FaultReport
from sage_scale.training.monitor.stop_requests import watch_for_notice
from sage_scale.untrusted.json_values import parse_json_object

if TYPE_CHECKING:
    from sage_scale.training.monitor.status_server import StatusServer

LAUNCHER_PID = "SAGE_LAUNCHER_PID"
"""Environment variable: process id of our own launcher, on this machine."""
ORPHAN_S = 30.0
"""Time to save and end for a rank whose launcher died, seconds."""
_STACKS_S = 1.5
"""Time for a rank to write its stacks, seconds."""
_LAUNCHERS_EVERY_S = 0.5
_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')
_COLLECTIVE = ("torch/distributed/", "deepspeed/comm/")
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class RankProcess:
    """The child `pid`, rank RANK, which sends messages through `pipe` and its stacks to the file `stacks`."""

    def __init__(
        self, stage: str, pid: int, pipe: int, stacks: IO[bytes], say: Callable[[str], None]
    ) -> None:
        self.stage, self.pid, self.say = stage, pid, say
        self.rank, self.local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
        self.host = socket.gethostname()
        self.limits: dict[str, Any] = {}
        """The recipe's `watch` section, once the rank has read it."""
        self.run_folder: Path | None = None
        self.run_url = ""
        """URL that the run folder mirrors, if any."""
        self.status_server: StatusServer | None = None
        self.stacks_file: Path | None = None
        """File of tracebacks and stacks, once they were kept."""
        self.at, self.step, self.in_phase = "starting", -1, True
        self.progressed = time.monotonic()
        self.alive = True
        self.code: int | None = None
        """Exit code that the rank announced before a normal end."""
        self._pipe, self._stacks = pipe, stacks
        os.set_blocking(pipe, False)
        self._unread = b""
        self._faults: list[FaultReport] = []
        self._failed = False
        self._signalled = False
        self._orphan_since: float | None = None
        self._launchers = Launchers()
        self._stacks_asked: tuple[float, int] | None = None
        self._stacks_taken = 0.0
        self._memory_kills = kills_for_memory()

    def poll(self, now: float) -> list[FaultReport]:
        """Read messages, check the process, and return the faults found since the last call."""
        self._read(now)
        self._check_exit()
        if self.alive:
            self._check_launchers(now)
            self._check_progress(now)
        faults, self._faults = self._faults, []
        return faults

    @property
    def over(self) -> int | None:
        """Returns the exit code of a rank that has ended, else None."""
        return None if self.alive else self.code

    def status(self, now: float) -> dict[str, Any]:
        """Returns the rank's part of a heartbeat (fields of RankState)."""
        in_long_phase = self.in_phase and self.alive and now - self.progressed < self._limit()
        return {"at": self.at, "step": self.step, "in_long_phase": in_long_phase, "over": self.over}

    def signal(self, number: int) -> None:
        """Send a signal to the rank while it runs; SIGTERM and SIGINT ask it to save and stop."""
        self._signalled = self._signalled or number in (signal.SIGTERM, signal.SIGINT)
        if self.alive:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    def ask_for_stacks(self, now: float) -> None:
        """Make the rank write its stacks; a `stalled` fault follows."""
        if self._stacks_asked is None and self.alive:
            self._stacks_asked = now, self._stacks.seek(0, os.SEEK_END)
            self.signal(signal.SIGUSR2)

    def reap(self) -> None:
        """Wait for the end of a killed rank."""
        if self.alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def _read(self, now: float) -> None:
        try:
            data = os.read(self._pipe, 1 << 20)
        except OSError:
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._handle(parse_json_object(line), now)

    def _handle(self, message: dict[str, Any], now: float) -> None:
        self.progressed = now
        if self.status_server is not None:
            self.status_server.receive(message)
        if "step" in message:
            self.step = message["step"]
            self.at, self.in_phase = f"step {self.step + 1}", False
        elif "phase" in message:
            self.in_phase = message["phase"] is not None
            self.at = message["phase"] or (f"step {self.step + 1}" if self.step >= 0 else "starting")
        elif "limits" in message:
            self.limits = limits = message["limits"]
            self.run_folder, self.run_url = Path(limits["run"]), limits["url"]
            if self.local_rank == 0 and limits["stop_notice"] != "none":
                watch_for_notice(limits["stop_notice"], limits["stop_notice_every_s"], self._preempt)
            if self.local_rank == 0 and limits["http_port"]:
                self._serve_status(limits["http_port"])
        elif "done" in message:
            self.code = message["done"]
        elif "failed" in message:
            own, code = message["own"], message["code"]
            kind = "collective" if message["collective"] else "asked" if code == 130 else "failed"
            text = message["failed"] if own else f"failed: {message['failed']}"
            file = "" if own else self._keep_stacks()
            self._fault(kind, text, code=code, permanent=message["permanent"], known=own, file=file)

    def _serve_status(self, port: int) -> None:
        from sage_scale.training.monitor.status_server import StatusServer  # with http.server: 3 MB

        try:
            self.status_server = StatusServer(port, self.stage, self.rank)
        except UsageError as error:
            self._fault("failed", str(error), code=error.exit_code, permanent=True, known=True)

    def _preempt(self, notice: str) -> None:
        self.say(f"{notice}; saving and stopping")
        self.signal(signal.SIGTERM)

    def _check_exit(self) -> None:
        if not self.alive:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        self.alive = False
        self._read(time.monotonic())  # its last messages
        if self.code is not None or self._failed:
            return
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            if code == 0:
                self.code = 0
            else:
                self._fault("failed", f"ended with exit code {code} and no word", file=self._keep_stacks())
            return
        number = signal.Signals(os.WTERMSIG(status))
        if self._signalled and number in (signal.SIGTERM, signal.SIGINT):
            text = f"stopped as asked ({number.name}) while {self.at}; the same command goes on from what is saved"
            self._fault("asked", text, code=130, known=True)
        elif number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            memory = number == signal.SIGKILL and kills_for_memory() > self._memory_kills
            why = ", and the kernel has killed for lack of memory on that machine" if memory else ""
            self._fault("killed", f"was killed ({number.name}{why})")
        else:
            self._fault("killed", f"crashed ({number.name})", file=self._keep_stacks())

    def _check_launchers(self, now: float) -> None:
        if self._orphan_since is None:
            if self._launchers.gone(now):
                self._orphan_since = now
                self.signal(signal.SIGTERM)
        elif now - self._orphan_since > ORPHAN_S and not self._failed:
            self._fault("killed", f"lost its launcher and did not stop within {ORPHAN_S:g} s")

    def _check_progress(self, now: float) -> None:
        if self._stacks_asked is not None:
            self._take_stacks(now, *self._stacks_asked)
        elif now - self.progressed > self._limit() and now - self._stacks_taken > 30:
            self.ask_for_stacks(now)

    def _limit(self) -> float:
        """Returns the seconds without a message before the rank counts as hung."""
        phase = "start" if self.at == "starting" else "long" if self.in_phase else "hang"
        return float(self.limits.get(f"{phase}_timeout_s", 600.0))

    def _take_stacks(self, now: float, since: float, offset: int) -> None:
        if now - since < _STACKS_S:
            return
        self._stacks_asked, self._stacks_taken = None, now
        self._stacks.seek(offset)
        where, waiting = innermost_frame(self._stacks.read().decode("utf-8", "replace"))
        state = process_state(self.pid)
        stopped = state in (*_STOPPED, psutil.STATUS_DISK_SLEEP)
        text = f"has made no progress for {now - self.progressed:.0f} s"
        if stopped:
            text += ": the system has stopped it" if state in _STOPPED else ": it waits for a disk"
        elif where:
            text += f" ({'waiting for other ranks in' if waiting else 'it is in'} {where})"
        self._fault("stalled", text, waiting=waiting, stopped=stopped, file=self._keep_stacks())

    def _fault(self, kind: str, text: str, **more: Any) -> None:
        self._failed = self._failed or kind != "stalled"  # which may turn out to be patience
        self._faults.append(FaultReport(kind, self.rank, self.host, self.at, text, **more))

    def _keep_stacks(self) -> str:
        """Copy tracebacks and stacks to the run's `faults/` (before there is a run, to the temporary folder).

        Returns the path, '' if nothing was written.
        """
        self._stacks.seek(0)
        text = self._stacks.read()
        name = f"rank-{self.rank:05d}.txt"
        path = Path(tempfile.gettempdir()) / f"sage-scale-{self.stage}-{os.getpid()}-{name}"
        if self.run_folder is not None and self.run_folder.is_dir():
            path = self.run_folder / self.stage / "faults" / name
        try:
            if text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text)
        except OSError:
            return ""
        self.stacks_file = path if text else None
        return str(path) if text else ""


class Launchers:
    """The launcher processes above this one; when one of them has died, its ranks must end.

    DeepSpeed's launcher is two processes on one machine (the runner and `deepspeed.launcher.launch`), and a killed
    runner leaves the other behind with all ranks.
    """

    def __init__(self) -> None:
        self._parent = os.getppid() if "LOCAL_RANK" in os.environ else 0
        self._others: list[psutil.Process] = []
        self._looked = 0.0
        self._late = False
        """Whether our own launcher had died before this process looked."""
        if self._parent:
            with contextlib.suppress(psutil.Error):
                parents = psutil.Process().parents()
                self._others = [process for process in parents if _is_launcher(process)]
                ours = os.environ.get(LAUNCHER_PID, "")
                self._late = ours != "" and ours not in (str(process.pid) for process in parents)

    def gone(self, now: float) -> bool:
        """Returns whether a launcher has died (checked twice a second)."""
        if not self._parent or now - self._looked < _LAUNCHERS_EVERY_S:
            return False
        self._looked = now
        # A zombie has died, though its parent has not asked yet.
        dead = (psutil.STATUS_ZOMBIE, "")
        return (
            self._late
            or os.getppid() != self._parent
            or any(not process.is_running() or process_state(process.pid) in dead for process in self._others)
        )


def _is_launcher(process: psutil.Process) -> bool:
    if str(process.pid) == os.environ.get(LAUNCHER_PID, ""):
        return True
    with contextlib.suppress(psutil.Error):
        return any(word.endswith(("/deepspeed", "deepspeed.launcher.launch")) for word in process.cmdline())
    return False


def end_with_parent(number: int) -> None:
    """Make the kernel send this process a signal when its parent dies (Linux)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def innermost_frame(stacks: str) -> tuple[str, bool]:
    """Returns the main thread's innermost frame in faulthandler's stacks, and whether it waits in a collective."""
    frames = _FRAME.findall(stacks.split("most recent call first)")[-1])  # the main thread is written last
    if not frames:
        return "", False
    waiting = any(name in path for path, _, _ in frames[:12] for name in _COLLECTIVE)
    path, line, function = next((frame for frame in frames if "sage_scale" in frame[0]), frames[0])
    return f"{function}, {'/'.join(Path(path).parts[-2:])}:{line}", waiting


def process_state(pid: int) -> str:
    """Returns psutil's status of a process, '' if it has ended."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status()
    return ""


def kills_for_memory() -> int:
    """Returns the number of out-of-memory kills in this process's cgroup (v2)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        events = (Path("/sys/fs/cgroup") / group.lstrip("/") / "memory.events").read_text()
        return int(events.split("oom_kill ")[1].split()[0])
    return 0
