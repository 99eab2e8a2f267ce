"""The driver: from a manifest and a recipe to a finished dataset, however often it is killed and started again.

A finished output is recognised by one GET of index.json, an unfinished one is taken up after one bare listing. Units
in flight are bounded by the number of actors. A unit whose actor died, ran out of memory or met storage trouble is
tried again; one clip that was in work at two deaths of its unit is run with nothing beside it, and if that fails too
its unit stays open and the run ends by naming unit and clip. Nothing but a clip's own bytes, or `--give-up`, rejects.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.corpora.clip import Manifest
from sage_scale.errors import UsageError
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.commit import erase
from sage_scale.precompute.description import Environment, check_same_environment, check_same_plan, describe
from sage_scale.precompute.plan import Limits, Unit, plan_units, without_repeats
from sage_scale.precompute.pool import Pool, ray_session
from sage_scale.precompute.progress import Progress, duration
from sage_scale.precompute.retry import Retry, load_retries, reasons_now, rejects_now, retry_name
from sage_scale.precompute.schedule import Actors, RejectLimit, Schedule
from sage_scale.shards import Dataset, UnitListing, finish_dataset, list_units, sample_key
from sage_scale.shards.dataset import open_finished, open_unfinished, read_rejects
from sage_scale.shards.generations import reject_key
from sage_scale.shards.layout import DATASET_JSON, REMOVED, DatasetInfo, parse_info
from sage_scale.shards.removed import removed_keys
from sage_scale.storage import NotFound, Store, open_store


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the dataset holds at the end."""

    url: str
    clips: int
    rejects: int
    reasons: dict[str, int]
    segments: int
    frames: int
    fps: float
    bytes: int
    shards: int
    seconds: float
    """Wall-clock seconds of this run."""
    stages: str = ""
    """Seconds of all actors by stage; empty where nothing was left to do."""
    removed: int = 0
    """Clips that were taken out on request and are left out for good."""

    @property
    def token_ratio(self) -> float:
        """Segments (visual tokens) per frame; .129 in the paper."""
        return self.segments / max(1, self.frames)

    def line(self) -> str:
        """One line for a person."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        return (
            f"{self.url}: {self.clips:,} clips, {self.rejects:,} rejects{f' ({reasons})' if reasons else ''}, "
            f"{f'{self.removed:,} taken out on request, ' if self.removed else ''}"
            f"{self.segments:,} segments, token ratio {self.token_ratio:.3f}, "
            f"{duration(self.frames / self.fps)} of video, "
            f"{self.bytes / 1e6:,.1f} MB in {self.shards:,} shards, done in {duration(self.seconds)}"
        )


@dataclass(kw_only=True)
class Run:
    """One preprocessing run."""

    recipe: Recipe
    manifest: Manifest
    url: str
    """Folder, file:// or s3://bucket/prefix of the dataset."""
    overwrite: bool = False
    """Delete an output of another recipe or manifest, or a finished one, and start again."""
    give_up: frozenset[str] = frozenset()
    """Ids of clips to reject by hand."""
    retry_rejects: bool = False
    """Try rejected clips once more, in new shards."""
    events: Path | None = None
    """File to which JSON events are appended."""
    quiet: bool = False
    """No progress."""
    worker: type[UnitWorker] = UnitWorker
    """Class of the actors."""

    def __post_init__(self) -> None:
        shards, vision = self.recipe.shards, self.recipe.vision
        self.manifest = without_repeats(self.manifest)
        self.store: Store = open_store(self.url)
        self.limits = Limits(clips=shards.clips_per_unit, frames=shards.frames_per_unit, fps=vision.fps)
        self.units = plan_units(self.manifest, self.limits)
        expected = sum(row.expected for row in self.manifest.rejected)
        rows = len(self.manifest.clips) + len(self.manifest.rejected) - expected
        self.limit = RejectLimit(shards.max_reject_rate, rows, expected)
        unknown = sorted(self.give_up - {clip.id for clip in self.manifest.clips})
        if unknown:
            raise UsageError(f"--give-up {unknown[0]}: no clip of that id in the manifest")

    def execute(self) -> Summary:
        """Do what is left to do. Raises UsageError for another recipe or manifest, UnitsOpen, TooManyRejects."""
        begun = time.monotonic()
        dataset, stages = self._planned()
        if self.retry_rejects:
            dataset, again = self._retry(dataset)
            stages = again or stages
        rejects = rejects_now(dataset.units, len(dataset.info.units))
        clips = sum(unit.samples for unit in dataset.units)
        reasons = reasons_now(dataset.units)
        removed = 0
        if reasons.pop(REMOVED, 0):  # more than one shard may tell of the same clip
            taken = removed_keys(self.store)
            removed = sum(clip.key in taken for clip in self.manifest.clips)
        if clips == 0 or self.limit.exceeded(rejects):
            raise self.limit.error(rejects, reasons, self._first_reject(dataset))
        if not dataset.finished:
            dataset = finish_dataset(self.store)
        return Summary(
            url=self.store.url,
            clips=clips,
            rejects=rejects,
            reasons=dict(reasons) if rejects else {},
            removed=removed,
            segments=sum(unit.segments for unit in dataset.units),
            frames=sum(unit.frames for unit in dataset.units),
            fps=self.recipe.vision.fps,
            bytes=sum(unit.bytes for unit in dataset.units),
            shards=len(dataset.units),
            seconds=time.monotonic() - begun,
            stages=stages,
        )

    def _planned(self) -> tuple[Dataset, str]:
        """The dataset with every planned unit done, and the seconds by stage."""
        url = self.store.url
        finished = open_finished(self.store)
        info = finished.info if finished is not None else self._begun()
        if self.overwrite and (finished is not None or (info is not None and not self._is_ours(info))):
            erase(self.store)
            finished = info = None
        if info is not None:
            check_same_plan(url, info, self.recipe, self.manifest)
        if finished is not None:
            return finished, ""
        if self.overwrite and info is not None and not self.quiet:
            print(
                f"{url} holds an unfinished dataset of this recipe and manifest: going on with it",
                file=sys.stderr,
            )
        listing = list_units(self.store)
        if info is None and listing.tar_bytes:
            if not self.overwrite:
                raise UsageError(
                    f"{url} holds shards but no {DATASET_JSON}: use another --out, or --overwrite to delete them"
                )
            listing = erase(self.store)
        units = [*self.units, *self._units_of(load_retries(self.store) if info is not None else [])]
        return self._do(units, listing, info)

    def _retry(self, dataset: Dataset) -> tuple[Dataset, str]:
        """Try the clips that are rejected as things stand once more; goes on with a retry that was cut off."""
        retries = load_retries(self.store)
        units = self._units_of(retries)
        done = {unit.unit for unit in dataset.units}
        if all(unit.number in done for unit in units):
            rejected = self._rejected_now(dataset, retries)
            clips = tuple(clip.id for clip in self.manifest.clips if sample_key(clip.id) in rejected)
            if not clips:
                return dataset, ""
            retry = Retry(first_unit=len(self.units) + len(units), clips=clips)
            self.store.put_if_absent(retry_name(len(retries) + 1), retry.to_bytes())
            units = self._units_of(load_retries(self.store))
        return self._do([*self.units, *units], list_units(self.store), dataset.info)

    def _units_of(self, retries: Sequence[Retry]) -> list[Unit]:
        return [unit for retry in retries for unit in retry.units(self.manifest, self.limits)]

    def _rejected_now(self, dataset: Dataset, retries: Sequence[Retry]) -> set[str]:
        """Keys of clips rejected by the last shard that tells of them, unless they were taken out on request.

        Every retry's units are done.
        """
        begins = {retry.first_unit: retry for retry in retries}
        rejected: set[str] = set()
        for unit in dataset.units:
            if unit.unit in begins:
                rejected -= {sample_key(clip) for clip in begins[unit.unit].clips}
            rejected |= {reject_key(reject) for reject in read_rejects(self.store, unit)}
        return rejected - removed_keys(self.store)

    def _first_reject(self, dataset: Dataset) -> str:
        for unit in dataset.units:
            for reject in read_rejects(self.store, unit):
                if reject.reason == REMOVED:
                    continue
                return f"clip '{reject.id}': {reject.reason}" + (
                    f" ({reject.detail})" if reject.detail else ""
                )
        return ""

    def _begun(self) -> DatasetInfo | None:
        try:
            return parse_info(self.store.get(DATASET_JSON), f"{self.store.url}/{DATASET_JSON}")
        except NotFound:
            return None

    def _is_ours(self, info: DatasetInfo) -> bool:
        """Whether an unfinished output is of this very run: --overwrite repeated after a kill goes on with it."""
        same_recipe = info.recipe == self.recipe.dataset_fingerprint()
        return same_recipe and info.manifest == self.manifest.digest()

    def _do(
        self, units: Sequence[Unit], listing: UnitListing, info: DatasetInfo | None
    ) -> tuple[Dataset, str]:
        """Do the units that are not done; gives the dataset and the seconds by stage."""
        left = [unit for unit in units if unit.number not in listing.done]
        if not left:
            return open_unfinished(self.store), ""
        done = [unit for unit in units if unit.number in listing.done]
        door = _Door(self, info)
        with (
            Progress(
                clips=sum(len(unit.clips) for unit in units),
                units=len(units),
                clips_before=sum(len(unit.clips) for unit in done),
                units_before=len(done),
                events=self.events,
                quiet=self.quiet,
            ) as progress,
            self.pool(len(left), door) as pool,
        ):
            door.say = progress.say
            Schedule(
                left,
                unmarked=listing.unmarked,
                tries=self.recipe.precompute.max_restarts,
                progress=progress,
                limit=self.limit,
                rejects_before=len(self.manifest.rejected),
            ).run(pool)
        return open_unfinished(self.store), progress.bottleneck()

    @contextlib.contextmanager
    def pool(self, units: int, door: Callable[[Environment], str]) -> Iterator[Actors]:
        """Ray actors for at most `units` units at once; `door` takes each one's environment."""
        # The handler comes after Ray's start, which sets one of its own.
        with (
            ray_session(self.recipe),
            _sigterm_as_interrupt(),
            Pool(self.recipe, self._actor, units, door) as pool,
        ):
            yield pool

    def _actor(self) -> Any:
        """A handle to a new actor."""
        import ray

        settings = self.recipe.precompute
        actor = ray.remote(self.worker).options(
            num_cpus=1,
            num_gpus=settings.gpus_per_actor,
            max_restarts=settings.max_restarts,
            max_task_retries=0,
        )
        # Handed over as an argument rather than as Ray's runtime environment, which Ray writes to its logs.
        cloud = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return actor.remote(self.recipe, self.store.url, self.give_up, os.getcwd(), cloud)


class _Door:
    """Lets actors in: the first one's versions and device go into dataset.json, all others must agree with it."""

    def __init__(self, run: Run, info: DatasetInfo | None) -> None:
        self.run, self.info = run, info
        self.say: Callable[[str], None] = lambda line: None
        self._said: set[str] = set()

    def __call__(self, here: Environment) -> str:
        """The digest of dataset.json. Raises UsageError where the actor may not work on this output."""
        run = self.run
        if self.info is None:
            info = describe(run.recipe, run.manifest, run.units, here)
            if run.store.put_if_absent(DATASET_JSON, info.to_bytes()):
                self.info = info
            else:  # another driver was faster; what it began must be the same
                self.info = parse_info(run.store.get(DATASET_JSON), f"{run.store.url}/{DATASET_JSON}")
                check_same_plan(run.store.url, self.info, run.recipe, run.manifest)
        mixed = check_same_environment(self.info, here, run.recipe.precompute.allow_mixed)
        if mixed and mixed not in self._said:
            self._said.add(mixed)
            self.say(mixed)
        return self.info.digest


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: actors and a Ray started here are ended, nothing is half-written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
