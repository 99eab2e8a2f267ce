"""Batches made by the worker processes of a DataLoader, and one clear line when a worker is killed.

torch raises a RuntimeError out of a signal handler at the moment when a worker dies, wherever the trainer is: within a
collective, a checkpoint, or an import that swallows it. Here a death is reported only while the trainer waits for a
batch, or before it does: the batch it has is still good.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
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
from sage_scale.streaming.batch import Batch, StepRequest
from sage_scale.streaming.buffers import BatchHandle, SharedBatchBuffer, SharedBufferPool, shared_buffer_for
from sage_scale.streaming.dataset import SampleDataset

SHARED_MEMORY = "/dev/shm"
READ_AHEAD = 2
"""Batches that each worker reads ahead."""

_waiting = False
"""Whether the main thread waits for a batch."""


def worker_batches(
    dataset: SampleDataset, requests: Iterator[StepRequest], workers: int, pin_memory: bool
) -> Generator[Any, None, None]:
    """Yields the batches of the requests, made by so many processes, and a SageError instead of a failed one.

    Raises SageError, in one line, where a worker was killed.
    """
    shared = shared_buffer_for(workers, multiprocessing.get_start_method())
    loader = torch.utils.data.DataLoader(
        WorkerDataset(dataset, shared),
        batch_sampler=requests,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=READ_AHEAD,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
    )
    sweep_shared_memory()
    batches = iter(loader)
    _raise_only_while_waiting()
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
        yield batch.unpack() if isinstance(batch, BatchHandle) else batch
        del batch  # while the next one is waited for, the trainer's own reference is the last


class WorkerDataset(torch.utils.data.Dataset):
    """The dataset in a worker. A SageError is a result: a DataLoader would bury its one line in a traceback."""

    def __init__(self, dataset: SampleDataset, shared: SharedBatchBuffer | None) -> None:
        self.dataset = dataset
        self.shared = shared
        self._pool: SharedBufferPool | None = None

    def __getitems__(self, request: StepRequest) -> Any:
        if self.shared is not None and self._pool is None:
            worker = torch.utils.data.get_worker_info()
            assert worker is not None
            self._pool = self.shared.pool(worker.id)
            self.dataset.allocate_by(self._pool.take)
        try:
            batch = self.dataset.__getitems__(request)
        except SageError as error:
            return error
        if not isinstance(batch, Batch):  # bytes of a WebDataset go through the pipe
            return batch
        if self._pool is not None:
            return BatchHandle.of(batch, self._pool)
        try:
            batch.share_memory()  # else the queue's own thread would, and its errors are lost
        except RuntimeError as error:
            return SageError(
                f"shared memory, through which loader workers hand over batches, is used up ({error}): "
                "make /dev/shm larger (docker run --shm-size), or set stream.workers=0"
            )
        return batch


def _unchanged(batch: Any) -> Any:
    return batch


def _begin_worker(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer decides the end of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # After the trainer was killed the pipe has no reader, and the queue's thread, for which the end of a process waits,
    # would write into it forever.
    multiprocessing.util.Finalize(None, _end_if_orphaned, args=(os.getppid(),), exitpriority=0)


def _end_if_orphaned(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)


def sweep_shared_memory(dead: Sequence[int] = ()) -> None:
    """Removes leftovers of killed workers in shared memory: of those named, and of this user's a minute ago and more.

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
    """Returns the process ids of dead workers; a connection breaks a moment before its process is gone."""
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


def _raise_only_while_waiting() -> None:
    """Lets torch's handler of SIGCHLD raise only while a batch is waited for."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and getattr(handler, "__module__", "") == signal_handling.__name__:

        def while_waiting(number: int, frame: Any) -> None:
            if _waiting:
                handler(number, frame)

        signal.signal(signal.SIGCHLD, while_waiting)
