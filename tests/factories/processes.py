"""Processes that a test or campaign started, found by a mark in their environment, and killed at random."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def marked(mark: str) -> dict[int, str]:
    """Living processes that have `NAME=value` in their environment, but this one: command lines by process id."""
    found: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                found |= {int(folder.name): line} if state != "Z" else {}
        except OSError:  # gone, or another user's
            continue
    return found


def kill(pid: int) -> bool:
    """SIGKILL; False where the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def kill_one(pids: Iterable[int], chance: random.Random) -> bool:
    """SIGKILL one of the processes; False where there is none."""
    found = list(pids)
    return bool(found) and kill(chance.choice(found))


def kill_marked(mark: str) -> None:
    """SIGKILL marked processes until none is left."""
    while left := marked(mark):
        for pid in left:
            kill(pid)
        time.sleep(0.1)


def wait_until(condition: Callable[[], object], seconds: float, pause: float = 0.05) -> bool:
    """Wait until the condition holds; False where it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True
