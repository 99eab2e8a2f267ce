"""Threads that fetch: urgent work first, none left behind by a fork, none that keeps a process from ending."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

URGENT, AHEAD = 0, 1
"""Somebody waits for it; somebody will."""
IDLE_S = 20.0
"""A thread without work ends after this time."""


class PriorityExecutor:
    """At most `size` daemon threads of this process, started as work comes.

    The threads of a ThreadPoolExecutor are joined when the interpreter ends, and a GET from a silent server would
    then hold the process for as long as its time-out.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.name = name
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._work: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._threads = self._idle = 0
        self._changed = threading.Condition()

    def submit(self, work: Callable[[], None], urgency: int = URGENT) -> None:
        """Have the work done soon; it must not raise."""
        if self._process != os.getpid():  # threads do not survive a fork
            self._reset()
        with self._changed:
            heapq.heappush(self._work, (urgency, next(self._numbers), work))
            if self._idle < len(self._work) and self._threads < self.size:
                self._threads += 1
                threading.Thread(target=self._run, name=self.name, daemon=True).start()
            else:
                self._changed.notify()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Have the work done soon; its result, or what it raised."""
        future: Future[T] = Future()

        def settle() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self.submit(settle)
        return future

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                there = self._changed.wait_for(lambda: self._work, IDLE_S)
                self._idle -= 1
                if not there:
                    self._threads -= 1
                    return
                work = heapq.heappop(self._work)[2]
            work()
            del work  # or an idle thread would keep its last work's bytes
