"""Ranged GETs with retries, hedging and a deadline.

A thread of the executor sends a request, and repeats it after jittered, doubling pauses while the store is
Unavailable, until `give_up_after_s` have passed. `wait` watches the clock: past the 95th percentile of recent requests
of its size (and a margin) a second request starts, and the first good answer wins (Dean and Barroso, "The Tail at
Scale", 2013). Second requests are at most a twentieth of all, and a few. A request without a waiting caller is not
hedged.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from sage_scale.errors import StorageError
from sage_scale.retry import backoff, retry
from sage_scale.storage import Buffer, Store, Unavailable
from sage_scale.streaming.buffers import BufferPool
from sage_scale.streaming.executor import BLOCKING, PriorityExecutor
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

PARALLEL_GETS = 16
"""Concurrent requests of a process; hedges come on top."""
PARALLEL_HEDGES = 4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Pauses between the attempts of one request, before jitter."""
HEDGE_SHARE, HEDGE_BURST = 0.05, 2
"""Second requests: at most this share of all requests, plus the burst."""
HEDGE_PERCENTILE, HEDGE_MARGIN = 0.95, 2.0
HEDGE_FLOOR_S, HEDGE_UNKNOWN_S = 0.05, 2.0
"""Least age of a request to be hedged; age while fewer than `HEDGE_KNOWN` durations are known."""
HEDGE_KNOWN = 16
LOG_AFTER_S = 5.0
"""An outage is logged after this time, once."""


class Durations:
    """Recent durations of requests by size, and the age at which one is a straggler. Threads may share it."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._lock = threading.Lock()

    def note(self, length: int, seconds: float) -> None:
        """Adds the duration of a request of `length` bytes. Sizes within a factor of two are compared."""
        with self._lock:
            self._recent.setdefault(length.bit_length(), deque(maxlen=128)).append(seconds)

    def straggler_after(self, length: int) -> float:
        """Returns the age in seconds at which a request of `length` bytes is a straggler."""
        with self._lock:
            known = sorted(self._recent.get(length.bit_length(), ()))
        if len(known) < HEDGE_KNOWN:
            return HEDGE_UNKNOWN_S
        return max(HEDGE_FLOOR_S, HEDGE_MARGIN * known[int(HEDGE_PERCENTILE * (len(known) - 1))])


class RangeRequest:
    """A range of an object that is fetched. `done` is set when `data` or `error` is there."""

    def __init__(self, name: str, offset: int, length: int) -> None:
        self.name, self.offset, self.length = name, offset, length
        self.started: float | None = None
        self.hedged = False
        self.data: Buffer | None = None
        self.error: StorageError | None = None
        self.last_failure: StorageError | None = None
        """Error of the last attempt, which is repeated."""
        self.done = threading.Event()


class RangeClient:
    """The ranged GETs of one process to one store. Reentrant."""

    def __init__(self, store: Store, give_up_after_s: float) -> None:
        self.store = store
        self.give_up_after_s = give_up_after_s
        self.executor = PriorityExecutor(PARALLEL_GETS, "ranged-get")
        self._hedge_executor = PriorityExecutor(PARALLEL_HEDGES, "hedged-get")
        self._buffers = BufferPool()
        self._durations = Durations()
        self._counts: dict[str, Any] = Counter()
        self._requests = self._hedges = 0
        self._logged = False
        self._lock = threading.Lock()

    def submit(self, name: str, offset: int, length: int) -> RangeRequest:
        """Starts fetching a range; `wait` for the request."""
        request = RangeRequest(name, offset, length)
        self.executor.submit(lambda: self.run(request), BLOCKING)
        return request

    def run(self, request: RangeRequest) -> None:
        """Fetches the range in this thread, until an answer is there, by whichever attempt, or the deadline."""
        request.started = began = time.monotonic()
        deadline, failed = began + self.give_up_after_s, False

        def attempt() -> None:
            if not request.done.is_set():
                self._attempt(request, repeated=failed)

        def note_failure(error: Exception) -> None:
            nonlocal failed
            assert isinstance(error, Unavailable)
            if request.done.is_set():  # another attempt was faster
                return
            request.last_failure, failed = error, True
            if time.monotonic() >= deadline:
                raise self._given_up(error) from None
            self._log_outage(error, began)

        def pause(seconds: float) -> None:
            request.done.wait(min(seconds, max(0.0, deadline - time.monotonic())))

        try:
            retry(
                attempt,
                Unavailable,
                backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S),
                on_failure=note_failure,
                sleep=pause,
            )
            if failed and request.data is not None:
                self._log_answer(began)
        except StorageError as error:
            self.resolve(request, error=error)
        except Exception as error:  # the thread has no caller: the waiting one gets the error
            self.resolve(request, error=StorageError(f"{self._describe(request)}: {error!r}"))

    def wait(self, requests: Sequence[RangeRequest], deadline: float) -> None:
        """Waits until all are done, hedging stragglers. Raises Unavailable at the deadline (monotonic)."""
        for request in requests:
            while not request.done.is_set():
                now = time.monotonic()
                if now >= deadline:
                    silent = Unavailable(f"{self._describe(request)}: the store does not answer")
                    raise self._given_up(request.last_failure or silent)
                late = [self._late_at(other, now) for other in requests if not other.done.is_set()]
                request.done.wait(max(0.001, min([deadline, *late]) - now))
                for other in requests:
                    if not other.done.is_set() and self._late_at(other, now) <= time.monotonic():
                        self._hedge(other)

    def counts(self) -> ReadCounts:
        """Returns requests, retries, hedges and fetched bytes since the last call."""
        with self._lock:
            spent, self._counts = self._counts, Counter()
        return ReadCounts(**spent)

    def resolve(
        self, request: RangeRequest, data: Buffer | None = None, error: StorageError | None = None
    ) -> None:
        """Ends the request with an answer or an error, unless it has ended."""
        with self._lock:
            if not request.done.is_set():
                request.data, request.error = data, error
                request.done.set()

    def _attempt(self, request: RangeRequest, *, repeated: bool = False, hedge: bool = False) -> None:
        with self._lock:
            self._requests += 1
            self._counts["requests"] += 1
            self._counts["retries"] += repeated
            self._counts["hedges"] += hedge
        began = time.monotonic()
        buffer = self._buffers.take(request.length).data
        data = self.store.try_range(request.name, request.offset, request.length, request.done.is_set, buffer)
        self._durations.note(request.length, time.monotonic() - began)
        with self._lock:
            self._counts["fetched"] += len(data)
        self.resolve(request, data=data)

    def _late_at(self, request: RangeRequest, now: float) -> float:
        """Returns the time to hedge the request; never twice, and not before it started."""
        if request.hedged:
            return float("inf")
        return (request.started or now) + self._durations.straggler_after(request.length)

    def _hedge(self, request: RangeRequest) -> None:
        with self._lock:
            if request.hedged:
                return
            request.hedged = True
            if self._hedges >= HEDGE_BURST + HEDGE_SHARE * self._requests:
                return
            self._hedges += 1

        def attempt() -> None:  # its errors are dropped: the first request goes on and reports
            if not request.done.is_set():
                self._attempt(request, hedge=True)

        self._hedge_executor.submit(attempt)

    def _log_outage(self, error: Unavailable, began: float) -> None:
        away = time.monotonic() - began
        with self._lock:
            logged, self._logged = self._logged, self._logged or away >= LOG_AFTER_S
        if self._logged and not logged:
            left = self.give_up_after_s - away
            log.warning("waiting for data since %.0f s, giving up in %.0f s: %s", away, left, error)

    def _log_answer(self, began: float) -> None:
        with self._lock:
            logged, self._logged = self._logged, False
        if logged:
            log.warning("%s answers again after %.0f s", self.store.url, time.monotonic() - began)

    def _given_up(self, last: StorageError) -> Unavailable:
        return Unavailable(
            f"{last}; given up after {self.give_up_after_s:g} s (stream.give_up_after_s). The run can be resumed "
            "from its last checkpoint when the store answers again"
        )

    def _describe(self, request: RangeRequest) -> str:
        end = request.offset + request.length
        return f"{self.store.url}/{request.name} (bytes {request.offset} to {end})"
