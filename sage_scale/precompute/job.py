"""The precompute job: from a manifest and a recipe to a finished dataset, however often it is killed and repeated.

A finished output is recognised by a GET of index.json and a HEAD, an unfinished one is continued after one listing.
New clips (`extend`) and retried rejects are units behind the planned ones. Only a clip's own bytes, or `--give-up`,
reject it: failures of machine and storage are retried or leave units open (schedule.py).
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import RecipeError, StorageError, UsageError, is_expected
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.environment import (
    Environment,
    EnvironmentCheck,
    check_same_choice,
    check_same_manifest,
    check_same_recipe,
)
from sage_scale.precompute.frozen_backbone import check_backbone, read_backbone_weights
from sage_scale.precompute.plan import (
    Limits,
    Unit,
    plan_extension,
    plan_retry,
    plan_units,
    units_of,
    with_later_tries,
    without_repeats,
)
from sage_scale.precompute.pool import new_actor, ray_actors
from sage_scale.precompute.progress import JobProgress, RayMetrics, Summary
from sage_scale.precompute.schedule import Actors, RejectLimit, Schedule
from sage_scale.segmentation.choice import check_segmenter, decide, with_tagger
from sage_scale.segmentation.precomputed import check_labels
from sage_scale.segmentation.tagger import segmenter_fingerprint
from sage_scale.shards import Dataset, UnitListing, delete_dataset, finish_dataset, list_units
from sage_scale.shards.addition_plan import AdditionPlan, load_additions
from sage_scale.shards.dataset import (
    generations,
    holds_manifest,
    open_finished,
    open_unfinished,
    unfinished_units,
)
from sage_scale.shards.layout import DATASET_JSON, REMOVED, DatasetInfo, addition_name, parse_info
from sage_scale.shards.publish import is_current, restore_markers
from sage_scale.shards.rejects import count_current_rejects, current_rejects, removed_keys
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.text.pseudogloss import check_tagger
from sage_scale.untrusted.printer import tell


@dataclass(frozen=True, kw_only=True)
class Found:
    """The dataset in an output before a job."""

    info: DatasetInfo | None = None
    """dataset.json; None for a new output."""
    finished: Dataset | None = None
    replaced: bool = False
    """Another dataset is there, which --overwrite deletes."""


@dataclass(kw_only=True)
class PrecomputeJob:
    """Makes one dataset."""

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
        shards = self.recipe.shards
        self.manifest = without_repeats(self.manifest)
        if self.overwrite and (self.extend or self.retry_rejects):
            added = "--extend" if self.extend else "--retry-rejects"
            raise UsageError(f"--overwrite deletes the output that {added} would add to: give one of the two")
        self.recipe = check_backbone(self.recipe)
        self.store: Store = open_store(self.url)
        self.limits = Limits(
            clips=shards.clips_per_unit, frames=shards.frames_per_unit, fps=self.recipe.vision.fps
        )
        self.units = plan_units(self.manifest, self.limits)
        expected = sum(row.expected for row in self.manifest.rejected)
        rows = len(self.manifest.clips) + len(self.manifest.rejected) - expected
        self.limit = RejectLimit(shards.max_reject_rate, rows, expected)
        self._decide_tagger()
        check_labels(self.recipe, self.manifest, self.limit.exceeded)
        unknown = sorted(self.give_up - {clip.id for clip in self.manifest.clips})
        if unknown:
            raise UsageError(f"--give-up {unknown[0]}: no clip of that id in the manifest")

    def _decide_tagger(self) -> None:
        """Set `segmentation.tagger=auto` to the tagger of the output, or decide it for a new one, with a line."""
        if self.recipe.segmentation.tagger != "auto":
            return
        reason = f"as {self.store.url} was begun"
        tagger = "" if self.overwrite else self._stored_tagger()
        if not tagger:
            tagger, reason = decide(self.recipe, self.manifest, self.limit.exceeded)
        self.recipe = with_tagger(self.recipe, tagger)
        if not self.quiet:
            tell(f"segmentation.tagger=auto is {tagger}: {reason}")

    def _stored_tagger(self) -> str:
        """Returns the tagger that the output was begun with; empty for a new output."""
        try:
            info = parse_info(self.store.get(DATASET_JSON), f"{self.store.url}/{DATASET_JSON}")
        except NotFound:
            return ""
        segmentation = info.recipe_part.get("segmentation", {})
        return str(segmentation.get("tagger", ""))

    def execute(self) -> Summary:
        """Make the missing units. Raises UsageError for another recipe or manifest, UnitsOpen, TooManyRejects."""
        begun = time.monotonic()
        dataset, stages = self._make_planned()
        if self.retry_rejects:
            dataset, retried = self._retry(dataset)
            stages = retried or stages
        rejects = count_current_rejects(dataset.units, len(dataset.info.units), dataset.additions)
        clips = sum(unit.samples for unit in dataset.units)
        reasons: Counter[str] = Counter()
        if rejects and dataset.additions:  # a clip that was tried again counts by its last outcome
            reasons.update(reject.reason for _, reject in current_rejects(dataset))
        else:
            for unit in dataset.units:
                reasons.update(unit.reasons)
        removed = 0
        if reasons.pop(REMOVED, 0):  # more than one shard may record the same clip
            taken = removed_keys(self.store)
            removed = sum(clip.key in taken for clip in self.manifest.clips)
        limit = self.limit
        if dataset.info.manifest != self.manifest.digest():  # judged by all clips that were ever asked for
            expected = min(rejects, sum(count for reason, count in reasons.items() if is_expected(reason)))
            limit = RejectLimit(limit.rate, clips + rejects - expected, expected)
        if clips == 0 or limit.exceeded(rejects):
            raise limit.error(rejects, reasons, _first_reject(dataset))
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

    def found(self) -> Found:
        """Returns the dataset in the output, as one GET or two tell. Raises UsageError for one of another recipe."""
        url = self.store.url
        finished = open_finished(self.store)
        info = finished.info if finished is not None else None
        if finished is None:
            with contextlib.suppress(NotFound):
                info = parse_info(self.store.get(DATASET_JSON), f"{url}/{DATASET_JSON}")
        # --overwrite repeated after a kill continues an unfinished output of the same recipe and manifest.
        ours = (self.recipe.dataset_fingerprint(), self.manifest.digest())
        same = info is not None and (info.recipe, info.manifest) == ours
        if self.overwrite and (finished is not None or (info is not None and not same)):
            return Found(replaced=True)
        if info is not None:
            check_same_recipe(url, info, self.recipe)
        return Found(info=info, finished=finished)

    def check_listed(
        self, info: DatasetInfo | None, listing: UnitListing, additions: Sequence[AdditionPlan]
    ) -> None:
        """Raises UsageError where this job may not add to the listed output; `info` is None for a new one."""
        url, ours = self.store.url, self.manifest.digest()
        if info is None:
            if listing.tar_bytes and not self.overwrite:
                raise UsageError(
                    f"{url} holds shards but no {DATASET_JSON}: use another --out, or --overwrite to delete them"
                )
            return
        if info.manifest == ours:
            return
        if not any(addition.manifest == ours for addition in additions):
            if not self.extend:
                check_same_manifest(url, info, self.recipe, self.manifest)
            check_same_choice(url, info, self.recipe)
        missing = sorted(set(range(len(info.units))) - listing.generation.keys())
        if missing:
            raise UsageError(
                f"{url} cannot be extended before it is whole: {len(missing)} of {len(info.units)} units "
                f"are open (first {missing[0]:06d}); run the command that began it again, with the corpus as it was "
                "then, or --overwrite to start again with all clips"
            )

    def _make_planned(self) -> tuple[Dataset, str]:
        """Make all units with this manifest's clips. Returns the dataset and the seconds by stage."""
        url, ours = self.store.url, self.manifest.digest()
        found = self.found()
        info, finished = found.info, found.finished
        if found.replaced:
            delete_dataset(self.store)
        if finished is not None and holds_manifest(finished, ours) and is_current(finished):
            return finished, ""
        if self.overwrite and info is not None and not self.quiet:
            tell(f"{url} holds an unfinished dataset of this recipe and manifest: it is continued")
        try:
            self.store.check_writable()
        except StorageError as error:
            raise UsageError(str(error)) from None
        listing = list_units(self.store)
        additions = load_additions(self.store, listing.additions) if info is not None else ()
        self.check_listed(info, listing, additions)
        if info is None:
            if listing.tar_bytes:
                listing = delete_dataset(self.store)
            return self._make(self.units, listing, None)
        self._tell_of_unfinished(additions, listing)
        if info.manifest == ours:
            return self._make(self._units_of(additions, self.units), listing, info)
        return self._extend(info, listing)

    def _extend(self, info: DatasetInfo, listing: UnitListing) -> tuple[Dataset, str]:
        """Add the clips that are in no shard; continues an extension that was cut off."""
        ours = self.manifest.digest()
        while True:
            restore_markers(self.store, listing.unmarked)
            listing = list_units(self.store)
            additions = load_additions(self.store, listing.additions)
            if any(addition.manifest == ours for addition in additions):
                break
            self.check_listed(info, listing, additions)
            dataset = open_unfinished(self.store)
            if unfinished_units(dataset):  # a shard is being rewritten: its clips would count as new
                continue
            plan = plan_extension(self.manifest, self.limits, dataset, listing, additions)
            # If another driver stored this number first, its clips must be known before the next plan.
            self.store.put_if_absent(addition_name(len(additions) + 1), plan.to_bytes())
        dataset, stages = self._make(self._units_of(additions), listing, info)
        return (dataset if dataset.finished else finish_dataset(self.store)), stages

    def _retry(self, dataset: Dataset) -> tuple[Dataset, str]:
        """Try the clips that are rejected now once more; continues a retry that was cut off."""
        base = self.units if dataset.info.manifest == self.manifest.digest() else ()
        while True:
            listing = list_units(self.store)
            additions = load_additions(self.store, listing.additions)
            units = self._units_of(additions, base)
            if not all(unit.number in listing.done for unit in units):
                return self._make(units, listing, dataset.info)
            if generations(dataset) != {unit: listing.generation[unit] for unit in listing.done}:
                # A plan goes by all shards: a clip whose second try is in a shard that is away counts as rejected.
                dataset = open_unfinished(self.store)
                continue
            removed = removed_keys(self.store)
            plan = plan_retry(self.manifest, self.limits, dataset, listing, additions, removed)
            if plan is None:
                return dataset, ""
            # If another driver stored this number first, its units must be done before the next plan.
            self.store.put_if_absent(addition_name(len(additions) + 1), plan.to_bytes())

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

    def _units_of(self, additions: Sequence[AdditionPlan], planned: Sequence[Unit] = ()) -> list[Unit]:
        """Returns the planned units, and those of additions whose clips are in this manifest."""
        clips = {clip.id: clip for clip in self.manifest.clips}
        added = (unit for addition in additions for unit in units_of(addition, clips))
        return with_later_tries([*planned, *added], additions)

    def _make(
        self, units: Sequence[Unit], listing: UnitListing, info: DatasetInfo | None
    ) -> tuple[Dataset, str]:
        """Make the units that are not done. Returns the dataset and the seconds by stage."""
        left = [unit for unit in units if unit.number not in listing.done]
        if not left:
            return open_unfinished(self.store), ""
        done = [unit for unit in units if unit.number in listing.done]
        self.check_before_ray(left)
        check = self.environment_check(info)
        with (
            JobProgress(
                clips=sum(len(unit.clips) for unit in units),
                units=len(units),
                clips_before=sum(len(unit.clips) for unit in done),
                units_before=len(done),
                events=self.events,
                quiet=self.quiet,
                price_per_cpu_hour=self.recipe.precompute.price_per_cpu_hour,
            ) as progress,
            self.pool(len(left), check) as pool,
        ):
            check.say = progress.say
            progress.metrics = self.metrics()
            Schedule(
                left,
                unmarked=listing.unmarked,
                tries=self.recipe.precompute.max_restarts,
                progress=progress,
                limit=self.limit,
                rejects_before=len(self.manifest.rejected),
            ).run(pool)
        return open_unfinished(self.store), progress.stage_seconds()

    def check_before_ray(self, units: Sequence[Unit]) -> None:
        """Raise the errors of actors that can be found before Ray is started or anything written.

        On a cluster the nodes have files and packages of their own; there each actor checks (`UnitWorker.environment`).
        """
        text = self.recipe.text
        clips = [clip for unit in units for clip in unit.clips if clip.id not in self.give_up]
        for language in sorted({clip.language for clip in clips} - {self.recipe.corpus.language}):
            try:
                check_tagger(language, text)
            except RecipeError as error:
                these = [clip.id for clip in clips if clip.language == language]
                raise UsageError(
                    f"{len(these):,} of {len(clips):,} clips are in '{language}', the first '{these[0]}': {error}; or "
                    "give their right language"
                ) from None
        check_segmenter(self.recipe, clips, self.limit.exceeded)
        if not self.recipe.precompute.address:
            check_tagger(self.recipe.corpus.language, text)
            read_backbone_weights(self.recipe.vision)
            segmenter_fingerprint(self.recipe.segmentation)

    def environment_check(self, info: DatasetInfo | None) -> EnvironmentCheck:
        """Returns the check of each actor's environment; `info` is dataset.json, None where it is yet to be written."""
        return EnvironmentCheck(self.store, self.recipe, self.manifest, self.units, info)

    @contextlib.contextmanager
    def pool(self, units: int, check: Callable[[Environment], str]) -> Iterator[Actors]:
        """Yields Ray actors for at most `units` units at once; `check` takes each one's environment."""
        with ray_actors(self.recipe, self.actor, units, check) as pool:
            yield pool

    def metrics(self) -> RayMetrics | None:
        """Returns the metrics that the job's figures go to beside progress."""
        return RayMetrics(self.store.url)

    def actor(self, memory_mb: int) -> Any:
        """Returns a handle to a new Ray actor with that memory budget."""
        return new_actor(self.worker, self.recipe, self.store.url, self.give_up, memory_mb)


def _first_reject(dataset: Dataset) -> str:
    for _, reject in current_rejects(dataset):
        if reject.reason != REMOVED:
            return f"clip '{reject.id}': {reject.reason}" + (f" ({reject.detail})" if reject.detail else "")
    return ""
