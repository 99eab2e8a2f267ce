"""The stream of batches that a rank trains on: the order, read ahead, with a state of two numbers and a digest.

The state is (epoch, position in samples, digest of dataset and order). It moves when a batch is handed out, so that a
checkpoint written after a step names the next one; batches that were read ahead are not counted. Resuming computes the
epoch's order again (0.1 s for 10^6 samples) and starts in the middle: nothing is replayed. Batch size, ranks and
workers may all differ from before.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch.utils.data

from sage_scale.errors import CheckpointError, SageError, UsageError
from sage_scale.streaming.batch import StepBatch, StepRequest
from sage_scale.streaming.dataset import SampleDataset
from sage_scale.streaming.executor import PriorityExecutor
from sage_scale.streaming.order import Column, Integers, check_world, rank_part
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.streaming.workers import worker_batches
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

READ_AHEAD = 4
"""Batches that threads read ahead from an object store, where there are no workers."""
READ_AHEAD_THREADS = 2
"""Threads that read frames ahead: JPEG is decoded outside the interpreter's lock. Features are copied under it, and
one thread does."""


class EpochOrder(Protocol):
    """The part of an order that a stream needs: a `Mixture`, or the sequence of an evaluation."""

    @property
    def length(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    def epoch(self, epoch: int) -> tuple[Integers, Column]: ...
    def describe(self) -> str: ...


@dataclass(frozen=True)
class SequentialOrder:
    """The order of an evaluation: every sample once, in dataset order, dealt out to the lanes in turn."""

    length: int
    lanes: int

    def epoch(self, epoch: int) -> tuple[Integers, Integers]:
        """Returns sample and lane of each position."""
        positions = np.arange(self.length)
        return positions, positions % self.lanes

    def describe(self) -> str:
        """Returns the text that identifies this order."""
        return f"sequence of {self.length}"


class Stream(torch.utils.data.IterableDataset):
    """Batches of one rank, epoch after epoch. Iterating continues from the state; the end of `epochs` is final.

    It has loader processes of its own. To use torch's, take `DataLoader(stream, batch_size=None, num_workers=n)`:
    worker i then reads the steps i, i + n, i + 2n ..., which such a loader hands out in turn, so that the order is the
    same. Save `state_after(batch)` there: the state of the program's own stream does not move.
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
        pin_memory: bool = False,
        epochs: int | None = None,
        restart: bool = False,
    ) -> None:
        """`batch_size` counts the samples of all ranks. `epochs` ends the stream, None never does. With `restart` every
        iterator begins at the beginning."""
        check_batch_size(batch_size)
        check_world(rank, world, order.lanes)
        self.dataset = dataset
        self.order = order
        self.rank, self.world = rank, world
        self.batch_size = batch_size
        self.epochs = epochs
        self.workers = workers
        """Loader processes of this rank."""
        self.samples = order.length
        """Samples of an epoch, over all ranks."""
        self.epoch = self.position = 0
        """Epoch of the next batch, from 0, and its position there, in samples."""
        self.counts = ReadCounts()
        self.wait_seconds = 0.0
        # Without CUDA there is nothing to pin for, and torch refuses.
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._restart = restart
        self._skip: int | None = None
        self._ended = False
        self._digests = (dataset.catalog.digest(), _digest(order.describe()))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch; the last one may be short."""
        return math.ceil(self.samples / self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state after the batches handed out so far; the same on every rank."""
        state = self._state(self.epoch, self.position)
        return state if self._skip is None else {**state, "skip": self._skip}

    def state_after(self, batch: StepBatch) -> dict[str, Any]:
        """Returns the state after this batch, for programs with a loader of their own."""
        return self._state(*self._after(batch))

    def _state(self, epoch: int, position: int) -> dict[str, Any]:
        return {"epoch": epoch, "position": position, "digest": "-".join(self._digests)}

    def _after(self, batch: StepBatch) -> tuple[int, int]:
        return (batch.epoch, batch.position) if batch.position < self.samples else (batch.epoch + 1, 0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state. Raises CheckpointError for one of another dataset or another order."""
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
        self.epoch, self.position, self._skip, self._ended = epoch, position, skip, False

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches after the state. Raises UsageError where an earlier iterator has yielded the last."""
        if self._restart:
            self.epoch = self.position = 0
        elif self._ended:
            raise UsageError(
                f"the stream has ended after epochs={self.epochs}, and iterating does not start it again: open it with "
                "as many epochs as you need and iterate once, or open it again"
            )
        return self._handed_out()

    def _handed_out(self) -> Iterator[Any]:
        requests = self._requests(self.epoch, self.position)
        outer = torch.utils.data.get_worker_info()
        if outer is None:
            batches = self._batches(self.dataset.with_prefetch(requests))
        else:  # in a worker of the caller's DataLoader: every n-th step is its own
            first = outer.id if self._skip is None else self._skip
            batches = self._in_process(itertools.islice(requests, first, None, outer.num_workers))
        try:
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.wait_seconds += time.perf_counter() - started
                if batch is None:
                    self._ended = True
                    return
                if isinstance(batch, SageError):
                    raise batch
                for line in batch.counts.skipped:
                    log.warning("skipped %s", line)
                self.counts += batch.counts
                self.epoch, self.position = self._after(batch)
                if outer is not None:
                    self._skip = outer.num_workers - 1
                yield batch
        finally:
            batches.close()
            self.dataset.cancel_prefetch()

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

    def _batches(self, requests: Iterator[StepRequest]) -> Generator[Any, None, None]:
        if self.workers:
            return worker_batches(self.dataset, requests, self.workers, self._pin_memory)
        return self._by_threads(requests) if self.dataset.remote else self._in_process(requests)

    def _in_process(self, requests: Iterator[StepRequest]) -> Generator[Any, None, None]:
        return (self._pinned(self.dataset.__getitems__(request)) for request in requests)

    def _by_threads(self, requests: Iterator[StepRequest]) -> Generator[Any, None, None]:
        executor = PriorityExecutor(READ_AHEAD_THREADS if self.dataset.shape.size else 1, "read-ahead")
        ahead: deque[Future[StepBatch]] = deque()
        try:
            for request in requests:
                ahead.append(executor.submit(partial(self.dataset.__getitems__, request)))
                if len(ahead) > READ_AHEAD:
                    yield self._pinned(ahead.popleft().result())
            while ahead:
                yield self._pinned(ahead.popleft().result())
        finally:
            for future in ahead:
                future.cancel()

    def _pinned(self, batch: Any) -> Any:
        return batch.pin_memory() if self._pin_memory else batch


def check_batch_size(batch_size: int) -> None:
    """Raises UsageError for a batch size below 1."""
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: must be at least 1")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
