"""Makes the clips of a corpus by several processes; what an earlier run finished is kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sage_scale.errors import SageError


class Task(Protocol):
    """A clip to be made."""

    @property
    def id(self) -> str:
        """The clip's id."""
        ...


T = TypeVar("T", bound=Task)
Gold = dict[str, Any]


def make_missing(
    root: Path,
    tasks: Sequence[T],
    kept: Mapping[str, Gold],
    make: Callable[[Path, T], Gold],
    workers: int | None,
    report: Callable[[int, int], None],
) -> dict[str, Gold]:
    """Returns the gold of each clip by id: of `kept`, or of `make(root, task)`, called in `workers` processes (all
    usable cores by default).

    `report` is called with (done, total). Raises SageError where a process died.
    """
    gold = dict(kept)
    missing = [task for task in tasks if task.id not in gold]
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    processes = workers or len(cores)
    report(len(gold), len(tasks))
    if processes <= 1 or len(missing) < 4:
        for task in missing:
            gold[task.id] = make(root, task)
            report(len(gold), len(tasks))
        return gold
    # Spawned, not forked: the caller may hold threads (torch, Ray) that a fork would copy in an unknown state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(processes, len(missing)), mp_context=context, initializer=_ignore_interrupts
    )
    try:
        futures = {pool.submit(make, root, task): task for task in missing}
        for future in as_completed(futures):
            gold[futures[future].id] = future.result()
            report(len(gold), len(tasks))
    except BrokenProcessPool:
        raise SageError(
            f"a rendering process died after {len(gold)} of {len(tasks)} clips of {root} (out of memory?): "
            "run the same command again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return gold


def _ignore_interrupts() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's: clips begun are finished, no others begun


def json_document(value: Any) -> str:
    """Returns a value as an indented JSON document."""
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file whole or not at all, text as UTF-8."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(partial, path)
