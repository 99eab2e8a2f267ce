"""`sage-scale precompute --check`: what a job would meet before its first unit, without Ray and without a trace.

It is what a container runs before a cluster is paid for: recipe, corpus, label files, taggers, weights, the output's
dataset, and the store itself, with a real conditional PUT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from sage_scale.config import Recipe
from sage_scale.errors import SageError, UsageError
from sage_scale.extraction.extractor import open_extractor
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.shards import list_units
from sage_scale.shards.addition_plan import load_additions
from sage_scale.shards.dataset import holds_manifest


def preflight(make: Callable[[], PrecomputeJob]) -> Iterator[str]:
    """Yields a line on each part of the job that is in order; `make` returns the job.

    Raises what would end the job before its first unit: TooManyRejects, else UsageError, also for a store that refuses
    or does not answer, and for damaged weights. An object is stored and deleted again.
    """
    try:
        yield from _lines(make())
    except SageError as error:
        if error.exit_code != 1:
            raise
        raise UsageError(str(error)) from None


def _lines(job: PrecomputeJob) -> Iterator[str]:
    recipe, manifest, limit = job.recipe, job.manifest, job.limit
    yield f"recipe {recipe.name}: {_content(recipe)}, fingerprint {recipe.dataset_fingerprint()}"
    if not manifest.clips or limit.exceeded(len(manifest.rejected)):
        first = next((f"'{row.id}': {row.reason} ({row.detail})" for row in manifest.rejected), "")
        raise limit.error(len(manifest.rejected), Counter(row.reason for row in manifest.rejected), first)
    splits = Counter(clip.split for clip in manifest.clips)
    counts = ", ".join(f"{count:,} {split}" for split, count in splits.items())
    yield (
        f"corpus {recipe.corpus.name}: {len(manifest.clips):,} clips ({counts}) in {len(job.units):,} units, "
        f"{len(manifest.rejected):,} rows rejected"
    )
    if recipe.vision.extractor == "mediapipe" and not recipe.precompute.address:
        open_extractor(recipe.vision)
    yield f"output {job.store.url}: {_output(job)}"


def _content(recipe: Recipe) -> str:
    stored = f"features of {recipe.vision.backbone}" if recipe.vision.kind == "features" else "frames"
    return f"{stored}, segments by {recipe.segmentation.tagger}"


def _output(job: PrecomputeJob) -> str:
    """Returns what the output holds, and what its store can do."""
    found = job.found()
    ours = job.manifest.digest()
    if found.finished is not None and holds_manifest(found.finished, ours) and not job.retry_rejects:
        return "finished, nothing to do"
    listing = list_units(job.store)
    left = [unit for unit in job.units if found.replaced or unit.number not in listing.done]
    if found.replaced:
        state = f"{len(listing.tar_bytes):,} shards of the dataset there will be deleted"
    else:
        additions = load_additions(job.store, listing.additions) if found.info is not None else []
        job.check_listed(found.info, listing, additions)
        state = "new" if found.info is None else f"begun, {len(listing.done):,} units stored"
    job.check_before_ray(left)
    job.store.check_writable()
    kept = job.store.try_conditional_put()
    if kept and job.overwrite:
        raise UsageError(
            f"{job.store.url}: {kept} was stored and may not be deleted, as --overwrite deletes (s3:DeleteObject)"
        )
    more = (
        f", {kept} may not be deleted (nothing but --overwrite and `shards remove` deletes)" if kept else ""
    )
    return f"{state}; objects can be stored and read, a conditional PUT keeps the first{more}"
