"""The launchers above a rank: when one of them is gone, nobody waits for the rank any more.

DeepSpeed's launcher is two processes on one machine (the runner and `deepspeed.launcher.launch`), and a killed
runner leaves the other behind with all ranks.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LAUNCHER_PID = "SAGE_LAUNCHER_PID"
"""Environment variable: process id of our own launcher, on this machine."""
EVERY_S = 0.5


class Ancestors:
    """The launchers above this process."""

    def __init__(self) -> None:
        self._parent = os.getppid() if "LOCAL_RANK" in os.environ else 0
        self._others = _launchers_above(self._parent) if self._parent else {}
        self._asked = 0.0

    def gone(self, now: float) -> bool:
        """Whether one of them has died (looked up twice a second)."""
        if not self._parent or now - self._asked < EVERY_S:
            return False
        self._asked = now
        if os.getppid() != self._parent:
            return True
        return any(_born(pid) != born for pid, born in self._others.items())


def _launchers_above(pid: int) -> dict[int, str]:
    """Process id and time of birth of the launchers above `pid`."""
    found: dict[int, str] = {}
    ours = os.environ.get(LAUNCHER_PID, "")
    while pid > 1:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if str(pid) == ours or any(
                word.endswith((b"/deepspeed", b"deepspeed.launcher.launch")) for word in words
            ):
                found[pid] = _born(pid)
        pid = _parent_of(pid)
    return {pid: born for pid, born in found.items() if born}


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (the name before may hold blanks)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _born(pid: int) -> str:
    fields = _fields(pid)
    # A zombie has died, though its parent has not asked yet.
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else ""


def _parent_of(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if len(fields) > 1 else 0
