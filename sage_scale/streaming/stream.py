"""The stream of batches that a rank trains on: the order, read ahead, with a state of two numbers and a
digest.

The state is (epoch, position in samples, digest of dataset and order). It moves when a batch is handed out,
so that a checkpoint written after a step names the next one; what was read ahead is not counted. Resuming
computes the epoch's order again (0.1 s for 10^6 samples) and starts in the middle: nothing is replayed. Batch
size, ranks and workers may all be other than before.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch.utils.data

from sage_scale.errors import CheckpointError, SageError
from sage_scale.streaming.batch import Batch, ReadCounts, StepRequest
from sage_scale.streaming.dataset import SampleDataset
from sage_scale.streaming.executor import PriorityExecutor
from sage_scale.streaming.order import Integers, check_world, rank_part
from sage_scale.streaming.shelf import BatchHandle, SharedBatchBuffer, SharedBufferPool, shared_buffer_for
from sage_scale.streaming.workers import batches_of
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

READ_AHEAD = 2
"""Batches that each worker reads ahead."""


READ_AHEAD_THREADS = 2
"""Threads that read frames ahead where there are no workers: JPEG is decoded outside the interpreter's lock. Features
are copied under it, and one thread does.
"""


class EpochOrder(Protocol):
    """What a stream needs of an order: a `Mixture`, or the sequence of an evaluation."""

    @property
    def length(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    def epoch(self, epoch: int) -> tuple[Integers, Integers]: ...
    def describe(self) -> str: ...


@dataclass(frozen=True)
class Sequence:
    """The order of an evaluation: every sample once, as they lie in the dataset, dealt out in turn."""

    length: int
    lanes: int

    def epoch(self, epoch: int) -> tuple[Integers, Integers]:
        """Sample and lane of each position."""
        positions = np.arange(self.length)
        return positions, positions % self.lanes

    def describe(self) -> str:
        """What makes this order another one."""
        return f"sequence of {self.length}"


class _Forwarding(torch.utils.data.Dataset):
    """In a worker, an error for a person is a result: a DataLoader would bury its one line in a traceback."""

    def __init__(self, dataset: SampleDataset, shelf: SharedBatchBuffer | None) -> None:
        self.dataset = dataset
        self.shelf = shelf
        self._rooms: SharedBufferPool | None = None

    def __getitems__(self, request: StepRequest) -> Batch | BatchHandle | SageError:
        if self.shelf is not None and self._rooms is None:
            worker = torch.utils.data.get_worker_info()
            assert worker is not None
            self._rooms = self.shelf.rooms(worker.id)
            self.dataset.read_into(self._rooms)
        try:
            batch = self.dataset.__getitems__(request)
        except SageError as error:
            return error
        if not isinstance(batch, Batch):  # of a WebDataset of others: bytes, which go through the pipe
            return batch
        if self._rooms is not None:
            return BatchHandle.of(batch, self._rooms)
        try:
            batch.share_memory()  # else the queue's own thread would, whose errors nobody sees
        except RuntimeError as error:
            return SageError(
                f"shared memory, through which loader workers hand over batches, is used up ({error}): "
                "make /dev/shm larger (docker run --shm-size), or set stream.workers=0"
            )
        return batch


def _same(value: Any) -> Any:
    return value


def _begin_worker(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; what happens then is the trainer's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Once the trainer was killed nobody reads the pipe, and the queue's thread, for which the end of a process waits,
    # would write into it for ever.
    multiprocessing.util.Finalize(None, _end_if_orphaned, args=(os.getppid(),), exitpriority=0)


def _end_if_orphaned(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)


class Stream(torch.utils.data.IterableDataset):
    """Batches of one rank, epoch after epoch. Iterating goes on from the state; a new iterator reads anew.

    It has loader processes of its own. A program that wants torch's takes `DataLoader(stream, batch_size=None,
    num_workers=n)`: worker i then reads the steps i, i + n, i + 2n ..., which such a loader hands out in turn, so that
    the order is the same. What to save there is `state_after(batch)`: the program's own stream stands still.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        order: EpochOrder,
        *,
        rank: int = 0,
        world: int = 1,
        batch_size: int,
        workers: int = 0,
        read_ahead: int = 0,
        pin_memory: bool = False,
        epochs: int | None = None,
        restart: bool = False,
    ) -> None:
        """`batch_size` counts the clips of all ranks. `epochs` ends the stream, None never does. `read_ahead`
        batches are read by threads where `workers` is 0. With `restart` every iterator begins at the
        beginning.
        """
        check_world(rank, world, order.lanes)
        self.dataset = dataset
        self.order = order
        self.rank, self.world = rank, world
        self.batch_size = batch_size
        self.epochs = epochs
        self.counts = ReadCounts()
        self.wait_seconds = 0.0
        self._workers = workers
        self._read_ahead = read_ahead
        # Without CUDA there is nothing to pin for, and torch refuses.
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._restart = restart
        self._skip: int | None = None
        self._epoch = 0
        self._position = 0
        self._digests = (dataset.catalog.digest(), _digest(order.describe()))

    @property
    def workers(self) -> int:
        """Loader processes of this rank."""
        return self._workers

    @property
    def samples(self) -> int:
        """Clips of an epoch, over all ranks."""
        return self.order.length

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch; the last one may be short."""
        return math.ceil(self.samples / self.batch_size)

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 0."""
        return self._epoch

    @property
    def position(self) -> int:
        """Place of the next batch in its epoch, in samples."""
        return self._position

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, after the batches handed out so far; the same on every rank."""
        state = {"epoch": self._epoch, "position": self._position, "digest": "-".join(self._digests)}
        return state if self._skip is None else {**state, "skip": self._skip}

    def state_after(self, batch: Batch) -> dict[str, Any]:
        """Where the stream stands after this batch, for programs that hand batches out by a loader of their own."""
        epoch, position = self._after(batch)
        return {"epoch": epoch, "position": position, "digest": "-".join(self._digests)}

    def _after(self, batch: Batch) -> tuple[int, int]:
        return (batch.epoch, batch.position) if batch.position < self.samples else (batch.epoch + 1, 0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to that place. Raises CheckpointError where it is of another dataset or another order."""
        try:
            epoch, position = int(state["epoch"]), int(state["position"])
            dataset, _, order = str(state["digest"]).partition("-")
            skip = None if state.get("skip") is None else int(state["skip"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's stream state is damaged ({error})") from None
        if dataset != self._digests[0]:
            raise CheckpointError(
                f"the checkpoint was made on another dataset ({dataset}) than {self.dataset.catalog.url} "
                f"({self._digests[0]}): give the one it was trained on, or start a new run"
            )
        if order != self._digests[1]:
            raise CheckpointError(
                "the checkpoint was made with another order of the samples: restore stream.seed, "
                "stream.lanes, stream.window and stream.block_mb of its recipe, or start a new run"
            )
        if epoch < 0 or not 0 <= position <= self.samples:
            raise CheckpointError(f"the checkpoint's stream position {position} lies outside the dataset")
        self._epoch, self._position, self._skip = epoch, position, skip

    def __iter__(self) -> Iterator[Batch]:
        if self._restart:
            self._epoch = self._position = 0
        requests = self._requests(self._epoch, self._position)
        outer = torch.utils.data.get_worker_info()
        if outer is None:
            batches = self._batches(self.dataset.looking_ahead(requests))
        else:  # a worker of somebody else's DataLoader: every n-th step is its own
            first = outer.id if self._skip is None else self._skip
            batches = self._in_process(itertools.islice(requests, first, None, outer.num_workers))
        try:
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.wait_seconds += time.perf_counter() - started
                if batch is None:
                    return
                if isinstance(batch, SageError):
                    raise batch
                for line in batch.counts.skipped:
                    log.warning("skipped %s", line)
                self.counts += batch.counts
                self._epoch, self._position = self._after(batch)
                if outer is not None:
                    self._skip = outer.num_workers - 1
                yield batch
        finally:
            batches.close()
            self.dataset.rest()

    def _requests(self, epoch: int, position: int) -> Iterator[StepRequest]:
        while self.epochs is None or epoch < self.epochs:
            sample_P, lane_P = self.order.epoch(epoch)
            while position < len(sample_P):
                mine = rank_part(lane_P, position, self.batch_size, self.rank, self.world)
                end = min(position + self.batch_size, len(sample_P))
                yield StepRequest(
                    epoch=epoch,
                    samples_B=sample_P[mine],
                    positions_B=mine,
                    global_batch=end - position,
                    position=end,
                )
                position = end
            epoch, position = epoch + 1, 0

    def _batches(self, requests: Iterator[StepRequest]) -> Generator[Batch | SageError, None, None]:
        if self._workers:
            return self._by_workers(requests)
        if self._read_ahead:
            return self._by_threads(requests)
        return self._in_process(requests)

    def _in_process(self, requests: Iterator[StepRequest]) -> Generator[Batch, None, None]:
        return (self._pinned(self.dataset.__getitems__(request)) for request in requests)

    def _by_workers(self, requests: Iterator[StepRequest]) -> Generator[Batch | SageError, None, None]:
        shelf = shared_buffer_for(self._workers, multiprocessing.get_start_method())
        loader = torch.utils.data.DataLoader(
            _Forwarding(self.dataset, shelf),
            batch_sampler=requests,  # type: ignore[arg-type]
            num_workers=self._workers,
            collate_fn=_same,
            prefetch_factor=READ_AHEAD,
            pin_memory=self._pin_memory,
            worker_init_fn=_begin_worker,
        )
        for batch in batches_of(loader):
            yield batch.unpack() if isinstance(batch, BatchHandle) else batch
            del batch  # while the next one is waited for, the trainer's own reference is the last

    def _by_threads(self, requests: Iterator[StepRequest]) -> Generator[Batch, None, None]:
        crew = PriorityExecutor(1 if self.dataset.shape.feature_dim else READ_AHEAD_THREADS, "read-ahead")
        ahead: deque[Future[Batch]] = deque()
        try:
            for request in requests:
                ahead.append(crew.call(partial(self.dataset.__getitems__, request)))
                if len(ahead) > self._read_ahead:
                    yield self._pinned(ahead.popleft().result())
            while ahead:
                yield self._pinned(ahead.popleft().result())
        finally:
            for future in ahead:
                future.cancel()

    def _pinned(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self._pin_memory else batch


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
