"""The run lock: at most one job trains in a run folder.

Ranks of a killed launcher still save before they exit. The same command, started again at once, waits for them. Of
two identical commands started together one is refused, so that they do not write the same checkpoints.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import tell

WAIT_S = 45.0
"""Time to save and end for the ranks of an earlier run, seconds."""


@contextlib.contextmanager
def lock_run(run: str | Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock of the run folder during a stage, creating the folder if missing (called by rank 0).

    A folder created here is removed if the stage fails before it wrote anything. Raises UsageError if another process
    (on a shared file system also of another machine) holds the lock: at once if that process began after this one,
    else after `wait_s` seconds.
    """
    run = Path(run)
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    descriptor = _lock(run, time.monotonic() + wait_s)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: it stays
            for folder in made:
                folder.rmdir()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_locked(run: Path) -> bool:
    """Returns whether a process of this machine trains in the run folder now."""
    try:
        import fcntl

        folder = os.open(run, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(folder)
    return False


def _lock(run: Path, end: float) -> int | None:
    """Returns the locked file descriptor of the folder; None on a system or file system without locks."""
    told = False
    while True:
        _make(run)
        try:
            import fcntl

            folder = os.open(run, os.O_RDONLY)
        except (ImportError, OSError):
            return None
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # its holder may have removed the folder meanwhile
                if os.path.samestat(os.fstat(folder), run.stat()):
                    return folder
        except BlockingIOError:
            if _began_after_us(run) or time.monotonic() > end:
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
            return None
        os.close(folder)


def _make(run: Path) -> None:
    """Create the run folder if missing. Raises UsageError if it is not writable."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not os.access(run, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
            raise
        raise UsageError(
            f"--run {run} cannot be made or written to ({error.strerror}): name another folder"
        ) from None


def _began_after_us(run: Path) -> bool:
    """Returns whether the holder started after this process: then it is not an earlier job that still saves."""
    try:
        # recipe.yaml is written at each start of a stage.
        return (run / "recipe.yaml").stat().st_mtime >= psutil.Process().create_time()
    except OSError:
        return True
