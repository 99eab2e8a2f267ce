"""What a DataLoader's worker processes give, and one clear line when one of them is killed.

torch raises a RuntimeError out of a signal handler at the moment when a worker dies, wherever the trainer is: within a
collective, a checkpoint, or an import that swallows it. Here a death is news only while the trainer waits for a batch,
and before it does: the batch it has is still good.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch.utils.data
from torch.utils.data._utils import signal_handling

from sage_scale.errors import SageError

SHARED_MEMORY = "/dev/shm"

_waiting = False
"""Whether the main thread waits for a batch."""


def batches_of(loader: torch.utils.data.DataLoader) -> Generator[Any, None, None]:
    """Iterate over the loader. Raises SageError, in one line, where a worker was killed."""
    sweep_shared_memory()
    batches = iter(loader)
    _calm()
    while True:
        try:
            batch = _next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            dead = _dead(batches)
            if not dead and "DataLoader worker" not in str(error):
                raise
            sweep_shared_memory(dead)
            raise SageError(
                f"a loader worker was killed (process {', '.join(map(str, dead)) or 'unknown'}), most often for lack "
                "of memory: lower stream.workers. The run can be resumed from its last checkpoint"
            ) from None
        yield batch


def sweep_shared_memory(dead: Sequence[int] = ()) -> None:
    """Remove what killed workers left in shared memory: those named, and this user's of a minute ago and more.

    torch takes the name away from a tensor's memory right after it made it; a SIGKILL in between leaves a file.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHARED_MEMORY):
            match = re.fullmatch(r"torch_(\d+)_\d+_\d+", entry.name)
            if match:
                with contextlib.suppress(OSError):
                    status, process = entry.stat(follow_symlinks=False), int(match[1])
                    old = time.time() - status.st_mtime > 60 and not os.path.exists(f"/proc/{process}")
                    if status.st_uid == os.getuid() and (process in dead or old):
                        os.unlink(entry.path)


def _dead(batches: Any) -> list[int]:
    """Process ids of workers that have died; a connection breaks a moment before its process is gone."""
    end = time.monotonic() + 2.0
    while True:
        dead = [worker.pid for worker in getattr(batches, "_workers", ()) if not worker.is_alive()]
        if dead or time.monotonic() > end:
            return dead
        time.sleep(0.02)


def _next(batches: Iterator[Any]) -> Any:
    global _waiting
    if threading.current_thread() is not threading.main_thread():
        return next(batches)
    _waiting = True
    try:
        signal_handling._error_if_any_worker_fails()
        return next(batches)
    finally:
        _waiting = False


def _calm() -> None:
    """Let torch's handler of SIGCHLD raise only while a batch is waited for."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and getattr(handler, "__module__", "") == signal_handling.__name__:

        def only_while_waiting(number: int, frame: Any) -> None:
            if _waiting:
                handler(number, frame)

        signal.signal(signal.SIGCHLD, only_while_waiting)
