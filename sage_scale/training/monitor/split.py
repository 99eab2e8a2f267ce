"""Where a launched process becomes two: a rank that trains, and the sentinel that watches it (rank_monitor.py)."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import tempfile

from sage_scale.training.monitor import rank_status
from sage_scale.training.monitor.rank_monitor import RankMonitor
from sage_scale.untrusted.printer import tell


def start_rank_monitor(stage: str) -> None:
    """Split this process: returns in the child, which trains; the parent watches and ends with the exit code.

    `SAGE_WATCHDOG=0` leaves it whole, for debuggers. Call it before threads are started.
    """
    if os.environ.get("SAGE_WATCHDOG", "1") == "0" or not hasattr(os, "fork"):
        return
    stacks = tempfile.TemporaryFile()  # noqa: SIM115 - both processes keep it for life
    read_end, write_end = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _die_with(parent)
        faulthandler.enable(stacks)
        faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)
        rank_status.attach(write_end, stacks)
        return
    os.close(write_end)
    code = 1
    try:
        code = RankMonitor(stage, child, read_end, stacks).run()
    except BaseException as error:  # a fault of ours must not leave a rank without guard
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
        tell(f"sage-scale {stage}: the watchdog failed: {type(error).__name__}: {error}")
        if os.environ.get("SAGE_DEBUG", "") not in ("", "0"):
            raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
