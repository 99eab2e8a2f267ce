"""One run, one launcher: a run folder is held by the process that trains in it.

A launcher that was killed leaves ranks that save before they end. The same command, given again at once, waits for
them; and a command that was typed twice is refused, rather than both writing the same checkpoints.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import tell

WAIT_S = 45.0
"""How long the ranks of a run before may take to save and end, seconds."""

_held: list[int] = []


def claim(run: str | Path, wait_s: float = WAIT_S) -> None:
    """Hold the run folder, where there is one, until this process ends (called by rank 0).

    Raises UsageError where another process on this or, on a shared file system, another machine still holds it.
    """
    try:
        import fcntl

        folder = os.open(run, os.O_RDONLY)
    except (ImportError, OSError):
        return  # nothing there yet that two could write to
    end = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(folder)
                raise UsageError(
                    f"{run} is in use: another process trains in it; wait for it, or choose another --run"
                ) from None
            if not told:
                told = True
                tell(f"waiting for the processes that still hold {run}")
            time.sleep(0.2)
        except OSError:
            os.close(folder)
            return  # a file system without locks
        else:
            _held.append(folder)
            return
