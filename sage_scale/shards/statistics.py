"""Statistics of a dataset: clips, frames, hours, segments, lengths, languages, signers."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from sage_scale.shards.dataset import Dataset, read_metadata
from sage_scale.shards.rejects import current_rejects
from sage_scale.text.languages import split_words, unspaced


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """Statistics of one split. A spread has the keys total, mean, p10, p50, p90, max."""

    split: str
    shards: int
    clips: int
    rejects: int
    reasons: dict[str, int]
    """Rejected clips by reason."""
    bytes: int
    """Size of the tars."""
    hours: float
    """Sum of frames / fps over the clips."""
    frames: dict[str, float]
    """Spread of frames a clip at the recipe's rate."""
    segments: dict[str, float]
    """Spread of segments a clip."""
    pseudo_glosses: dict[str, float]
    """Spread of pseudo-glosses a clip."""
    words: dict[str, float]
    """Spread of words a sentence, in languages written with spaces."""
    characters: dict[str, float]
    """Spread of characters a sentence without blanks, in languages written without spaces."""
    token_ratio: float
    """Segments per frame (SAGE: .129)."""
    sentences: int
    """Distinct sentences."""
    without_sentence: int
    """Clips that can be translated, but not trained on."""
    gloss_types: int
    """Distinct pseudo-glosses."""
    languages: dict[str, int]
    """Clips by language."""
    signers: dict[str, int]
    """Clips by signer."""


def statistics(dataset: Dataset, *splits: str) -> list[SplitStatistics]:
    """Returns the statistics of the named splits (default: all), from the index and the samples' descriptions."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for unit, reject in current_rejects(dataset):
        reasons[unit.split][reject.reason] += 1
    return [_of_split(dataset, split, reasons[split]) for split in splits or tuple(dataset.splits)]


def _of_split(dataset: Dataset, split: str, reasons: Counter[str]) -> SplitStatistics:
    table = dataset.samples(split)
    texts = read_metadata(dataset, split)
    units = [unit for unit in dataset.units if unit.split == split]
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for meta in texts:
        lengths[unspaced(meta["language"])].append(len(split_words(meta["sentence"], meta["language"])))
    frames, segments = _spread(table.frames), _spread(table.segments)
    return SplitStatistics(
        split=split,
        shards=len(units),
        clips=len(table),
        rejects=reasons.total(),
        reasons=dict(reasons.most_common()),
        bytes=sum(unit.bytes for unit in units),
        hours=round(sum(meta["frames"] / meta["fps"] for meta in texts) / 3600, 4),
        frames=frames,
        segments=segments,
        pseudo_glosses=_spread(table.glosses),
        words=_spread(lengths[False]),
        characters=_spread(lengths[True]),
        token_ratio=round(segments["total"] / frames["total"], 4) if frames["total"] else 0.0,
        sentences=len({meta["sentence"] for meta in texts if meta["sentence"]}),
        without_sentence=sum(not meta["sentence"] for meta in texts),
        gloss_types=len({gloss for meta in texts for gloss in meta["pseudo_glosses"]}),
        languages=_counts(meta["language"] for meta in texts),
        signers=_counts(meta["signer"] for meta in texts),
    )


def _spread(values: Any) -> dict[str, float]:
    array = np.asarray(values, float)
    if not len(array):
        return dict.fromkeys(("total", "mean", "p10", "p50", "p90", "max"), 0.0)
    low, middle, high = np.percentile(array, [10, 50, 90])
    return {
        "total": float(array.sum()),
        "mean": round(float(array.mean()), 2),
        "p10": round(float(low), 2),
        "p50": round(float(middle), 2),
        "p90": round(float(high), 2),
        "max": float(array.max()),
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())
