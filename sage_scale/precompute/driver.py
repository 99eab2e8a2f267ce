"""The driver: from a manifest and a recipe to a finished dataset, however often it is killed and started again.

A finished output is recognised by one GET of index.json, an unfinished one is taken up after one bare listing. New
clips (`extend`) and second tries of rejected ones are units behind the planned ones (additions.py). Units in flight are
bounded by the number of actors. A unit whose actor died, ran out of memory or met storage trouble is tried again; one
clip that was in work at two deaths of its unit is run with nothing beside it, and if that fails too its unit stays open
and the run ends by naming unit and clip. Nothing but a clip's own bytes, or `--give-up`, rejects.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Manifest, is_expected
from sage_scale.errors import RecipeError, StorageError, UsageError
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.additions import (
    plan_extension,
    plan_retry,
    store_addition,
    stored_additions,
    units_of,
)
from sage_scale.precompute.commit import erase
from sage_scale.precompute.description import (
    Environment,
    check_same_choice,
    check_same_environment,
    check_same_manifest,
    check_same_recipe,
    describe,
)
from sage_scale.precompute.metrics import RayMetrics
from sage_scale.precompute.plan import Limits, Unit, plan_units, without_repeats
from sage_scale.precompute.pool import Pool, ray_session
from sage_scale.precompute.progress import Progress
from sage_scale.precompute.schedule import Actors, RejectLimit, Schedule
from sage_scale.precompute.summary import Summary
from sage_scale.segmentation.precomputed import check_labels
from sage_scale.shards import Dataset, UnitListing, finish_dataset, list_units, restore_marker
from sage_scale.shards.addition_plan import AdditionPlan
from sage_scale.shards.dataset import holds_manifest, open_finished, open_unfinished
from sage_scale.shards.layout import DATASET_JSON, REMOVED, DatasetInfo, parse_info
from sage_scale.shards.rejects import count_current_rejects, current_rejects, removed_keys
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.text.pseudogloss import check_tagger
from sage_scale.untrusted.printer import tell
from sage_scale.vision.backbone_choice import BACKBONES, NETWORKS, check_weights, check_width


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
    extend: bool = False
    """Add the manifest's new clips to an output of another manifest, in new shards."""
    events: Path | None = None
    """File to which JSON events are appended."""
    quiet: bool = False
    """No progress."""
    worker: type[UnitWorker] = UnitWorker
    """Class of the actors."""

    def __post_init__(self) -> None:
        shards, vision = self.recipe.shards, self.recipe.vision
        self.manifest = without_repeats(self.manifest)
        if self.overwrite and (self.extend or self.retry_rejects):
            added = "--extend" if self.extend else "--retry-rejects"
            raise UsageError(f"--overwrite deletes the output that {added} would add to: give one of the two")
        if vision.kind == "features" and vision.backbone in BACKBONES:
            check_width(self.recipe)
        # Where a node has its own file system only its actors can look for the weights.
        if vision.kind == "features" and vision.backbone in NETWORKS and not self.recipe.precompute.address:
            check_weights(vision)
        elif vision.kind == "features" and vision.backbone not in BACKBONES:
            from sage_scale.precompute.run_backbone import check_run

            if not self.recipe.precompute.address:
                check_run(self.recipe)
        self.store: Store = open_store(self.url)
        self.limits = Limits(clips=shards.clips_per_unit, frames=shards.frames_per_unit, fps=vision.fps)
        self.units = plan_units(self.manifest, self.limits)
        self.limit = self._limit_over(self.manifest)
        check_labels(self.recipe, self.manifest, self.limit.exceeded)
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
        rejects = count_current_rejects(dataset.units, len(dataset.info.units), dataset.additions)
        clips = sum(unit.samples for unit in dataset.units)
        reasons: Counter[str] = Counter()
        if rejects and dataset.additions:  # a clip that was tried again counts by its last outcome
            reasons.update(reject.reason for _, reject in current_rejects(dataset))
        else:
            for unit in dataset.units:
                reasons.update(unit.reasons)
        removed = 0
        if reasons.pop(REMOVED, 0):  # more than one shard may tell of the same clip
            taken = removed_keys(self.store)
            removed = sum(clip.key in taken for clip in self.manifest.clips)
        limit = self.limit
        if dataset.info.manifest != self.manifest.digest():  # judged by all that was ever asked for
            expected = sum(count for reason, count in reasons.items() if is_expected(reason))
            limit = RejectLimit(limit.rate, clips + rejects - min(expected, rejects), min(expected, rejects))
        if clips == 0 or limit.exceeded(rejects):
            raise limit.error(rejects, reasons, self._first_reject(dataset))
        if not dataset.finished:
            dataset = finish_dataset(self.store)
        given_up = [clip for clip in self.manifest.clips if clip.id in self.give_up]
        stored = set(dataset.records["key"].tolist()) if given_up else set()
        return Summary(
            url=self.store.url,
            clips=clips,
            kept=tuple(clip.id for clip in given_up if int(clip.key, 16) in stored),
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
        """The dataset with every unit done that this manifest's clips are in, and the seconds by stage."""
        url, ours = self.store.url, self.manifest.digest()
        finished = open_finished(self.store)
        info = finished.info if finished is not None else self._begun()
        if self.overwrite and (finished is not None or (info is not None and not self._is_ours(info))):
            erase(self.store)
            finished = info = None
        if info is not None:
            check_same_recipe(url, info, self.recipe)
        if finished is not None and holds_manifest(finished, ours):
            return finished, ""
        if self.overwrite and info is not None and not self.quiet:
            tell(f"{url} holds an unfinished dataset of this recipe and manifest: going on with it")
        try:
            self.store.check_writable()
        except StorageError as error:
            raise UsageError(str(error)) from None
        listing = list_units(self.store)
        if info is None:
            if listing.tar_bytes:
                if not self.overwrite:
                    raise UsageError(
                        f"{url} holds shards but no {DATASET_JSON}: use another --out, or --overwrite to delete them"
                    )
                listing = erase(self.store)
            return self._do(self.units, listing, None)
        additions = stored_additions(self.store, listing)
        self._tell_of_unfinished(additions, listing)
        if info.manifest == ours:
            return self._do([*self.units, *self._units_of(additions)], listing, info)
        if not any(addition.manifest == ours for addition in additions):
            if not self.extend:
                check_same_manifest(url, info, self.recipe, self.manifest)
            check_same_choice(url, info, self.recipe)
        return self._extend(info, listing)

    def _extend(self, info: DatasetInfo, listing: UnitListing) -> tuple[Dataset, str]:
        """Add the clips of which no shard tells; goes on with an extension that was cut off."""
        missing = sorted(set(range(len(info.units))) - listing.generation.keys())
        if missing:
            raise UsageError(
                f"{self.store.url} cannot be extended before it is whole: {len(missing)} of {len(info.units)} units "
                f"are open (first {missing[0]:06d}); run the command that began it again, with the corpus as it was "
                "then, or --overwrite to start again with all clips"
            )
        for unit in sorted(listing.unmarked):
            restore_marker(self.store, unit)
        ours = self.manifest.digest()
        while True:
            listing = list_units(self.store)
            additions = stored_additions(self.store, listing)
            if any(addition.manifest == ours for addition in additions):
                break
            dataset = open_unfinished(self.store)
            plan = plan_extension(self.manifest, self.limits, dataset, listing, additions)
            # Where another driver was faster with this number, its clips are to be known first.
            store_addition(self.store, plan, len(additions) + 1)
        units = self._units_of(additions)
        dataset, stages = self._do(units, listing, info)
        return (dataset if dataset.finished else finish_dataset(self.store)), stages

    def _retry(self, dataset: Dataset) -> tuple[Dataset, str]:
        """Try the clips that are rejected as things stand once more; goes on with a retry that was cut off."""
        listing = list_units(self.store)
        additions = stored_additions(self.store, listing)
        units = self._units_of(additions)
        if all(unit.number in listing.done for unit in units):
            if not dataset.finished or listing.superseded:
                dataset = open_unfinished(self.store)
            taken_out = removed_keys(self.store)
            plan = plan_retry(self.manifest, self.limits, dataset, listing, additions, taken_out)
            if plan is None:
                return dataset, ""
            store_addition(self.store, plan, len(additions) + 1)
            listing = list_units(self.store)
            units = self._units_of(stored_additions(self.store, listing))
        base = self.units if dataset.info.manifest == self.manifest.digest() else ()
        return self._do([*base, *units], listing, dataset.info)

    def _tell_of_unfinished(self, additions: Sequence[AdditionPlan], listing: UnitListing) -> None:
        """Print a line for an addition that another command began and this one ends as well."""
        for addition in additions:
            ours = addition.manifest == self.manifest.digest() or (
                self.retry_rejects and not addition.manifest
            )
            numbers = [number for number in addition.addition.units if number not in listing.done]
            if ours or not numbers or self.quiet:
                continue
            here = {unit.number for unit in self._units_of([addition])}
            cannot = sum(number not in here for number in numbers)
            left = f"; {cannot} of them hold clips that this corpus lacks and stay open" if cannot else ""
            tell(
                f"{self.store.url} holds an unfinished {'--extend' if addition.manifest else '--retry-rejects'}: its "
                f"{len(numbers)} open units are done as well{left}"
            )

    def _units_of(self, additions: Sequence[AdditionPlan]) -> list[Unit]:
        """Units of additions, as far as this manifest has their clips."""
        clips = {clip.id: clip for clip in self.manifest.clips}
        return [unit for addition in additions for unit in units_of(addition, clips)]

    def _limit_over(self, manifest: Manifest) -> RejectLimit:
        expected = sum(row.expected for row in manifest.rejected)
        rows = len(manifest.clips) + len(manifest.rejected) - expected
        return RejectLimit(self.recipe.shards.max_reject_rate, rows, expected)

    def _first_reject(self, dataset: Dataset) -> str:
        for _, reject in current_rejects(dataset):
            if reject.reason != REMOVED:
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
        self._check_before_ray(left)
        door = self.door(info)
        with (
            Progress(
                clips=sum(len(unit.clips) for unit in units),
                units=len(units),
                clips_before=sum(len(unit.clips) for unit in done),
                units_before=len(done),
                events=self.events,
                quiet=self.quiet,
                price_per_cpu_hour=self.recipe.precompute.price_per_cpu_hour,
            ) as progress,
            self.pool(len(left), door) as pool,
        ):
            door.say = progress.say
            progress.metrics = self.metrics()
            Schedule(
                left,
                unmarked=listing.unmarked,
                tries=self.recipe.precompute.max_restarts,
                progress=progress,
                limit=self.limit,
                rejects_before=len(self.manifest.rejected),
            ).run(pool)
        return open_unfinished(self.store), progress.bottleneck()

    def _check_before_ray(self, units: Sequence[Unit]) -> None:
        """Raise what each actor would, as far as it can be seen from here, before Ray is started or anything written.

        On a cluster the nodes have files and packages of their own; there each actor looks itself (`UnitWorker.hello`).
        """
        self._check_languages(units)
        if not self.recipe.precompute.address:
            check_tagger(self.recipe.corpus.language, self.recipe.text)
            self._check_weights()

    def _check_weights(self) -> None:
        vision = self.recipe.vision
        if vision.kind != "features" or vision.backbone == "keypoints":
            return
        if vision.backbone not in BACKBONES:
            from sage_scale.precompute.run_backbone import read_run

            read_run(vision.backbone)
        elif (weights := check_weights(vision)) is not None:
            from sage_scale.vision.pretrained_weights import read_state_dict

            read_state_dict(weights)

    def _check_languages(self, units: Sequence[Unit]) -> None:
        """Raise UsageError for a language that no tagger knows, before hours are spent on the clips before it."""
        clips = [clip for unit in units for clip in unit.clips if clip.id not in self.give_up]
        for language in sorted({clip.language for clip in clips} - {self.recipe.corpus.language}):
            try:
                check_tagger(language, self.recipe.text)
            except RecipeError as error:
                these = [clip.id for clip in clips if clip.language == language]
                raise UsageError(
                    f"{len(these):,} of {len(clips):,} clips are in '{language}', the first '{these[0]}': {error}; or "
                    "give their right language"
                ) from None

    def door(self, info: DatasetInfo | None) -> _Door:
        """What each actor passes before its first unit; `info` is dataset.json, None where it is yet to be written."""
        return _Door(self, info)

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

    def metrics(self) -> RayMetrics | None:
        """Where the run's figures go beside progress."""
        return RayMetrics(self.store.url)

    def _actor(self, memory_mb: int) -> Any:
        """A handle to a new actor that may use so much memory."""
        import ray

        settings = self.recipe.precompute
        actor = ray.remote(self.worker).options(
            num_cpus=1,
            num_gpus=settings.gpus_per_actor,
            memory=memory_mb * 2**20,
            max_restarts=settings.max_restarts,
            max_task_retries=0,
        )
        # Handed over as an argument rather than as Ray's runtime environment, which Ray writes to its logs.
        cloud = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        try:
            folder = os.getcwd()
        except (
            FileNotFoundError
        ):  # Ray has removed the working folder of a submitted job; all paths are absolute
            folder = ""
        return actor.remote(self.recipe, self.store.url, self.give_up, folder, cloud, memory_mb)


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
                check_same_recipe(run.store.url, self.info, run.recipe)
                check_same_manifest(run.store.url, self.info, run.recipe, run.manifest)
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
