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
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from sage_scale.errors import ClipRejected, DatasetError, StorageError, UsageError
from sage_scale.precompute.environment import Environment, environment_here
from sage_scale.precompute.plan import TRIED_LATER, Unit
from sage_scale.precompute.progress import ClipDone, Event, UnitDone
from sage_scale.precompute.unit_clips import Outcome, UnitClips
from sage_scale.precompute.worker import GIVEN_UP, CurrentClip, Worker
from sage_scale.segmentation.tagger import has_model
from sage_scale.shards import Sample, publish_shard, restore_marker
from sage_scale.shards.index import ShardIndex
from sage_scale.shards.layout import REMOVED, Marker, tar_name
from sage_scale.shards.rejects import removed_keys_if_announced, removed_reject
from sage_scale.shards.writer import write_shard
from sage_scale.storage import NotFound, Store


class UnitWorker(Worker):
    """Makes committed shards of work units."""

    def __init__(self, *given: Any, **named: Any) -> None:
        """Arguments as of Worker."""
        super().__init__(*given, **named)
        from sage_scale.precompute.sample_maker import SampleMaker

        vision = self.recipe.vision
        backbone = vision.kind == "features" and vision.backbone != "keypoints"
        if backbone or has_model(self.recipe.segmentation):
            import torch

            torch.set_num_threads(1)
        self.maker = SampleMaker(self.recipe)
        self.scratch = scratch_folder()

    def environment(self) -> Environment:
        """Returns versions and device of this actor. Raises SageError where it cannot work on this machine."""
        self.check_root()
        self.maker.load()
        return environment_here(self.recipe, self.maker.tagger)

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
        if tar_stored:
            with contextlib.suppress(NotFound):  # the shard was dropped since
                return self._commit(unit, digest)
        with self.store.draft(self.scratch / f"{os.getpid()}-{unit.name}.tar") as tar:
            rejects = [self.rejected(row.id, row.reason, row.detail) for row in unit.rejected]
            samples = self._samples(unit, rejects, current, report, alone)
            index = write_shard(tar, samples, rejects, unit=unit.number, split=unit.split, dataset=digest)
            current.clear()
            return self._commit(unit, digest, tar, index)

    def _commit(
        self, unit: Unit, digest: str, tar: Path | None = None, index: ShardIndex | None = None
    ) -> UnitDone:
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
                    if clip.id in unit.tried_later and isinstance(outcome, Sample):
                        outcome = ClipRejected(TRIED_LATER, "its second try is in a later shard")
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
                report(ClipDone(clip=clip.id, stages=stages, notes=self._notes(), **of_outcome))

    def _notes(self) -> tuple[str, ...]:
        self.stats.notes += self.maker.notes
        self.maker.notes.clear()
        return self.stats.take_notes()


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
