"""Scores stage 1 of a run against gold signs (`evaluation.sign_alignment`), a split's clips divided over the ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, NoModel, StorageError, UsageError
from sage_scale.evaluation.sign_alignment import AlignmentCounts, clip_counts
from sage_scale.registry import model_spec
from sage_scale.segmentation.evaluation import annotation
from sage_scale.segmentation.intervals import SignIntervals, read_table, read_video_file
from sage_scale.segmentation.precomputed import file_of
from sage_scale.shards import Dataset
from sage_scale.training import distributed
from sage_scale.training.decode import split_batches
from sage_scale.training.distributed import Ranks
from sage_scale.untrusted.display import shortened

FILES = (".json", ".eaf")
_START = re.compile(r"#t=([0-9.]+)")

Gold = Callable[[Mapping[str, Any]], SignIntervals | None]
"""From a clip's description to the signs of its video."""


def open_gold(place: str | Path) -> Gold:
    """Returns the reader of an annotation: the root of a synthetic corpus, a folder of .json or .eaf, a .csv or .jsonl.

    Raises UsageError where there is none.
    """
    path = annotation(place)
    if path.is_dir():
        return lambda meta: _of_file(path, meta)
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(
            f"--gold {shortened(path, 300)}: a folder of .json or .eaf files is needed, or a table (.csv, .jsonl)"
        )
    table = read_table(path)
    return lambda meta: table.get(meta["id"])


def alignment_scores(
    run: Path, recipe: Recipe, datasets: Sequence[Dataset], split: str, ranks: Ranks, gold: Gold
) -> dict[str, float]:
    """Returns accuracy and chance of a split in percent with their counts, on every rank (a collective).

    Raises NoModel where the model or the run has no stage 1 of visual tokens, UsageError where no clip has gold signs.
    """
    spec = model_spec(recipe.model.kind)
    if spec.gloss_similarity is None:
        raise NoModel(f"{spec.title} has no similarity of visual tokens and pseudo-glosses")
    similarity = spec.part("gloss_similarity")(run, recipe, ranks.device)
    counts = AlignmentCounts()
    for batch in split_batches(recipe, datasets, split, ranks):
        for meta, segments_N2, similarity_NG in zip(
            batch.metas, batch.segments, similarity(batch), strict=True
        ):
            if (signs := gold(meta)) is not None and signs.signs:
                start_s = float(found[1]) if (found := _START.search(meta["source"])) else 0.0
                times_S2 = np.array([sign[:2] for sign in signs.signs], np.float64) - start_s
                glosses = [sign.text for sign in signs.signs]
                counts += clip_counts(
                    similarity_NG, meta["pseudo_glosses"], segments_N2, times_S2 * meta["fps"], glosses
                )
    total = AlignmentCounts()
    for part in distributed.gather_objects([counts]):
        total += part[0]
    if not total.clips:
        raise UsageError(f"--gold has no signs of any clip of the split '{split}'")
    return total.scores()


def _of_file(folder: Path, meta: Mapping[str, Any]) -> SignIntervals | None:
    """Returns the signs of a clip's file; None where there is none, or where it is unreadable."""
    video = str(meta["source"]).partition("#")[0]
    file = file_of(folder, Clip(id=meta["id"], video=video, split=meta["split"]), FILES)
    try:
        return None if file is None else read_video_file(file)
    except ClipRejected:
        return None
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}") from None
