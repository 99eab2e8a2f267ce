"""The parallel loop of commands that read or write many objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
ProgressCallback = Callable[[int, int, int], None]
"""Called after each item with items done, items in all, bytes done."""


def map_threads(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int = 16,
    progress: ProgressCallback | None = None,
    size: Callable[[Item], int] = lambda item: 0,
) -> list[Result]:
    """Returns `work(item)` of every item, in order, computed by `threads` threads.

    `size` gives an item's bytes for `progress`. The first error is raised once the items in work are done; items that
    were not begun are dropped.
    """
    todo = list(items)
    lock, done, done_bytes = Lock(), 0, 0

    def counted(item: Item) -> Result:
        nonlocal done, done_bytes
        result = work(item)
        if progress is not None:
            with lock:
                done, done_bytes = done + 1, done_bytes + size(item)
                progress(done, len(todo), done_bytes)
        return result

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(counted, item) for item in todo]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
