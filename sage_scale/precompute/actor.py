"""The Ray actor: makes one work unit at a time, from the first clip to the marker, and reports each clip.

**Exactly once.** (1) The unit's tar is stored by one conditional PUT. Of several writers (a driver and its restart, two
drivers, an actor that was thought dead) one wins; the others drop their work and go on with the stored tar. (2) Index
and marker are pure functions of the stored tar, so any writer may store them, at any time. (3) A unit is done when
index and marker are stored; a tar without them is finished by reading it. So a kill between any two requests leaves
either nothing or a state that the next run completes, and one listing shows which. No step renames, waits for another
writer or depends on a clock.

Torch is imported only where the recipe has a backbone or a tagger with a model, with one thread, so that an actor
starts fast and its results do not depend on the machine's cores.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from sage_scale.config import Recipe
from sage_scale.config.extension import import_plugins
from sage_scale.errors import ClipRejected, DatasetError, Reject, SageError, StorageError, UsageError
from sage_scale.precompute.environment import Environment, environment_here
from sage_scale.precompute.memory import MemoryGuard
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, Event, Failure, FramesDone, UnitDone, UnitFailed
from sage_scale.precompute.unit_clips import Outcome, UnitClips
from sage_scale.segmentation.tagger import has_model
from sage_scale.shards import Sample, publish_shard, restore_marker
from sage_scale.shards.index import ShardIndex
from sage_scale.shards.layout import REMOVED, Marker, tar_name
from sage_scale.shards.rejects import removed_keys_if_announced, removed_reject
from sage_scale.shards.writer import write_shard
from sage_scale.storage import Store, open_store
from sage_scale.untrusted.display import redacted
from sage_scale.untrusted.files import expanded
from sage_scale.vision.video_frames import DecodeStats

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


class UnitWorker:
    """Makes committed shards of work units. A plain class, so that it runs without Ray too."""

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
        from sage_scale.precompute.sample_maker import SampleMaker

        import_plugins()
        backbone = recipe.vision.kind == "features" and recipe.vision.backbone != "keypoints"
        if backbone or has_model(recipe.segmentation):
            import torch

            torch.set_num_threads(1)
        self.recipe = recipe
        self.store = open_store(url)
        self.give_up = give_up
        self.maker = SampleMaker(recipe)
        self.scratch = scratch_folder()
        self.stats = DecodeStats()
        """Work of reading the last unit's videos."""
        self.guard = MemoryGuard(memory_mb)

    def environment(self) -> Environment:
        """Returns versions and device of this actor. Raises SageError where it cannot work on this machine."""
        self.check_root()
        self.maker.load()
        return environment_here(self.recipe, self.maker.tagger)

    def check_root(self) -> None:
        """Raises UsageError where this machine does not see the corpus."""
        root = self.recipe.corpus.root
        if root and "://" not in root and not expanded(root).exists():
            raise UsageError(
                f"{root} is not to be seen from {os.uname().nodename}: mount the corpus on every node"
            )

    def work(self, unit: Unit, digest: str, tar_stored: bool = False, alone: bool = False) -> Iterator[Event]:
        """Make and commit `unit`'s shard, yielding its events; the last one is UnitDone or UnitFailed.

        `digest` is that of dataset.json; with `tar_stored` only index and marker are made, from the stored tar. `alone`
        makes one clip after the other, each from its own reading, so that the first clip without an event is the one
        that was being made when the process died.
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
        with contextlib.ExitStack() as draft:
            tar = index = None
            if not tar_stored:
                scratch = self.scratch / f"{os.getpid()}-{unit.name}.tar"
                tar = draft.enter_context(self.store.draft(scratch))
                rejects = [self.rejected(row.id, row.reason, row.detail) for row in unit.rejected]
                samples = self._samples(unit, rejects, current, report, alone)
                index = write_shard(tar, samples, rejects, unit=unit.number, split=unit.split, dataset=digest)
                current.clear()
            begun = time.perf_counter()
            marker = commit_unit(self.store, unit.number, digest, tar, index)
            return UnitDone(marker=marker, stages={"commit": time.perf_counter() - begun})

    def _samples(
        self,
        unit: Unit,
        rejects: list[Any],
        current: CurrentClip,
        report: Callable[[Event], None],
        alone: bool,
    ) -> Iterator[Sample]:
        """Yields the unit's samples; rejected clips are appended to `rejects`."""
        self.maker.take_stages()
        removed = removed_keys_if_announced(self.store)
        wanted = [clip for clip in unit.clips if clip.key not in removed and clip.id not in self.give_up]
        current.making = UnitClips(self.maker, wanted, alone=alone)
        self.stats = current.making.stats
        with contextlib.closing(current.making.__iter__()) as made:
            for clip in unit.clips:
                current.next_id = clip.id
                if clip.key in removed:  # on request: the shard does not even keep the id
                    rejects.append(removed_reject(clip.key))
                    report(ClipDone(clip=clip.id, reason=REMOVED, detail="removed on request"))
                    continue
                if clip.id in self.give_up:
                    outcome: Outcome = ClipRejected(GIVEN_UP, "rejected by hand with --give-up")
                else:
                    try:
                        _, outcome = next(made)
                    except OSError as error:  # the shard writer would take it for one of its own
                        raise StorageError(f"clip '{current.id}' cannot be read: {error}") from error
                if isinstance(outcome, ClipRejected):
                    reject = self.rejected(clip.id, outcome.reason, outcome.detail)
                    rejects.append(reject)
                    of_outcome: dict[str, Any] = {"reason": reject.reason, "detail": reject.detail}
                    stages = self.maker.take_stages()
                else:
                    frames = int(outcome.meta["frames"])
                    begun = time.perf_counter()
                    yield outcome
                    of_outcome = {"frames": frames, "seconds": frames / self.recipe.vision.fps}
                    stages = {**self.maker.take_stages(), "write": time.perf_counter() - begun}
                report(ClipDone(clip=clip.id, stages=stages, notes=self.stats.take_notes(), **of_outcome))

    def rejected(self, clip: str, reason: str, detail: str) -> Reject:
        """Returns a reject without the corpus' folder, which would make the shard depend on the machine."""
        root = self.recipe.corpus.root.rstrip("/")
        return Reject(
            id=clip, reason=reason, detail=redacted(detail.replace(f"{root}/", "") if root else detail)
        )


def commit_unit(
    store: Store, unit: int, digest: str, tar: Path | None = None, index: ShardIndex | None = None
) -> Marker:
    """Store a unit's local tar with index and marker, or, without `tar`, index and marker of the stored tar.

    Returns the marker of the stored tar, which may be another writer's. `digest` is that of dataset.json. Raises
    StorageError where the store cannot be read or written, DatasetError where the stored tar is damaged or of another
    dataset.
    """
    marker = restore_marker(store, unit) if tar is None else publish_shard(store, tar, index)
    if marker.dataset != digest:
        raise DatasetError(
            f"{store.url}/{tar_name(unit)} belongs to another dataset (digest {marker.dataset}, here {digest}): "
            "use another --out, or --overwrite"
        )
    return marker


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether `error`, or the error that it was raised from or in place of, is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def scratch_folder() -> Path:
    """Returns the folder of tars that this machine's actors have not stored yet; removes those of dead actors.

    Raises UsageError where it is a link or was made by another user, who could exchange its files.
    """
    folder = Path(tempfile.gettempdir()) / f"sage-scale-precompute-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UsageError(
            f"{folder} is a link or was made by another user: set TMPDIR to a folder of your own"
        )
    folder.chmod(0o700)
    for file in folder.glob("*.tar"):
        with contextlib.suppress(ValueError, OSError):
            if not psutil.pid_exists(int(file.name.partition("-")[0])):
                file.unlink()
    return folder


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
