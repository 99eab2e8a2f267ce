"""From a corpus to a finished dataset on Ray: plan of work units, actors, commit protocol, job."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sage_scale.precompute.job import PrecomputeJob
    from sage_scale.precompute.progress import Summary


def precompute_corpus(
    *,
    corpus: str,
    root: str | Path,
    out: str | Path,
    recipe: str | Path = "demo",
    overrides: Iterable[str] = (),
    overwrite: bool = False,
    give_up: Iterable[str] = (),
    retry_rejects: bool = False,
    extend: bool = False,
    events: Path | None = None,
    address: str = "",
    quiet: bool = False,
) -> Summary:
    """Does the work of `sage-scale precompute` and returns a summary of the dataset.

    `address` joins that Ray cluster unless the recipe names one. Raises UsageError (also for another recipe or
    manifest in `out`), StorageError, TooManyRejects, UnitsOpen.
    """
    job = corpus_job(
        corpus,
        root,
        recipe,
        overrides,
        address=address,
        url=str(out),
        overwrite=overwrite,
        give_up=frozenset(give_up),
        retry_rejects=retry_rejects,
        extend=extend,
        events=events,
        quiet=quiet,
    )
    if job.recipe.vision.extractor != "none":
        from sage_scale.precompute.keypoint_job import extract_missing

        extract_missing(job.recipe, job.manifest, events=events, quiet=quiet)
    return job.execute()


def corpus_job(
    corpus: str,
    root: str | Path,
    recipe: str | Path,
    overrides: Iterable[str],
    *,
    address: str = "",
    **settings: Any,
) -> PrecomputeJob:
    """Returns the job that `precompute_corpus` would execute; `settings` are those of PrecomputeJob."""
    import dataclasses
    import os

    from sage_scale.config import load_recipe
    from sage_scale.corpora.registry import read_corpus
    from sage_scale.precompute.job import PrecomputeJob

    chosen = load_recipe(recipe, overrides)
    # Actors have other working folders, and other machines other homes.
    folder = str(root) if "://" in str(root) else os.path.abspath(os.path.expanduser(root))
    chosen = dataclasses.replace(
        chosen,
        corpus=dataclasses.replace(chosen.corpus, name=corpus, root=folder),
        precompute=dataclasses.replace(chosen.precompute, address=chosen.precompute.address or address),
    )
    return PrecomputeJob(recipe=chosen, manifest=read_corpus(chosen.corpus), **settings)
