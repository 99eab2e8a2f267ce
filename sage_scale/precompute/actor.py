"""The Ray actor: it owns one work unit at a time, from the first clip to the marker, and reports each clip.

Torch and the backbone are imported only where the recipe asks for features, with one thread, so that an actor starts
fast and its results do not depend on the machine's cores.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Rejected
from sage_scale.errors import ClipRejected, SageError, StorageError, UsageError
from sage_scale.precompute.commit import commit_unit
from sage_scale.precompute.description import Environment, environment_here
from sage_scale.precompute.events import ClipDone, Event, Failure, UnitDone, UnitFailed
from sage_scale.precompute.memory import MemoryGuard
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.scratch import scratch_folder
from sage_scale.precompute.unit_clips import Outcome, UnitClips
from sage_scale.shards import Sample
from sage_scale.shards.layout import REMOVED
from sage_scale.shards.rejects import removed_keys_if_announced, removed_reject
from sage_scale.shards.writer import write_indexed
from sage_scale.storage import open_store
from sage_scale.untrusted.display import redacted
from sage_scale.untrusted.files import expanded
from sage_scale.vision.video_frames import Tally

GIVEN_UP = "given-up"
"""Reason of a clip that was rejected by hand."""


class AtWork:
    """Which clip a failure lies in."""

    def __init__(self) -> None:
        self.turn = ""
        """Id of the clip whose sample is to be written next."""
        self.made: UnitClips | None = None

    def nothing(self) -> None:
        """All clips are done."""
        self.turn, self.made = "", None

    @property
    def clip(self) -> str:
        """Id of the clip in work, which may be ahead of its turn; empty where none is."""
        ahead = self.made.at_work if self.made is not None else None
        return self.turn if ahead is None else ahead.id


class UnitWorker:
    """Turns work units into committed shards. A plain class: tests call it without Ray."""

    def __init__(
        self,
        recipe: Recipe,
        url: str,
        give_up: frozenset[str] = frozenset(),
        folder: str = "",
        environment: Mapping[str, str] | None = None,
        memory_mb: int = 0,
    ) -> None:
        """`url` is the output; `give_up` are ids of clips to reject unseen; `folder` is where relative paths begin;
        `environment` holds the driver's S3 settings, which a node of a cluster does not have by itself; `memory_mb`
        is what the process may use, 0 for any."""
        os.environ.update(environment or {})
        if folder:
            with contextlib.suppress(OSError):  # another machine may lack it; then all paths must be absolute
                os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        if recipe.vision.kind == "features" and recipe.vision.backbone != "keypoints":
            import torch

            torch.set_num_threads(1)
        from sage_scale.precompute.sample import SampleMaker

        self.recipe = recipe
        self.store = open_store(url)
        self.give_up = give_up
        self.maker = SampleMaker(recipe)
        self.scratch = scratch_folder()
        self.tally = Tally()
        """What reading the videos of the last unit took."""
        self.guard = MemoryGuard(memory_mb)

    def hello(self) -> Environment:
        """Versions and device of this actor. Raises SageError where it could not work here."""
        root = self.recipe.corpus.root
        if root and "://" not in root and not expanded(root).exists():
            raise UsageError(
                f"{root} is not to be seen from {os.uname().nodename}: mount the corpus on every node"
            )
        self.maker.load()
        return environment_here(self.recipe, self.maker.tagger)

    def work(self, unit: Unit, digest: str, tar_stored: bool = False, alone: bool = False) -> Iterator[Event]:
        """Make and commit `unit`'s shard; the last event is UnitDone or UnitFailed.

        `digest` is that of dataset.json; with `tar_stored` only index and marker are made, from the stored tar. `alone`
        makes clip after clip, each from its own reading, so that the first one not reported is the one in work.
        """
        # The shard writer pulls samples while Ray pulls events: the writer gets a thread of its own, and each of its
        # events waits until Ray has taken it, so that the driver knows which clip an actor died in.
        events: queue.Queue[Event] = queue.Queue()

        def report(event: Event) -> None:
            events.put(event)
            events.join()

        at_work = AtWork()

        def run() -> None:
            events.put(self._run(unit, digest, tar_stored, alone, report, at_work))

        def too_large(line: str) -> None:
            events.put(UnitFailed(kind="memory", message=line, clip=at_work.clip, ends_actor=True))

        thread = threading.Thread(target=run, name=f"unit {unit.name}", daemon=True)
        # Over its budget the process is soon to be ended by its driver, wherever the writer's thread then is.
        self.guard.on_excess(too_large)
        thread.start()
        while True:
            event = events.get()
            yield event
            events.task_done()
            if not isinstance(event, ClipDone):
                break
        self.guard.on_excess(None)
        if isinstance(event, UnitFailed) and event.ends_actor:
            threading.Event().wait()  # so that the driver sees this process die, and nothing be begun in it
        thread.join()

    def _run(
        self,
        unit: Unit,
        digest: str,
        tar_stored: bool,
        alone: bool,
        report: Callable[[Event], None],
        at_work: AtWork,
    ) -> Event:
        try:
            if tar_stored:
                begun = time.perf_counter()
                marker = commit_unit(self.store, unit.number, digest)
                return UnitDone(marker=marker, stages={"commit": time.perf_counter() - begun})
            with self.store.draft(self.scratch / f"{os.getpid()}-{unit.name}.tar") as tar:
                rejects = [
                    Rejected(id=row.id, reason=row.reason, detail=self._placeless(row.detail))
                    for row in unit.rejected
                ]
                samples = self._samples(unit, rejects, at_work, report, alone)
                index = write_indexed(
                    tar, samples, rejects, unit=unit.number, split=unit.split, dataset=digest
                )
                at_work.nothing()
                begun = time.perf_counter()
                marker = commit_unit(self.store, unit.number, digest, tar, index)
                return UnitDone(marker=marker, stages={"commit": time.perf_counter() - begun})
        except UsageError as error:
            return UnitFailed(kind="usage", message=str(error), clip=at_work.clip)
        except MemoryError:
            return UnitFailed(kind="memory", message="out of memory", clip=at_work.clip)
        except (SageError, OSError) as error:
            kind: Failure = (
                "full" if is_disk_full(error) else "storage" if isinstance(error, StorageError) else "error"
            )
            return UnitFailed(kind=kind, message=" ".join(str(error).split()), clip=at_work.clip)
        except Exception as error:  # a defect, ours or a library's: the unit stays open and names the clip
            return UnitFailed(kind="error", message=f"{type(error).__name__}: {error}", clip=at_work.clip)

    def _samples(
        self, unit: Unit, rejects: list[Any], at_work: AtWork, report: Callable[[Event], None], alone: bool
    ) -> Iterator[Sample]:
        """The unit's samples one by one; a rejected clip goes to `rejects` and gives none."""
        self.maker.take_stages()
        removed = removed_keys_if_announced(self.store)
        wanted = [clip for clip in unit.clips if clip.key not in removed and clip.id not in self.give_up]
        at_work.made = UnitClips(self.maker, wanted, one_by_one=alone)
        self.tally = at_work.made.tally
        with contextlib.closing(at_work.made.__iter__()) as made:
            for clip in unit.clips:
                at_work.turn = clip.id
                if clip.key in removed:  # somebody asked to be taken out: the shard does not even keep the id
                    rejects.append(removed_reject(clip.key))
                    report(ClipDone(clip=clip.id, reason=REMOVED, detail="taken out on request"))
                    continue
                if clip.id in self.give_up:
                    outcome: Outcome = ClipRejected(GIVEN_UP, "rejected by hand with --give-up")
                else:
                    try:
                        _, outcome = next(made)
                    except OSError as error:  # the shard writer would take it for one of its own
                        raise StorageError(f"clip '{at_work.clip}' cannot be read: {error}") from error
                if isinstance(outcome, ClipRejected):
                    reject = Rejected(
                        id=clip.id, reason=outcome.reason, detail=self._placeless(outcome.detail)
                    )
                    rejects.append(reject)
                    stages = self.maker.take_stages()
                    report(
                        ClipDone(
                            clip=clip.id,
                            reason=reject.reason,
                            detail=reject.detail,
                            stages=stages,
                            notes=self.tally.take_notes(),
                        )
                    )
                    continue
                frames = int(outcome.meta["frames"])
                begun = time.perf_counter()
                yield outcome
                stages = {**self.maker.take_stages(), "write": time.perf_counter() - begun}
                seconds = frames / self.recipe.vision.fps
                notes = self.tally.take_notes()
                report(ClipDone(clip=clip.id, frames=frames, seconds=seconds, stages=stages, notes=notes))

    def _placeless(self, detail: str) -> str:
        """A reject's detail without the corpus' place, which would make the shard depend on the machine."""
        root = self.recipe.corpus.root.rstrip("/")
        return redacted(detail.replace(f"{root}/", "") if root else detail)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from or in place of, is a full disk or an exceeded quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
