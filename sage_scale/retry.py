"""Repeats work that may succeed a moment later."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def retry(
    work: Callable[[], T],
    transient: type[Exception],
    pauses: Iterable[float],
    *,
    on_failure: Callable[[Exception], None] = lambda error: None,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """Returns `work()`, repeated after each of `pauses` (seconds) while it raises a `transient` error.

    Raises the error of the last attempt, or the error that `on_failure` raises after any other.
    """
    for pause in pauses:
        try:
            return work()
        except transient as error:
            on_failure(error)
        sleep(pause)
    return work()


def backoff(first_s: float, longest_s: float) -> Iterator[float]:
    """Yields pauses without end: doubled each time up to the longest, times a random factor of 0.5 to 1."""
    pause = first_s
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, longest_s)
