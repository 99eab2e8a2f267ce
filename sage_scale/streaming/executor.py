"""Threads for fetching: urgent work first, none inherited by a fork, none that keeps a process from ending."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

BLOCKING, PREFETCH = 0, 1
"""Priorities: a caller is blocked, or prefetch."""
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
        self._work: list[tuple[int, int, Callable[[], Any], Future]] = []
        self._numbers = itertools.count()
        self._threads = self._idle = 0
        self._changed = threading.Condition()

    def submit(self, work: Callable[[], T], priority: int = BLOCKING) -> Future[T]:
        """Queues the work. Returns the future of its result, or of its exception."""
        if self._process != os.getpid():  # threads do not survive a fork
            self._reset()
        future: Future[T] = Future()
        with self._changed:
            heapq.heappush(self._work, (priority, next(self._numbers), work, future))
            if self._idle < len(self._work) and self._threads < self.size:
                self._threads += 1
                threading.Thread(target=self._run, name=self.name, daemon=True).start()
            else:
                self._changed.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                found = self._changed.wait_for(lambda: self._work, IDLE_S)
                self._idle -= 1
                if not found:
                    self._threads -= 1
                    return
                _, _, work, future = heapq.heappop(self._work)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del work, future  # an idle thread would keep the bytes of its last work
