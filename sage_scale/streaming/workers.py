"""What a DataLoader's worker processes give, and one clear line when one of them is killed.

torch raises a RuntimeError out of a signal handler at the moment when a worker dies, wherever the trainer is: within a
collective, a checkpoint, or an import that swallows it. Here a death is news only while the trainer waits for a batch,
and before it does: the batch it has is still good.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import torch.utils.data
from torch.utils.data._utils import signal_handling

from sage_scale.errors import SageError

_waiting = False
"""Whether the main thread waits for a batch."""


def batches_of(loader: torch.utils.data.DataLoader) -> Generator[Any, None, None]:
    """Iterate over the loader. Raises SageError, in one line, where a worker was killed."""
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
            raise SageError(
                f"a loader worker was killed (process {', '.join(map(str, dead)) or 'unknown'}), most often for lack "
                "of memory: lower stream.workers. The run can be resumed from its last checkpoint"
            ) from None
        yield batch


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
