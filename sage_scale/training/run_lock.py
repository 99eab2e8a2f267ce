"""One run, one launcher: a run folder is held by the process that trains in it.

A launcher that was killed leaves ranks that save before they end. The same command, given again at once, waits for
them; and a command that was typed twice is refused, rather than both writing the same checkpoints.
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
"""How long the ranks of a run before may take to save and end, seconds."""


@contextlib.contextmanager
def lock_run(run: str | Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds the run folder, made where it is missing, for the time of a stage (called by rank 0).

    A folder that was made here goes again where the stage ends by an error before it wrote anything. Raises UsageError
    where another process on this or, on a shared file system, another machine holds the folder: at once where that
    one began after this one, else after `wait_s` seconds.
    """
    run = Path(run)
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    descriptor = _hold(run, time.monotonic() + wait_s)
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


def _hold(run: Path, end: float) -> int | None:
    """An open folder with a lock on it; None on a system or file system without locks."""
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
            if _same(folder, run):
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
    """Makes the run folder where it is missing. Raises UsageError where nothing can be written there."""
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


def _same(folder: int, run: Path) -> bool:
    """Whether `run` still names the open folder, which its holder may have removed meanwhile."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(folder), run.stat())
    return False


def _began_after_us(run: Path) -> bool:
    """Whether the holder began to train when this process had begun: it is no run of before that still saves."""
    try:
        return (
            run / "recipe.yaml"
        ).stat().st_mtime >= psutil.Process().create_time()  # written at each start of a stage
    except OSError:
        return True
