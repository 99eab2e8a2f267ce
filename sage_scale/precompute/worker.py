"""What every Ray actor of a job has: a unit's work in a thread of its own, its events one by one, a memory budget.

Subclasses make units: `actor.UnitWorker` shards, `file_job.FileWorker` files of each clip.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from sage_scale.config import Recipe
from sage_scale.config.extension import import_plugins
from sage_scale.errors import Reject, SageError, StorageError, UsageError
from sage_scale.precompute.environment import Environment
from sage_scale.precompute.memory import MemoryGuard
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, Event, Failure, FramesDone, UnitDone, UnitFailed
from sage_scale.storage import open_store
from sage_scale.untrusted.display import redacted
from sage_scale.untrusted.files import expanded
from sage_scale.vision.video_frames import DecodeStats

if TYPE_CHECKING:
    from sage_scale.precompute.unit_clips import UnitClips

GIVEN_UP = "given-up"
"""Reason of a clip that was rejected by hand."""


class CurrentClip:
    """The clip that is being made, for messages about failures."""

    def __init__(self) -> None:
        self.next_id = ""
        """Id of the clip whose sample is written next."""
        self.making: UnitClips | None = None

    @property
    def id(self) -> str:
        """Id of the clip that is being made, which may be ahead of the one written next; empty after the last."""
        ahead = self.making.current if self.making is not None else None
        return self.next_id if ahead is None else ahead.id

    def clear(self) -> None:
        """All clips are done."""
        self.next_id, self.making = "", None


class Worker:
    """Makes work units and reports each clip. A plain class, so that it runs without Ray too."""

    def __init__(
        self,
        recipe: Recipe,
        url: str,
        give_up: frozenset[str] = frozenset(),
        folder: str = "",
        environment: Mapping[str, str] | None = None,
        memory_mb: int = 0,
    ) -> None:
        """`url` is the output; `give_up` are ids of clips to reject undecoded; `folder` is where relative paths begin;
        `environment` holds the driver's S3 settings, which a node of a cluster may lack; `memory_mb` is the memory
        budget of the process, 0 for none."""
        os.environ.update(environment or {})
        if folder:
            with contextlib.suppress(OSError):  # another machine may lack it; then all paths must be absolute
                os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        import_plugins()
        self.recipe = recipe
        self.store = open_store(url)
        self.give_up = give_up
        self.stats = DecodeStats()
        """Work of reading the last unit's videos."""
        self.guard = MemoryGuard(memory_mb)

    def environment(self) -> Environment:
        """Returns versions and device of this actor. Raises SageError where it cannot work on this machine."""
        raise NotImplementedError

    def make(
        self,
        unit: Unit,
        digest: str,
        tar_stored: bool,
        alone: bool,
        report: Callable[[Event], None],
        current: CurrentClip,
    ) -> UnitDone:
        """Makes and commits a unit as `work` says; `report` takes its clips' events. Raises errors of the machine."""
        raise NotImplementedError

    def check_root(self) -> None:
        """Raises UsageError where this machine does not see the corpus."""
        root = self.recipe.corpus.root
        if root and "://" not in root and not expanded(root).exists():
            raise UsageError(
                f"{root} is not to be seen from {os.uname().nodename}: mount the corpus on every node"
            )

    def work(self, unit: Unit, digest: str, tar_stored: bool = False, alone: bool = False) -> Iterator[Event]:
        """Make and commit `unit`, yielding its events; the last one is UnitDone or UnitFailed.

        `digest` is that of dataset.json; with `tar_stored` only a shard's index and marker are made, from the stored
        tar. `alone` makes one clip after the other, each from its own reading, so that the first clip without an event
        is the one that was being made when the process died.
        """
        # The shard writer pulls samples while Ray pulls events: the writer gets a thread of its own, and each of its
        # events waits until Ray has taken it, so that the driver knows which clip an actor died in.
        events: queue.Queue[Event] = queue.Queue()

        def report(event: Event) -> None:
            events.put(event)
            events.join()

        current = CurrentClip()

        def run() -> None:
            make = functools.partial(self.make, unit, digest, tar_stored, alone, report, current)
            events.put(_outcome(make, current))

        def too_large(line: str) -> None:
            events.put(UnitFailed(kind="memory", message=line, clip=current.id, ends_actor=True))

        thread = threading.Thread(target=run, name=f"unit {unit.name}", daemon=True)
        # Above its budget the process is soon killed by its driver, wherever the writer's thread then is.
        self.guard.on_excess(too_large)
        thread.start()
        while True:
            event = events.get()
            yield event
            events.task_done()
            if not isinstance(event, ClipDone | FramesDone):
                break
        self.guard.on_excess(None)
        if isinstance(event, UnitFailed) and event.ends_actor:
            threading.Event().wait()  # so that the driver sees this process die, and nothing is begun in it
        thread.join()

    def rejected(self, clip: str, reason: str, detail: str) -> Reject:
        """Returns a reject without the corpus' folder, which would make the shard depend on the machine."""
        root = self.recipe.corpus.root.rstrip("/")
        return Reject(
            id=clip, reason=reason, detail=redacted(detail.replace(f"{root}/", "") if root else detail)
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether `error`, or the error that it was raised from or in place of, is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _outcome(make: Callable[[], UnitDone], current: CurrentClip) -> UnitDone | UnitFailed:
    """Returns the last event of a unit: what `make` returns, or its error by kind, with the clip that it met."""
    kind: Failure
    try:
        return make()
    except UsageError as error:
        kind, message = "usage", str(error)
    except MemoryError:
        kind, message = "memory", "out of memory"
    except (SageError, OSError) as error:
        kind = "full" if is_disk_full(error) else "storage" if isinstance(error, StorageError) else "error"
        message = " ".join(str(error).split())
    except Exception as error:  # a defect, ours or a library's: the unit stays open and names the clip
        kind, message = "error", f"{type(error).__name__}: {error}"
    return UnitFailed(kind=kind, message=message, clip=current.id)
