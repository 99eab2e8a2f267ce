"""Ranged GETs that arrive: repeated with backoff, hedged where they straggle, given up at a deadline.

A *flight* is one range on its way. A thread of the crew asks for it, and asks again after a jittered, doubling
pause for as long as the store is Unavailable, until `give_up_after_s` have passed. Whoever *waits* for a flight
watches the clock: past the 95th percentile of recent flights of its size (and a margin) a second request starts, and
the first good answer wins (Dean and Barroso, "The Tail at Scale", 2013). Second requests are at most a twentieth of
all, and a few. What nobody waits for is not hedged.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sage_scale.errors import StorageError
from sage_scale.storage import Buffer, Store, Unavailable
from sage_scale.streaming.executor import URGENT, PriorityExecutor
from sage_scale.streaming.rooms import BufferPool
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

PARALLEL_GETS = 16
"""Requests of a process under way at once; hedges come on top."""
PARALLEL_HEDGES = 4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Pauses between the attempts of one flight: the first, doubled each time, and the longest; times 0.5 to 1."""
HEDGE_SHARE, HEDGE_BURST = 0.05, 2
"""Second requests: at most this share of all requests, and so many beyond it."""
HEDGE_PERCENTILE, HEDGE_MARGIN = 0.95, 2.0
HEDGE_FLOOR_S, HEDGE_UNKNOWN_S = 0.05, 2.0
"""No hedge before the first of these; as long as fewer than `HEDGE_KNOWN` flights are known, the second."""
HEDGE_KNOWN = 16
TELL_AFTER_S = 5.0
"""An outage is told after this time, once."""


class Durations:
    """How long flights of a size took lately, and so when one of them is a straggler. Threads may share it."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._lock = threading.Lock()

    def note(self, length: int, seconds: float) -> None:
        """A flight of `length` bytes took so long."""
        with self._lock:
            self._recent.setdefault(_size_class(length), deque(maxlen=128)).append(seconds)

    def straggler_after(self, length: int) -> float:
        """Seconds after which a flight of `length` bytes is late."""
        with self._lock:
            known = sorted(self._recent.get(_size_class(length), ()))
        if len(known) < HEDGE_KNOWN:
            return HEDGE_UNKNOWN_S
        return max(HEDGE_FLOOR_S, HEDGE_MARGIN * known[int(HEDGE_PERCENTILE * (len(known) - 1))])


@dataclass
class Traffic:
    """What was asked of the store since the last `RangeClient.traffic`."""

    requests: int = 0
    """GETs, repeated and second ones among them."""
    hedges: int = 0
    """Second requests for stragglers."""
    retries: int = 0
    """Requests repeated because the store failed."""
    bytes: int = 0
    """Bytes of whole answers, those of twins among them."""


class RangeRequest:
    """A range that is asked for. `done` is set when `data` or `error` is there."""

    def __init__(self, name: str, offset: int, length: int) -> None:
        self.name, self.offset, self.length = name, offset, length
        self.began: float | None = None
        self.hedged = False
        self.data: Buffer | None = None
        self.error: StorageError | None = None
        self.problem: StorageError | None = None
        """What its last attempt died of."""
        self.done = threading.Event()


class RangeClient:
    """The ranged GETs of one process to one store. Reentrant."""

    def __init__(self, store: Store, give_up_after_s: float) -> None:
        self.store = store
        self.give_up_after_s = give_up_after_s
        self.crew = PriorityExecutor(PARALLEL_GETS, "ranged-get")
        self._hedge_crew = PriorityExecutor(PARALLEL_HEDGES, "hedged-get")
        self._rooms = BufferPool()
        self._durations = Durations()
        self._traffic = Traffic()
        self._asked = self._hedged = 0
        self._told = False
        self._lock = threading.Lock()

    def start(self, name: str, offset: int, length: int, urgency: int = URGENT) -> RangeRequest:
        """Ask for a range; the answer is to be waited for, or called for later."""
        flight = RangeRequest(name, offset, length)
        self.crew.submit(lambda: self.fly(flight), urgency)
        return flight

    def fly(self, flight: RangeRequest) -> None:
        """Ask for the range in this thread until it is there, somebody else has it, or the time is over."""
        flight.began = began = time.monotonic()
        pause, retried = FIRST_PAUSE_S, False
        while not flight.done.is_set():
            try:
                self._attempt(flight, again=retried)
                if retried:
                    self._tell_answer(began)
            except Unavailable as error:
                if flight.done.is_set():  # somebody else was faster
                    return
                flight.problem = error
                left = began + self.give_up_after_s - time.monotonic()
                if left <= 0:
                    self.settle(flight, error=self._gave_up(error))
                    return
                self._tell_outage(error, began, left)
                flight.done.wait(min(left, pause * random.uniform(0.5, 1.0)))
                pause, retried = min(2 * pause, LONGEST_PAUSE_S), True
            except StorageError as error:
                self.settle(flight, error=error)
            except Exception as error:  # a thread has nobody above it: whoever waits is told
                self.settle(flight, error=StorageError(f"{self._what(flight)}: {error!r}"))

    def wait(self, flights: Sequence[RangeRequest], deadline: float) -> None:
        """Until all have an answer or an error, hedging stragglers. Raises Unavailable at the deadline (monotonic)."""
        for flight in flights:
            while not flight.done.is_set():
                now = time.monotonic()
                if now >= deadline:
                    silent = Unavailable(f"{self._what(flight)}: the store does not answer")
                    raise self._gave_up(flight.problem or silent)
                late = [self._late_at(other, now) for other in flights if not other.done.is_set()]
                flight.done.wait(max(0.001, min([deadline, *late]) - now))
                for other in flights:
                    if not other.done.is_set() and self._late_at(other, now) <= time.monotonic():
                        self._hedge(other)

    def traffic(self) -> Traffic:
        """What was asked of the store since this was last called."""
        with self._lock:
            spent, self._traffic = self._traffic, Traffic()
        return spent

    def _attempt(self, flight: RangeRequest, *, again: bool = False, hedge: bool = False) -> None:
        with self._lock:
            self._asked += 1
            self._traffic.requests += 1
            self._traffic.retries += again
            self._traffic.hedges += hedge
        began = time.monotonic()
        room = self._rooms.take(flight.length).data
        data = self.store.try_range(flight.name, flight.offset, flight.length, flight.done.is_set, room)
        self._durations.note(flight.length, time.monotonic() - began)
        with self._lock:
            self._traffic.bytes += len(data)
        self.settle(flight, data=data)

    def settle(
        self, flight: RangeRequest, data: Buffer | None = None, error: StorageError | None = None
    ) -> None:
        """The flight's end, unless it has one."""
        with self._lock:
            if not flight.done.is_set():
                flight.data, flight.error = data, error
                flight.done.set()

    def _late_at(self, flight: RangeRequest, now: float) -> float:
        """When the flight is to be hedged; never twice, and not before it began."""
        if flight.hedged:
            return float("inf")
        return (flight.began or now) + self._durations.straggler_after(flight.length)

    def _hedge(self, flight: RangeRequest) -> None:
        with self._lock:
            if flight.hedged or self._hedged >= HEDGE_BURST + HEDGE_SHARE * self._asked:
                flight.hedged = True
                return
            flight.hedged = True
            self._hedged += 1
        self._hedge_crew.submit(lambda: self._fly_once(flight))

    def _fly_once(self, flight: RangeRequest) -> None:
        if not flight.done.is_set():
            try:
                self._attempt(flight, hedge=True)
            except Exception:
                return  # the first request goes on, and says what is wrong

    def _tell_outage(self, error: Unavailable, began: float, left: float) -> None:
        away = time.monotonic() - began
        with self._lock:
            told, self._told = self._told, self._told or away >= TELL_AFTER_S
        if self._told and not told:
            log.warning("waiting for data since %.0f s, giving up in %.0f s: %s", away, left, error)

    def _tell_answer(self, began: float) -> None:
        with self._lock:
            told, self._told = self._told, False
        if told:
            log.warning("%s answers again after %.0f s", self.store.url, time.monotonic() - began)

    def _gave_up(self, last: StorageError) -> Unavailable:
        return Unavailable(
            f"{last}; given up after {self.give_up_after_s:g} s (stream.give_up_after_s). The run can be resumed "
            "from its last checkpoint when the store answers again"
        )

    def _what(self, flight: RangeRequest) -> str:
        return f"{self.store.url}/{flight.name} (bytes {flight.offset} to {flight.offset + flight.length})"


def _size_class(length: int) -> int:
    """Sizes within a factor of two of each other are compared."""
    return length.bit_length()
